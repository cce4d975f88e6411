"""A real Airflow: its own home and database, and the command line that people use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

DAGS = Path(__file__).parent / "dags"


@dataclass(frozen=True)
class Airflow:
    """An Airflow home; ``run`` is its command line."""

    home: Path
    environment: dict[str, str]

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        program = str(Path(sys.executable).with_name("airflow"))
        return subprocess.run(
            [program, *arguments],
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    home = tmp_path_factory.mktemp("airflow")
    airflow = Airflow(
        home=home,
        environment={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[1]"}),
            "SPARK_LOCAL_IP": "127.0.0.1",
        },
    )
    migrated = airflow.run("db", "migrate")
    assert migrated.returncode == 0, migrated.stderr
    return airflow
