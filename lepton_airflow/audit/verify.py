"""Verification: recompute everything from the payloads and hold it against every signed checkpoint.

What it detects and what it cannot is :data:`EXPLANATION`, which ``lepton audit verify --explain`` prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sql

from lepton_airflow.audit.archive import check_archive
from lepton_airflow.audit.archived import Archived, archived_stop, read_archived
from lepton_airflow.audit.blocks import INTEGRITY_CHECKS, Block, Task
from lepton_airflow.audit.checkpoint import Verifier
from lepton_airflow.audit.database import leaf_table, reading
from lepton_airflow.audit.export import Export
from lepton_airflow.audit.findings import Finding, Findings, Leaf, VerificationReport, leaves
from lepton_airflow.audit.locate import Placed, locate
from lepton_airflow.audit.merkle import HASH_BYTES, Frontier
from lepton_airflow.audit.nodes import StoredTree
from lepton_airflow.audit.producers import Producers
from lepton_airflow.audit.quorum import Quorum
from lepton_airflow.audit.rows import Blocks, is_framed, stored_leaves
from lepton_airflow.audit.signed_roots import SignedRoots
from lepton_airflow.audit.stretches import Odd
from lepton_airflow.audit.unsealed import stranded_rows
from lepton_airflow.errors import AuditTampered

__all__ = ["EXPLANATION", "Finding", "VerificationReport", "verify"]

EXPLANATION = """\
Found and located, as long as one export survives that the attacker could not write to:
  edited, deleted, inserted, moved or swapped events; a cut tail; a full rewrite, also one that is signed with a stolen key;
  a fork (two signed roots of one size, or a signed checkpoint that the log does not extend); missing or damaged checkpoints
  and exports; events that were lost or changed before they were sealed, when a later event of their producer is there;
  events that are kept from being sealed by a transaction number that they cannot have (PostgreSQL; where the log was sealed
  since it was last restored);
  payloads that are gone although no signed statement says that they were archived, and archives that are not as they were.
Warned of: times that go back by more than a second within one producer, by more than ten minutes in the log, or that lie
  more than ten minutes in the future.
Archived payloads are checked where their archives can be read, else only that their hashes are the sealed ones.
With --since: payloads below the checkpoint are not read again unless something is wrong behind it.
With --offline: nothing is said of events outside the export.
Not detected:
  events cut off the end of a producer that has not closed, before they were sealed;
  events that someone who can write to the database adds in a new producer's name, or never writes;
  a log that was taken back to an older signed checkpoint together with every export, unless a witness had cosigned it: then
  the witness refuses to cosign again, and what it had cosigned is found where witnesses leave it;
  times that a writer invents within the bounds above."""

_CHUNK = 1000
_LONGEST_LIST = 16
_DISAGREE = "The payload and the hash recorded beside it do not agree."
_EMPTIED = "Its payload is gone, and no archive has it."
_HASH_CHANGED = "The hash recorded beside it was changed; the payload is as it was sealed."


def verify(
    engine: sql.Engine,
    *,
    verifier: Verifier,
    exports: Sequence[Path | str],
    since: str | None = None,
    archives: Sequence[Path | str] = (),
    quorum: Quorum | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerificationReport:
    """Verify the whole log in one snapshot of the database; neither writers nor the sealer wait for it.

    Of a long log in SQLite a second process reads a part, in a snapshot of its own that is not older (see
    :class:`lepton_airflow.audit.rows.Blocks`). What is odd is looked at row by row, in the first snapshot.

    :param verifier: the sealer's public key, from a place that the database's owner cannot change
    :param exports: the folders to which the sealer copies its checkpoints
    :param since: the signed note of an earlier checkpoint, up to which the log was verified before: that the log extends it is
        shown by the stored hashes, and the payloads below are read again only if something is wrong
    :param archives: places that must hold the log's archives; by default they are read where they were written, if they can be
    :param quorum: the witnesses whose cosignatures count, and how many are needed
    :param progress: called with the number of events checked and of all events
    :raises AuditUnavailable: the database or an export cannot be reached
    """
    found = Findings()
    signed = SignedRoots(verifier=verifier, exports=[Export(place) for place in exports], found=found)
    verification = _Verification(found=found, signed=signed)
    # The exports come first: a database that is read after them is never behind them, unless it was cut.
    signed.read_exports()
    signed.read_cosigned(quorum or Quorum())
    try:
        with reading(engine) as connection:
            signed.read_own(connection)
            verification.read_archives(connection)
            if since is not None:
                verification.skip_to(connection, since)
            verification.read_leaves(connection, progress)
            verification.judge_unsealed(connection)
            verification.judge_tree(connection)
            verification.check_archives(connection, archives)
            verification.check_file(connection)
    except AuditTampered as damage:
        found.add("damaged", damage.place, f"{damage.rule} What lies behind it could not be read.")
    signed.judge_witnesses(quorum or Quorum())
    return verification.report()


@dataclass
class _Verification:
    """The state of one verification.

    :param start: how many leaves at the beginning are not read
    :param confirmed: the largest size at which the recomputed root is the signed one
    :param contradicted: the smallest size at which it is not
    :param gaps: what the positions alone show; superseded by what a signed list of leaf hashes shows
    :param uncovered: positions of leaves beyond every signed checkpoint
    :param archives: the signed statements about archives
    :param emptied: sealed leaves that have no payload, although no archive has it
    :param damage: what SQLite's own check said of each table, if a second process made it
    :param disagreeing: sealed leaves whose payload and recorded hash do not agree: their texts by position in the tree
    """

    found: Findings
    signed: SignedRoots
    start: int = 0
    unsealed: int = 0
    next_index: int = 0
    confirmed: int = 0
    contradicted: int | None = None
    gaps: list[Finding] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)
    disagreeing: dict[int, str] = field(default_factory=dict)
    archives: list[Archived] = field(default_factory=list)
    emptied: set[int] = field(default_factory=set)
    damage: dict[str, list[str]] | None = None
    frontier: Frontier = field(default_factory=Frontier)
    producers: Producers = field(default_factory=Producers)

    @property
    def size(self) -> int:
        """How many leaves are sealed, as the latest signed checkpoint says."""
        return self.signed.size

    def report(self) -> VerificationReport:
        if self.unsealed:
            self.found.notes.append(f"{self.unsealed} events are not sealed yet: no signed checkpoint covers them.")
        return VerificationReport(
            ok=not self.found.findings,
            tree_size=self.size,
            root=self.signed.latest.hex(),
            unsealed=self.unsealed,
            findings=self.found.findings,
            warnings=self.found.warnings,
            notes=tuple(self.found.notes),
            signed_by=self.signed.verifier.name if self.signed.by_size else None,
        )

    def skip_to(self, connection: sql.Connection, note: str) -> None:
        """Begin behind an earlier checkpoint, if the stored hashes still make its root and those of all before it."""
        checkpoint = self.signed.checkpoint(note, "the earlier checkpoint")
        if checkpoint is None:
            return
        size = checkpoint.tree_size
        below = sql.select(sql.func.count()).where(leaf_table.c.tree_index.between(0, size - 1))
        try:
            frontier = StoredTree(connection, size=size).frontier()
            unchanged = connection.scalar(below) == size and all(
                [StoredTree(connection, size=signed).root()] == roots
                for signed, roots in self.signed.by_size.items()
                if signed <= size
            )
        except ValueError:
            unchanged = False
        if not unchanged:
            self.found.notes.append(f"The log does not extend the checkpoint of {size} events: all of it was read.")
            return
        self.start = self.next_index = self.confirmed = size
        self.frontier = frontier
        self.found.notes.append(
            f"The log extends the checkpoint of {size} events. Their hashes were checked, not their payloads: a payload that"
            " was changed since they were last verified does not show."
        )

    def read_leaves(self, connection: sql.Connection, progress: Callable[[int, int], None] | None) -> None:
        """Recompute the tree, and follow the producers through sealed and unsealed events."""
        total = (connection.scalar(sql.select(sql.func.count()).select_from(leaf_table)) or 0) - self.start
        self._compare_root()
        done, told = 0, 0
        for count in self._taken(connection):
            done += count
            if progress is not None and (done >= told + _CHUNK or done == total):
                told = done
                progress(done, total)

        def unread(event_id: str) -> bool:
            columns = leaf_table.c
            below = max(self.start, archived_stop(self.archives))
            found = sql.select(columns.id).where(columns.event_id == event_id, columns.tree_index < below)
            return below > 0 and connection.scalar(found) is not None

        self.found.add_all(self.producers.missing(unread, leaves=self.start + total))
        if self.producers.open_count:
            self.found.notes.append(
                f"{self.producers.open_count} producers have not closed (they still run, or were killed): events cut"
                " off their ends before sealing would not show."
            )

    def _taken(self, connection: sql.Connection) -> Iterator[int]:
        """Take in every leaf, in blocks as far as they can be made; yield how many were taken at a time."""
        if is_framed(connection, start=self.start, stop=self.size):
            blocks = Blocks(connection, start=self.start, stop=self.size, cuts=self.signed.by_size)
            for task, block in blocks:
                # If the leaf before a block is missing, that shows only when the block's first is looked at by itself.
                if block is None or self.gaps or self.next_index != task.first:
                    yield sum(map(self._take, self._leaves(connection, start=task.first, stop=task.stop)))
                else:
                    self._take_block(connection, task, block)
                    yield task.stop - task.first
            self.damage = blocks.damage
        else:
            yield from map(self._take, self._leaves(connection, start=self.start))
        yield from map(self._take, stored_leaves(connection, sealed=False))

    def _take_block(self, connection: sql.Connection, task: Task, block: Block) -> None:
        for piece in block.pieces:
            for level, node in piece:
                self.frontier.append(node, level=level)
            self._compare_root()
        self.next_index = task.stop
        for part in block.parts:
            if isinstance(part, Odd):
                leaf = Leaf(
                    row=part.position,
                    event_id=part.event_id.decode(errors="replace"),
                    payload=part.payload,
                    stored_hash=part.hashed,
                    actual_hash=part.hashed,
                    tree_index=part.position,
                    archived=not part.payload and part.position < archived_stop(self.archives),
                )
                self._follow_producer(leaf)
            elif not self.producers.take(part):
                # All that is left of the block: to ask for each stretch by itself could take long, were there many.
                for leaf in self._leaves(connection, start=part.first, stop=task.stop):
                    self._follow_producer(leaf)
                break

    def _take(self, leaf: Leaf) -> int:
        if leaf.tree_index is not None:
            self._take_sealed(leaf, leaf.tree_index)
        else:
            self.unsealed += 1
        if leaf.archived or leaf.actual_hash == leaf.stored_hash:
            self._follow_producer(leaf)
        else:
            self.producers.skip(leaf)
            if leaf.tree_index is None:
                self._add_changed(leaf.position, emptied=not leaf.payload)
        return 1

    def _follow_producer(self, leaf: Leaf) -> None:
        if not leaf.archived:  # else its payload is checked with its archive
            self.found.add_all(self.producers.check(leaf))

    def _take_sealed(self, leaf: Leaf, index: int) -> None:
        if index > self.next_index:
            where = leaves(self.next_index, index - 1)
            self.gaps.append(Finding("deleted", where, "What was sealed here is gone."))
        elif index < self.next_index:
            self.gaps.append(Finding("inserted", leaf.position, "The log has no such position."))
        if index >= self.size:
            self.uncovered.append(leaf.position)
        self.next_index = max(self.next_index, index + 1)
        self.frontier.append(leaf.actual_hash)
        if not self.gaps:
            self._compare_root()
        if leaf.actual_hash != leaf.stored_hash:
            self.disagreeing[index] = leaf.position
            self.emptied |= set() if leaf.payload else {index}

    def _compare_root(self) -> None:
        roots = self.signed.by_size.get(self.frontier.size)
        if not roots:
            return
        if roots == [self.frontier.root()]:
            self.confirmed = self.frontier.size
        elif self.contradicted is None:
            self.contradicted = self.frontier.size

    def judge_unsealed(self, connection: sql.Connection) -> None:
        rows = stranded_rows(connection)
        text = "No seal will take it as it is: no transaction of this server can have the number that is beside it."
        for row in rows[:_LONGEST_LIST]:
            self.found.add("stranded", f"unsealed row {row.id} (event {row.event_id})", text)
        if len(rows) > _LONGEST_LIST:
            self.found.add("stranded", f"unsealed rows {rows[_LONGEST_LIST].id} to {rows[-1].id}", text)

    def judge_tree(self, connection: sql.Connection) -> None:
        """Locate what the roots and the positions say is wrong with the sealed events."""
        self._judge_unsigned()
        if self.next_index < self.size:
            text = "What was sealed here, the end of the log, is gone."
            self.gaps.append(Finding("truncated", leaves(self.next_index, self.size - 1), text))
        if self.contradicted is None and not self.gaps:
            for position in self.disagreeing.values():
                self.found.add("edited", position, _HASH_CHANGED)
            return
        reference = self._reference(connection)
        if reference is None:
            self._judge_without_reference(0)
            return
        known = len(reference) // HASH_BYTES
        if known < self.size:
            self.found.notes.append(
                f"Changes from leaf {known} on could not be told apart: no export has their hashes."
            )
            self._judge_without_reference(known)
        rows = [
            Placed(leaf.tree_index, leaf.event_id, leaf.actual_hash)
            for leaf in self._leaves(connection)
            if leaf.tree_index is not None and (known == self.size or leaf.tree_index < known)
        ]
        found = list(locate(reference, rows))
        self.found.add_all(found)
        for row in rows:
            as_sealed = reference[row.index * HASH_BYTES : (row.index + 1) * HASH_BYTES] == row.actual_hash
            if as_sealed and row.index in self.disagreeing:
                self.found.add("edited", self.disagreeing[row.index], _HASH_CHANGED)
        if not found and self.contradicted is not None and self.contradicted <= known:
            self.found.add("fork", f"checkpoint {self.contradicted}", "It is signed, but it is not of this log.")

    def read_archives(self, connection: sql.Connection) -> None:
        """Read which leaves need no payload in the database."""

        def refuse(error: AuditTampered) -> None:
            self.found.add("archive", error.place, error.rule)

        self.archives = read_archived(connection, self.signed.verifier, refuse=refuse)

    def check_archives(self, connection: sql.Connection, places: Sequence[Path | str]) -> None:
        """Hold the archives of what was verified against their statements, as far as they can be read."""
        for archived in self.archives:
            if archived.stop <= self.start:
                continue
            what = f"The payloads of {archived.leaves} are archived at {archived.place}"
            announced = sql.select(leaf_table.c.id).where(leaf_table.c.event_id == archived.event_id)
            if connection.scalar(announced) is None:
                text = "The log does not have the event that announced it."
                self.found.add("archive", f"archive of {archived.leaves}", text)
            place, findings = check_archive(connection, archived, verifier=self.signed.verifier, places=places)
            self.found.add_all(findings)
            if place is not None:
                self.found.notes.append(f"{what}; the archive was read and checked." if not findings else f"{what}.")
            elif places:
                self.found.add("archive", f"archive of {archived.leaves}", "None of the named places has it.")
            else:
                self.found.notes.append(
                    f"{what}, which cannot be read from here: they were not checked, their hashes were."
                )

    def check_file(self, connection: sql.Connection) -> None:
        """Let SQLite hold its indices against its rows, unless a second process has done so."""
        if connection.dialect.name != "sqlite":
            return
        for table, check in INTEGRITY_CHECKS.items():
            lines = connection.exec_driver_sql(check).scalars() if self.damage is None else self.damage[table]
            for line in lines:
                if line != "ok":
                    self.found.add("damaged", f"table {table}", f"SQLite's own check says: {line}.")

    def _leaves(self, connection: sql.Connection, *, start: int = 0, stop: int | None = None) -> Iterator[Leaf]:
        archived = archived_stop(self.archives)
        return stored_leaves(connection, sealed=True, start=start, stop=stop, archived=archived)

    def _add_changed(self, position: str, *, emptied: bool) -> None:
        """A payload that is not the one of the hash beside it."""
        self.found.add("deleted" if emptied else "edited", position, _EMPTIED if emptied else _DISAGREE)

    def _judge_unsigned(self) -> None:
        text = "It has a position in the tree, but no signed checkpoint covers it."
        if len(self.uncovered) > _LONGEST_LIST:
            self.found.add("unsigned", leaves(self.size, self.next_index - 1), text)
        else:
            for position in self.uncovered:
                self.found.add("unsigned", position, text)

    def _judge_without_reference(self, known: int) -> None:
        """Say of the leaves from ``known`` on what their positions and the hashes beside them show."""
        self.found.add_all(self.gaps)
        for index, position in self.disagreeing.items():
            if index >= known:
                self._add_changed(position, emptied=index in self.emptied)
        if self.contradicted is not None and self.contradicted > known:
            text = "Their root is not the signed one; without the leaf hashes of an export it cannot be told which."
            self.found.add("unlocated", leaves(max(self.confirmed, known), self.contradicted - 1), text)

    def _reference(self, connection: sql.Connection) -> bytes | None:
        """A list of leaf hashes with a signed root: an export's if one has it, else the hashes beside the payloads."""
        if (hashes := self.signed.exported_hashes(behind=False)) is not None:
            return hashes
        hashes = b"".join(leaf.stored_hash for leaf in self._leaves(connection))[: self.size * HASH_BYTES]
        if self.signed.is_signed(self.size, hashes):
            return hashes
        return self.signed.exported_hashes(behind=True)
