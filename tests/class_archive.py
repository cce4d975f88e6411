"""Makes the archive of Spark's classes that the JVMs of the tests map into memory (JEP 350) instead of loading each class anew.

Tests start more than a hundred of them, for seconds each. Where the archive does not fit, such as under another Java, a JVM does
without it. ``python tests/class_archive.py FILE`` makes it by running this file under ``spark-submit``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main(archive: Path) -> None:
    archive.parent.mkdir(exist_ok=True)
    made = archive.with_suffix(".new")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SPARK_SUBMIT_OPTS": f"-XX:ArchiveClassesAtExit={made} -Xlog:disable",
    }
    submit = [Path(sys.executable).parent / "spark-submit", "--master", "local[2]", __file__]
    result = subprocess.run(submit, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode or not made.exists():
        sys.exit(f"Spark did not leave an archive of its classes:\n{result.stdout[-2000:]}")
    made.replace(archive)


def run_what_jobs_run() -> None:
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as F

    session = (
        SparkSession.builder.config("spark.ui.enabled", "false")
        .config("spark.io.encryption.enabled", "true")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    with tempfile.TemporaryDirectory() as folder:
        session.range(1000).withColumn("group", F.col("id") % 7).write.parquet(f"{folder}/table")
        table = session.read.parquet(f"{folder}/table")
        table.mapInArrow(lambda batches: batches, table.schema).groupBy("group").agg(F.sum("id")).collect()
        table.join(table.groupBy("group").count(), "group").sort("id").toArrow()
    session.stop()


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]).absolute())
    else:
        run_what_jobs_run()
