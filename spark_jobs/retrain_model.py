"""Pass this file to spark-submit: `spark-submit spark_jobs/retrain_model.py --spec FILE`."""

import sys

from lepton_airflow.jobs.main import main

if __name__ == "__main__":
    sys.exit(main("retrain_model"))
