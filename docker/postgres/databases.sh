#!/usr/bin/env bash
# Make Lepton's audit database and Airflow's, each with a user of the same name. The image of PostgreSQL runs this script once,
# when it makes its cluster. The passwords come from files and are in no argument.
set -euo pipefail
for name in lepton airflow; do
  psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
    --set name="$name" --set file="${PASSWORDS:?}/$name.password" <<'SQL'
\set password `cat :'file'`
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
