#!/usr/bin/env bash
# Make the virtual environment with the locked requirements and this checkout: `venv.sh FOLDER`.
set -euo pipefail
venv=$1
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")/../.." && pwd)

if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
  echo "$python is not Python 3.11, 3.12 or 3.13. Install one of them, or name it: make PYTHON=python3.11 ..." >&2
  exit 1
fi
PYTHON=$python "$here/docker/setup/system.sh" venv
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "Installing the locked requirements into $venv (about 4 GB; minutes the first time) ..."
# --no-deps: the lock is complete, and holds what pip alone would refuse (see [tool.uv] in pyproject.toml).
# PySpark is the one package without a wheel; nothing is compiled.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
  --only-binary :all: --no-binary pyspark -r "$here/requirements/all.txt"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable "$here"
touch "$venv/installed"
