#!/usr/bin/env bash
# Make the secrets of compose.yaml, once; none is ever in the repository: `secrets.sh HOST POSTGRES CLIENT SPARK`.
#   HOST      the name by which PostgreSQL is reached; its certificate is for this name only
#   POSTGRES  folder for the server: its key and certificate, its users' passwords
#   CLIENT    folder for the server's clients: the authority's certificate, a libpq password file
#   SPARK     folder for Spark's processes: the secret of their cluster
# As root it gives the files to POSTGRES_OWNER and LEPTON_OWNER. The authority's key is not kept: a new certificate means a
# new authority, and this script on empty folders.
set -euo pipefail
host=$1 postgres=$2 client=$3 spark=$4
databases=(lepton airflow)
days=825

if [ -e "$spark/cluster.secret" ]; then
  echo "The secrets are there already."
  exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 077

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days "$days" \
  -keyout "$work/authority.key" -out "$work/authority.crt" -config - 2>/dev/null <<'CONFIG'
[req]
prompt = no
distinguished_name = name
x509_extensions = authority
[name]
CN = Lepton demo authority
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
CONFIG

cat >"$work/server.cnf" <<CONFIG
[req]
prompt = no
distinguished_name = name
[name]
CN = $host
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:$host
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
CONFIG
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
  -keyout "$work/server.key" -out "$work/server.csr" -config "$work/server.cnf" 2>/dev/null
openssl x509 -req -in "$work/server.csr" -days "$days" -set_serial "0x$(openssl rand -hex 16)" \
  -CA "$work/authority.crt" -CAkey "$work/authority.key" \
  -extfile "$work/server.cnf" -extensions server -out "$work/server.crt" 2>/dev/null

mkdir -p "$postgres" "$client" "$spark"
cp "$work/server.key" "$work/server.crt" "$postgres/"
openssl rand -hex 32 >"$postgres/superuser.password"
: >"$work/pgpass"
for database in "${databases[@]}"; do
  # Each database has a user of its own name.
  openssl rand -hex 32 >"$postgres/$database.password"
  echo "$host:5432:$database:$database:$(<"$postgres/$database.password")" >>"$work/pgpass"
done
cp "$work/authority.crt" "$work/pgpass" "$client/"
openssl rand -hex 32 >"$spark/.cluster.secret"

if [ "$(id -u)" = 0 ]; then
  chown -R "${POSTGRES_OWNER:?}" "$postgres"
  chown -R "${LEPTON_OWNER:?}" "$client" "$spark"
fi
# Last, as it says that all the others are there.
mv "$spark/.cluster.secret" "$spark/cluster.secret"
echo "The secrets are made; the certificate of $host is good for $days days."
