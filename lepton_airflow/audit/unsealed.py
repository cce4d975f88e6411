"""Which rows the sealer may place, in chunks and in the order in which they get their places.

On SQLite writers stand in line: every row that is there may be placed, in the order of the table. On PostgreSQL ids are drawn
before transactions commit, so a smaller id can appear after a larger one. Rows are taken in the order of their transactions, and
only those of transactions before the oldest that still runs, the *horizon*: none of these can gain a row any more. A seal leaves
none of them, so the next one looks from that horizon on; otherwise it would pass the index entries of all rows that were sealed
since the last vacuum.

Each server counts its transactions by itself, so a horizon means something only where it was written. It is kept in the row of
the checkpoint, which has the number of its own transaction beside it: in a row that was copied, by a restore or a replication,
that is not the number that the server has for whoever wrote the row. Then a seal looks at all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from lepton_airflow.audit.database import leaf_table

_CHUNK = 5000
# PostgreSQL's system column xmin is the lower half of a transaction's number.
_HORIZONS = sql.text(
    "SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS now, latest.horizon AS last,"
    " latest.xmin::text::numeric = mod(latest.xid::text::numeric, 4294967296) AS own"
    " FROM (SELECT max(tree_size) AS size FROM lepton_audit_checkpoint) AS largest"
    " LEFT JOIN lepton_audit_checkpoint AS latest ON latest.tree_size = largest.size"
)
_CHUNK_OF = (
    "SELECT id, xid::text AS writer, leaf_hash FROM lepton_audit_leaf AS leaf"
    " WHERE tree_index IS NULL AND (xid, id) > (CAST(:xid AS xid8), :id) AND {condition} ORDER BY leaf.xid, id LIMIT :chunk"
)
_ENDED = sql.text(_CHUNK_OF.format(condition="xid < CAST(:horizon AS xid8)"))
# Rows that a snapshot shows are of transactions before its end, unless they were written on another server and restored here.
_RESTORED = sql.text(_CHUNK_OF.format(condition="xid >= pg_snapshot_xmax(pg_current_snapshot())"))
_STRANDED = sql.text(
    "SELECT id, event_id FROM lepton_audit_leaf WHERE tree_index IS NULL"
    " AND (xid < CAST(:since AS xid8) OR xid >= pg_snapshot_xmax(pg_current_snapshot())) ORDER BY id"
)


@dataclass(frozen=True)
class Horizons:
    """Numbers of transactions on PostgreSQL.

    :ivar last: no row of a transaction before it is unsealed; None where that is not known
    :ivar now: no transaction before it runs any more
    """

    last: int | None
    now: int

    @classmethod
    def read(cls, connection: sql.Connection) -> Horizons | None:
        """None on SQLite."""
        if connection.dialect.name != "postgresql":
            return None
        row = connection.execute(_HORIZONS).one()
        text, now = row.last or "", int(row.now)
        known = row.own and text.isascii() and text.isdecimal() and len(text) <= len(str(2**64))
        return cls(last=int(text) if known and int(text) <= now else None, now=now)


def unsealed_rows(connection: sql.Connection, horizons: Horizons | None) -> Iterator[Sequence[sql.Row[Any]]]:
    """Chunks of rows (``id``, ``leaf_hash``) without a place; every one that may be placed, if each chunk gets its places."""
    if horizons is None:
        yield from _sqlite_chunks(connection)
        return
    if horizons.last is None:
        yield from _postgresql_chunks(connection, _RESTORED)
    yield from _postgresql_chunks(connection, _ENDED, start=horizons.last or 0, horizon=horizons.now)


def stranded_rows(connection: sql.Connection) -> list[sql.Row[Any]]:
    """Rows (``id``, ``event_id``) that no seal will place as they are: no transaction of this server can have their numbers."""
    horizons = Horizons.read(connection)
    if horizons is None or horizons.last is None:
        return []
    return list(connection.execute(_STRANDED, {"since": str(horizons.last)}))


def _sqlite_chunks(connection: sql.Connection) -> Iterator[Sequence[sql.Row[Any]]]:
    last = 0
    columns = leaf_table.c
    query: sql.Select[Any] = sql.select(columns.id, columns.leaf_hash).where(columns.tree_index.is_(None))
    query = query.order_by(columns.id).limit(_CHUNK)
    full = True
    while full and (rows := connection.execute(query.where(columns.id > last)).all()):
        yield rows
        full, last = len(rows) == _CHUNK, rows[-1].id


def _postgresql_chunks(
    connection: sql.Connection, query: sql.TextClause, *, start: int = 0, **parameters: int
) -> Iterator[Sequence[sql.Row[Any]]]:
    xid, last = str(start), 0
    texts = {name: str(value) for name, value in parameters.items()}
    full = True
    while full and (rows := connection.execute(query, {"xid": xid, "id": last, "chunk": _CHUNK, **texts}).all()):
        yield rows
        full, xid, last = len(rows) == _CHUNK, rows[-1].writer, rows[-1].id
