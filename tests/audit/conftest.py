"""A migrated audit database on each store, and a sealer's key."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import sqlalchemy as sql

from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.audit.checkpoint import Signer, generate_signer
from lepton_airflow.audit.database import connect, leaf_table, migrate
from lepton_airflow.audit.event import Actor, Event, event_id_of
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.merkle import leaf_hash
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
    """A producer's ``count`` events, the first of which opens it; then, unless told otherwise, it closes. The ids of those."""
    log = AuditLog(engine, actor=Actor(principal="tester", host="here"), run_key="dag/task/run/0")
    for number in range(1, count):
        log.append(Event(action="encrypt", phase="note", dataset="clinic", counts={"rows": number}))
    if close:
        log.close()
    return [event_id_of(log.producer, number) for number in range(count)]


@pytest.fixture(scope="session", name="write")
def write_fixture() -> Write:
    return write


def write_first_schema(engine: sql.Engine, count: int) -> list[str]:
    """A producer's ``count`` events and its closing one as they were written before schema 2; the ids of the former."""
    producer, previous, rows = uuid.uuid4(), None, []
    for number in range(count + 1):
        closes = number == count
        event_id = str(uuid.uuid5(producer, str(number)))
        leaf = {
            "schema": "lepton.audit.event/1",
            "event_id": event_id,
            "time": "2026-11-01T00:00:00.000000Z",
            "producer": {"id": str(producer), "sequence": number, "previous": previous},
            "run_key": "dag/task/run/0",
            "actor": asdict(Actor(principal="tester", host="here")),
            **asdict(Event(action="producer" if closes else "encrypt", phase="close" if closes else "note")),
            "counts": {"events" if closes else "rows": number},
            "columns": [],
            "rules": [],
        }
        payload = canonical_json(leaf)
        previous = leaf_hash(payload).hex()
        rows.append({"event_id": event_id, "payload": payload.decode(), "leaf_hash": leaf_hash(payload)})
    with engine.begin() as connection:
        connection.execute(leaf_table.insert(), rows)
    return [row["event_id"] for row in rows[:-1]]


@pytest.fixture(scope="session", name="write_first_schema")
def write_first_schema_fixture() -> Write:
    return write_first_schema
