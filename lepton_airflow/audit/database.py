"""The audit database: its tables, connections to it and its migrations.

The privacy ledger keeps its tables in the same database (and in the same ``metadata``), so that a release and its audit
trail cannot part. SQLite is the embedded default, PostgreSQL the shared store; the code above this module is the same.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry

from lepton_airflow.audit.roles import ROLES, grant_roles
from lepton_airflow.errors import (
    AuditTampered,
    AuditUnavailable,
    ConfigurationError,
    LeptonError,
    MissingDependency,
)
from lepton_airflow.settings import DATABASE_PASSWORD_VARIABLE, Settings

#: Every table of the database, the privacy ledger's too.
metadata = sql.MetaData()
VERSION_TABLE = "lepton_schema_version"

_TIMEOUT_SECONDS = 10
_READING = "lepton_reading"
_FILE = "lepton_file"
_RETRYABLE_STATES = ("40001", "40P01")  # PostgreSQL: serialization_failure, deadlock_detected
_NOT_PERMITTED = "42501"  # PostgreSQL: insufficient_privilege
_INTERNAL = "XX000"  # PostgreSQL: internal_error, also of a file that cannot grow
_DAMAGED_STATES = ("XX001", "XX002")  # PostgreSQL: data_corrupted, index_corrupted
_NOT_TEXT = "Could not decode"  # how sqlite3's message about a text that is not UTF-8 begins
_LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "::1")
_MIGRATION_LOCK = 0x6C6570746F6E00  # an arbitrary constant: "lepton" in hex

row_id = sql.BigInteger().with_variant(sql.Integer(), "sqlite")

#: One row for each event. PostgreSQL's table has one more column, ``xid``: the transaction that wrote it (see
#: :mod:`lepton_airflow.audit.unsealed`).
leaf_table = sql.Table(
    "lepton_audit_leaf",
    metadata,
    sql.Column("id", row_id, sql.Identity(always=True), primary_key=True),
    sql.Column("event_id", sql.String(36), nullable=False, unique=True),
    sql.Column("payload", sql.Text, nullable=False),
    sql.Column("leaf_hash", sql.LargeBinary, nullable=False),
    sql.Column("tree_index", sql.BigInteger, nullable=True, unique=True),
    sql.CheckConstraint("length(leaf_hash) = 32", name="lepton_audit_leaf_hash_length"),
    sqlite_autoincrement=True,
)
# On PostgreSQL it is over ``xid`` and ``id``; see migration 0008.
sql.Index("lepton_audit_leaf_unsealed", leaf_table.c.id, sqlite_where=leaf_table.c.tree_index.is_(None))

#: One row for each signed checkpoint; ``frontier`` is the tree's right edge at that size, so that sealing need not
#: hash the whole log again (it is checked against the signed root before it is used). ``horizon`` says, on PostgreSQL, from where
#: on the next seal looks for rows (see :mod:`lepton_airflow.audit.unsealed`).
checkpoint_table = sql.Table(
    "lepton_audit_checkpoint",
    metadata,
    sql.Column("tree_size", sql.BigInteger, primary_key=True, autoincrement=False),
    sql.Column("note", sql.Text, nullable=False),
    sql.Column("frontier", sql.LargeBinary, nullable=False),
    sql.Column("horizon", sql.Text, nullable=True),
)

#: Hashes of complete subtrees of the log, 2**level leaves each, so that proofs need not read the whole log. Nothing rests
#: on them: what is made of them is held against a signed root.
node_table = sql.Table(
    "lepton_audit_node",
    metadata,
    sql.Column("level", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("position", sql.BigInteger, primary_key=True, autoincrement=False),
    sql.Column("hash", sql.LargeBinary, nullable=False),
)

#: One row for each archived range: the leaves from ``first`` up to, not including, ``stop`` have an empty payload, and the signed
#: note says where the payloads are (see :mod:`lepton_airflow.audit.archive`).
archive_table = sql.Table(
    "lepton_audit_archive",
    metadata,
    sql.Column("first", sql.BigInteger, primary_key=True, autoincrement=False),
    sql.Column("stop", sql.BigInteger, nullable=False, unique=True),
    sql.Column("note", sql.Text, nullable=False),
    sql.CheckConstraint("first >= 0 AND first < stop", name="lepton_audit_archive_range"),
)

#: The result channel: the last outcome of every run key.
run_table = sql.Table(
    "lepton_run",
    metadata,
    sql.Column("run_key", sql.Text, primary_key=True),
    sql.Column("job", sql.Text, nullable=False),
    sql.Column("spec_digest", sql.Text, nullable=False),
    sql.Column("status", sql.Text, nullable=False),
    sql.Column("payload", sql.Text, nullable=False),
    sql.Column("recorded_at", sql.Text, nullable=False),
)


def connect(settings: Settings, *, check_schema: bool = True) -> sql.Engine:
    """An engine for the audit database of ``settings``.

    SQLite runs in WAL mode with ``synchronous=FULL``, waits at most 10 seconds for a lock, and begins every transaction
    with ``BEGIN IMMEDIATE`` (except :func:`reading`'s). PostgreSQL takes its password from the environment variable
    ``LEPTON_AUDIT_DATABASE_PASSWORD``. Every statement of the engine that fails because the database is away, locked or
    full raises :class:`AuditUnavailable`; one that fails because the file is damaged raises :class:`AuditTampered`.

    :param check_schema: False only for :func:`migrate`, which makes the schema
    :raises AuditUnavailable: the database cannot be reached
    :raises ConfigurationError: not a usable URL, or the schema is not at this package's version
    :raises MissingDependency: PostgreSQL without psycopg
    """
    url = _checked_url(settings)
    place = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite":
        if check_schema and not Path(url.database or "").exists():
            raise ConfigurationError(
                "The audit database does not exist.", place=place, remedy="Run `lepton init` to make it."
            )
        engine = sql.create_engine(url, hide_parameters=True, connect_args={"timeout": _TIMEOUT_SECONDS})
        sql.event.listen(engine, "connect", _configure_sqlite)
        sql.event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = _postgresql_engine(url, roles=(settings.audit_writer_role, settings.audit_sealer_role))

    def typed(context: ExceptionContext) -> BaseException | None:
        # A ping's failure is the pool's own business: it opens a new connection.
        return None if context.is_pre_ping else typed_error(context.original_exception, place)

    sql.event.listen(engine, "handle_error", typed)
    if check_schema:
        _check_schema(engine, place)
    return engine


@contextmanager
def reading(engine: sql.Engine) -> Iterator[sql.Connection]:
    """A connection that sees one snapshot of the database while it is open, and does not keep writers waiting."""
    options: dict[str, Any] = {_READING: True}
    if engine.dialect.name == "postgresql":
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


def require_reachable(engine: sql.Engine) -> None:
    """Ask the database for something, so that work whose outcome could not be recorded stops before it shows.

    :raises AuditUnavailable: it cannot be reached
    """
    with engine.connect() as connection:
        connection.execute(sql.select(run_table.c.run_key).limit(1))


def insert_into(table: sql.Table, bind: sql.Engine | sql.Connection) -> Any:
    """An INSERT that can have an ON CONFLICT clause: both dialects have the same one, under two names."""
    from sqlalchemy.dialects import postgresql, sqlite

    return (postgresql if bind.dialect.name == "postgresql" else sqlite).insert(table)


def migrate(engine: sql.Engine) -> None:
    """Bring the schema to this package's version; safe to call from several processes at once.

    On PostgreSQL the roles of the settings get their rights (see :mod:`lepton_airflow.audit.roles`).

    :raises AuditUnavailable: the database cannot be reached
    """
    from alembic import command

    config = _migration_config()
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        grant_roles(connection)


def _checked_url(settings: Settings) -> URL:
    def refused(rule: str) -> ConfigurationError:
        return ConfigurationError(
            rule,
            place="settings: audit_database",
            remedy="Write sqlite:///<file> or postgresql://<user>@<host>/<database>; "
            f"a password belongs in the environment variable {DATABASE_PASSWORD_VARIABLE}.",
        )

    try:
        url = make_url(settings.audit_database)
    except ArgumentError:
        raise refused("The URL of the audit database cannot be read.") from None
    if url.password is not None:
        raise refused("The URL of the audit database holds a password.")
    backend = url.get_backend_name()
    if backend == "postgresql":
        _require_verified_server(url, settings)
        return url.set(drivername="postgresql+psycopg", password=os.environ.get(DATABASE_PASSWORD_VARIABLE))
    if backend != "sqlite":
        raise refused("The audit database must be SQLite or PostgreSQL.")
    if url.database in (None, "", ":memory:"):
        raise refused("An audit database in memory would not outlive the job.")
    return url.set(drivername="sqlite+pysqlite")


def _require_verified_server(url: URL, settings: Settings) -> None:
    """Refuse a server on another machine whose certificate would not be checked against its name."""
    named = [url.host, *_parameter(url, "host"), *_parameter(url, "hostaddr")]
    hosts = [host for names in named if names for host in names.split(",")] or [os.environ.get("PGHOST", "")]
    if _parameter(url, "service"):
        hosts.append("the service's host")
    remote = [host for host in hosts if host not in _LOCAL_HOSTS and not host.startswith(("/", "@"))]
    mode = (*_parameter(url, "sslmode"), os.environ.get("PGSSLMODE", ""))[0]
    if remote and mode != "verify-full" and not settings.allow_unverified_database:
        raise ConfigurationError(
            f"The connection to {', '.join(remote)} does not verify the server (sslmode is {mode or 'not set'}).",
            place="settings: audit_database",
            remedy="Add ?sslmode=verify-full&sslrootcert=<authority's certificate> to the URL; or, knowing that another"
            " machine could then take the server's place, set `allow_unverified_database: true`.",
        )


def _parameter(url: URL, name: str) -> tuple[str, ...]:
    value = url.query.get(name, ())
    return (value,) if isinstance(value, str) else value


def _postgresql_engine(url: URL, *, roles: tuple[str, str]) -> sql.Engine:
    try:
        return sql.create_engine(
            url,
            hide_parameters=True,
            pool_pre_ping=True,
            execution_options={ROLES: roles},
            connect_args={
                "connect_timeout": _TIMEOUT_SECONDS,
                "tcp_user_timeout": 3 * _TIMEOUT_SECONDS * 1000,
                "options": f"-c lock_timeout={_TIMEOUT_SECONDS}s -c synchronous_commit=on -c timezone=UTC",
            },
        )
    except ModuleNotFoundError:
        raise MissingDependency(
            "PostgreSQL needs the psycopg library.",
            place="settings: audit_database",
            remedy="Install lepton-airflow[postgres].",
        ) from None


def _configure_sqlite(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # SQLAlchemy's "begin" event starts transactions, not the driver
    try:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        (file,) = (row[2] for row in connection.execute("PRAGMA database_list") if row[1] == "main")
        record.info[_FILE] = _file_of(file)
    except UnicodeDecodeError:
        # The driver chokes on the message about a damaged schema when it quotes it.
        raise sqlite3.DatabaseError(_NOT_TEXT) from None


def _file_of(path: str) -> tuple[int, int] | None:
    """Which file is at a path; None if there is none."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _begin_sqlite(connection: sql.Connection) -> None:
    # What is written through an open connection to a file that was removed or replaced would be lost.
    path = str(connection.engine.url.database)
    there = _file_of(path)
    if there != connection.info[_FILE]:
        if there is not None:
            connection.invalidate()  # the next one is to the file that is there now; where there is none, it would make one
        raise AuditUnavailable(
            "The audit database's file is gone, or another one is in its place.",
            place=path,
            remedy="Nothing is done without the audit. Put it back where it was, and try again.",
        )
    # IMMEDIATE takes the write lock at once: a transaction that reads first and writes later could not wait for it.
    reading_only = connection.get_execution_options().get(_READING)
    connection.exec_driver_sql("BEGIN" if reading_only else "BEGIN IMMEDIATE")


def typed_error(error: BaseException, place: str) -> LeptonError | None:
    """What a driver's error means to a caller; None for those that stay what they are (a broken constraint, a bug)."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, (sqlite3.Error, UnicodeDecodeError)):
        code = getattr(error, "sqlite_errorname", None) or ""
        unreadable = isinstance(error, UnicodeDecodeError) or str(error).startswith(_NOT_TEXT)
        damaged = code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or unreadable
        reason = code or ("text that is not UTF-8" if unreadable else "")
    else:
        state = getattr(error, "sqlstate", None)
        if state in _RETRYABLE_STATES:
            return None
        damaged = state in _DAMAGED_STATES
        reason = f"SQLSTATE {state}" if state else str(error).partition("\n")[0]
        if state in (_NOT_PERMITTED, _INTERNAL):
            names.add("OperationalError")  # psycopg calls it a mistake of the program
    if damaged:
        return AuditTampered(
            f"The database is damaged ({reason}).",
            place=place,
            remedy="Keep its files as evidence, run `lepton audit verify`, and restore it from a backup.",
        )
    if not names & {"OperationalError", "InterfaceError"}:
        return None
    return AuditUnavailable(
        f"The audit database is not available ({reason or type(error).__name__}).",
        place=place,
        remedy="Nothing is done without the audit. Check that it runs, is reachable, has space and is not locked.",
    )


def _migration_config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _check_schema(engine: sql.Engine, place: str) -> None:
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(_migration_config()).get_current_head()
    with reading(engine) as connection:
        current = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
    if current != (head,):
        raise ConfigurationError(
            f"The schema of the audit database is {', '.join(current) or 'missing'}; this package needs {head}.",
            place=place,
            remedy="Run `lepton init` for a new database, `lepton audit migrate` for an older one.",
        )
