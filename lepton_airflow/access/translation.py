"""A ``policy.yaml`` as a Cedar policy that decides the same.

Exact or refused: Cedar's ``like`` knows ``*`` only, so a pattern with ``?`` or ``[...]`` is an error; and a largest epsilon must
be a whole number of billionths.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from lepton_airflow.access.cedar import BILLION, LARGEST_LONG
from lepton_airflow.access.conditions import Conditions, TimeWindow, minutes
from lepton_airflow.access.patterns import above, fold, spellings
from lepton_airflow.access.policy import EVERYONE, Denial, Grant, Policy, Rule
from lepton_airflow.access.request import WHOLE_DATASET
from lepton_airflow.errors import ConfigurationError


@dataclass(frozen=True)
class Translated:
    """The two files of a Cedar policy.

    :param policies: the text of the ``.cedar`` file
    :param entities: what the ``.entities.json`` file holds
    """

    policies: str
    entities: tuple[dict[str, Any], ...]

    @property
    def entities_text(self) -> str:
        """The text of the ``.entities.json`` file."""
        return json.dumps(self.entities, indent=2) + "\n"


def to_cedar(policy: Policy) -> Translated:
    """Translate; :class:`~lepton_airflow.access.cedar.CedarPolicy` decides on the result as ``policy`` decides.

    :raises ConfigurationError: Cedar cannot say what a rule says; the text names the rule
    """
    policies = "\n".join(_rule(rule) for rule in (*policy.grants, *policy.denials))
    roles = [_entity("Role", name, ()) for name in policy.roles]
    members: dict[str, list[str]] = {}
    for name, role in policy.roles.items():
        for member in dict.fromkeys(role.members):
            members.setdefault(member, []).append(name)
    principals = [_entity("Principal", name, inside) for name, inside in members.items()]
    return Translated(policies, (*roles, *principals))


def _entity(kind: str, name: str, roles: Iterable[str]) -> dict[str, Any]:
    parents = [{"type": "Role", "id": role} for role in roles]
    return {"uid": {"type": kind, "id": name}, "attrs": {}, "parents": parents}


def _rule(rule: Rule) -> str:
    denies = isinstance(rule, Denial)
    everyone = denies and rule.role == EVERYONE
    suffix = "_folded" if denies else ""
    clauses = [
        *_patterns(rule, f"resource.dataset{suffix}", rule.datasets, folded=denies),
        *_columns(rule, suffix),
        *_patterns(rule, f"context.purpose{suffix}", rule.purposes, folded=denies),
    ]
    if isinstance(rule, Grant):
        clauses += _conditions(rule, rule.conditions)
    actions = ", ".join(f"Action::{_text(action)}" for action in rule.actions)
    return "\n".join(
        [
            f"@id({_text(rule.id)})",
            f"{'forbid' if denies else 'permit'} (",
            "  principal," if everyone else f"  principal in Role::{_text(rule.role)},",
            f"  action in [{actions}],",
            "  resource",
            ")",
            *(f"when {{ {clause} }}" for clause in clauses),
            ";",
            "",
        ]
    )


def _columns(rule: Rule, suffix: str) -> Iterator[str]:
    if WHOLE_DATASET in rule.columns:
        return
    columns = rule.columns
    if isinstance(rule, Denial):
        columns = tuple(one for pattern in columns for one in spellings(pattern))
    patterns = list(_patterns(rule, f"resource.column{suffix}", columns, folded=bool(suffix)))
    if isinstance(rule, Denial) and patterns:
        wholes = dict.fromkeys(outer for pattern in rule.columns for outer in above(fold(pattern)))
        patterns = [" || ".join([*patterns, *(_whole(rule, *outer) for outer in wholes)])]
    yield " && ".join(["resource is Column", *(f"({pattern})" for pattern in patterns)])


def _whole(rule: Rule, depth: int | None, pattern: str) -> str:
    """The request is for all of a column of which the denial forbids a part."""
    asked = "context.depth > 0" if depth is None else f"context.depth == {depth}"
    return f"({asked} && {_pattern(rule, 'resource.column_folded', pattern)})"


def _patterns(rule: Rule, attribute: str, patterns: tuple[str, ...], *, folded: bool) -> Iterator[str]:
    """One clause: the attribute matches one of the patterns; none if it always does."""
    if "*" in patterns:
        return
    yield " || ".join(_pattern(rule, attribute, fold(one) if folded else one) for one in dict.fromkeys(patterns))


def _pattern(rule: Rule, attribute: str, pattern: str) -> str:
    if "?" in pattern or "[" in pattern:
        raise _untranslatable(rule, f"the pattern {pattern!r}: of the wildcards Cedar knows * only")
    return f"{attribute} {'like' if '*' in pattern else '=='} {_text(pattern)}"


def _conditions(rule: Rule, conditions: Conditions) -> Iterator[str]:
    if conditions.max_epsilon is not None:
        limit = Decimal(repr(conditions.max_epsilon)) * BILLION
        if limit != int(limit) or limit > LARGEST_LONG - 1:
            raise _untranslatable(rule, "its max_epsilon is no whole number of billionths, or too large")
        yield f"context has epsilon_billionths && context.epsilon_billionths <= {int(limit)}"
    if conditions.time is not None:
        yield " && ".join(f"({clause})" for clause in _window(conditions.time))
    if conditions.environments is not None:
        yield f"context has environment && {_set(conditions.environments)}.contains(context.environment)"
    if conditions.approval is not None:
        yield "context.needs_approval"


def _window(window: TimeWindow) -> Iterator[str]:
    zone = f"Zone::{_text(window.zone)}"
    if window.not_before is not None:
        yield f"{zone}.date >= {int(window.not_before.replace('-', ''))}"
    if window.not_after is not None:
        yield f"{zone}.date <= {int(window.not_after.replace('-', ''))}"

    def on(day: str) -> str:
        return "" if window.days is None else f" && {_set(window.days)}.contains({zone}.{day})"

    if window.from_ is None or window.to is None:
        if window.days is not None:
            yield on("day").removeprefix(" && ")
        return
    start, end = minutes(window.from_), minutes(window.to)
    if start < end:
        yield f"{zone}.minute >= {start} && {zone}.minute < {end}{on('day')}"
    else:
        yield f"({zone}.minute >= {start}{on('day')}) || ({zone}.minute < {end}{on('day_before')})"


def _set(names: Iterable[str]) -> str:
    return f"[{', '.join(map(_text, names))}]"


def _text(text: str) -> str:
    """A string literal of Cedar; a star in it is a wildcard where ``like`` reads it, and a star elsewhere."""
    return '"' + "".join(c if c.isalnum() or c in " *._-/:@+#" else f"\\u{{{ord(c):x}}}" for c in text) + '"'


def _untranslatable(rule: Rule, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"Cedar cannot say {what}.",
        place=f"rule {rule.id}",
        remedy="Write it otherwise, or stay with the built-in engine.",
    )
