"""On PostgreSQL a writer can add events and nothing else, and a server on another machine must prove its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sql

from lepton_airflow.audit.checkpoint import Signer
from lepton_airflow.audit.database import connect, migrate
from lepton_airflow.audit.event import Actor, Event
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.sealer import seal
from lepton_airflow.audit.verify import verify
from lepton_airflow.errors import AuditUnavailable, ConfigurationError
from lepton_airflow.settings import Settings


@pytest.fixture
def database(postgresql_database: str, tmp_path: Path) -> Settings:
    """A migrated database whose server has a user in each role, named like it."""
    settings = Settings(home=tmp_path, audit_database=postgresql_database)
    engine = connect(settings, check_schema=False)
    migrate(engine)
    with engine.begin() as connection:
        for role in (settings.audit_writer_role, settings.audit_sealer_role):
            user = f"{role}_user"
            if not connection.scalar(sql.text("SELECT count(*) FROM pg_roles WHERE rolname = :user"), {"user": user}):
                connection.exec_driver_sql(f"CREATE ROLE {user} LOGIN IN ROLE {role}")
    engine.dispose()
    return settings


def engine_as(database: Settings, user: str) -> sql.Engine:
    url = database.audit_database.replace("postgres@", f"{user}@")
    return connect(Settings(home=database.home, audit_database=url))


def append(engine: sql.Engine) -> None:
    log = AuditLog(engine, actor=Actor(principal="etl", host="here"), run_key="run")
    log.append(Event(action="encrypt", phase="note"))
    log.append_all([Event(action="encrypt", phase="note")] * 2)
    log.close()


FORBIDDEN = [
    "UPDATE lepton_audit_leaf SET payload = ''",
    "UPDATE lepton_audit_leaf SET tree_index = 0",
    "DELETE FROM lepton_audit_leaf",
    "TRUNCATE lepton_audit_leaf",
    "INSERT INTO lepton_audit_leaf (event_id, payload, leaf_hash, tree_index) VALUES ('x', '', sha256(''), 0)",
    "INSERT INTO lepton_audit_leaf (event_id, payload, leaf_hash, xid) VALUES ('x', '', sha256(''), '1')",
    "INSERT INTO lepton_audit_checkpoint VALUES (0, '', '')",
    "DELETE FROM lepton_audit_checkpoint",
    "DROP TABLE lepton_audit_leaf",
]


def test_a_writer_appends_and_the_server_refuses_it_everything_else(database: Settings) -> None:
    engine = engine_as(database, "lepton_writer_user")
    append(engine)
    for statement in FORBIDDEN:
        with pytest.raises(AuditUnavailable, match="42501"), engine.begin() as connection:
            connection.exec_driver_sql(statement)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM lepton_audit_leaf").scalar() == 5
    engine.dispose()


def test_a_sealer_seals_and_can_neither_write_events_nor_change_them(database: Settings, signer: Signer) -> None:
    writer, sealer = (engine_as(database, f"lepton_{role}_user") for role in ("writer", "sealer"))
    append(writer)
    assert seal(sealer, signer=signer, exports=[]).tree_size == 5
    assert verify(writer, verifier=signer.verifier, exports=[]).ok
    with pytest.raises(AuditUnavailable, match="42501"):
        append(sealer)
    for statement in (FORBIDDEN[0], *FORBIDDEN[2:4], "DELETE FROM lepton_audit_checkpoint"):
        with pytest.raises(AuditUnavailable, match="42501"), sealer.begin() as connection:
            connection.exec_driver_sql(statement)
    writer.dispose()
    sealer.dispose()


def test_a_writer_keeps_the_ledger_and_the_results_of_runs(database: Settings) -> None:
    from lepton_airflow.audit import runs

    engine = engine_as(database, "lepton_writer_user")
    for status in ("failure", "success"):
        runs.put(engine, "run", job="j", spec_digest="d", status=status, payload={})  # type: ignore[arg-type]
    stored = runs.get(engine, "run")
    assert stored is not None
    assert stored.status == "success"
    with engine.connect() as connection:
        query = (
            "SELECT bool_and(has_table_privilege('lepton_writer', oid, 'SELECT')) FROM pg_class"
            " WHERE relname LIKE 'lepton\\_%%' AND relkind = 'r'"
        )
        assert connection.exec_driver_sql(query).scalar(), "a table of the package that a writer cannot read"
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("postgresql://me@db.example/audit", True),
        ("postgresql://me@db.example/audit?sslmode=require", True),
        ("postgresql://me@db.example/audit?sslmode=verify-ca", True),
        ("postgresql://me@/audit?host=/run/pg,db.example", True),
        ("postgresql://me@localhost/audit?hostaddr=10.0.0.1", True),
        ("postgresql://me@/audit?service=other", True),
        ("postgresql://me@db.example/audit?sslmode=verify-full", False),
        ("postgresql://me@/audit?host=/run/pg", False),
        ("postgresql://me@localhost/audit", False),
    ],
)
def test_a_server_on_another_machine_must_be_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, refused: bool
) -> None:
    for name in ("PGHOST", "PGSSLMODE"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings(home=tmp_path, audit_database=url)
    if refused:
        with pytest.raises(ConfigurationError, match="does not verify the server"):
            connect(settings, check_schema=False)
        connect(settings.model_copy(update={"allow_unverified_database": True}), check_schema=False)
    else:
        connect(settings, check_schema=False)


def test_only_who_writes_and_seals_can_archive_and_only_what_a_statement_covers(
    database: Settings, signer: Signer, tmp_path: Path
) -> None:
    from lepton_airflow.audit.archive import archive
    from lepton_airflow.audit.database import leaf_table

    owner = connect(database)
    with owner.begin() as connection:
        if not connection.scalar(sql.text("SELECT count(*) FROM pg_roles WHERE rolname = 'lepton_keeper'")):
            connection.exec_driver_sql("CREATE ROLE lepton_keeper LOGIN IN ROLE lepton_writer, lepton_sealer")
    owner.dispose()
    writer, sealer, keeper = (
        engine_as(database, user) for user in ("lepton_writer_user", "lepton_sealer_user", "lepton_keeper")
    )
    append(writer)
    seal(sealer, signer=signer, exports=[])
    for statement in (
        "INSERT INTO lepton_audit_archive VALUES (0, 4, 'archived, believe me')",
        "SELECT lepton_audit_clear(0, 4)",
        "DELETE FROM lepton_audit_archive",
    ):
        with pytest.raises(AuditUnavailable, match="42501"), writer.begin() as connection:
            connection.exec_driver_sql(statement)
    with sealer.begin() as connection:
        assert connection.exec_driver_sql("SELECT lepton_audit_clear(0, 4)").scalar() == 0
        # A table of the caller's own must not stand in for ours.
        connection.exec_driver_sql(
            "CREATE TEMPORARY TABLE lepton_audit_archive (first bigint, stop bigint) ON COMMIT DROP"
        )
        connection.exec_driver_sql("INSERT INTO pg_temp.lepton_audit_archive VALUES (0, 4)")
        assert connection.exec_driver_sql("SELECT lepton_audit_clear(0, 4)").scalar() == 0
    for statement in (FORBIDDEN[0], "UPDATE lepton_audit_archive SET stop = 4", "DELETE FROM lepton_audit_archive"):
        with pytest.raises(AuditUnavailable, match="42501"), sealer.begin() as connection:
            connection.exec_driver_sql(statement)
    log = AuditLog(keeper, actor=Actor(principal="keeper", host="here"), run_key="archiving")
    archive(keeper, tmp_path / "archives", log=log, signer=signer, exports=[], stop=3)
    log.close()
    with writer.connect() as connection:
        columns = leaf_table.c
        emptied = connection.scalars(sql.select(columns.tree_index).where(columns.payload == ""))
        assert sorted(emptied) == [0, 1, 2]
    assert verify(writer, verifier=signer.verifier, exports=[]).ok
    for engine in (writer, sealer, keeper):
        engine.dispose()
