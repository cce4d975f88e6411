"""A witness: remembers the largest state of a log that it has seen, and cosigns only what extends it.

It needs no database, only a place to which the sealer copies checkpoints and leaf hashes. From those it continues the tree that
it remembers (its right edge, O(log n) hashes), which shows that the new checkpoint extends the old one. So a log that was cut,
taken back or forked, in the database and in every export, does not get this witness's signature again.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_airflow.audit.checkpoint import Checkpoint, Verifier
from lepton_airflow.audit.cosignature import Witness
from lepton_airflow.audit.export import Export
from lepton_airflow.audit.merkle import EMPTY_ROOT, HASH_BYTES, Frontier
from lepton_airflow.errors import AuditTampered, ConfigurationError, UnreadableSource

SCHEMA = "lepton.witness/1"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The latest checkpoint that a witness has cosigned, or was about to when it died.

    :param log: the text of the log's public key
    :param frontier: the right edge of its tree
    """

    log: str
    frontier: Frontier


def cosign(
    place: Path | str,
    *,
    log: Verifier,
    witness: Witness,
    state: Path,
    to: Path | str | None = None,
    begin: bool = False,
) -> Checkpoint:
    """Cosign the latest checkpoint at ``place`` if it extends the last one that this witness saw.

    The state is durable before anything is signed, and one process at a time works on it.

    :param place: an export of the sealer's
    :param log: the sealer's public key
    :param state: the witness's memory; whoever can change it can make it forget
    :param to: where the cosigned checkpoint is written, by default ``place``
    :param begin: the witness never saw this log: without it a missing state is an error, since it may have been taken away
    :raises AuditTampered: the checkpoint is not signed, is older than the last one, or does not extend it: nothing is signed
    :raises UnreadableSource: there is no checkpoint, or the leaf hashes that it covers are not all there
    :raises ConfigurationError: the state is missing, or of another log
    """
    source = Export(place)
    with _locked(state):
        seen = _read_state(state, log, begin=begin)
        note = source.latest()
        if note is None:
            raise UnreadableSource("There is no checkpoint.", place=str(place), remedy="Run `lepton audit seal` first.")
        checkpoint = Checkpoint.verify(note, log, place=str(place))
        _extend(seen.frontier, checkpoint, source)
        _write_state(state, seen)
        cosigned = witness.cosign(note, time=int(time.time()))
        target = source if to is None else Export(to)
        target.write_cosigned(cosigned, size=checkpoint.tree_size, key_id=witness.verifier.key_id)
    return checkpoint


def _extend(frontier: Frontier, checkpoint: Checkpoint, source: Export) -> None:
    """Continue the remembered tree up to the checkpoint, whose root must come out."""
    size = checkpoint.tree_size
    if size < frontier.size:
        raise AuditTampered(
            f"The latest checkpoint is of {size} events, but this witness has seen {frontier.size}: the log was taken back.",
            place=str(source.place),
            remedy="Nothing was signed. Run `lepton audit verify` and compare with other exports.",
        )
    if size > frontier.size:
        hashes = source.leaf_hashes(size, start=frontier.size)
        if hashes is None:
            raise UnreadableSource(
                "Leaf hashes that the checkpoint covers are missing.",
                place=str(source.place),
                remedy="Nothing was signed. `lepton audit seal` writes them before the checkpoint; see that all was copied.",
            )
        frontier.extend([hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES)])
    if frontier.root() != checkpoint.root_hash:
        raise AuditTampered(
            "The checkpoint does not extend the one that this witness saw last: the log was forked or rewritten.",
            place=str(source.place),
            remedy="Nothing was signed. Keep both and run `lepton audit verify`.",
        )


def _read_state(path: Path, log: Verifier, *, begin: bool) -> Seen:
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        if not begin:
            raise ConfigurationError(
                "The witness has no memory of this log.",
                place=str(path),
                remedy="If it has never cosigned it, say so with --begin. If it has, restore the file: without it a log that was"
                " taken back would be cosigned.",
            ) from None
        return Seen(log=log.text, frontier=Frontier())
    except (OSError, ValueError):
        raise _unusable(path) from None
    try:
        frontier = Frontier(int(fields["size"]), [bytes.fromhex(node) for node in fields["frontier"]])
        good = fields["schema"] == SCHEMA and frontier.root().hex() == fields["root"]
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise _unusable(path)
    if fields["log"] != log.text:
        raise ConfigurationError(
            "The witness's memory is of another log.", place=str(path), remedy="Give each log a file of its own."
        )
    return Seen(log=log.text, frontier=frontier)


def _write_state(path: Path, seen: Seen) -> None:
    frontier = seen.frontier
    fields = {
        "schema": SCHEMA,
        "log": seen.log,
        "size": frontier.size,
        "root": (frontier.root() if frontier.size else EMPTY_ROOT).hex(),
        "frontier": [node.hex() for node in frontier.nodes],
    }
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w") as file:
        json.dump(fields, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    state.parent.mkdir(parents=True, exist_ok=True)
    with state.with_name(f".{state.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unusable(path: Path) -> ConfigurationError:
    return ConfigurationError("The witness's memory cannot be read.", place=str(path), remedy="Restore it.")
