"""Merkle proofs from the stored log: that it holds an event, and that one state of it extends another.

Both are made of the stored subtrees (see :mod:`lepton_airflow.audit.nodes`). Proofs of events are held against a signed
checkpoint before they are handed out: otherwise one that does not hold would only be noticed by whoever it is given to.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from lepton_airflow.audit.archived import refuse_archived
from lepton_airflow.audit.canonical import canonical_json, parse_canonical
from lepton_airflow.audit.checkpoint import Checkpoint, Verifier
from lepton_airflow.audit.database import checkpoint_table, leaf_table, reading
from lepton_airflow.audit.merkle import leaf_hash, verify_inclusion
from lepton_airflow.audit.nodes import StoredTree
from lepton_airflow.errors import AuditTampered, EventNotSealed, InvalidData


@dataclass(frozen=True, kw_only=True)
class ProvenLeaf:
    """An event and its place in the log.

    :param index: its position in the tree
    :param payload: the canonical JSON that the leaf is the hash of
    :param path: its audit path (RFC 6962 section 2.1.1), from the leaf upwards
    """

    index: int
    payload: str
    path: tuple[bytes, ...]

    def is_in(self, checkpoint: Checkpoint) -> bool:
        """Whether this very event is at this position in the log that ``checkpoint`` signs."""
        return verify_inclusion(
            leaf=leaf_hash(self.payload.encode()),
            index=self.index,
            size=checkpoint.tree_size,
            proof=self.path,
            root_hash=checkpoint.root_hash,
        )


def events_of_run(engine: sql.Engine, run_key: str) -> list[dict[str, Any]]:
    """The events of ``run_key``, in the order in which they were written. Nothing is verified here.

    It reads through the whole log: run keys are not indexed.

    :raises InvalidData: a payload is not canonical JSON
    """
    # A quick look first; what it finds may be a run key in another field.
    written = f'"run_key":{canonical_json(run_key).decode()}'
    query = (
        sql.select(leaf_table.c.payload)
        .where(leaf_table.c.payload.contains(written, autoescape=True))
        .order_by(leaf_table.c.id)
    )
    with reading(engine) as connection:
        events = [parse_canonical(payload.encode()) for payload in connection.execute(query).scalars()]
    return [event for event in events if event["run_key"] == run_key]


def prove_events(
    engine: sql.Engine, event_ids: Collection[str], *, verifier: Verifier
) -> tuple[str, dict[str, ProvenLeaf]]:
    """Proofs that the log of the latest checkpoint holds these events.

    :param verifier: the sealer's public key
    :returns: the checkpoint as a signed note, and for each event id its leaf
    :raises EventNotSealed: the checkpoint does not cover one of them
    :raises AuditTampered: the stored log is not the one that was signed
    :raises InvalidData: the log has no such event, or its payload is in an archive
    """
    leaves = leaf_table.c
    with reading(engine) as connection:
        note = connection.scalar(
            sql.select(checkpoint_table.c.note).order_by(checkpoint_table.c.tree_size.desc()).limit(1)
        )
        checkpoint = None if note is None else Checkpoint.verify(note, verifier, place="latest checkpoint")
        rows = connection.execute(
            sql.select(leaves.event_id, leaves.tree_index, leaves.payload).where(leaves.event_id.in_(event_ids))
        ).all()
        for event_id in sorted(set(event_ids) - {row.event_id for row in rows}):
            raise InvalidData("The log has no such event.", place=f"event {event_id}", remedy="Check its id.")
        for row in rows:
            if checkpoint is None or row.tree_index is None or row.tree_index >= checkpoint.tree_size:
                raise EventNotSealed(
                    "No signed checkpoint covers the event yet, so there is no proof of it.",
                    place=f"event {row.event_id}",
                    remedy="Run `lepton audit seal`, then try again.",
                )
            if not row.payload:
                refuse_archived(connection, index=row.tree_index, place=f"event {row.event_id}")
        if checkpoint is None or note is None:
            raise InvalidData("No events are to be proved.", place="audit log", remedy="Name at least one.")
        try:
            return note, _proven(connection, rows, checkpoint)
        except ValueError:
            raise _tampered("The log has fewer events than its latest checkpoint signs.", "audit log") from None


def _proven(connection: sql.Connection, rows: Sequence[Any], checkpoint: Checkpoint) -> dict[str, ProvenLeaf]:
    for stored in (True, False):  # a stored subtree that was changed is no reason to have no proof
        tree = StoredTree(connection, size=checkpoint.tree_size, stored=stored)
        proven = {
            row.event_id: ProvenLeaf(
                index=row.tree_index, payload=row.payload, path=tuple(tree.inclusion_path(row.tree_index))
            )
            for row in rows
        }
        changed = [event_id for event_id, leaf in proven.items() if not leaf.is_in(checkpoint)]
        if not changed:
            return proven
    if tree.root() != checkpoint.root_hash:
        raise _tampered("The stored hashes are not those that the latest checkpoint signs.", "audit log")
    raise _tampered("The stored event is not the one that was sealed.", f"event {changed[0]}")


def prove_extension(engine: sql.Engine, *, old_size: int, size: int) -> list[bytes]:
    """The proof that the log of ``size`` events extends the log of ``old_size``, for whoever holds a checkpoint of each.

    It is checked with :func:`lepton_airflow.audit.merkle.verify_consistency`, against the roots of those two checkpoints.

    :raises InvalidData: ``old_size`` is not between 0 and ``size``, or the log has not so many sealed events
    """
    with reading(engine) as connection:
        last = connection.scalar(sql.select(sql.func.max(leaf_table.c.tree_index)))
        try:
            if last is None or size > last + 1:
                raise ValueError("there are fewer leaves than the tree has")
            return StoredTree(connection, size=size).consistency_path(old_size)
        except ValueError as error:
            raise InvalidData(
                f"There is no such proof: {error}.",
                place=f"audit log, {old_size} to {size} events",
                remedy="Take the sizes from two signed checkpoints of this log.",
            ) from None


def _tampered(rule: str, place: str) -> AuditTampered:
    return AuditTampered(rule, place=place, remedy="Keep the database as it is and run `lepton audit verify`.")
