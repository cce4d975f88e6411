"""A migrated audit database on each store, and a sealer's key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sql

from lepton_airflow.audit.checkpoint import Signer, generate_signer
from lepton_airflow.audit.database import connect, migrate
from lepton_airflow.audit.event import Actor, Event
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.settings import Settings


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of an empty home, once for each store."""
    if request.param == "sqlite":
        return Settings(home=tmp_path)
    return Settings(home=tmp_path, audit_database=request.getfixturevalue("postgresql_database"))


@pytest.fixture
def sqlite_settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture(scope="session", name="migrated")
def migrated_fixture() -> Callable[[Settings], sql.Engine]:
    return migrated


def migrated(settings: Settings) -> sql.Engine:
    maker = connect(settings, check_schema=False)
    migrate(maker)
    maker.dispose()
    return connect(settings)


@pytest.fixture
def engine(settings: Settings) -> Iterator[sql.Engine]:
    """A migrated database, once for each store."""
    engine = migrated(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def postgresql_engine(postgresql_database: str, tmp_path: Path) -> Iterator[sql.Engine]:
    engine = migrated(Settings(home=tmp_path, audit_database=postgresql_database))
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite_engine(sqlite_settings: Settings) -> Iterator[sql.Engine]:
    engine = migrated(sqlite_settings)
    yield engine
    engine.dispose()


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    path = tmp_path / "checkpoint.key"
    generate_signer(path, name="test-log")
    return Signer.load(path)


Write = Callable[..., list[str]]


def write(engine: sql.Engine, count: int, *, close: bool = True) -> list[str]:
    """One producer's ``count`` events and, unless told otherwise, its closing one; the ids of the former."""
    log = AuditLog(engine, actor=Actor(principal="tester", host="here"), run_key="dag/task/run/0")
    ids = [
        log.append(Event(action="encrypt", phase="note", dataset="clinic", counts={"rows": number}))
        for number in range(count)
    ]
    if close:
        log.close()
    return ids


@pytest.fixture(scope="session", name="write")
def write_fixture() -> Write:
    return write
