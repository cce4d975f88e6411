"""``lepton audit``: what people see and what scripts can rely on."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from typer.testing import CliRunner, Result

from lepton_airflow.audit.checkpoint import generate_signer
from lepton_airflow.audit.event import Actor, Event
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.cli.audit import app
from lepton_airflow.errors import AuditTampered, ConfigurationError, KeyUnavailable, SpecError, UnreadableSource
from lepton_airflow.settings import Settings


@pytest.fixture
def log_home(tmp_path: Path, sqlite_engine: sql.Engine, write: Any) -> Path:
    settings = Settings(home=tmp_path)
    (tmp_path / "lepton.yaml").write_text("{}")
    settings.checkpoint_signer.parent.mkdir()
    settings.checkpoint_verifier.write_text(generate_signer(settings.checkpoint_signer, name="the-log"))
    write(sqlite_engine, 19)
    sqlite_engine.dispose()
    return tmp_path


def lepton_audit(command: str, home: Path, *arguments: str | Path, width: int = 200) -> Result:
    given = [command, *(str(argument) for argument in arguments), "--home", str(home)]
    return CliRunner().invoke(app, given, env={"COLUMNS": str(width)})


def test_a_good_log_is_ok_with_its_root_and_signer(log_home: Path) -> None:
    sealed = lepton_audit("seal", log_home)
    verified = lepton_audit("verify", log_home)
    assert (sealed.exit_code, verified.exit_code) == (0, 0)
    summary = sealed.stdout.removeprefix("sealed: ")
    assert summary.startswith("20 events, root ")
    assert summary.endswith(", signed by the-log\n")
    assert verified.stdout == f"ok: {summary}"


def test_an_unsealed_log_says_so(log_home: Path) -> None:
    verified = lepton_audit("verify", log_home)
    assert verified.exit_code == 0
    assert "0 events" in verified.stdout
    assert "nothing signed yet" in verified.stdout
    assert "20 events are not sealed yet" in verified.stderr


def test_one_changed_byte_in_the_file_names_the_leaf_and_the_event(log_home: Path) -> None:
    lepton_audit("seal", log_home)
    with sqlite3.connect(log_home / "audit.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        event, payload = connection.execute(
            "SELECT event_id, payload FROM lepton_audit_leaf WHERE tree_index = 7"
        ).fetchone()
    file = log_home / "audit.db"
    data = bytearray(file.read_bytes())
    data[data.index(payload.encode()) + 100] ^= 1
    file.write_bytes(data)
    verified = lepton_audit("verify", log_home)
    assert verified.exit_code == 1
    assert "not ok: 1 findings" in verified.stdout
    assert f"leaf 7 (event {event})" in verified.stdout
    assert "edited" in verified.stdout


def test_a_cut_log_is_not_signed_over(log_home: Path) -> None:
    lepton_audit("seal", log_home)
    with sqlite3.connect(log_home / "audit.db") as connection:
        connection.execute("DELETE FROM lepton_audit_leaf WHERE tree_index > 10")
    assert isinstance(lepton_audit("seal", log_home).exception, AuditTampered)
    verified = lepton_audit("verify", log_home)
    assert "leaves 11 to 19" in verified.stdout
    assert "truncated" in verified.stdout


def test_migrating_makes_the_schema(tmp_path: Path) -> None:
    (tmp_path / "lepton.yaml").write_text("{}")
    assert lepton_audit("migrate", tmp_path).exit_code == 0
    assert lepton_audit("migrate", tmp_path).exit_code == 0
    assert (tmp_path / "audit.db").exists()


def test_without_settings_or_keys_the_error_is_typed(tmp_path: Path, log_home: Path) -> None:
    assert isinstance(lepton_audit("verify", tmp_path / "nowhere").exception, ConfigurationError)
    Settings(home=log_home).checkpoint_verifier.unlink()
    assert isinstance(lepton_audit("verify", log_home).exception, KeyUnavailable)


def test_what_is_exported_verifies_offline_without_the_database(log_home: Path) -> None:
    lepton_audit("seal", log_home)
    folder = log_home / "export"
    exported = lepton_audit("export", log_home, "--from", "5", "--to", "14", "-o", folder)
    assert exported.stdout.startswith("exported: leaves 5 to 14 of 20, root ")
    (log_home / "audit.db").unlink()
    verified = lepton_audit("verify", log_home, "--offline", folder / "events.parquet")
    assert (verified.exit_code, verified.stdout[:13]) == (0, "ok: 20 events")
    assert "Only leaves 5 to 14 of 20 are here" in verified.stderr
    key = log_home / "sealer.pub"
    Settings(home=log_home).checkpoint_verifier.rename(key)
    nowhere = log_home / "nowhere"
    verified = lepton_audit("verify", nowhere, "--offline", folder, "--verifier-key", key)
    assert (verified.exit_code, verified.stdout[:13]) == (0, "ok: 20 events")
    assert lepton_audit("verify", nowhere, "--verifier-key", key).exit_code == 2
    data = bytearray((folder / "checkpoint").read_bytes())
    data[20] ^= 1
    (folder / "checkpoint").write_bytes(data)
    assert lepton_audit("verify", nowhere, "--offline", folder, "--verifier-key", key).exit_code == 1


def test_an_unclear_range_is_an_error(log_home: Path, tmp_path: Path) -> None:
    for arguments in ((), ("--all", "--from", "1")):
        failed = lepton_audit("export", log_home, "-o", tmp_path / "export", *arguments)
        assert isinstance(failed.exception, SpecError)


def test_verifying_since_a_checkpoint_says_what_it_did_not_read(log_home: Path) -> None:
    lepton_audit("seal", log_home)
    note = log_home / "checkpoints" / "checkpoint"
    verified = lepton_audit("verify", log_home, "--since", note)
    assert (verified.exit_code, verified.stdout[:13]) == (0, "ok: 20 events")
    assert "not their payloads" in verified.stderr
    assert isinstance(lepton_audit("verify", log_home, "--since", log_home / "none").exception, UnreadableSource)


def test_what_cannot_be_detected_is_explained(tmp_path: Path) -> None:
    assert "Not detected:" in lepton_audit("verify", tmp_path, "--explain").stdout


def test_events_are_searched_and_the_last_are_shown(log_home: Path) -> None:
    found = lepton_audit("search", log_home, "--dataset", "clinic", "--limit", "2", "--json")
    assert [json.loads(line)["counts"] for line in found.stdout.splitlines()] == [{"rows": 18}, {"rows": 17}]
    shown = lepton_audit("search", log_home, "--principal", "tester", "--action", "encrypt")
    assert shown.stdout.count("encrypt") == 18
    assert shown.stdout.count("dag/task/run/0") == 1, "said once for all"
    assert "no such events" in lepton_audit("search", log_home, "--dataset", "other").stderr
    last = lepton_audit("tail", log_home, "-n", "2", "--json")
    assert [json.loads(line)["phase"] for line in last.stdout.splitlines()] == ["note", "close"]
    assert "close" in lepton_audit("tail", log_home).stdout


@pytest.mark.parametrize("width", [90, 200])
def test_when_and_in_which_run_is_shown_whole(log_home: Path, width: int) -> None:
    event = json.loads(lepton_audit("tail", log_home, "-n", "1", "--json").stdout)
    table = lepton_audit("tail", log_home, "-n", "1", width=width).stdout
    rows = [[cell.strip() for cell in line.split("│")] for line in table.splitlines() if "│" in line]
    assert rows[0][1] == event["time"][:19].replace("T", " ")
    assert "".join(row[-2] for row in rows) == event["run_key"]


def test_of_many_columns_some_are_named_and_the_others_counted(log_home: Path, sqlite_engine: sql.Engine) -> None:
    log = AuditLog(sqlite_engine, actor=Actor(principal="ann", host="here"), run_key="r")
    for count in (5, 6, 30):
        columns = tuple(f"c{number}" for number in range(count))
        log.append(Event(action="train", phase="note", dataset="clinic", columns=columns, purpose="model"))
    shown = lepton_audit("search", log_home, "--action", "train", width=300).stdout
    for rest in ("", " and 1 more", " and 25 more"):
        assert f"clinic (c0, c1, c2, c3, c4{rest}) for model" in shown


def test_archived_events_leave_their_hashes_and_verify_where_they_went(log_home: Path, tmp_path: Path) -> None:
    lepton_audit("seal", log_home)
    place = tmp_path / "archives"
    archived = lepton_audit("archive", log_home, place, "--to", "9")
    folder = place / "leaves-000000000000-000000000009"
    assert (archived.exit_code, archived.stdout[:24]) == (0, "archived: leaves 0 to 9,")
    assert f"lepton audit verify --offline {folder}" in archived.stderr
    verified = lepton_audit("verify", log_home)
    assert verified.exit_code == 0
    assert (
        f"The payloads of leaves 0 to 9 are archived at {place}; the archive was read and checked." in verified.stderr
    )
    assert lepton_audit("verify", log_home, "--offline", folder).exit_code == 0
    found = lepton_audit("search", log_home, "--action", "encrypt", "--json")
    assert len(found.stdout.splitlines()) == 9
    assert "not looked at: leaves 0 to 9" in found.stderr
    again = lepton_audit("archive", log_home, place, "--before", "2020-01-01")
    assert "nothing to archive" in again.stdout
    for arguments in ((), ("--to", "3", "--before", "2020-01-01")):
        assert isinstance(lepton_audit("archive", log_home, place, *arguments).exception, SpecError)
    folder.rename(place / "elsewhere")
    assert lepton_audit("verify", log_home).exit_code == 0
    missing = lepton_audit("verify", log_home, "--archive", place)
    assert missing.exit_code == 1
    assert "None of the named places has it" in missing.stdout


def test_a_witness_of_its_own_cosigns_and_the_log_says_so(log_home: Path, tmp_path: Path) -> None:
    from lepton_airflow.errors import AuditTampered, ConfigurationError

    def witness(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, ["witness", *(str(argument) for argument in arguments)])

    made = witness("keygen", tmp_path / "w1.key", "--name", "witness.example/w1")
    (log_home / "lepton.yaml").write_text(json.dumps({"witnesses": [made.stdout.strip()], "witness_quorum": 1}))
    sealed = lepton_audit("seal", log_home)
    assert "cosigned (0 of 1 witnesses, of which 1 are needed; not by witness.example/w1)" in sealed.stderr
    assert "witness" in lepton_audit("verify", log_home).stdout
    given = (log_home / "checkpoints", "--key", tmp_path / "w1.key", "--log-key", log_home / "checkpoint.pub")
    memory = ("--state", tmp_path / "memory.json")
    assert isinstance(witness("cosign", *given, *memory).exception, ConfigurationError)
    cosigned = witness("cosign", *given, *memory, "--begin")
    assert (cosigned.exit_code, cosigned.stdout[:29]) == (0, "cosigned: 20 events, root " + cosigned.stdout[26:29])
    verified = lepton_audit("verify", log_home)
    assert (verified.exit_code, verified.stdout[:13]) == (0, "ok: 20 events")
    assert "cosigned by witness.example/w1 (1 of 1 witnesses" in verified.stderr
    exported = lepton_audit("export", log_home, "--all", "-o", tmp_path / "export")
    assert exported.exit_code == 0
    assert "witness.example/w1" in (tmp_path / "export" / "checkpoint").read_text()
    (log_home / "checkpoints" / "checkpoint").write_text((log_home / "checkpoints" / "checkpoint").read_text() + "x")
    assert isinstance(witness("cosign", *given, *memory).exception, AuditTampered)
