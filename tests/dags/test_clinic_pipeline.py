"""The demo, as a newcomer runs it; and what happens to its audit when one byte is changed."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo's folder after it ran, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "clinic"
    finished = subprocess.run(
        [sys.executable, str(REPOSITORY / "dags" / "clinic" / "demo.py")],
        env={
            **os.environ,
            "LEPTON_DEMO_FOLDER": str(folder),
            "COLUMNS": "160",
            "OPENLINEAGE__TRANSPORT__TYPE": "file",
            "OPENLINEAGE__TRANSPORT__LOG_FILE_PATH": str(folder.with_name("events.jsonl")),
            "OPENLINEAGE__TRANSPORT__APPEND": "true",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder, finished.stdout


def lepton(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("lepton"))
    return subprocess.run(
        [program, *arguments, "--home", str(folder / "lepton")],
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_demo_ends_with_a_summary_that_its_files_bear_out(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    card = json.loads((folder / "data/models/diagnosis/model_card.json").read_text())
    release = json.loads((folder / "data/released/visits.json").read_text())
    assert "rows protected" in printed
    assert "1,438" in printed
    assert "2 of 5 per patient" in printed
    assert f"{card['evaluation']['clean']['accuracy']:.3f}" in printed
    assert f"{card['evaluation']['robust']['accuracy']:.3f}" in printed
    assert "verified" in printed
    assert str(folder / "report.html") in printed
    assert len(release["groupings"][0]["cells"]) == 8
    assert release["epsilon"] == "2"


def test_the_report_is_one_file_with_two_plots_and_says_what_is_invented(demo: tuple[Path, str]) -> None:
    page = (demo[0] / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "invented from a fixed seed" in page
    # Namespaces of SVG are names, not addresses to load from.
    assert "src=" not in page
    assert "<link" not in page
    assert "<script" not in page


def test_nothing_that_identifies_is_in_clear_after_the_boundary(demo: tuple[Path, str]) -> None:
    import pyarrow.parquet as pq

    folder, _ = demo
    raw = pq.read_table(folder / "data/landing/visits")
    protected = pq.read_table(folder / "data/protected/visits")
    assert protected.num_rows == raw.num_rows
    secrets = {
        name.encode() for column in ("name", "email", "phone", "patient_id") for name in set(raw[column].to_pylist())
    }
    outside = [path for path in folder.rglob("*") if path.is_file() and "landing" not in path.parts]
    assert any("protected" in path.parts for path in outside)
    for path in outside:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret in content], path


def test_the_audit_verifies_until_one_byte_is_changed_and_then_names_the_row(
    demo: tuple[Path, str], tmp_path: Path
) -> None:
    copy = tmp_path / "clinic"
    shutil.copytree(demo[0], copy)
    good = lepton(copy, "audit", "verify")
    assert good.returncode == 0, good.stdout
    assert good.stdout.startswith("ok: ")
    with sqlite3.connect(copy / "lepton" / "audit.db") as database:
        event_id, index, payload = database.execute(
            'select event_id, tree_index, payload from lepton_audit_leaf where payload like \'%"action":"decrypt"%\' limit 1'
        ).fetchone()
        database.execute(
            "update lepton_audit_leaf set payload = ? where event_id = ?",
            (payload.replace('"action":"decrypt"', '"action":"decrypu"'), event_id),
        )
    bad = lepton(copy, "audit", "verify")
    assert bad.returncode == 1
    assert event_id in bad.stdout
    assert f"leaf {index}" in bad.stdout


def test_the_pipeline_publishes_assets_with_what_was_done(demo: tuple[Path, str]) -> None:
    with sqlite3.connect(demo[0] / "airflow" / "airflow.db") as database:
        events = dict(
            database.execute(
                "select asset.name, asset_event.extra from asset_event join asset on asset.id = asset_event.asset_id"
            ).fetchall()
        )
    assert set(events) == {"clinic.visits", "clinic.visits_release", "clinic.diagnosis_model"}
    assert json.loads(events["clinic.visits"])["rows"] == 1438
    assert json.loads(events["clinic.visits_release"])["epsilon_spent"] == "2"


def test_every_task_tells_what_the_file_beside_the_pipeline_says(
    demo: tuple[Path, str], specification: Any, expected_events: Any
) -> None:
    told = specification.read_events(demo[0].with_name("events.jsonl"))
    tasks = [event for event in told if "lepton_privacy" in event["run"]["facets"]]
    assert [event["eventType"] for event in tasks] == ["START", "COMPLETE"] * 5
    for event in tasks:
        expected_events.hold(event["job"]["name"], event["eventType"], event, data=demo[0] / "data")
