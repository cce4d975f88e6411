#!/usr/bin/env bash
# Run the example once in its volumes, and say how to fetch the report.
set -euo pipefail
if [ -e "${LEPTON_DEMO_FOLDER:?}" ]; then
  echo "The demo ran in these volumes already, and its audit log is not wiped. Begin anew with:" >&2
  echo "  docker compose -f docker/compose.yaml down --volumes" >&2
  exit 1
fi
python "$(dirname "$0")/../dags/clinic/demo.py"
echo "Fetch the report with:"
echo "  docker compose -f docker/compose.yaml run --rm --no-deps -T demo cat $LEPTON_DEMO_FOLDER/report.html > report.html"
