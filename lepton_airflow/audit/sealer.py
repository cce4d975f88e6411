"""The sealer: puts new leaves in order, extends the Merkle tree, signs a checkpoint and copies it elsewhere.

One sealer works at a time; a second one waits for it. Writers are not held up on PostgreSQL, and on SQLite only for as long as
a seal takes. The tree takes the hashes that the writers stored: a payload that was edited before it was sealed
stays visible as an edit for ever, instead of being signed as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from lepton_airflow.audit.checkpoint import Checkpoint, Signer, Verifier
from lepton_airflow.audit.database import checkpoint_table, leaf_table, reading
from lepton_airflow.audit.export import Export
from lepton_airflow.audit.merkle import HASH_BYTES, Frontier
from lepton_airflow.audit.nodes import grow, lacks_nodes, last_node, store_nodes, store_older_nodes
from lepton_airflow.audit.quorum import Quorum
from lepton_airflow.audit.unsealed import Horizons, unsealed_rows
from lepton_airflow.audit.writing import in_line
from lepton_airflow.errors import AuditTampered

_SEALER_LOCK = 0x6C6570746F6E01  # as database._MIGRATION_LOCK, for sealers


@dataclass(frozen=True)
class _Tree:
    """The tree as the latest checkpoint in the database signed it."""

    checkpoint: Checkpoint | None
    frontier: Frontier


def seal(
    engine: sql.Engine, *, signer: Signer, exports: Sequence[Path | str], quorum: Quorum | None = None
) -> Checkpoint:
    """Seal every committed event that is not sealed yet; with none, only bring the exports up to date.

    On PostgreSQL events of transactions that began after the oldest writing one that still runs, in any database of the server,
    wait for the next seal.

    The checkpoint is durable in the database before it is copied, so an export is never ahead of an honest database.

    :param exports: places outside the database: folders, or URLs
    :param quorum: witnesses: what they have cosigned must be of this log too. Sealing does not wait for their cosignatures
    :returns: the latest checkpoint
    :raises AuditTampered: the database contradicts its own checkpoint, an exported or a cosigned one; nothing is signed then
    :raises AuditUnavailable: the database or an export cannot be reached; what was signed stays in the database
    """
    places = [Export(folder) for folder in exports]
    cosigned = quorum.cosigned() if quorum else []
    if engine.dialect.name == "postgresql":
        # Each statement then sees what was committed while the sealer waited for another one.
        engine = engine.execution_options(isolation_level="READ COMMITTED")
    turn = nullcontext() if engine.dialect.name == "postgresql" else in_line(engine)
    with turn, engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_SEALER_LOCK)))
        tree = _load(connection, signer.verifier)
        for place in places:
            _exported_size(place, connection=connection, verifier=signer.verifier, sealed=tree.frontier.size)
        for position, note in cosigned:
            _own_checkpoint(note, position, connection=connection, verifier=signer.verifier, sealed=tree.frontier.size)
        horizons = Horizons.read(connection)
        for rows in unsealed_rows(connection, horizons):
            _place(connection, rows, tree.frontier)
        checkpoint = Checkpoint(signer.name, tree.frontier.size, tree.frontier.root())
        if checkpoint != tree.checkpoint:
            row = {
                "tree_size": checkpoint.tree_size,
                "note": checkpoint.sign(signer),
                "frontier": b"".join(tree.frontier.nodes),
                "horizon": None if horizons is None else str(horizons.now),
            }
            connection.execute(checkpoint_table.insert().values(row))
    if places:
        with reading(engine) as connection:
            for place in places:
                _copy(connection, place, verifier=signer.verifier, size=checkpoint.tree_size)
    return checkpoint


def _load(connection: sql.Connection, verifier: Verifier) -> _Tree:
    last_leaf = sql.select(sql.func.max(leaf_table.c.tree_index).label("last_leaf"))
    latest = sql.select(
        checkpoint_table, last_leaf.scalar_subquery().label("last_leaf"), last_node().label("last_node")
    )
    row = connection.execute(latest.order_by(checkpoint_table.c.tree_size.desc()).limit(1)).one_or_none()
    checkpoint = None if row is None else Checkpoint.verify(row.note, verifier)
    size = 0 if checkpoint is None else checkpoint.tree_size
    last = connection.scalar(last_leaf) if row is None else row.last_leaf
    if size != (0 if last is None else last + 1) or (row is not None and row.tree_size != size):
        raise _tampered("The sealed events are not as many as the latest checkpoint signs.", "audit database")
    if checkpoint is None or row is None:
        return _Tree(None, Frontier())
    frontier = _stored_frontier(row.frontier, checkpoint) or _recomputed_frontier(connection)
    if frontier.size != size or frontier.root() != checkpoint.root_hash:
        raise _tampered("The sealed events are not those that the latest checkpoint signs.", "audit database")
    if lacks_nodes(row.last_node, size=size):
        store_older_nodes(connection, size=size)
    return _Tree(checkpoint, frontier)


def _stored_frontier(data: bytes, checkpoint: Checkpoint) -> Frontier | None:
    """The stored right edge, if the signed root bears it out."""
    nodes = [data[start : start + HASH_BYTES] for start in range(0, len(data), HASH_BYTES)]
    try:
        frontier = Frontier(checkpoint.tree_size, nodes)
    except ValueError:
        return None
    return frontier if frontier.root() == checkpoint.root_hash else None


def _recomputed_frontier(connection: sql.Connection) -> Frontier:
    frontier = Frontier()
    query = (
        sql.select(leaf_table.c.leaf_hash).where(leaf_table.c.tree_index.is_not(None)).order_by(leaf_table.c.tree_index)
    )
    for row in connection.execute(query):
        frontier.append(row.leaf_hash)
    return frontier


def _exported_size(place: Export, *, connection: sql.Connection, verifier: Verifier, sealed: int) -> int:
    """The size of the export's latest checkpoint, which must be one of the database's.

    :raises AuditTampered: the export knows of more events than the database, or of others
    """
    note = place.latest()
    if note is None:
        return 0
    return _own_checkpoint(note, str(place.place), connection=connection, verifier=verifier, sealed=sealed)


def _own_checkpoint(note: str, place: str, *, connection: sql.Connection, verifier: Verifier, sealed: int) -> int:
    """The size of a signed checkpoint from elsewhere, which must be one of the database's."""
    exported = Checkpoint.verify(note, verifier, place=place)
    if exported.tree_size > sealed:
        raise _tampered(
            f"It holds a signed checkpoint of {exported.tree_size} events; the database has {sealed} sealed: events were"
            " removed, or the database was restored from an older copy.",
            place,
        )
    own = connection.scalar(
        sql.select(checkpoint_table.c.note).where(checkpoint_table.c.tree_size == exported.tree_size)
    )
    if own is None or Checkpoint.verify(own, verifier) != exported:
        raise _tampered(
            f"It holds a signed checkpoint of {exported.tree_size} events that the database does not have.",
            place,
        )
    return exported.tree_size


def _place(connection: sql.Connection, rows: Sequence[sql.Row[Any]], frontier: Frontier) -> None:
    """Give rows the next places in the tree, in their order."""
    first = frontier.size
    hashes = [row.leaf_hash for row in rows]
    for row, hashed in zip(rows, hashes, strict=True):
        if len(hashed) != HASH_BYTES:
            raise _tampered("The recorded hash of an event is not a hash.", f"row {row.id} of {leaf_table.name}")
    nodes = grow(frontier, hashes)
    if connection.dialect.name == "postgresql":
        # One statement for all, with one literal for all ids: the sealer must keep up with many writers.
        placed = sql.text(
            f"UPDATE {leaf_table.name} SET tree_index = :first + place.number - 1"  # noqa: S608 - a constant
            " FROM unnest(CAST(:rows AS bigint[])) WITH ORDINALITY AS place (row, number) WHERE id = place.row"
        )
        literal = ",".join([str(row.id) for row in rows])
        if connection.execute(placed, {"first": first, "rows": f"{{{literal}}}"}).rowcount != len(rows):
            raise _tampered("Events disappeared while they were sealed.", leaf_table.name)
    else:
        place = leaf_table.update().where(leaf_table.c.id == sql.bindparam("row"))
        place = place.values(tree_index=sql.bindparam("position"))
        connection.execute(place, [{"row": row.id, "position": first + offset} for offset, row in enumerate(rows)])
    store_nodes(connection, nodes)


def _copy(connection: sql.Connection, place: Export, *, verifier: Verifier, size: int) -> None:
    """Bring an export up to the checkpoint of ``size``."""

    def leaf_hashes(start: int, stop: int) -> bytes:
        rows = connection.execute(
            sql.select(leaf_table.c.leaf_hash)
            .where(leaf_table.c.tree_index >= start, leaf_table.c.tree_index < stop)
            .order_by(leaf_table.c.tree_index)
        )
        return b"".join(row.leaf_hash for row in rows)

    note = place.latest()
    since = 0 if note is None else Checkpoint.verify(note, verifier, place=str(place.place)).tree_size
    newer = checkpoint_table.c.tree_size > since if note is not None else sql.true()
    notes = connection.execute(
        sql.select(checkpoint_table.c.tree_size, checkpoint_table.c.note)
        .where(newer, checkpoint_table.c.tree_size <= size)
        .order_by(checkpoint_table.c.tree_size)
    ).all()
    place.write(since=since, notes=[(row.tree_size, row.note) for row in notes], leaf_hashes=leaf_hashes)


def _tampered(rule: str, place: str) -> AuditTampered:
    return AuditTampered(rule, place=place, remedy="Nothing was signed. Run `lepton audit verify` for the details.")
