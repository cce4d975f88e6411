"""How leaves get into each store: durably, one commit for a batch, with a bounded wait.

PostgreSQL: one statement that commits by itself on a connection that is kept, so that an event costs one round trip where
BEGIN, INSERT and COMMIT would cost three. SQLite: its own lock makes writers poll with growing pauses, and an unlucky one is
overtaken for seconds; so they first stand in line at the lock of a file beside the database, which the kernel hands on in order.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from lepton_airflow.audit.database import leaf_table, typed_error
from lepton_airflow.errors import AuditUnavailable

#: Event id, payload, leaf hash.
Row = tuple[str, str, bytes]

_PATIENCE_SECONDS = 10
_INSERT = "INSERT INTO lepton_audit_leaf (event_id, payload, leaf_hash) VALUES (%s, %s, %s)"
# Binary: as text, psycopg would search every item of the lists for what it has to escape.
_INSERT_ALL = (
    "INSERT INTO lepton_audit_leaf (event_id, payload, leaf_hash)"
    " SELECT event_id, payload, leaf_hash FROM unnest(%b::text[], %b::text[], %b::bytea[])"
    " WITH ORDINALITY AS leaf (event_id, payload, leaf_hash, number) ORDER BY number"
)


class Inserter(Protocol):
    """Commits leaves.

    :raises AuditUnavailable: whether they were committed may then be unknown
    :raises sqlalchemy.exc.IntegrityError: the database's rules forbid one of them; none was committed
    """

    def insert(self, rows: Sequence[Row]) -> None: ...

    def close(self) -> None: ...


def inserter(engine: sql.Engine) -> Inserter:
    """The inserter for the engine's store."""
    return _Postgresql(engine) if engine.dialect.name == "postgresql" else _Sqlite(engine)


class _Postgresql:
    def __init__(self, engine: sql.Engine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._connection: sql.Connection | None = None

    def insert(self, rows: Sequence[Row]) -> None:
        kept = self._connection is not None
        try:
            self._execute(rows)
        except AuditUnavailable:
            self._discard()
            if not kept:
                raise
            # The kept connection may have been lost long ago. The leaves have their ids: inserting them again is safe.
            self._execute_again(rows)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _discard(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()
        self.close()

    def _execute_again(self, rows: Sequence[Row]) -> None:
        try:
            self._execute(rows)
        except IntegrityError:
            if not self._has(rows[0]):
                raise

    def _execute(self, rows: Sequence[Row]) -> None:
        import psycopg

        if self._connection is None:
            self._connection = self._engine.connect()
        driver: Any = self._connection.connection.driver_connection
        try:
            if len(rows) == 1:
                driver.execute(_INSERT, rows[0])
            else:
                driver.execute(_INSERT_ALL, [list(column) for column in zip(*rows, strict=True)])
        except psycopg.Error as error:
            typed = typed_error(error, self._engine.url.render_as_string(hide_password=True))
            if typed is not None:
                raise typed from None
            if isinstance(error, psycopg.IntegrityError):
                raise IntegrityError(None, None, error) from None
            raise

    def _has(self, row: Row) -> bool:
        query = sql.select(leaf_table.c.leaf_hash).where(leaf_table.c.event_id == row[0])
        with self._engine.connect() as connection:
            return connection.scalar(query) == row[2]


class _Sqlite:
    def __init__(self, engine: sql.Engine) -> None:
        self._engine = engine

    def insert(self, rows: Sequence[Row]) -> None:
        values = [{"event_id": row[0], "payload": row[1], "leaf_hash": row[2]} for row in rows]
        with in_line(self._engine), self._engine.begin() as connection:
            connection.execute(leaf_table.insert(), values)

    def close(self) -> None:
        """Nothing is kept."""


@contextmanager
def in_line(engine: sql.Engine) -> Iterator[None]:
    """Hold the place at the head of the line of one SQLite database's writers.

    :raises AuditUnavailable: it was not reached in 10 seconds
    """
    with first_in_line(Path(f"{engine.url.database}-line")):
        yield


@contextmanager
def first_in_line(path: Path) -> Iterator[None]:
    """Hold the place at the head of the line at a file, which is made, or a folder.

    :raises AuditUnavailable: it was not reached in 10 seconds
    """
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR | os.O_CREAT
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o660)
    except OSError as error:
        raise _unavailable(f"The line cannot be joined ({type(error).__name__})", path) from None
    try:
        _lock(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    try:
        yield
    finally:
        # Closing alone would not do if another thread has forked meanwhile: its child holds the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # Waiting in the kernel keeps the order but knows no limit, so a thread waits and this one keeps the time. It waits on a
        # descriptor of its own: the lock belongs to what was opened, and goes when the last of the two is closed.
        own = os.dup(descriptor)
        reached = threading.Event()

        def wait() -> None:
            try:
                fcntl.flock(own, fcntl.LOCK_EX)
                reached.set()
            finally:
                os.close(own)

        threading.Thread(target=wait, daemon=True).start()
        if not reached.wait(_PATIENCE_SECONDS):
            raise _unavailable("Another process has kept its place at this lock for 10 seconds", path) from None


def _unavailable(rule: str, path: Path) -> AuditUnavailable:
    return AuditUnavailable(f"{rule}.", place=str(path), remedy="See that no process hangs that writes there.")
