#!/usr/bin/env bash
# Install what cannot come from PyPI, if it is missing: `system.sh java`, `system.sh postgresql`, `system.sh softhsm`.
# As root on Debian it installs Debian's packages; otherwise it says what to install.
set -euo pipefail

have_java() {
  local java=${JAVA_HOME:+$JAVA_HOME/bin/}java
  "$java" -version 2>&1 | grep -Eq 'version "(17|21)[."]'
}

have_postgresql() {
  command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null
}

have_softhsm() {
  command -v softhsm2-util >/dev/null
}

have_venv() {
  "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null
}

install() { # what, packages in order of preference
  local what=$1
  shift
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "$what is missing. Install it (Debian: one of $*) and run make again." >&2
    exit 1
  fi
  echo "Installing $what from Debian's packages ..."
  apt-get update -qq
  for package in "$@"; do
    if apt-cache show "$package" >/dev/null 2>&1; then
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
      return
    fi
  done
  echo "None of these Debian packages is available: $*." >&2
  exit 1
}

case "${1:-}" in
  java) have_java || install "Java 17 or 21" openjdk-17-jre-headless openjdk-21-jre-headless ;;
  postgresql) have_postgresql || install "PostgreSQL" postgresql ;;
  softhsm) have_softhsm || install "SoftHSM" softhsm2 ;;
  venv) have_venv || install "Python's venv module" python3-venv ;;
  *) echo "usage: $0 java|postgresql|softhsm|venv" >&2; exit 2 ;;
esac
