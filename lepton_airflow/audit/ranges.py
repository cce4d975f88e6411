"""A sealed range of the log as files that anyone can verify offline, with the sealer's public key alone.

    events.parquet    tree_index, event_id, time, action, phase, principal, dataset, columns, purpose, run_key, payload, leaf_hash
    checkpoint        the signed note of the log that the range is part of
    proof.json        {"schema": "lepton.audit.range/1", "first", "stop", "outside": [hex],
                       "older": [{"checkpoint", "path": [hex]}]}

``outside`` are the subtrees that with the range's leaves make the signed root: an inclusion proof for all of them at once, of
O(log n) hashes. ``older`` holds earlier signed checkpoints, each with its consistency proof (RFC 6962 section 2.1.2).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from lepton_airflow.audit.archived import refuse_archived
from lepton_airflow.audit.canonical import parse_canonical
from lepton_airflow.audit.checkpoint import Checkpoint, Verifier
from lepton_airflow.audit.database import checkpoint_table, leaf_table, reading
from lepton_airflow.audit.findings import Finding, Leaf, VerificationReport, leaves
from lepton_airflow.audit.merkle import leaf_hash, verify_consistency
from lepton_airflow.audit.nodes import StoredTree, root_with
from lepton_airflow.audit.producers import Producers
from lepton_airflow.audit.quorum import Quorum, with_cosignatures
from lepton_airflow.audit.stores import FolderStore
from lepton_airflow.errors import AuditTampered, InvalidData, TargetExists, UnreadableSource

SCHEMA = "lepton.audit.range/1"
_CHUNK = 5000
_READ_TOGETHER = 500
_COLUMNS = ("time", "action", "phase", "principal", "dataset", "columns", "purpose", "run_key")


def export_range(
    engine: sql.Engine,
    folder: Path,
    *,
    verifier: Verifier,
    first: int = 0,
    stop: int | None = None,
    cosigned: Sequence[tuple[str, str]] = (),
) -> Checkpoint:
    """Write the sealed leaves from ``first`` up to, not including, ``stop`` (by default all) into a new folder.

    :param cosigned: cosigned checkpoints and their places; the cosignatures of this checkpoint go with it
    :returns: the checkpoint against which they are proved
    :raises InvalidData: there are no such leaves, some of them are archived, or nothing is sealed
    :raises TargetExists: the folder holds an export already
    :raises AuditTampered: the stored log is not the one that was signed
    """
    if (folder / "events.parquet").exists():
        raise TargetExists("There is an export already.", place=str(folder), remedy="Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    columns = checkpoint_table.c
    with reading(engine) as connection:
        notes = connection.execute(sql.select(columns.tree_size, columns.note).order_by(columns.tree_size)).all()
        if not notes:
            raise InvalidData("Nothing is sealed yet.", place="audit log", remedy="Run `lepton audit seal`.")
        checkpoint = Checkpoint.verify(notes[-1].note, verifier, place="latest checkpoint")
        size = checkpoint.tree_size
        stop = size if stop is None else stop
        if not 0 <= first < stop <= size:
            raise InvalidData(
                f"There are no such leaves: the log has {size} sealed ones.",
                place=f"leaves {first} to {stop - 1}",
                remedy="Choose a range of those.",
            )
        refuse_archived(connection, index=first, place=leaves(first, stop - 1))
        tree = StoredTree(connection, size=size)
        try:
            outside = tree.outside(first, stop)
            older = [
                {"checkpoint": row.note, "path": [node.hex() for node in tree.consistency_path(row.tree_size)]}
                for row in _nearest([row for row in notes[:-1] if row.tree_size > 0], first, stop)
            ]
        except ValueError:
            raise _tampered("The log has fewer events than its latest checkpoint signs.", "audit log") from None
        hashes = _write_events(connection, folder / "events.parquet", first, stop)
    try:
        made = root_with(hashes, first=first, size=size, outside=outside)
    except ValueError:
        made = b""
    if made != checkpoint.root_hash:
        (folder / "events.parquet").unlink()
        raise _tampered("The stored events are not those that the latest checkpoint signs.", leaves(first, stop - 1))
    proof = {
        "schema": SCHEMA,
        "first": first,
        "stop": stop,
        "outside": [node.hex() for node in outside],
        "older": older,
    }
    store = FolderStore(folder)
    store.write("checkpoint", with_cosignatures(notes[-1].note, cosigned).encode())
    store.write("proof.json", json.dumps(proof, indent=1).encode())
    return checkpoint


def verify_range(
    folder: Path, *, verifier: Verifier, since: str | None = None, quorum: Quorum | None = None
) -> VerificationReport:
    """Verify an export with no database. In memory are the hashes and ids of its leaves, not their payloads.

    :param folder: what :func:`export_range` wrote, or its file ``events.parquet``
    :param since: the signed note of an earlier checkpoint, which must be one that the export proves to be extended
    :param quorum: witnesses; who of them has cosigned the checkpoint is told, and a cosignature that is not valid is found
    :raises UnreadableSource: a file is missing or not what it should be
    """
    folder = folder.parent if folder.is_file() else folder
    findings: list[Finding] = []
    producers = Producers()
    rows: list[Leaf] = []
    noticed: list[Finding] = []
    try:
        note = (folder / "checkpoint").read_text(errors="replace")
        proof = json.loads((folder / "proof.json").read_text())
        first, stop = int(proof["first"]), int(proof["stop"])
        outside = [bytes.fromhex(node) for node in proof["outside"]]
        older = [
            (str(entry["checkpoint"]), [bytes.fromhex(node) for node in entry["path"]]) for entry in proof["older"]
        ]
        for row in read_events(folder / "events.parquet"):
            noticed += producers.check(row) if row.actual_hash == row.stored_hash else ()
            rows.append(replace(row, payload=b""))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableSource(
            f"This is not an export of the audit log ({type(error).__name__}).",
            place=str(folder),
            remedy="Name a folder that `lepton audit export` wrote, with all of its files.",
        ) from None
    try:
        checkpoint = Checkpoint.verify(note, verifier, place=str(folder / "checkpoint"))
    except AuditTampered as error:
        return _report(None, [Finding("signature", error.place, error.rule)], [], [])
    findings += _judge_range(rows, first, stop, checkpoint, outside)
    findings += _judge_older([*older], checkpoint, verifier, since)
    findings += [found for found in noticed if found.kind != "clock"]
    # Numbers below a producer's first in the range may lie before the range; within it they must be there.
    whole = first == 0
    findings += list(producers.missing(leaves=len(rows))) if whole else []
    notes = [f"Only leaves {first} to {stop - 1} of {checkpoint.tree_size} are here; of the others nothing is said."]
    if not whole or stop < checkpoint.tree_size:
        notes.append("Events of a producer that began before the range are not checked for gaps.")
    warnings = [found for found in noticed if found.kind == "clock"]
    notes = notes if len(rows) < checkpoint.tree_size else []
    if quorum is not None and quorum.witnesses:
        judgement = quorum.judge(checkpoint, [(str(folder / "checkpoint"), note)])
        findings += judgement.findings
        notes.append(judgement.text)
    return _report(checkpoint, findings, warnings, notes)


def _judge_range(
    rows: list[Leaf], first: int, stop: int, checkpoint: Checkpoint, outside: list[bytes]
) -> Iterator[Finding]:
    """Hold the payloads against the signed root; if they do not make it, the recorded hashes may, and tell which was changed."""
    ordered = [row.tree_index for row in rows] == list(range(first, stop))
    try:
        payloads_hold = ordered and checkpoint.root_hash == root_with(
            [row.actual_hash for row in rows], first=first, size=checkpoint.tree_size, outside=outside
        )
    except ValueError:
        payloads_hold = False
    if payloads_hold:
        for row in rows:
            if row.stored_hash != row.actual_hash:
                yield Finding(
                    "edited", row.position, "The hash beside it was changed; the payload is as it was sealed."
                )
        return
    recorded = [row.stored_hash for row in rows]
    try:
        made = root_with(recorded, first=first, size=checkpoint.tree_size, outside=outside) if ordered else None
    except ValueError:
        made = None
    if made != checkpoint.root_hash:
        present = {row.tree_index for row in rows}
        for index in range(first, stop):
            if index not in present:
                yield Finding("deleted", f"leaf {index}", "It is not in the export.")
        for row in rows:
            if row.stored_hash != row.actual_hash:
                yield Finding("edited", row.position, "The payload and the hash beside it do not agree.")
        yield Finding("unlocated", leaves(first, stop - 1), "They and the proof do not make the signed root.")
        return
    home = {hashed: first + number for number, hashed in enumerate(recorded)}
    for row in rows:
        if row.actual_hash != row.stored_hash:
            origin = home.get(row.actual_hash)
            kind = "edited" if origin is None else "moved"
            text = (
                "The payload is not the one that was sealed here."
                if origin is None
                else f"It was sealed as leaf {origin}."
            )
            yield Finding(kind, row.position, text)


def _judge_older(
    older: list[tuple[str, list[bytes]]], checkpoint: Checkpoint, verifier: Verifier, since: str | None
) -> Iterator[Finding]:
    proved: dict[int, bytes] = {checkpoint.tree_size: checkpoint.root_hash}
    for note, path in older:
        try:
            old = Checkpoint.verify(note, verifier, place="an older checkpoint of the export")
        except AuditTampered as error:
            yield Finding("signature", error.place, error.rule)
            continue
        proved[old.tree_size] = old.root_hash
        if not verify_consistency(
            old_size=old.tree_size,
            old_root=old.root_hash,
            size=checkpoint.tree_size,
            root_hash=checkpoint.root_hash,
            proof=path,
        ):
            yield Finding("fork", f"checkpoint {old.tree_size}", "The log of the export does not extend it.")
    if since is None:
        return
    try:
        earlier = Checkpoint.verify(since, verifier, place="the earlier checkpoint")
    except AuditTampered as error:
        yield Finding("signature", error.place, error.rule)
        return
    if earlier.tree_size not in proved:
        yield Finding("unlocated", f"checkpoint {earlier.tree_size}", "The export holds no proof that it extends it.")
    elif proved[earlier.tree_size] != earlier.root_hash:
        yield Finding("fork", f"checkpoint {earlier.tree_size}", "Two different roots are signed for this size.")


def _nearest(notes: list[Any], first: int, stop: int) -> list[Any]:
    """The checkpoints on both sides of the range: with them exports that follow each other can be linked."""
    before = [row for row in notes if row.tree_size <= first][-1:]
    after = [row for row in notes if row.tree_size >= stop][:1]
    return [*before, *after]


def _write_events(connection: sql.Connection, path: Path, first: int, stop: int) -> list[bytes]:
    """Write the rows and return the hashes of their payloads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    fields = [("tree_index", pa.int64()), ("event_id", text), *((name, text) for name in _COLUMNS)]
    schema = pa.schema([*fields, ("payload", text), ("leaf_hash", pa.binary(32))])
    schema = schema.set(schema.get_field_index("columns"), pa.field("columns", pa.list_(text)))
    columns = leaf_table.c
    query = (
        sql.select(columns.tree_index, columns.event_id, columns.payload, columns.leaf_hash)
        .where(columns.tree_index >= first, columns.tree_index < stop)
        .order_by(columns.tree_index)
    )
    hashes: list[bytes] = []
    result = connection.execution_options(yield_per=_CHUNK).execute(query)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in result.partitions():
            events = [_summary(row.payload) for row in rows]
            hashes += [leaf_hash(row.payload.encode()) for row in rows]
            values = [
                {
                    "tree_index": row.tree_index,
                    "event_id": row.event_id,
                    **event,
                    "payload": row.payload,
                    "leaf_hash": row.leaf_hash,
                }
                for row, event in zip(rows, events, strict=True)
            ]
            writer.write_table(pa.Table.from_pylist(values, schema=schema))
    _make_durable(path)
    return hashes


def _summary(payload: str) -> dict[str, Any]:
    """The columns by which tools can filter; the payload is what is proved."""
    try:
        event = parse_canonical(payload.encode())
        return {name: event["actor"][name] if name == "principal" else event[name] for name in _COLUMNS}
    except (InvalidData, KeyError, TypeError):
        return dict.fromkeys(_COLUMNS)


def read_events(path: Path) -> Iterator[Leaf]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = ["tree_index", "event_id", "payload", "leaf_hash"]
            for batch in file.iter_batches(_READ_TOGETHER, columns=columns):
                for row in batch.to_pylist():
                    payload = (row["payload"] or "").encode()
                    yield Leaf(
                        row=row["tree_index"],
                        event_id=row["event_id"] or "",
                        payload=payload,
                        stored_hash=row["leaf_hash"] or b"",
                        actual_hash=leaf_hash(payload),
                        tree_index=row["tree_index"],
                    )
    except pa.ArrowException as error:
        raise ValueError(str(type(error).__name__)) from None


def _make_durable(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _report(
    checkpoint: Checkpoint | None, findings: list[Finding], warnings: list[Finding], notes: list[str]
) -> VerificationReport:
    return VerificationReport(
        ok=not findings,
        tree_size=checkpoint.tree_size if checkpoint else 0,
        root=checkpoint.root_hash.hex() if checkpoint else "",
        unsealed=0,
        findings=tuple(findings),
        notes=tuple(notes),
        signed_by=checkpoint.origin if checkpoint else None,
        warnings=tuple(warnings),
    )


def _tampered(rule: str, place: str) -> AuditTampered:
    return AuditTampered(rule, place=place, remedy="Keep the database as it is and run `lepton audit verify`.")
