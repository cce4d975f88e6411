"""`lepton storage`: preparing nodes, seeing that they are there, and what is stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sql
import yaml
from typer.testing import CliRunner, Result

from lepton_airflow.audit.database import connect, leaf_table
from lepton_airflow.cli import app
from lepton_airflow.errors import ConfigurationError, StorageError, TargetExists
from lepton_airflow.settings import SETTINGS_FILE, Settings, load_settings
from lepton_airflow.storage.catalogue import Catalogue


@pytest.fixture
def command(home: Settings, tmp_path: Path) -> Callable[..., Result]:
    places = {name: str(tmp_path / "nodes" / name) for name in ("north", "south")}
    (home.home / SETTINGS_FILE).write_text(yaml.safe_dump({"identity": "tester", "storage_nodes": places}))

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["storage", *arguments, "--home", str(home.home)])

    return invoke


def test_nodes_are_prepared_and_shown(command: Callable[..., Result], home: Settings, tmp_path: Path) -> None:
    assert command("nodes").exit_code == 1
    assert not (tmp_path / "nodes").exists()
    prepared = command("prepare", "north")
    assert prepared.exit_code == 0, prepared.output
    half = command("nodes")
    assert half.exit_code == 1
    assert "not prepared for this node" in half.stdout
    assert command("prepare").exit_code == 0
    whole = command("nodes")
    assert (whole.exit_code, whole.stdout.count("there")) == (0, 2)
    shutil.rmtree(tmp_path / "nodes" / "south")
    (tmp_path / "nodes" / "north").rename(tmp_path / "nodes" / "south")
    assert isinstance(command("prepare").exception, TargetExists), "the place is north's"
    assert isinstance(command("prepare", "east").exception, ConfigurationError)
    engine = connect(home)
    with engine.connect() as connection:
        events = [json.loads(payload) for payload in connection.scalars(sql.select(leaf_table.c.payload))]
    engine.dispose()
    told = [event for event in events if event["action"] == "storage.prepare"]
    assert [event["phase"] for event in told] == ["intent", "success", "intent", "success", "intent", "failure"]
    assert told[0]["details"] == {"nodes": "north"}


def test_what_is_stored_is_listed(command: Callable[..., Result], home: Settings) -> None:
    assert command("list").exit_code == 0
    assert isinstance(command("list", "clinic.visits").exception, StorageError)
    engine = connect(load_settings(home.home))
    catalogue = Catalogue(engine)
    entry, _ = catalogue.begin("clinic.visits", run_key="pipeline/store/monday/-1", spec_digest="d", nodes=["south"])
    summary = {"files": 1234, "bytes": 5_000_000, "missing": {"south": 3}}
    catalogue.commit(entry.version, manifest=f"sha256:{'0' * 64}", summary=summary)
    catalogue.begin("clinic.visits", run_key="unfinished", spec_digest="d", nodes=["south"])
    engine.dispose()
    for listed in (command("list"), command("list", "clinic.visits")):
        assert listed.exit_code == 0, listed.output
        for text in (entry.version, "1,234", "5,000,000", "3 on south", "clinic.visits"):
            assert text in listed.stdout
        assert listed.stdout.count("3 on south") == 1, "what is not complete is not listed"
