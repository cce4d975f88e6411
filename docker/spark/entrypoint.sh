#!/usr/bin/env bash
# Give Spark its settings and the secret of its cluster, then run the command: `entrypoint.sh COMMAND ...`.
# SPARK_SECRET_FILE names the file of the secret. Without it Spark keeps its own defaults, which is for local masters.
set -euo pipefail
if [ -n "${SPARK_SECRET_FILE:-}" ]; then
  export SPARK_CONF_DIR=$HOME/spark-conf
  (
    umask 077
    mkdir -p "$SPARK_CONF_DIR"
    secret=$(<"$SPARK_SECRET_FILE")
    {
      cat "$(dirname "$0")/spark-defaults.conf"
      echo "spark.authenticate.secret $secret"
    } >"$SPARK_CONF_DIR/spark-defaults.conf"
  )
fi
exec "$@"
