"""Blocks: what one read of some thousand sealed leaves says, as little as the tree and the producers need.

A block is made only of rows that stand where they should, each with the hash of its payload beside it. Where one does not, there
is none, and who asked for it looks at the rows one by one. So that a second process can make blocks, and start soon, this module
needs no more than the standard library (and what reads canonical JSON).
"""

from __future__ import annotations

import gc
import sqlite3
from contextlib import closing, suppress
from typing import Any, NamedTuple

from lepton_airflow.audit.channel import Channel
from lepton_airflow.audit.forms import Forms
from lepton_airflow.audit.merkle import leaf_hashes, subtrees
from lepton_airflow.audit.series import Rows
from lepton_airflow.audit.stretches import Odd, Stretch, stretches_of

#: Leaves in a block.
BLOCK = 2048
#: Bytes of payloads that go with a block: several blocks wait for their turn, and memory must not grow with what is in the log.
_ODD_BYTES = 4 * 2**20
#: Rows that are hashed while the processor still has them at hand.
_HASHED_TOGETHER = 64
#: As `lepton_airflow.audit.rows.stored_leaves` reads them.
SQLITE_QUERY = (
    "SELECT tree_index, CAST(event_id AS BLOB), CAST(payload AS BLOB), CAST(leaf_hash AS BLOB) FROM lepton_audit_leaf"
    " WHERE tree_index >= ? AND tree_index < ? ORDER BY tree_index"
)
POSTGRESQL_QUERY = (
    "SELECT tree_index, convert_to(event_id, 'UTF8'), convert_to(payload, 'UTF8'), leaf_hash FROM lepton_audit_leaf"
    " WHERE tree_index >= %s AND tree_index < %s ORDER BY tree_index"
)
#: SQLite holds its indices against its rows: verification reads through the former, others may not.
INTEGRITY_CHECKS = {
    table: f"PRAGMA integrity_check('{table}')" for table in ("lepton_audit_leaf", "lepton_audit_checkpoint")
}
# The check looks up every row in every index: it would read the file's pages again and again.
_CACHE_KIBIBYTES = 32 * 1024
_MAPPED_BYTES = 2**30


class Task(NamedTuple):
    """Which leaves to read.

    :param cuts: sizes of the tree at which its root will be asked for, behind ``first`` and up to ``stop``, which is one
    """

    first: int
    stop: int
    cuts: tuple[int, ...]


class Block(NamedTuple):
    """Leaves that stand where they should, each with the hash of its payload beside it.

    :param pieces: for each of the task's cuts the subtrees from the cut before it up to there
    :param parts: what the leaves say, in the order of the tree
    """

    pieces: list[list[tuple[int, bytes]]]
    parts: list[Stretch | Odd]


def block_of(task: Task, cursor: Any, forms: Forms) -> Block | None:
    """The block of what the query found; None if the rows have to be looked at one by one.

    :param cursor: of the DB-API, behind the query
    :param forms: of the leaves that were seen before
    """
    event_ids: list[bytes] = []
    payloads: list[bytes] = []
    actual: list[bytes] = []
    first = task.first
    while rows := cursor.fetchmany(_HASHED_TOGETHER):
        indices, ids, texts, hashes = zip(*rows, strict=True)
        if {*map(type, ids), *map(type, texts)} != {bytes} or {*map(type, indices)} != {int}:
            return None
        found = leaf_hashes(texts)
        if found != [*hashes] or indices != (*range(first, first + len(rows)),):
            return None
        event_ids += ids
        payloads += texts
        actual += found
        first += len(rows)
    if first != task.stop:
        return None
    parts = stretches_of(Rows(event_ids, payloads, actual), first=task.first, forms=forms)
    if sum(len(part.payload) for part in parts if isinstance(part, Odd)) > _ODD_BYTES:
        return None
    pieces, first = [], task.first
    for cut in task.cuts:
        pieces.append(subtrees(actual[first - task.first : cut - task.first], first=first))
        first = cut
    return Block(pieces, parts)


def serve(uri: str, descriptor: int) -> None:
    """The whole of the second process: check a SQLite file, then make blocks of it until the other end closes the pipe.

    :param uri: of the file, to be read only. It may be mapped into memory: were the file cut meanwhile, only this process would
        be gone
    """
    gc.disable()  # nothing here makes cycles, and the collector would look at the same rows again and again
    with suppress(EOFError, OSError), closing(Channel(descriptor)) as pipe:
        connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        for setting in (f"cache_size = -{_CACHE_KIBIBYTES}", f"mmap_size = {_MAPPED_BYTES}"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("BEGIN")
        forms = Forms()
        pipe.send(_damage(connection))
        while True:
            task = pipe.recv()
            try:
                block = block_of(task, connection.execute(SQLITE_QUERY, (task.first, task.stop)), forms)
            except sqlite3.Error:
                block = None
            pipe.send((task.first, block))


def _damage(connection: sqlite3.Connection) -> dict[str, list[str]] | None:
    """What SQLite says of each table, one line "ok" if nothing is wrong; None if it cannot tell."""
    try:
        return {
            table: [line for (line,) in connection.execute(check).fetchall()]
            for table, check in INTEGRITY_CHECKS.items()
        }
    except (sqlite3.Error, UnicodeDecodeError):
        return None
