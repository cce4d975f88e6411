"""`lepton init` makes a deployment once, and leaves what is there alone."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lepton_airflow.access.policy import Policy, Request
from lepton_airflow.audit.checkpoint import Verifier
from lepton_airflow.audit.database import connect
from lepton_airflow.audit.verify import verify
from lepton_airflow.cli import app
from lepton_airflow.keys.identity import Identity
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.settings import load_settings


def init(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["init", "--home", str(folder), "--identity", "owner", *arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert init(tmp_path / "lepton").exit_code == 0
    return tmp_path / "lepton"


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and "audit.db" not in path.name
    }


def test_a_new_home_works_and_denies_everything(folder: Path) -> None:
    settings = load_settings(folder)
    identity = Identity.load(settings.identity_file)
    assert FileKeyring(settings.keyring).open("default", cipher="AES256_GCM", identity=identity)
    request = Request("owner", "encrypt", "clinic.visits", ("email",), "ingestion")
    assert not Policy.load(settings.policy).decide(request).allow
    schema = settings.policy.read_text().splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert json.loads(Path(schema).read_text())["title"] == "Policy"
    engine = connect(settings)
    report = verify(engine, verifier=Verifier.load(settings.checkpoint_verifier), exports=settings.checkpoint_exports)
    engine.dispose()
    assert report.ok
    assert report.tree_size > 0, "making the identity and the keyset is in the audit, sealed"


def test_private_files_are_private(folder: Path) -> None:
    settings = load_settings(folder)
    for file in (settings.identity_file, settings.checkpoint_signer):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_second_init_changes_nothing(folder: Path) -> None:
    before = files(folder)
    assert init(folder).exit_code == 0
    assert files(folder) == before


def test_a_sealer_key_that_was_moved_away_is_not_made_anew(folder: Path, tmp_path: Path) -> None:
    settings = load_settings(folder)
    settings.checkpoint_signer.rename(tmp_path / "elsewhere.key")
    verifier = settings.checkpoint_verifier.read_text()
    assert init(folder).exit_code == 0
    assert settings.checkpoint_verifier.read_text() == verifier
    assert not settings.checkpoint_signer.exists()
