"""Which rows the sealer may place, in chunks and in the order in which they get their places.

On SQLite writers stand in line: every row that is there may be placed, in the order of the table. On PostgreSQL ids are drawn
before transactions commit, so a smaller id can appear after a larger one. Rows are taken in the order of their transactions, and
only those of transactions before the oldest that still runs, the *horizon*: none of these can gain a row any more. A seal leaves
none of them, so the next one looks from that horizon on; otherwise it would pass the index entries of all rows that were sealed
since the last vacuum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from lepton_airflow.audit.database import checkpoint_table, leaf_table

_CHUNK = 5000
_HORIZON = sql.text(
    "SELECT CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS xid,"
    " has_function_privilege('pg_control_system()', 'EXECUTE') AS permitted"
)
_CLUSTER = sql.text("SELECT CAST(system_identifier AS text) FROM pg_control_system()")
_CHUNK_OF = (
    "SELECT id, xid, leaf_hash FROM lepton_audit_leaf"
    " WHERE tree_index IS NULL AND (xid, id) > (CAST(:xid AS xid8), :id) AND {condition} ORDER BY xid, id LIMIT :chunk"
)
_ENDED = sql.text(_CHUNK_OF.format(condition="xid < CAST(:horizon AS xid8)"))
# Rows that a snapshot shows are of transactions before its end, unless they were written in another cluster and restored here.
_RESTORED = sql.text(_CHUNK_OF.format(condition="xid >= pg_snapshot_xmax(pg_current_snapshot())"))


_STRANDED = sql.text(
    "SELECT id, event_id FROM lepton_audit_leaf WHERE tree_index IS NULL"
    " AND (xid < CAST(:horizon AS xid8) OR xid >= pg_snapshot_xmax(pg_current_snapshot())) ORDER BY id"
)


@dataclass(frozen=True)
class Horizon:
    """A moment of a PostgreSQL cluster.

    :ivar cluster: its system identifier: each cluster numbers its transactions by itself. Empty where users may not ask for it
    :ivar xid: the oldest transaction that still ran
    """

    cluster: str
    xid: int

    @classmethod
    def now(cls, connection: sql.Connection) -> Horizon | None:
        """The present one; None on SQLite."""
        if connection.dialect.name != "postgresql":
            return None
        row = connection.execute(_HORIZON).one()
        return cls(str(connection.scalar(_CLUSTER)) if row.permitted else "", int(row.xid))

    @classmethod
    def parse(cls, text: str | None) -> Horizon | None:
        """What ``str`` made of one; None of anything else."""
        cluster, slash, xid = (text or "").partition("/")
        return cls(cluster, int(xid)) if slash and xid.isdecimal() else None

    def __str__(self) -> str:
        return f"{self.cluster}/{self.xid}"

    def precedes(self, other: Horizon) -> bool:
        """Whether both are known to be of one cluster, and this is not the later one."""
        return self.cluster == other.cluster != "" and self.xid <= other.xid


def unsealed_rows(
    connection: sql.Connection, *, since: Horizon | None, horizon: Horizon | None
) -> Iterator[Sequence[sql.Row[Any]]]:
    """Chunks of rows (``id``, ``leaf_hash``) without a place; every one that may be placed, if each chunk gets its places.

    :param since: the horizon of an earlier seal: no row before it is unsealed
    :param horizon: the present one, on PostgreSQL
    """
    if horizon is None:
        yield from _sqlite_chunks(connection)
    elif since is not None and since.precedes(horizon):
        yield from _postgresql_chunks(connection, _ENDED, start=since.xid, horizon=horizon.xid)
    else:
        yield from _postgresql_chunks(connection, _RESTORED)
        yield from _postgresql_chunks(connection, _ENDED, horizon=horizon.xid)


def stranded_rows(connection: sql.Connection) -> list[sql.Row[Any]]:
    """Rows (``id``, ``event_id``) that no seal will place, as their transactions are said to be other than they can be."""
    now = Horizon.now(connection)
    latest = sql.select(checkpoint_table.c.horizon).order_by(checkpoint_table.c.tree_size.desc()).limit(1)
    since = Horizon.parse(connection.scalar(latest)) if now is not None else None
    if now is None or since is None or not since.precedes(now):
        return []
    return list(connection.execute(_STRANDED, {"horizon": str(since.xid)}))


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
        full, xid, last = len(rows) == _CHUNK, rows[-1].xid, rows[-1].id
