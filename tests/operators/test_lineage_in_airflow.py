"""Airflow's OpenLineage provider tells what our operators say, and a job without Airflow says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.jobs.main import main
from lepton_airflow.settings import Settings

pytestmark = [pytest.mark.slow]


def test_the_provider_tells_start_complete_and_fail_as_a_job_without_airflow_does(
    airflow: Any,
    spark: Any,
    home: Settings,
    tmp_path: Path,
    specification: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spark.sql("select 1 id, 'ada@example.org' email").write.parquet(str(tmp_path / "raw"))
    lepton = {"conn_type": "lepton", "extra": json.dumps({"home": str(home.home), "identity": "tester"})}
    file = tmp_path / "airflow.jsonl"
    # The standard variables reach the driver too, which must keep silent: every event is told once.
    finished = airflow.run(
        "dags",
        "test",
        "lepton_lineage",
        AIRFLOW_VAR_LEPTON_DATA=str(tmp_path),
        AIRFLOW_CONN_LEPTON_TESTER=json.dumps(lepton),
        OPENLINEAGE__TRANSPORT__TYPE="file",
        OPENLINEAGE__TRANSPORT__LOG_FILE_PATH=str(file),
        OPENLINEAGE__TRANSPORT__APPEND="true",
    )
    log = finished.stdout + finished.stderr
    events = specification.read_events(file)
    told = {(event["job"]["name"], event["eventType"]): event for event in events}
    assert sorted((name, kind) for name, kind in told if "." in name) == [
        ("lepton_lineage.denied", "FAIL"),
        ("lepton_lineage.denied", "START"),
        ("lepton_lineage.works", "COMPLETE"),
        ("lepton_lineage.works", "START"),
    ], log
    assert sum("." in event["job"]["name"] for event in events) == 4, "every event is told once"

    start = told["lepton_lineage.works", "START"]
    assert start["inputs"][0]["name"] == str(tmp_path / "raw"), "templates are rendered before the start is told"
    complete = told["lepton_lineage.works", "COMPLETE"]
    facet = complete["run"]["facets"]["lepton_privacy"]
    assert facet["runKey"].startswith("lepton_lineage/works/")
    failed = told["lepton_lineage.denied", "FAIL"]
    assert "[AccessDenied]" in failed["run"]["facets"]["errorMessage"]["message"]
    assert "ada@" not in file.read_text()

    own = tmp_path / "own.jsonl"
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "file")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(own))
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__APPEND", "true")
    fields = {
        "source": {"name": "clinic.visits_raw", "path": str(tmp_path / "raw")},
        "target": {"name": "clinic.visits", "path": str(tmp_path / "protected"), "mode": "overwrite"},
        "keyset": "clinic",
        "columns": {"email": {"cipher": "AES256_GCM"}, "i?": {"cipher": "AES256_SIV", "domain": "visit"}},
        "purpose": "test",
    }
    assert main("encrypt_columns", ["--spec-json", json.dumps(fields), "--home", str(home.home)]) == 0
    for event in specification.read_events(own):
        twin = told["lepton_lineage.works", event["eventType"]]
        essence = specification.essence
        assert essence(event["inputs"]) == essence(twin["inputs"])
        assert essence(event["outputs"]) == essence(twin["outputs"])
        ours, airflows = (essence(one["run"]["facets"]["lepton_privacy"]) for one in (event, twin))
        assert ours == airflows
        assert event["outputs"][0]["facets"]["columnLineage"]["fields"]
