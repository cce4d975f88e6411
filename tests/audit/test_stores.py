"""Checkpoints in every kind of other place, and what each of them catches."""

from __future__ import annotations

import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.audit.checkpoint import Signer
from lepton_airflow.audit.database import checkpoint_table, leaf_table
from lepton_airflow.audit.export import Export
from lepton_airflow.audit.merkle import root
from lepton_airflow.audit.sealer import seal
from lepton_airflow.audit.stores import open_store
from lepton_airflow.audit.verify import verify
from lepton_airflow.errors import AuditTampered, AuditUnavailable, ConfigurationError, MissingDependency
from lepton_airflow.settings import Settings

PLACES = ["folder", "fsspec file", "fsspec memory", "second sqlite", "second postgresql"]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    match request.param:
        case "folder":
            return tmp_path / "export"
        case "fsspec file":
            return f"file://{tmp_path}/export"
        case "fsspec memory":
            return f"memory://{uuid.uuid4().hex}"
        case "second sqlite":
            return f"sqlite:///{tmp_path}/second.db"
        case _:
            return str(request.getfixturevalue("new_postgresql_database")())


def test_a_log_is_exported_and_a_cut_tail_is_located(
    sqlite_engine: sql.Engine, signer: Signer, place: Path | str, write: Any
) -> None:
    for count in (3, 300):
        write(sqlite_engine, count)
        seal(sqlite_engine, signer=signer, exports=[place])
    export = Export(place)
    hashes = export.leaf_hashes(305)
    assert hashes is not None
    report = verify(sqlite_engine, verifier=signer.verifier, exports=[place])
    assert (report.ok, report.notes, report.tree_size) == (True, (), 305)
    assert root(hashes[start : start + 32] for start in range(0, len(hashes), 32)).hex() == report.root
    assert [name.rpartition("/")[2] for name, _ in export.notes()] == ["checkpoint", f"{4:020}", f"{305:020}"]
    with sqlite_engine.begin() as connection:
        connection.execute(leaf_table.delete().where(leaf_table.c.tree_index >= 4))
        connection.execute(checkpoint_table.delete().where(checkpoint_table.c.tree_size > 4))
    report = verify(sqlite_engine, verifier=signer.verifier, exports=[place])
    assert ("truncated", "leaves 4 to 304") in [(finding.kind, finding.position) for finding in report.findings]
    with pytest.raises(AuditTampered, match="305 events"):
        seal(sqlite_engine, signer=signer, exports=[place])


def test_another_history_is_not_written_over_the_first(place: Path | str) -> None:
    export = Export(place)
    export.write(since=0, notes=[(1, "log\n1\none")], leaf_hashes=lambda _start, _stop: bytes(32))
    with pytest.raises(AuditTampered, match="other contents"):
        export.write(since=0, notes=[(1, "log\n1\nother")], leaf_hashes=lambda _start, _stop: bytes(32))
    assert export.latest() == "log\n1\none"


def test_two_exports_of_different_histories_are_a_fork(
    sqlite_engine: sql.Engine, signer: Signer, place: Path | str, write: Any, tmp_path: Path
) -> None:
    write(sqlite_engine, 3)
    seal(sqlite_engine, signer=signer, exports=[place])
    with sqlite_engine.begin() as connection:
        connection.execute(leaf_table.delete())
        connection.execute(checkpoint_table.delete())
    write(sqlite_engine, 3)
    seal(sqlite_engine, signer=signer, exports=[tmp_path / "elsewhere"])
    report = verify(sqlite_engine, verifier=signer.verifier, exports=[place, tmp_path / "elsewhere"])
    assert ("fork", "checkpoint 4") in [(finding.kind, finding.position) for finding in report.findings]


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("s3://me:hunter2@bucket/audit", "holds a password"),
        ("postgresql://me:hunter2@db/audit", "holds a password"),
        ("nosuch://bucket/audit", "No file system"),
        ("postgresql://me@db.example/audit", "does not verify the server"),
    ],
)
def test_an_unusable_url_is_refused_without_showing_a_password(url: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_without_fsspec_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "fsspec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependency, match="Install fsspec"):
        open_store("memory://audit")


def test_an_unreachable_place_is_unavailable(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    for place in (blocked / "export", f"file://{blocked}/export", f"sqlite:///{blocked}/second.db"):
        with pytest.raises(AuditUnavailable):
            open_store(place).write("checkpoint", b"x")


def test_settings_keep_urls_and_put_paths_under_the_home(tmp_path: Path) -> None:
    places = ("checkpoints", "/elsewhere", "s3://bucket/audit", "sqlite:///second.db")
    settings = Settings(home=tmp_path, checkpoint_exports=places)
    expected = (tmp_path / "checkpoints", Path("/elsewhere"), "s3://bucket/audit", f"sqlite:///{tmp_path}/second.db")
    assert settings.checkpoint_exports == expected
    shutil.rmtree(tmp_path)
