"""What is asked of a policy, and what it answers: the same for every engine."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from lepton_airflow.errors import InvalidData

Action = Literal[
    "encrypt",
    "decrypt",
    "release",
    "approve",
    "train",
    "evaluate",
    "promote",
    "rotate",
    "store",
    "restore",
    "repair",
    "verify",
]

#: What stands for the dataset as a whole where a column would: in a rule's columns, and in a request's.
WHOLE_DATASET = "*"


@dataclass(frozen=True)
class Request:
    """What a principal wants to do.

    :param columns: the columns that the operation reads or writes; none means the dataset as a whole
    :param epsilon: the privacy cost of a release
    :param needs_approval: nothing leaves before somebody approves it
    :param environment: where the operation runs (``production``), as the settings name it
    """

    principal: str
    action: str
    dataset: str
    columns: tuple[str, ...]
    purpose: str
    epsilon: float | None = None
    needs_approval: bool = False
    environment: str | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """What must be granted, each: the columns, or the dataset as a whole."""
        return self.columns or (WHOLE_DATASET,)


@dataclass(frozen=True)
class Decision:
    """The answer.

    :param rules: ids of the grants that allowed it, or of the denials that forbade it, in the order of the file
    :param policy_digest: of the policy that decided
    """

    allow: bool
    rules: tuple[str, ...]
    policy_digest: str
    reason: str


class PolicyEngine(Protocol):
    """What decides: :class:`~lepton_airflow.access.policy.Policy` or :class:`~lepton_airflow.access.cedar.CedarPolicy`."""

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of the policy's meaning."""

    def decide(self, request: Request, *, at: datetime | None = None) -> Decision:
        """Whether the request is allowed, by which rules, and why.

        :param at: the time that conditions are held against, with its offset; default now
        :raises InvalidData: a time without an offset, which could mean any hour
        """


def moment(at: datetime | None) -> datetime:
    """The time to decide at, in UTC.

    :raises InvalidData: without an offset
    """
    if at is None:
        return datetime.now(UTC)
    if at.utcoffset() is None:
        raise InvalidData(
            "The time has no offset from UTC.",
            place="access decision",
            remedy="Give one, as in 2026-05-04T09:30:00+02:00.",
        )
    return at.astimezone(UTC)


def named(columns: tuple[str, ...]) -> str:
    """The columns in a sentence; without any, the dataset as a whole."""
    if not columns or columns == (WHOLE_DATASET,):
        return "the dataset as a whole"
    return f"column {', '.join(columns)}"
