"""The operators in a scheduled Airflow: scheduler, API server and workers that talk to it, as in production.

`airflow dags test` lets tasks reach Airflow's database, which real workers cannot; so what works there can fail here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.audit.checkpoint import generate_signer
from lepton_airflow.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_run_works_in_workers_without_a_database_session(airflow: Any, home: Settings, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "raw").mkdir()
    pq.write_table(pa.table({"id": [1], "email": ["ada@example.org"]}), tmp_path / "raw" / "visits.parquet")
    home.checkpoint_signer.parent.mkdir(mode=0o700)
    home.checkpoint_verifier.write_text(generate_signer(home.checkpoint_signer, name="lepton-audit") + "\n")
    lepton = {"conn_type": "lepton", "extra": json.dumps({"home": str(home.home), "identity": "tester"})}
    port = str(free_port())
    variables = {
        "AIRFLOW_VAR_LEPTON_DATA": str(tmp_path),
        "AIRFLOW_CONN_LEPTON_TESTER": json.dumps(lepton),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": port,
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__CORE__PARALLELISM": "2",
    }
    log = tmp_path / "standalone.log"
    with log.open("w") as output:
        standalone = subprocess.Popen(
            [str(Path(sys.executable).with_name("airflow")), "standalone"],
            env=airflow.environment | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(lambda: "lepton_workers" in names(airflow, "select dag_id from dag"), standalone, log, seconds=180)
        # Another test may have made the folder's DAGs known before, and paused, as new ones are.
        unpaused = airflow.run("dags", "unpause", "lepton_workers", **variables)
        assert unpaused.returncode == 0, unpaused.stderr
        triggered = airflow.run("dags", "trigger", "lepton_workers", **variables)
        assert triggered.returncode == 0, triggered.stderr
        states = "select state from dag_run where dag_id = 'lepton_workers'"
        wait_for(lambda: names(airflow, states) & {"success", "failed"}, standalone, log, seconds=300)
        tasks = "select task_id || ' ' || state from task_instance where dag_id = 'lepton_workers'"
        assert names(airflow, tasks) == {"protect success", "seal success", "verify success"}, log.read_text()[-20000:]
        assert pq.read_table(tmp_path / "protected").num_rows == 1
    finally:
        os.killpg(standalone.pid, signal.SIGTERM)
        try:
            standalone.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(standalone.pid, signal.SIGKILL)


def names(airflow: Any, statement: str) -> set[str]:
    with sqlite3.connect(airflow.home / "airflow.db", timeout=30) as database:
        return {row[0] for row in database.execute(statement)}


def wait_for(condition: Any, process: subprocess.Popen[bytes], log: Path, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()[-20000:]
        assert time.monotonic() < deadline, log.read_text()[-20000:]
        time.sleep(1)
