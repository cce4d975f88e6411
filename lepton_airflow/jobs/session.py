"""The Spark session that every job uses, and the checks that come before a JVM starts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lepton_airflow.errors import MissingDependency, WrongJava

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: Spark 4.3 runs on these Java versions.
JAVA_VERSIONS = (17, 21)
_REMEDY = "Install Java 17 (Debian: openjdk-17-jre-headless) and let JAVA_HOME or PATH lead to it."


def check_java() -> int:
    """Return the major version of the Java runtime that Spark would start.

    :raises WrongJava: there is none, or Spark does not support it
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if java is None:
        raise WrongJava("No Java runtime is installed.", place="PATH", remedy=_REMEDY)
    place = f"JAVA_HOME={home}" if home else java
    try:
        # The program is the one that Spark itself would start.
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        raise WrongJava("The Java runtime does not start.", place=place, remedy=_REMEDY) from None
    found = re.search(r'version "(\d+)(?:\.(\d+))?', answer.stderr + answer.stdout)
    if found is None:
        raise WrongJava("The Java runtime does not tell its version.", place=place, remedy=_REMEDY)
    # Java 8 and older call themselves 1.8.
    major = int(found[2]) if found[1] == "1" and found[2] else int(found[1])
    if major not in JAVA_VERSIONS:
        raise WrongJava(
            f"Spark runs on Java {' or '.join(map(str, JAVA_VERSIONS))}, this is Java {major}.",
            place=place,
            remedy=_REMEDY,
        )
    return major


def start_session(name: str) -> SparkSession:
    """Start (or join) the Spark session of a job.

    What Spark spills or shuffles to local disks is encrypted, for it may be decrypted data. Spark's own log stays silent
    unless ``LEPTON_SPARK_LOG_LEVEL`` asks for more: a failed task is reported once, as a typed error, without the stack traces
    of the JVM and of every worker, which can quote data.

    :raises MissingDependency: PySpark is not installed
    :raises WrongJava: see :func:`check_java`
    """
    try:
        from pyspark import SparkContext
        from pyspark.sql import SparkSession
    except ImportError:
        raise MissingDependency(
            "PySpark is not installed.", place="pyspark", remedy="Install lepton-airflow[spark]."
        ) from None
    if "PYSPARK_GATEWAY_PORT" not in os.environ and SparkContext._active_spark_context is None:
        check_java()
    level = os.environ.get("LEPTON_SPARK_LOG_LEVEL", "OFF")
    # Python workers must see the libraries of this process; on a cluster the administrator sets the interpreter.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    session = (
        SparkSession.builder.appName(f"lepton {name}")
        .config("spark.io.encryption.enabled", "true")
        .config("spark.log.level", level)
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel(level)
    return session
