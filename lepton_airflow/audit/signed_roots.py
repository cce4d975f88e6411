"""The signed roots that a verification holds the log against: those of its exports, its witnesses and the database itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sql

from lepton_airflow.audit.checkpoint import Checkpoint, Verifier
from lepton_airflow.audit.database import checkpoint_table
from lepton_airflow.audit.export import Export
from lepton_airflow.audit.findings import Findings
from lepton_airflow.audit.merkle import EMPTY_ROOT, HASH_BYTES, root
from lepton_airflow.audit.quorum import Quorum
from lepton_airflow.audit.rows import raw
from lepton_airflow.errors import AuditTampered


@dataclass
class SignedRoots:
    """Every validly signed root that was found; what is wrong with a checkpoint is added to the findings.

    :param found: where to add it
    :param by_size: the roots by tree size, those of the exports before those of the database; more than one is a fork
    :param exported: the sizes that each export holds
    :param cosigned: checkpoints with the cosignatures of witnesses, and where they are
    :param witnessed: the sizes of those
    """

    verifier: Verifier
    exports: Sequence[Export]
    found: Findings
    by_size: dict[int, list[bytes]] = field(default_factory=dict)
    exported: dict[Path | str, set[int]] = field(default_factory=dict)
    cosigned: list[tuple[str, str]] = field(default_factory=list)
    witnessed: set[int] = field(default_factory=set)

    @property
    def size(self) -> int:
        """The size of the latest validly signed checkpoint, wherever it is."""
        return max(self.by_size, default=0)

    @property
    def latest(self) -> bytes:
        """The root of that size."""
        return self.by_size.get(self.size, [EMPTY_ROOT])[0]

    def read_exports(self) -> None:
        """Read the checkpoints of every export.

        :raises AuditUnavailable: an export cannot be reached
        """
        for export in self.exports:
            checkpoints = [self.checkpoint(note, file) for file, note in export.notes()]
            self.exported[export.place] = {found.tree_size for found in checkpoints if found is not None}
        if not self.exports:
            self.found.notes.append("There is no export: a cut tail of the log would not show.")

    def read_cosigned(self, quorum: Quorum) -> None:
        """Read what witnesses have cosigned: signed checkpoints like those of an export."""
        self.cosigned = quorum.cosigned()
        for position, note in self.cosigned:
            checkpoint = self.checkpoint(note, position)
            if checkpoint is not None:
                self.witnessed.add(checkpoint.tree_size)

    def read_own(self, connection: sql.Connection) -> None:
        """Check the database's own checkpoints, and that they and the exported ones are the same."""
        own: set[int] = set()
        columns = checkpoint_table.c
        for row in connection.execute(sql.select(columns.tree_size, raw(connection, columns.note).label("note"))):
            position = f"checkpoint {row.tree_size} of the database"
            checkpoint = self.checkpoint(row.note.decode(errors="replace"), position)
            if checkpoint is not None and checkpoint.tree_size != row.tree_size:
                self.found.add("checkpoint", position, f"It is signed for {checkpoint.tree_size} events.")
            own.add(row.tree_size)
        for size in sorted(self.witnessed - own):
            text = "A witness has cosigned it; the database does not have it."
            self.found.add("checkpoint", f"checkpoint {size}", text)
        for folder, sizes in self.exported.items():
            for size in sorted(sizes - own):
                text = f"{folder} holds it, signed; the database does not."
                self.found.add("checkpoint", f"checkpoint {size}", text)
            if own and not sizes:
                text = "It holds no valid checkpoint, although the log was sealed. If it is new, `lepton audit seal` fills it."
                self.found.add("export", str(folder), text)
            elif max(own, default=0) > max(sizes, default=0):
                self.found.notes.append(f"{folder} lacks the latest checkpoint; `lepton audit seal` copies it.")

    def checkpoint(self, note: str, position: str) -> Checkpoint | None:
        """The checkpoint of a note, whose root then counts; None if it is not validly signed.

        :param position: where the note is
        """
        try:
            checkpoint = Checkpoint.verify(note, self.verifier, place=position)
        except AuditTampered as error:
            self.found.add("signature", position, error.rule)
            return None
        roots = self.by_size.setdefault(checkpoint.tree_size, [])
        if checkpoint.root_hash not in roots:
            roots.append(checkpoint.root_hash)
        if len(roots) > 1:
            text = "Two different roots are signed for this size."
            self.found.add("fork", f"checkpoint {checkpoint.tree_size}", text)
        return checkpoint

    def judge_witnesses(self, quorum: Quorum) -> None:
        """Say who has cosigned the latest checkpoint, and whether that is enough."""
        if not quorum.witnesses or not self.by_size:
            return
        judgement = quorum.judge(Checkpoint(self.verifier.name, self.size, self.latest), self.cosigned)
        self.found.add_all(judgement.findings)
        if judgement.enough:
            self.found.notes.append(judgement.text)
        else:
            self.found.add("witness", f"checkpoint {self.size}", judgement.text)

    def exported_hashes(self, *, behind: bool) -> bytes | None:
        """The leaf hashes of an export with a signed root, one after the other; None if no export has such.

        :param behind: of one of the log's two states before the latest, instead of the latest
        """
        for export in self.exports:
            earlier = sorted(self.exported[export.place] - {self.size}, reverse=True)[:2]
            for size in earlier if behind else [self.size]:
                hashes = export.leaf_hashes(size)
                if hashes is not None and self.is_signed(size, hashes):
                    return hashes
        return None

    def is_signed(self, size: int, hashes: bytes) -> bool:
        """Whether these are the leaf hashes of a signed tree of that size."""
        parts = (hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES))
        return len(hashes) == size * HASH_BYTES and root(parts) in self.by_size.get(size, [])
