"""Tasks in a real Airflow: what people see in the log, what is retried, what reaches XCom and the audit."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.audit.database import connect, leaf_table
from lepton_airflow.jobs.main import main
from lepton_airflow.settings import Settings

pytestmark = [pytest.mark.slow]


@pytest.fixture
def visits(tmp_path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "raw").mkdir()
    pq.write_table(pa.table({"id": [1], "email": ["ada@example.org"]}), tmp_path / "raw" / "visits.parquet")
    return tmp_path


@pytest.fixture
def variables(home: Settings, visits: Path) -> dict[str, str]:
    lepton = {"conn_type": "lepton", "extra": json.dumps({"home": str(home.home), "identity": "tester"})}
    return {"AIRFLOW_VAR_LEPTON_DATA": str(visits), "AIRFLOW_CONN_LEPTON_TESTER": json.dumps(lepton)}


def query(airflow: Any, statement: str) -> list[Any]:
    with sqlite3.connect(airflow.home / "airflow.db") as database:
        return database.execute(statement).fetchall()


def outcomes(home: Settings) -> dict[str, list[dict[str, Any]]]:
    """The events that end something, by task."""
    engine = connect(home)
    with engine.connect() as connection:
        payloads = connection.execute(sql.select(leaf_table.c.payload).order_by(leaf_table.c.id)).scalars().all()
    engine.dispose()
    found: dict[str, list[dict[str, Any]]] = {}
    for event in map(json.loads, payloads):
        if event["phase"] in ("success", "failure", "denied"):
            found.setdefault(event["run_key"].split("/")[1], []).append(event)
    return found


def test_failures_are_typed_said_once_audited_told_and_retried_only_where_that_helps(
    airflow: Any, spark: Any, home: Settings, variables: dict[str, str], events_file: Path, specification: Any
) -> None:
    """``events_file``: the standard variables reach the drivers too, which must keep silent."""
    told = {name: value for name, value in os.environ.items() if name.startswith("OPENLINEAGE__")}
    finished = airflow.run("dags", "test", "lepton_failures", **variables, **told)
    log = finished.stdout + finished.stderr
    tasks = query(airflow, "select task_id, state, try_number from task_instance where dag_id = 'lepton_failures'")
    assert {task: (state, tries) for task, state, tries in tasks} == {
        "works": ("success", 1),
        "missing_column": ("failed", 1),
        "denied": ("failed", 1),
        # Whether a retry helps a dead driver, nobody knows: so it is tried.
        "dead_driver": ("failed", 2),
        "end": ("success", 1),
    }, log

    assert log.count("[MissingColumn] clinic.visits_raw: There is no column emial.") == 1
    assert log.count("[AccessDenied]") == 1
    assert "Columns there: id, email." in log
    assert "at org.apache.spark" not in log
    assert "ada@example.org" not in log

    ended = outcomes(home)
    assert [event["phase"] for event in ended["works"]] == ["success"]
    assert [event["details"]["error"] for event in ended["missing_column"]] == ["MissingColumn"]
    assert [event["phase"] for event in ended["denied"]] == ["denied"]
    assert [event["details"]["error"] for event in ended["dead_driver"]] == ["JobFailed", "JobFailed"]
    assert all(event["actor"]["owner"] == "airflow" for events in ended.values() for event in events)

    (value,) = query(airflow, "select value from xcom where task_id = 'works' and key = 'return_value'")[0]
    assert json.loads(json.loads(value) if isinstance(json.loads(value), str) else value)["rows"] == 1

    events = specification.read_events(events_file)
    assert "ada@" not in events_file.read_text()
    kinds = sorted((event["job"]["name"].partition(".")[2], event["eventType"]) for event in events)
    assert [(task, kind) for task, kind in kinds if task not in ("", "end")] == [
        *[("dead_driver", "FAIL")] * 2,
        *[("dead_driver", "START")] * 2,
        ("denied", "FAIL"),
        ("denied", "START"),
        ("missing_column", "FAIL"),
        ("missing_column", "START"),
        ("works", "COMPLETE"),
        ("works", "START"),
    ], "every event is told once"
    found = {(event["job"]["name"].partition(".")[2], event["eventType"]): event for event in events}
    start, complete = found["works", "START"], found["works", "COMPLETE"]
    assert start["inputs"][0]["name"].endswith("/raw"), "templates are rendered before the start is told"
    assert complete["run"]["facets"]["lepton_privacy"]["runKey"].startswith("lepton_failures/works/")
    assert "[AccessDenied]" in found["denied", "FAIL"]["run"]["facets"]["errorMessage"]["message"]

    # A job without Airflow says the same.
    events_file.unlink()
    works = variables["AIRFLOW_VAR_LEPTON_DATA"]
    fields = {
        "source": {"name": "clinic.visits_raw", "path": f"{works}/raw"},
        "target": {"name": "clinic.visits", "path": f"{works}/works", "mode": "overwrite"},
        "keyset": "clinic",
        "columns": {"email": {"cipher": "AES256_GCM"}, "i?": {"cipher": "AES256_SIV", "domain": "visit"}},
        "purpose": "test",
    }
    assert main("encrypt_columns", ["--spec-json", json.dumps(fields), "--home", str(home.home)]) == 0
    essence = specification.essence
    for event in specification.read_events(events_file):
        twin = found["works", event["eventType"]]
        for part in ("inputs", "outputs"):
            assert essence(event[part]) == essence(twin[part])
        ours, airflows = (essence(one["run"]["facets"]["lepton_privacy"]) for one in (event, twin))
        assert ours == airflows
        assert event["outputs"][0]["facets"]["columnLineage"]["fields"]


def test_the_wrong_java_is_said_before_spark_starts_and_audited(
    airflow: Any, home: Settings, variables: dict[str, str], tmp_path: Path
) -> None:
    java = tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.22\" 2024-01-16' >&2\n")
    java.chmod(0o755)
    finished = airflow.run("tasks", "test", "lepton_failures", "works", **variables, JAVA_HOME=str(tmp_path / "jdk"))
    log = finished.stdout + finished.stderr
    assert log.count("[WrongJava]") >= 1, log
    assert "Spark-Submit cmd" not in log
    assert [event["details"]["error"] for event in outcomes(home)["works"]] == ["WrongJava"]
    assert not (tmp_path / "works").exists()


def test_the_connection_type_has_a_form_and_can_be_tested(airflow: Any, variables: dict[str, str]) -> None:
    providers = airflow.run("providers", "get", "lepton-airflow", "--full", "--output", "json")
    assert "lepton_airflow.hooks.lepton.LeptonHook" in providers.stdout, providers.stderr
    fields = airflow.run("providers", "widgets", "--output", "json")
    listed = {row["connection_parameter_name"] for row in json.loads(fields.stdout)}
    assert {f"extra__lepton__{name}" for name in ("home", "identity", "keyring", "policy", "audit_database")} <= listed
    tested = airflow.run("connections", "test", "lepton_tester", **variables, AIRFLOW__CORE__TEST_CONNECTION="Enabled")
    assert "Connection success" in tested.stdout, tested.stdout + tested.stderr
