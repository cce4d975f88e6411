"""Connections fail closed with typed errors, commits are durable, migrations agree with the tables."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from lepton_airflow.audit.archived import Archived
from lepton_airflow.audit.checkpoint import Checkpoint, Signer
from lepton_airflow.audit.database import (
    VERSION_TABLE,
    archive_table,
    checkpoint_table,
    connect,
    leaf_table,
    metadata,
    migrate,
    node_table,
    reading,
    run_table,
)
from lepton_airflow.audit.merkle import root
from lepton_airflow.audit.runs import get, put
from lepton_airflow.audit.sealer import seal
from lepton_airflow.audit.verify import verify
from lepton_airflow.errors import AuditTampered, AuditUnavailable, ConfigurationError
from lepton_airflow.keys.usage import reserve_usage, usage, usage_table
from lepton_airflow.models.registry import ModelRegistry, model_table
from lepton_airflow.settings import Settings
from lepton_airflow.storage.catalogue import Catalogue, stored_table


def test_the_migrations_make_the_tables_that_the_code_uses(engine: sql.Engine) -> None:
    audit_tables = {leaf_table.name, checkpoint_table.name, node_table.name, archive_table.name, run_table.name}

    def ours(_object: object, name: str | None, kind: str, _reflected: bool, _compared: object) -> bool:
        # The columns xid and an index over one are PostgreSQL's alone; the privacy ledger's tables are tested with it.
        others = {"xid", "lepton_audit_leaf_unsealed"} if engine.dialect.name == "postgresql" else set()
        return name in audit_tables if kind == "table" else name not in others

    with warnings.catch_warnings(), engine.connect() as connection:
        warnings.filterwarnings("ignore", "Did not recognize type 'xid8'")
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "include_object": ours, "compare_type": True}
        )
        assert compare_metadata(context, metadata) == []


def test_migrating_again_and_from_several_processes_at_once_changes_nothing(settings: Settings) -> None:
    failures: list[Exception] = []

    def work() -> None:
        try:
            engine = connect(settings, check_schema=False)
            migrate(engine)
            engine.dispose()
        except Exception as error:
            failures.append(error)

    # The first migration makes the file; alembic's own state is per process, so the others follow one another.
    work()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert failures == []
    connect(settings).dispose()


def revisions() -> list[str]:
    """Every schema that was released before this one, oldest first."""
    from alembic.script import ScriptDirectory

    from lepton_airflow.audit.database import _migration_config

    scripts = ScriptDirectory.from_config(_migration_config())
    return [script.revision for script in scripts.walk_revisions()][:0:-1]


@pytest.mark.parametrize("revision", revisions())
def test_a_log_of_every_older_schema_is_migrated_and_goes_on(
    settings: Settings, signer: Signer, write: Any, write_first_schema: Any, revision: str
) -> None:
    """What was written and sealed under the old schema verifies under the new one, and is sealed further."""
    from alembic import command

    from lepton_airflow.audit.database import _migration_config

    old = connect(settings, check_schema=False)
    with old.begin() as connection:
        config = _migration_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    write_first_schema(old, 4)
    with old.begin() as connection:
        # Sealed as every version has done it: positions, a root over the stored hashes, a signed note.
        hashes = list(connection.scalars(sql.select(leaf_table.c.leaf_hash).order_by(leaf_table.c.id)))
        connection.exec_driver_sql("UPDATE lepton_audit_leaf SET tree_index = id - 1")
        note = Checkpoint(signer.name, len(hashes), root(hashes)).sign(signer)
        connection.execute(checkpoint_table.insert().values(tree_size=len(hashes), note=note, frontier=b""))
    beside = fill_beside_the_log(old, signer)
    migrate(old)
    old.dispose()
    engine = connect(settings)
    write(engine, 2)
    assert seal(engine, signer=signer, exports=[]).tree_size == 8
    report = verify(engine, verifier=signer.verifier, exports=[])
    assert (report.findings, report.tree_size, report.unsealed) == ((), 8, 0)
    assert any("leaves 0 to 1 are archived at /elsewhere" in note for note in report.notes) == ("archive" in beside)
    assert usage(engine, "clinic") == ({7: 100} if "usage" in beside else {})
    champion = ModelRegistry(engine).champion("diagnosis")
    assert (champion is not None and champion.metrics == {"clean": 0.9}) == ("model" in beside)
    assert len(Catalogue(engine).entries("visits", "stored")) == ("stored" in beside)
    run = get(engine, "dag/task/run/0")
    assert run is not None
    assert (run.status, run.payload) == ("success", {"rows": 4})
    engine.dispose()


def fill_beside_the_log(engine: sql.Engine, signer: Signer) -> set[str]:
    """A row in each table that is not the log itself, as far as the schema has it: what was filled."""
    tables = {
        "archive": archive_table.name,
        "model": model_table.name,
        "stored": stored_table.name,
        "usage": usage_table.name,
    }
    with engine.connect() as connection:
        there = {what for what, table in tables.items() if sql.inspect(connection).has_table(table)}
    put(engine, "dag/task/run/0", job="encrypt_columns", spec_digest="d", status="success", payload={"rows": 4})
    if "usage" in there:
        reserve_usage(engine, "clinic", 7, 100)
    with engine.begin() as connection:
        if "archive" in there:
            event = connection.scalars(sql.select(leaf_table.c.event_id).order_by(leaf_table.c.id)).all()[3]
            archived = Archived(
                origin=signer.name, first=0, stop=2, digest="0" * 64, event_id=event, place="/elsewhere"
            )
            connection.execute(archive_table.insert().values(first=0, stop=2, note=archived.sign(signer)))
            connection.execute(leaf_table.update().where(leaf_table.c.tree_index < 2).values(payload=""))
        if "stored" in there:
            texts = ("dataset", "version", "run_key", "spec_digest", "begun_at", "manifest")
            values = dict.fromkeys(texts, "visits") | {"status": "stored", "position": 1, "nodes": "[]"}
            connection.execute(stored_table.insert().values(values))
        if "model" in there:
            texts = ("model", "sha256", "run_key", "card_sha256", "dataset", "dataset_digest", "registered_at")
            row = dict.fromkeys(texts, "diagnosis") | {"status": "champion", "metrics": '{"clean":0.9}'}
            connection.execute(model_table.insert().values(row))
    return there


def test_nothing_is_read_from_or_written_to_a_file_that_was_removed_or_replaced(
    sqlite_settings: Settings, sqlite_engine: sql.Engine
) -> None:
    file = sqlite_settings.home / "audit.db"
    with sqlite_engine.connect() as connection:
        connection.execute(sql.select(run_table))
    aside = file.rename(file.with_name("aside"))
    for _ in range(2):
        with pytest.raises(AuditUnavailable, match="gone"), sqlite_engine.begin() as connection:
            connection.execute(run_table.delete())
        with pytest.raises(AuditUnavailable, match="gone"), reading(sqlite_engine) as connection:
            connection.execute(sql.select(run_table))
        with pytest.raises(AuditUnavailable, match="gone"):
            put(sqlite_engine, "run", job="job", spec_digest="d", status="success", payload={})
    assert not file.exists()
    shutil.copy(aside, file)
    with pytest.raises(AuditUnavailable, match="another one is in its place"), sqlite_engine.begin() as connection:
        connection.execute(run_table.delete())
    put(sqlite_engine, "run", job="job", spec_digest="d", status="success", payload={})
    with sqlite3.connect(file) as there:
        assert there.execute("SELECT run_key FROM lepton_run").fetchall() == [("run",)]


def test_a_database_without_the_schema_is_refused(settings: Settings) -> None:
    if settings.audit_database.startswith("sqlite"):
        (settings.home / "audit.db").touch()
    with pytest.raises(ConfigurationError, match=r"missing; this package needs .*lepton init"):
        connect(settings)


def test_a_database_that_does_not_exist_is_not_made(sqlite_settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        connect(sqlite_settings)
    assert not (sqlite_settings.home / "audit.db").exists()


def test_a_schema_of_another_version_is_refused(engine: sql.Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        connection.execute(sql.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999_future'"))
    with pytest.raises(ConfigurationError, match="9999_future; this package needs"):
        connect(settings)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://me:hunter2@localhost/audit", "holds a password"),
        ("sqlite://", "in memory"),
        ("sqlite+pysqlite:///:memory:", "in memory"),
        ("mysql://localhost/audit", "SQLite or PostgreSQL"),
        ("no url", "cannot be read"),
    ],
)
def test_an_unusable_url_is_refused_without_showing_a_password(tmp_path: Path, url: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        connect(Settings(home=tmp_path, audit_database=url))
    assert "hunter2" not in str(caught.value)


def test_the_password_comes_from_the_environment_and_shows_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEPTON_AUDIT_DATABASE_PASSWORD", "hunter2")
    engine = connect(Settings(home=tmp_path, audit_database="postgresql://me@127.0.0.1:1/audit"), check_schema=False)
    assert engine.url.password == "hunter2"
    with pytest.raises(AuditUnavailable) as caught, engine.connect():
        pass
    assert "hunter2" not in f"{caught.value!r} {caught.value} {engine!r}"
    assert "refused" in str(caught.value)


def test_an_unreachable_server_fails_closed_and_may_be_retried(tmp_path: Path) -> None:
    with pytest.raises(AuditUnavailable) as caught:
        connect(Settings(home=tmp_path, audit_database="postgresql://me@127.0.0.1:1/audit"))
    assert not caught.value.final


def test_sqlite_is_durable_bounded_and_checks_references(sqlite_engine: sql.Engine) -> None:
    with sqlite_engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


def test_postgresql_is_durable_and_bounded(postgresql_database: str, tmp_path: Path) -> None:
    engine = connect(Settings(home=tmp_path, audit_database=postgresql_database), check_schema=False)
    with engine.connect() as connection:
        shown = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in ("synchronous_commit", "lock_timeout")]
    engine.dispose()
    assert shown == ["on", "10s"]


def test_a_transaction_that_reads_first_can_still_write(sqlite_engine: sql.Engine) -> None:
    """With SQLite's default BEGIN the second of two such transactions fails at once instead of waiting."""
    barrier = threading.Barrier(2)
    failures: list[Exception] = []

    def work(name: str) -> None:
        try:
            barrier.wait()
            for _ in range(20):
                with sqlite_engine.begin() as connection:
                    count = connection.scalar(sql.select(sql.func.count()).select_from(run_table))
                    row = {"job": "j", "spec_digest": "d", "status": "success", "payload": "{}", "recorded_at": ""}
                    connection.execute(run_table.insert().values(run_key=f"{name}{count}", **row))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_reading_sees_one_snapshot_and_keeps_no_writer_waiting(engine: sql.Engine) -> None:
    row = {"job": "j", "spec_digest": "d", "status": "success", "payload": "{}", "recorded_at": ""}
    count = sql.select(sql.func.count()).select_from(run_table)
    with reading(engine) as reader:
        assert reader.scalar(count) == 0
        with engine.begin() as writer:
            writer.execute(run_table.insert().values(run_key="a", **row))
        assert reader.scalar(count) == 0
    with reading(engine) as reader:
        assert reader.scalar(count) == 1


def test_a_damaged_file_is_tampering_not_an_outage(sqlite_engine: sql.Engine, sqlite_settings: Settings) -> None:
    sqlite_engine.dispose()
    file = sqlite_settings.home / "audit.db"
    data = bytearray(file.read_bytes())
    data[:16] = b"no database file"
    file.write_bytes(data)
    with pytest.raises(AuditTampered, match="damaged"):
        connect(sqlite_settings)


def test_a_read_only_database_is_unavailable(sqlite_engine: sql.Engine) -> None:
    with sqlite_engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
        with pytest.raises(AuditUnavailable, match="SQLITE_READONLY"):
            connection.execute(leaf_table.delete())


def test_a_broken_connection_to_postgresql_is_replaced(postgresql_database: str, tmp_path: Path) -> None:
    engine = connect(Settings(home=tmp_path, audit_database=postgresql_database), check_schema=False)
    with engine.connect() as connection:
        backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with engine.connect() as other:
            other.exec_driver_sql(f"SELECT pg_terminate_backend({backend})")
        with pytest.raises(AuditUnavailable):
            connection.exec_driver_sql("SELECT 1")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    engine.dispose()


def test_an_error_never_shows_the_values_of_a_statement(engine: sql.Engine) -> None:
    row = {"job": "j", "spec_digest": "d", "status": "success", "payload": "a secret payload", "recorded_at": ""}

    def insert() -> None:
        with engine.begin() as connection:
            connection.execute(run_table.insert().values(run_key="twice", **row))

    insert()
    with pytest.raises(IntegrityError) as caught:
        insert()
    assert "secret" not in str(caught.value)
