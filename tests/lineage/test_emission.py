"""Events of jobs that run without Airflow: what is sent, where, and that the job does not depend on it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.audit.database import connect, leaf_table
from lepton_airflow.jobs.main import main
from lepton_airflow.lineage.emission import is_configured
from lepton_airflow.settings import Settings


@pytest.fixture
def spec(spark: Any, tmp_path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "raw").mkdir()
    table = pa.table({"id": [1, 2], "email": ["ada@example.org", "bob@example.org"], "site": ["north", "south"]})
    pq.write_table(table, tmp_path / "raw" / "visits.parquet")
    return {
        "source": {"name": "clinic.visits_raw", "path": str(tmp_path / "raw")},
        "target": {"name": "clinic.visits", "path": str(tmp_path / "protected")},
        "keyset": "clinic",
        "columns": {"email": {"cipher": "AES256_GCM"}, "i?": {"cipher": "AES256_SIV", "domain": "visit"}},
        "purpose": "test",
    }


def run(job: str, home: Settings, spec: dict[str, Any], *arguments: str) -> int:
    return main(job, ["--spec-json", json.dumps(spec), "--home", str(home.home), "--run-key", job, *arguments])


def intents(home: Settings) -> dict[str, dict[str, Any]]:
    """The details of the intent events, by action."""
    engine = connect(home)
    with engine.connect() as connection:
        payloads = connection.execute(sql.select(leaf_table.c.payload)).scalars().all()
    engine.dispose()
    return {event["action"]: event["details"] for event in map(json.loads, payloads) if event["phase"] == "intent"}


def test_a_run_is_told_from_start_to_end(
    home: Settings, spec: dict[str, Any], tmp_path: Path, events_file: Path, specification: Any
) -> None:
    assert run("encrypt_columns", home, spec) == 0
    start, complete = specification.read_events(events_file)
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert start["job"]["name"] == complete["job"]["name"] == "lepton.encrypt_columns.clinic.visits"
    # Before the run only what the spec names is known, after it what the pattern meant and the types.
    lineage = [event["outputs"][0]["facets"]["columnLineage"]["fields"] for event in (start, complete)]
    assert [set(fields) for fields in lineage] == [{"email"}, {"id", "email", "site"}]
    fields = complete["outputs"][0]["facets"]["schema"]["fields"]
    assert [(field["name"], field["type"]) for field in fields] == [
        ("id", "binary"),
        ("email", "binary"),
        ("site", "string"),
    ]
    facet = complete["run"]["facets"]["lepton_privacy"]
    assert facet["runKey"] == "encrypt_columns"
    assert len(facet["policyDigest"]) >= 64
    assert [column["name"] for column in facet["columns"]] == ["email", "id"]
    assert all(column["keyId"] > 0 for column in facet["columns"])

    back = {
        "source": spec["target"],
        "target": {"name": "clinic.letters", "path": str(tmp_path / "letters")},
        "columns": ["*"],
        "purpose": "test",
    }
    assert run("decrypt_columns", home, back) == 0
    _, _, _, complete = specification.read_events(events_file)
    types = {field["name"]: field["type"] for field in complete["outputs"][0]["facets"]["schema"]["fields"]}
    assert types == {"id": "bigint", "email": "string", "site": "string"}
    domain = {column["name"]: column.get("domain") for column in complete["run"]["facets"]["lepton_privacy"]["columns"]}
    assert domain == {"id": "visit", "email": None}

    text = events_file.read_text()
    assert "ada@" not in text
    assert "north" not in text

    # The graph of `lepton lineage show` is made of these.
    details = intents(home)
    assert details["encrypt"]["source"] == "clinic.visits_raw"
    assert json.loads(details["encrypt"]["ciphers"]) == {"email": "AES256_GCM", "id": "AES256_SIV"}
    assert details["decrypt"]["target"] == "clinic.letters"


def test_a_failed_run_is_told_with_the_text_of_its_error(
    home: Settings, spec: dict[str, Any], events_file: Path, specification: Any
) -> None:
    assert run("encrypt_columns", home, spec | {"purpose": "curiosity"}) == 1
    start, fail = specification.read_events(events_file)
    assert (start["eventType"], fail["eventType"]) == ("START", "FAIL")
    assert fail["run"]["facets"]["errorMessage"]["message"].startswith("[AccessDenied]")
    assert fail["run"]["facets"]["lepton_privacy"]["policyDigest"]
    assert fail["outputs"][0]["name"].endswith("/protected")


def test_a_wrong_spec_is_told_as_a_failure(home: Settings, events_file: Path, specification: Any) -> None:
    assert run("encrypt_columns", home, {"purpose": "test"}) == 1
    start, fail = specification.read_events(events_file)
    assert (start["eventType"], fail["eventType"]) == ("START", "FAIL")
    assert not fail["inputs"] + fail["outputs"]


def test_the_job_of_an_operator_keeps_silent(
    home: Settings, spec: dict[str, Any], events_file: Path, specification: Any
) -> None:
    assert run("encrypt_columns", home, spec, "--attempt", "1") == 0
    assert not specification.read_events(events_file)


def test_a_collector_that_fails_is_logged_once_and_fails_no_job(
    home: Settings,
    spec: dict[str, Any],
    tmp_path: Path,
    events_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(tmp_path / "no such folder" / "events"))
    with caplog.at_level(logging.WARNING, logger="lepton_airflow"):
        assert run("encrypt_columns", home, spec) == 0
    assert [record.message.partition(" (")[0] for record in caplog.records if record.name.startswith("lepton")] == [
        "OpenLineage events of this run cannot be sent"
    ]
    assert (tmp_path / "protected").exists()


def test_without_a_place_to_send_to_nothing_is_sent() -> None:
    assert not is_configured({})
    assert not is_configured({"OPENLINEAGE_NAMESPACE": "clinic"})
    assert not is_configured({"OPENLINEAGE_URL": "http://collector", "OPENLINEAGE_DISABLED": "True"})
    for name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT__TYPE", "OPENLINEAGE__TRANSPORT"):
        assert is_configured({name: "x"})
