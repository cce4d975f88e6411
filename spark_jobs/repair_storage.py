"""Pass this file to spark-submit: `spark-submit spark_jobs/repair_storage.py --spec FILE`."""

import sys

from lepton_airflow.jobs.main import main

if __name__ == "__main__":
    sys.exit(main("repair_storage"))
