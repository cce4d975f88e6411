"""Every example DAG runs as it is, in a real Airflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.jobs.runner import run_job
from lepton_airflow.settings import Settings

DAGS = Path(__file__).parents[2] / "dags"
POLICY = """
version: 1
roles:
  everyone: {members: [tester]}
grants:
  - id: tests
    role: everyone
    actions: [encrypt, decrypt, rotate]
    datasets: [clinic.visits]
    columns: ["*"]
    purposes: [test, letters to patients, key rotation]
"""

pytestmark = [pytest.mark.slow]


@pytest.mark.parametrize("dag", ["examples_decrypt_columns", "examples_rotate_keys"])
def test_the_example_runs(dag: str, airflow: Any, spark: Any, home: Settings, tmp_path: Path) -> None:
    home.policy.write_text(POLICY)
    spark.sql("select 1 id, 'Ada' name, 'ada@example.org' email").write.parquet(str(tmp_path / "raw"))
    fields = {
        "source": {"name": "clinic.visits_raw", "path": str(tmp_path / "raw")},
        "target": {"name": "clinic.visits", "path": str(tmp_path / "protected" / "visits")},
        "keyset": "clinic",
        "columns": {"name": {"cipher": "AES256_GCM"}, "email": {"cipher": "AES256_SIV"}},
        "purpose": "test",
    }
    (tmp_path / "protected").mkdir()
    run_job("encrypt_columns", fields, settings=home, run_key="e")
    lepton = {"conn_type": "lepton", "extra": json.dumps({"home": str(home.home), "identity": "tester"})}
    finished = airflow.run(
        "dags",
        "test",
        dag,
        AIRFLOW__CORE__DAGS_FOLDER=str(DAGS),
        AIRFLOW_VAR_CLINIC_DATA=str(tmp_path),
        AIRFLOW_CONN_LEPTON_DEFAULT=json.dumps(lepton),
    )
    log = finished.stdout + finished.stderr
    assert finished.returncode == 0, log
    assert "DagRun Finished" in log or "state=success" in log, log
    if dag == "examples_decrypt_columns":
        (row,) = spark.read.parquet(str(tmp_path / "letters")).collect()
        assert (row.name, row.email) == ("Ada", "ada@example.org")
        assert row.email not in log
    else:
        assert spark.read.parquet(str(tmp_path / "protected" / "visits")).count() == 1
