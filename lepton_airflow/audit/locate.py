"""Finds which leaves were changed, once the root has shown that some were.

The reference is a list of leaf hashes whose root was signed. It is held against the hashes of the payloads that are there,
in the manner of a diff that also knows that every leaf is unique.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lepton_airflow.audit.findings import Finding, leaves
from lepton_airflow.audit.merkle import HASH_BYTES, leaf_hash

#: A longer unbroken run of edited leaves is reported as one.
_LONGEST_RUN = 16
_EMPTIED = leaf_hash(b"")


@dataclass(frozen=True, slots=True)
class Placed:
    """A sealed row: where it stands, its event id and the hash of its payload."""

    index: int
    event_id: str
    actual_hash: bytes


@dataclass(frozen=True, slots=True)
class _Change:
    kind: str
    index: int
    event_id: str | None
    home: int | None = None  # where the leaf was sealed, if it was


def locate(reference: bytes, rows: Sequence[Placed]) -> Iterator[Finding]:
    """What was done to the log.

    :param reference: leaf hashes of the signed tree, one after the other
    :param rows: the sealed rows in the order of their index
    """
    size = len(reference) // HASH_BYTES
    signed = [reference[start : start + HASH_BYTES] for start in range(0, len(reference), HASH_BYTES)]
    home = {hashed: index for index, hashed in enumerate(signed)}
    standing = {row.index: row.actual_hash for row in rows}
    present = set(standing.values())
    changes = [change for row in rows if (change := _change(row, signed, home, standing, present)) is not None]
    edited = {change.index for change in changes if change.kind in ("edited", "deleted")}
    gone = [index for index in range(size) if signed[index] not in present and index not in edited]
    last = max(standing, default=-1)
    changes += [_Change("truncated" if index > last else "deleted", index, None) for index in gone]

    for run in _runs(changes):
        yield from _findings(run)


def _runs(changes: Sequence[_Change]) -> Iterator[list[_Change]]:
    """Neighbouring changes of one kind, and of one shift if they were moved."""
    run: list[_Change] = []
    for change in changes:
        if run:
            before = run[-1]
            shifted = change.home is not None and change.home != (before.home or 0) + 1
            if change.kind != before.kind or change.index != before.index + 1 or shifted:
                yield run
                run = []
        run.append(change)
    if run:
        yield run


def _change(
    row: Placed, signed: Sequence[bytes], home: dict[bytes, int], standing: dict[int, bytes], present: set[bytes]
) -> _Change | None:
    origin = home.get(row.actual_hash)
    if origin == row.index:
        return None
    if row.actual_hash == _EMPTIED and 0 <= row.index < len(signed):
        return _Change("deleted", row.index, row.event_id)
    if origin is None:
        if row.index >= len(signed):
            return None  # beyond the signed tree: not a change of it
        lost = 0 <= row.index < len(signed) and signed[row.index] not in present
        return _Change("edited" if lost else "inserted", row.index, row.event_id)
    if standing.get(origin) == row.actual_hash:
        return _Change("inserted", row.index, row.event_id)  # a copy: the original stands where it was sealed
    swapped = home.get(standing.get(origin, b"")) == row.index
    return _Change("swapped" if swapped else "moved", row.index, row.event_id, origin)


def _findings(run: list[_Change]) -> Iterator[Finding]:
    first, last = run[0], run[-1]
    where = leaves(first.index, last.index)
    if first.kind == "edited" and len(run) > _LONGEST_RUN:
        yield Finding("rewritten", where, f"None of these {len(run)} events is the one that was sealed there.")
    elif first.kind in ("deleted", "truncated"):
        end = ", which was the end of the log" if first.kind == "truncated" else ""
        yield Finding(first.kind, where, f"What was sealed here{end} is gone.")
    elif first.kind == "moved" and len(run) > 1:
        yield Finding("moved", where, f"They were sealed at {first.home} to {last.home}.")
    else:
        for change in run:
            yield Finding(change.kind, f"leaf {change.index} (event {change.event_id})", _text(change))


def _text(change: _Change) -> str:
    if change.home is not None:
        return f"This event was sealed as leaf {change.home}."
    if change.kind == "edited":
        return "The payload is not the one that was sealed here."
    return "This event was not sealed here."
