"""Why the built-in engine allows or denies: for every grant what keeps it from allowing a request, nearest grant first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from lepton_airflow.access.patterns import covers, matches_any_case, matches_exactly
from lepton_airflow.access.policy import Grant, Policy
from lepton_airflow.access.request import Request, moment, named

Part = Literal["role", "action", "dataset", "column", "purpose", "condition"]


@dataclass(frozen=True)
class Obstacle:
    """One thing that keeps a grant from allowing a request."""

    part: Part
    text: str


@dataclass(frozen=True)
class Considered:
    """One grant, held against a request.

    :param obstacles: none: the grant allows the columns that it lists
    """

    rule: str
    obstacles: tuple[Obstacle, ...]


def consider(policy: Policy, request: Request, *, at: datetime | None = None) -> tuple[Considered, ...]:
    """Hold every grant of the policy against the request; those with the fewest obstacles first, then in the order of the file.

    :raises InvalidData: a time without an offset
    """
    now = moment(at)
    considered = [Considered(grant.id, _obstacles(policy, grant, request, now)) for grant in policy.grants]
    return tuple(sorted(considered, key=lambda one: len(one.obstacles)))


def _obstacles(policy: Policy, grant: Grant, request: Request, now: datetime) -> tuple[Obstacle, ...]:
    found: list[Obstacle] = []

    def obstacle(part: Part, text: str) -> None:
        found.append(Obstacle(part, text))

    if request.principal not in policy.roles[grant.role].members:
        obstacle("role", f"{request.principal} is no member of {grant.role}")
    if request.action not in grant.actions:
        obstacle("action", f"it grants {', '.join(grant.actions)}, not {request.action}")
    if not _matches(request.dataset, grant.datasets):
        obstacle("dataset", _unmatched(request.dataset, grant.datasets))
    missing = tuple(column for column in request.wanted if not covers(grant.columns, column, matches_exactly))
    if missing:
        other_case = any(covers(grant.columns, column, matches_any_case) for column in missing)
        case = "; grants match upper and lower case exactly" if other_case else ""
        obstacle("column", f"{named(missing)} is not among {', '.join(grant.columns)}{case}")
    if not _matches(request.purpose, grant.purposes):
        obstacle("purpose", _unmatched(request.purpose, grant.purposes))
    for condition in grant.conditions.unmet(request, now):
        obstacle("condition", condition)
    return tuple(found)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(matches_exactly(name, pattern) for pattern in patterns)


def _unmatched(name: str, patterns: tuple[str, ...]) -> str:
    case = any(matches_any_case(name, pattern) for pattern in patterns)
    return (
        f"{name} does not match {' or '.join(patterns)}{'; grants match upper and lower case exactly' if case else ''}"
    )
