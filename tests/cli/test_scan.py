"""`lepton scan` proposes and never decides; what it prints, writes and records holds no value of the table."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sql
import yaml
from typer.testing import CliRunner, Result

from lepton_airflow.audit.database import connect, leaf_table
from lepton_airflow.cli import app
from lepton_airflow.errors import AuditUnavailable, EmptyTable, LeptonError, SpecError, TargetExists, UnreadableSource
from lepton_airflow.jobs.encrypt_columns import EncryptColumnsSpec
from lepton_airflow.jobs.spec import parse_spec
from lepton_airflow.settings import Settings

ROWS = 500


@pytest.fixture
def table(tmp_path: Path) -> Path:
    folder = tmp_path / "visits"
    folder.mkdir()
    for part in range(3):
        numbers = range(part * ROWS, (part + 1) * ROWS)
        columns: dict[str, Any] = {
            "patient_id": [f"P{number:06}" for number in numbers],
            "mail": [f"canary{number}@example.org" if number % 4 else None for number in numbers],
            "contact": [{"line": f"+49 30 90{number:04}", "note": "call"} for number in numbers],
            "kind": pa.array([f"kind {number % 3}" for number in numbers]).dictionary_encode(),
            "born": [datetime.date(1970, 1, 1 + number % 28) for number in numbers],
            "radius": [float(number) for number in numbers],
            "story": ["canary " * 20] * ROWS,
            "tags": [["canary"]] * ROWS,
        }
        pq.write_table(pa.table(columns), folder / f"part-{part}.parquet")
    return folder


def run(home: Settings, *arguments: str) -> Result:
    runner = CliRunner(env={"COLUMNS": "200"})
    return runner.invoke(app, ["scan", *arguments, "--home", str(home.home)])


def scan(home: Settings, *arguments: str) -> str:
    result = run(home, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def recorded(home: Settings) -> list[dict[str, Any]]:
    engine = connect(home)
    with engine.connect() as connection:
        payloads = connection.execute(sql.select(leaf_table.c.payload).order_by(leaf_table.c.id)).scalars().all()
    engine.dispose()
    return [event for event in map(json.loads, payloads) if event["action"] != "producer"]


def test_columns_are_proposed_by_their_values_and_by_their_names(home, table, tmp_path):
    shown = scan(home, str(table), "--spec", str(tmp_path / "spec.yaml"))
    assert "e-mail address" in shown
    spec = yaml.safe_load((tmp_path / "spec.yaml").read_text())
    assert spec["columns"] == {
        "patient_id": {"cipher": "AES256_SIV", "domain": "patient"},
        "mail": {"cipher": "AES256_GCM"},
        "contact.line": {"cipher": "AES256_GCM"},
        "contact.note": {"cipher": "AES256_GCM"},
        "born": {"cipher": "AES256_GCM"},
        "story": {"cipher": "AES256_GCM"},
    }
    assert spec["sensitive"] == list(spec["columns"])
    text = (tmp_path / "spec.yaml").read_text()
    for column in ("kind", "radius", "tags"):
        assert f'# left in the clear: "{column}"' in text
    assert "lists and maps are not looked into" in shown


def test_no_value_is_printed_written_or_recorded(home, table, tmp_path):
    shown = scan(home, str(table), "--spec", str(tmp_path / "spec.yaml"))
    everything = shown + (tmp_path / "spec.yaml").read_text() + json.dumps(recorded(home))
    for value in ("canary", "P000", "+49", "90000", "1970"):
        assert value not in everything


def test_the_spec_is_refused_until_somebody_has_edited_it(home, table, tmp_path):
    scan(home, str(table), "--spec", str(tmp_path / "spec.yaml"))
    fields = yaml.safe_load((tmp_path / "spec.yaml").read_text())
    with pytest.raises(SpecError):
        parse_spec(EncryptColumnsSpec, fields)
    fields |= {"purpose": "ingestion", "keyset": "clinic"}
    fields["target"]["path"] = str(tmp_path / "protected")
    spec = parse_spec(EncryptColumnsSpec, fields)
    assert spec.source.path == str(table)
    with pytest.raises(TargetExists):
        raise_(run(home, str(table), "--spec", str(tmp_path / "spec.yaml")))


def raise_(result: Result) -> None:
    assert isinstance(result.exception, LeptonError), result.output
    raise result.exception


def test_the_audit_has_the_intent_before_and_the_outcome_after(home, table):
    scan(home, str(table), "--name", "clinic.visits_raw", "--rows", "100")
    intent, outcome = recorded(home)
    assert (intent["action"], intent["phase"], intent["dataset"]) == ("scan", "intent", "clinic.visits_raw")
    assert (outcome["phase"], outcome["intent"]) == ("success", intent["event_id"])
    assert outcome["details"]["sampled"] == 102
    assert outcome["actor"]["principal"] == "tester"


def test_nothing_is_read_when_the_audit_cannot_record_it(home, table):
    engine = connect(home)
    with engine.begin() as connection:
        connection.execute(sql.text("ALTER TABLE lepton_audit_leaf RENAME TO lost"))
    engine.dispose()
    with pytest.raises(AuditUnavailable):
        raise_(run(home, str(table)))


def test_what_cannot_be_read_is_one_typed_error_and_an_event(home, tmp_path):
    (tmp_path / "empty.csv").write_text("id,email\n")
    (tmp_path / "text.parquet").write_text("this is no Parquet file, though it is long enough to be one")
    for arguments, error in (
        (["/nowhere"], UnreadableSource),
        ([str(tmp_path / "text.parquet")], UnreadableSource),
        ([str(tmp_path / "empty.csv"), "--format", "csv"], EmptyTable),
    ):
        with pytest.raises(error):
            raise_(run(home, *arguments))
        assert recorded(home)[-1]["phase"] == "failure"


def test_csv_and_json_are_read_too(home, tmp_path):
    (tmp_path / "a.csv").write_text("kunde,betrag\nada@example.org,1\nbea@example.org,2\n")
    assert "e-mail address" in scan(home, str(tmp_path / "a.csv"), "--format", "csv")
    (tmp_path / "a.json").write_text('{"kunde": "DE89370400440532013000"}\n')
    assert "IBAN" in scan(home, str(tmp_path / "a.json"), "--format", "json")
