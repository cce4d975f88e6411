"""What verification found, and the rows that it looks at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    :param kind: ``edited``, ``deleted``, ``inserted``, ``moved``, ``swapped``, ``rewritten``, ``truncated`` (leaves);
        ``missing``, ``malformed``, ``stranded`` (events); ``unsigned``, ``signature``, ``fork``, ``checkpoint``, ``export``
        (checkpoints); ``archive``, ``witness``, ``unlocated``, ``damaged``; as a warning ``clock``
    :param position: where, as ``leaf 17 (event <id>)``
    :param text: what, as a sentence without a data value
    """

    kind: str
    position: str
    text: str


@dataclass
class Findings:
    """What was found so far, of each kind and position the first; what is only a warning, and what could not be told."""

    notes: list[str] = field(default_factory=list)
    _findings: dict[tuple[str, str], Finding] = field(default_factory=dict)
    _warnings: dict[tuple[str, str], Finding] = field(default_factory=dict)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(self._findings.values())

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(self._warnings.values())

    def add(self, kind: str, position: str, text: str) -> None:
        found = self._warnings if kind == "clock" else self._findings
        found.setdefault((kind, position), Finding(kind, position, text))

    def add_all(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.add(finding.kind, finding.position, finding.text)


@dataclass(frozen=True)
class VerificationReport:
    """The outcome of a verification.

    :param ok: nothing was found
    :param tree_size: sealed events, as the latest signed checkpoint says
    :param root: its root hash in hex
    :param unsealed: events that no checkpoint covers yet; they are no finding
    :param findings: what is wrong
    :param warnings: what may be wrong or may be a clock that was set: times that go back or lie in the future
    :param notes: what this verification could not tell
    :param signed_by: the name of the key that signed the checkpoint; None when there is no checkpoint
    """

    ok: bool
    tree_size: int
    root: str
    unsealed: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    signed_by: str | None
    warnings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Leaf:
    """One row of the log as it is stored, nothing of it trusted.

    :param row: the row's id
    :param event_id: the column, not the payload's
    :param stored_hash: the hash that was recorded beside the payload
    :param actual_hash: the leaf hash of the payload that is there
    :param tree_index: its place in the tree; None before it is sealed
    :param archived: its payload is in an archive, and not here; ``actual_hash`` then is the recorded one
    """

    row: int
    event_id: str
    payload: bytes
    stored_hash: bytes
    actual_hash: bytes
    tree_index: int | None
    archived: bool = False

    @property
    def position(self) -> str:
        if self.tree_index is None:
            return f"unsealed row {self.row} (event {self.event_id})"
        return f"leaf {self.tree_index} (event {self.event_id})"


def leaves(first: int, last: int) -> str:
    """A range of positions in the tree, both ends included."""
    return f"leaf {first}" if first == last else f"leaves {first} to {last}"
