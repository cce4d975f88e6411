"""Pass this file to spark-submit: `spark-submit spark_jobs/restore_dataset.py --spec FILE`."""

import sys

from lepton_airflow.jobs.main import main

if __name__ == "__main__":
    sys.exit(main("restore_dataset"))
