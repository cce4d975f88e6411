"""Reads the log's rows for verification: block by block, with a second process's help, or one by one."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from bisect import bisect
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from lepton_airflow.audit.blocks import BLOCK, POSTGRESQL_QUERY, SQLITE_QUERY, Block, Task, block_of
from lepton_airflow.audit.channel import Channel
from lepton_airflow.audit.database import leaf_table, typed_error
from lepton_airflow.audit.findings import Leaf
from lepton_airflow.audit.forms import Forms
from lepton_airflow.audit.merkle import leaf_hash
from lepton_airflow.errors import AuditUnavailable

_CHUNK = 1000
#: Below so many leaves the second process would come too late to help.
_WORTH_HELP = 20_000
_ASKED_AHEAD = 2
_KEPT = 16  # blocks that are there before their turn
#: Seconds without an answer after which the second process is given up; checking a long file takes it longer.
_PATIENCE = 60
_LEAVES_A_SECOND = 20_000  # checked on a slow disk
_HELPER = "import sys; from lepton_airflow.audit.blocks import serve; serve(sys.argv[1], int(sys.argv[2]))"


def stored_leaves(
    connection: sql.Connection, *, sealed: bool, start: int = 0, stop: int | None = None, archived: int = 0
) -> Iterator[Leaf]:
    """The sealed leaves in the order of the tree, or the others in the order of the table.

    :param start: of the sealed ones, only those from this position on
    :param stop: only those up to, not including, this one
    :param archived: sealed leaves below it may have no payload: then the hash that was recorded stands for it
    """
    columns = leaf_table.c
    query = sql.select(
        columns.id,
        columns.tree_index,
        raw(connection, columns.event_id).label("event_id"),
        raw(connection, columns.payload).label("payload"),
        raw(connection, columns.leaf_hash).label("leaf_hash"),
    )
    if sealed:
        query = query.where(columns.tree_index >= start if start else columns.tree_index.is_not(None))
        query = query.where(columns.tree_index < stop if stop is not None else sql.true())
        query = query.order_by(columns.tree_index)
    else:
        query = query.where(columns.tree_index.is_(None)).order_by(columns.id)
    for row in connection.execution_options(yield_per=_CHUNK).execute(query):
        index, payload, stored = row.tree_index, row.payload or b"", row.leaf_hash or b""
        in_archive = not payload and type(index) is int and 0 <= index < archived
        yield Leaf(
            row=row.id,
            event_id=(row.event_id or b"").decode(errors="replace"),
            payload=payload,
            stored_hash=stored,
            actual_hash=stored if in_archive else leaf_hash(payload),
            # A damaged SQLite file can hold any type here; what is no position is none in the tree.
            tree_index=index if index is None or type(index) is int else -1,
            archived=in_archive,
        )


def raw(connection: sql.Connection, column: sql.Column[Any]) -> sql.ColumnElement[bytes]:
    """The bytes of a column as they are stored: a changed byte may have made them something else than text."""
    if connection.dialect.name == "sqlite":
        return sql.cast(column, sql.LargeBinary)
    if isinstance(column.type, sql.LargeBinary):
        return column
    return sql.func.convert_to(column, "UTF8", type_=sql.LargeBinary)


def is_framed(connection: sql.Connection, *, start: int, stop: int) -> bool:
    """Whether a leaf stands at ``start`` and one before ``stop``, and none before or behind. Those between are not looked at."""
    index = leaf_table.c.tree_index
    inside = index >= start if start else index.is_not(None)
    ends = (sql.select(end(index)).where(inside) for end in (sql.func.min, sql.func.max))
    return [connection.scalar(end) for end in ends] == [start, stop - 1]


class Blocks:
    """The leaves from ``start`` up to, not including, ``stop``, block by block; None for one that has to be read row by row.

    A second process checks a SQLite file and reads it too, if that is worth starting one. It sees the file as it is when it
    begins, which for sealed leaves is the same, unless somebody changes them meanwhile. If it dies, or does not answer for a
    minute and as long as it may take to check so long a file, it is ended and this process goes on alone.

    :param cuts: the sizes of the tree at which its root will be asked for
    :raises AuditUnavailable: when iterated over: the database cannot be reached
    """

    def __init__(self, connection: sql.Connection, *, start: int, stop: int, cuts: Collection[int]) -> None:
        self._connection = connection
        self._forms = Forms()
        self._tasks = list(_tasks(start, stop, sorted(cuts)))
        worth = connection.dialect.name == "sqlite" and stop - start >= _WORTH_HELP and _processors() > 1
        self._helped = worth and bool(sys.executable)
        #: What the second process says of the file's integrity, once all blocks were taken; None if it says nothing.
        self.damage: dict[str, list[str]] | None = None

    def __iter__(self) -> Iterator[tuple[Task, Block | None]]:
        database = self._connection.engine.url.database
        if not self._helped or database is None:
            yield from self._in_turn(None)
            return
        leaves = self._tasks[-1].stop - self._tasks[0].first
        with closing(_Helper(database, patience=_PATIENCE + leaves // _LEAVES_A_SECOND)) as helper:
            yield from self._in_turn(helper)

    def _in_turn(self, helper: _Helper | None) -> Iterator[tuple[Task, Block | None]]:
        tasks, checked, turn = self._tasks, False, 0
        waiting = deque(enumerate(tasks))
        asked: dict[int, tuple[int, Task]] = {}
        made: dict[int, Block | None] = {}
        while turn < len(tasks) or (helper is not None and not checked):
            # What is there before its turn is kept, so that there must not be too much of it.
            near = bool(waiting) and waiting[0][0] < turn + _KEPT
            idle = not near and turn not in made
            try:
                if helper is not None and not checked and (idle or helper.pipe.poll()):
                    self.damage, checked = helper.pipe.recv(), True
                if helper is not None and checked and near and len(asked) < _ASKED_AHEAD:
                    number, task = waiting.popleft()
                    asked[task.first] = (number, task)
                    helper.pipe.send(task)
                    continue
                if helper is not None and asked and (idle or helper.pipe.poll()):
                    first, block = helper.pipe.recv()
                    made[asked.pop(first)[0]] = block
                    continue
            except (EOFError, OSError):
                # Without help, then; what it was asked for is ours again.
                if helper is not None:
                    helper.close()
                waiting.extendleft(sorted(asked.values(), reverse=True))
                asked, helper = {}, None
                continue
            if turn in made:
                yield tasks[turn], made.pop(turn)
                turn += 1
            elif near:
                number, task = waiting.popleft()
                made[number] = _read(self._connection, task, self._forms)


def _tasks(start: int, stop: int, cuts: list[int]) -> Iterator[Task]:
    while start < stop:
        end = min(stop, (start // BLOCK + 1) * BLOCK)
        yield Task(start, end, tuple(sorted({*cuts[bisect(cuts, start) : bisect(cuts, end)], end})))
        start = end


def _read(connection: sql.Connection, task: Task, forms: Forms) -> Block | None:
    driver: Any = connection.connection.driver_connection
    bounds = (task.first, task.stop)
    try:
        if connection.dialect.name == "sqlite":
            return block_of(task, driver.execute(SQLITE_QUERY, bounds), forms)
        with driver.cursor(binary=True) as cursor:
            return block_of(task, cursor.execute(POSTGRESQL_QUERY, bounds), forms)
    except connection.dialect.loaded_dbapi.Error as error:
        typed = typed_error(error, connection.engine.url.render_as_string(hide_password=True))
        if isinstance(typed, AuditUnavailable):
            raise typed from None
        return None  # reading row by row tells how far the file can be read


class _Helper:
    """A second process that serves blocks of a SQLite file.

    :param pipe: to and from it; reading and writing raise EOFError if the process has ended, OSError if it is out of patience
    :param patience: how many seconds one read or write waits
    """

    def __init__(self, database: str, *, patience: int) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # The system itself ends a wait, in the middle of a message too.
            limit = struct.pack("@ll", patience, 0)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            # -P: what lies in the working directory is not imported.
            command = [
                sys.executable,
                "-P",
                "-c",
                _HELPER,
                f"{Path(database).absolute().as_uri()}?mode=ro",
                str(theirs.fileno()),
            ]
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter and our own words
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self.pipe = Channel(ours.detach())

    def close(self) -> None:
        """End it, whatever it is doing; a second time changes nothing."""
        self.pipe.close()
        self._process.kill()
        self._process.wait()


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
