"""Mistakes in a policy that is valid: rules that do nothing, rules that say the same, grants and keys that do not fit each other.

What is reported as unreachable, contained or redundant is so. Not everything that is so is found: a pattern that two denials
cover only together is not.

Which datasets a keyset protects is recorded in the protected tables, not in the keyring; so it is given, see
:class:`SealedKeyset`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import Literal
from zoneinfo import ZoneInfo

from lepton_airflow.access.conditions import Conditions
from lepton_airflow.access.patterns import (
    above,
    contains,
    covers,
    fold,
    is_plain,
    matches_any_case,
    matches_exactly,
    outside,
    overlap,
)
from lepton_airflow.access.policy import Denial, Grant, Policy, Rule
from lepton_airflow.access.request import WHOLE_DATASET, moment

Severity = Literal["error", "warning"]
Kind = Literal[
    "broad-grant",
    "contained-rule",
    "dead-part",
    "empty-role",
    "expired-grant",
    "grant-without-key",
    "impossible-pattern",
    "key-without-grant",
    "redundant-pattern",
    "unapprovable-grant",
    "unmapped-keyset",
    "unreachable-grant",
    "unused-role",
]
#: What a job needs the keyset for. A release or a training that has to decrypt asks for `decrypt` besides.
_NEED_KEYS = frozenset({"encrypt", "decrypt", "rotate", "store", "restore"})
_PATTERNS = ("datasets", "columns", "purposes")


@dataclass(frozen=True)
class Finding:
    """One mistake.

    :param rule: the id of the rule; else the role or the keyset, with that word before it
    """

    rule: str
    severity: Severity
    kind: Kind
    text: str
    remedy: str


@dataclass(frozen=True)
class SealedKeyset:
    """To whom a keyset is sealed, and what it protects.

    :param holders: names of recipients of any of its parts
    :param complete: those of all of its parts
    :param datasets: patterns of the datasets that it protects; none if that is not known
    """

    name: str
    holders: frozenset[str]
    complete: frozenset[str]
    datasets: tuple[str, ...]


def lint(policy: Policy, *, keysets: Sequence[SealedKeyset] = (), at: datetime | None = None) -> tuple[Finding, ...]:
    """Find mistakes; errors first, then in the order of the file.

    :param keysets: of the keyring, to hold grants against; none for the policy alone
    :param at: when, for grants that have expired; default now
    :raises InvalidData: a time without an offset
    """
    found = [
        *_roles(policy),
        *_unreachable(policy),
        *_redundant(policy),
        *_contained(policy),
        *_expired(policy, moment(at)),
        *_unapprovable(policy),
        *_keys(policy, keysets),
        *_broader(policy, keysets),
    ]
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def _roles(policy: Policy) -> Iterator[Finding]:
    used = {rule.role for rule in (*policy.grants, *policy.denials)}
    for name, role in policy.roles.items():
        if name not in used:
            yield Finding(
                f"role {name}", "warning", "unused-role", "No rule names it.", "Remove it, or grant it something."
            )
        elif not role.members:
            rules = ", ".join(rule.id for rule in (*policy.grants, *policy.denials) if rule.role == name)
            text = f"It has no members, so nobody is meant by {rules}."
            yield Finding(f"role {name}", "warning", "empty-role", text, "Give it members, or remove it and its rules.")


def _unreachable(policy: Policy) -> Iterator[Finding]:
    for grant in policy.grants:
        parts = _parts(policy, grant)
        cases = list(product(*parts.values()))
        left = [case for case in cases if not _denied(policy, *case)]
        if len(left) == len(cases):
            continue
        by = ", ".join(rule.id for rule in policy.denials if any(_denies(policy, rule, *case) for case in cases))
        if not left:
            text = f"All that it grants is denied by {by}."
            yield Finding(grant.id, "error", "unreachable-grant", text, "Remove the grant, or narrow the denial.")
            continue
        for position, (part, values) in enumerate(parts.items()):
            for dead in sorted({*values} - {case[position] for case in left}):
                text = f"Of its {part}, {dead!r} is always denied by {by}."
                yield Finding(grant.id, "warning", "dead-part", text, "Take it out of the grant, or narrow the denial.")


def _parts(policy: Policy, rule: Rule) -> dict[str, tuple[str, ...]]:
    members = policy.members(rule) or frozenset()
    return {
        "members": tuple(sorted(members)),
        "actions": rule.actions,
        "datasets": rule.datasets,
        "columns": rule.columns,
        "purposes": rule.purposes,
    }


def _denied(policy: Policy, *case: str) -> bool:
    return any(_denies(policy, rule, *case) for rule in policy.denials)


def _denies(policy: Policy, denial: Rule, member: str, action: str, dataset: str, column: str, purpose: str) -> bool:
    """Whether one denial covers whatever these patterns match, for one member and action."""
    members = policy.members(denial)
    return (
        (members is None or member in members)
        and action in denial.actions
        and any(_contains_any_case(outer, dataset) for outer in denial.datasets)
        and _covers(denial.columns, column, any_case=True)
        and any(_contains_any_case(outer, purpose) for outer in denial.purposes)
    )


def _contains_any_case(outer: str, inner: str) -> bool:
    # Folding changes what a class of characters holds, in ways that its text does not show.
    if "[" in inner:
        return outer == "*" or fold(outer) == fold(inner)
    return contains(fold(outer), fold(inner))


def _covers(columns: Sequence[str], column: str, *, any_case: bool = False) -> bool:
    """As for every name; but only the pattern ``*`` is about the dataset as a whole too, and a column's parts are in it."""
    if column == WHOLE_DATASET:
        return WHOLE_DATASET in columns
    if is_plain(column) and covers(columns, column, matches_any_case if any_case else matches_exactly):
        return True
    return any(_contains_any_case(outer, column) if any_case else contains(outer, column) for outer in columns)


def _redundant(policy: Policy) -> Iterator[Finding]:
    for rule in (*policy.grants, *policy.denials):
        for part in _PATTERNS:
            patterns: tuple[str, ...] = getattr(rule, part)
            for position, pattern in enumerate(patterns):
                if not overlap(pattern, "*"):
                    text = f"Of its {part}, {pattern!r} matches no name at all."
                    yield Finding(rule.id, "error", "impossible-pattern", text, "Correct the pattern.")
                    continue
                wider = (
                    outer
                    for other, outer in enumerate(patterns)
                    if other != position
                    and _wider(rule, part, outer, pattern)
                    # Of two that say the same, the later one is too many.
                    and (other < position or not _wider(rule, part, pattern, outer))
                )
                if around := next(wider, None):
                    text = f"Of its {part}, {pattern!r} matches nothing that {around!r} does not."
                    yield Finding(rule.id, "warning", "redundant-pattern", text, "Remove one of the two.")


def _wider(rule: Rule, part: str, outer: str, inner: str) -> bool:
    return _says(rule, (outer,), inner) if part == "columns" else contains(outer, inner)


def _says(rule: Rule, columns: Sequence[str], inner: str) -> bool:
    """Whether rules of this kind say with these columns what they say with the inner one."""
    if not isinstance(rule, Denial) or inner in columns or WHOLE_DATASET in columns:
        return _covers(columns, inner)
    # A denial of a field is one of all that the field is a part of: `*street` does not forbid `address`, `address.street` does.
    return (
        "`" not in inner
        and _covers(columns, inner)
        and all(
            any(contains(one, outer) or (level, outer) in above(one) for one in columns)
            for level, outer in above(inner)
        )
    )


def _contained(policy: Policy) -> Iterator[Finding]:
    for rules in (policy.grants, policy.denials):
        for position, rule in enumerate(rules):
            for other, outer in enumerate(rules):
                if other == position or policy.members(rule) == frozenset() or not _within(policy, rule, outer):
                    continue
                same = _within(policy, outer, rule)
                if same and other > position:
                    continue
                text = f"It says {'the same as' if same else 'nothing that is not said by'} {outer.id}."
                yield Finding(rule.id, "warning", "contained-rule", text, "Remove it, or say what it was to add.")
                break


def _within(policy: Policy, inner: Rule, outer: Rule) -> bool:
    members, all_members = policy.members(inner), policy.members(outer)
    return (
        (all_members is None or (members is not None and members <= all_members))
        and set(inner.actions) <= set(outer.actions)
        and all(any(contains(wide, one) for wide in outer.datasets) for one in inner.datasets)
        and all(_says(inner, outer.columns, one) for one in inner.columns)
        and all(any(contains(wide, one) for wide in outer.purposes) for one in inner.purposes)
        and (
            not (isinstance(inner, Grant) and isinstance(outer, Grant))
            or _asks_no_more(outer.conditions, inner.conditions)
        )
    )


def _asks_no_more(lenient: Conditions, strict: Conditions) -> bool:
    """Whether the one's conditions hold wherever the other's do."""
    epsilon, environments = lenient.max_epsilon, lenient.environments
    return (
        (epsilon is None or (strict.max_epsilon is not None and epsilon >= strict.max_epsilon))
        and lenient.time in (None, strict.time)
        and (environments is None or (strict.environments is not None and {*strict.environments} <= {*environments}))
        and lenient.approval in (None, strict.approval)
    )


def _expired(policy: Policy, now: datetime) -> Iterator[Finding]:
    for grant in policy.grants:
        window = grant.conditions.time
        if window is None or window.not_after is None:
            continue
        if now.astimezone(ZoneInfo(window.zone)).date().isoformat() > window.not_after:
            text = f"It ended after {window.not_after}."
            yield Finding(grant.id, "warning", "expired-grant", text, "Remove it, or give it a later not_after.")


def _unapprovable(policy: Policy) -> Iterator[Finding]:
    """Grants of releases that need an approval which nobody may give: what is granted to one person another has to approve."""
    approvals = [
        case
        for grant in policy.grants
        for case in product(
            *(_parts(policy, grant) | {"actions": ("approve",) * ("approve" in grant.actions)}).values()
        )
        if not _denied(policy, *case)
    ]
    for grant in policy.grants:
        if grant.conditions.approval is None:
            continue
        for member, _, *patterns in product(*_parts(policy, grant).values()):
            if any(approver != member and all(map(overlap, patterns, others)) for approver, _, *others in approvals):
                continue
            dataset, column, purpose = patterns
            text = f"Nobody but {member} may approve its releases of {dataset!r}, column {column!r}, for {purpose!r}."
            remedy = "Grant `approve` to somebody else, or take the condition away."
            yield Finding(grant.id, "error", "unapprovable-grant", text, remedy)
            break


def _keys(policy: Policy, keysets: Sequence[SealedKeyset]) -> Iterator[Finding]:
    for keyset in keysets:
        if not keyset.datasets:
            text = "Nothing says which datasets it protects, so no grant was held against it."
            remedy = f"Add --keyset {keyset.name}=PATTERN, or --spec with a spec of encrypt_columns."
            yield Finding(f"keyset {keyset.name}", "warning", "unmapped-keyset", text, remedy)
            continue
        granted: set[str] = set()
        for grant in policy.grants:
            useful = {case[0] for case in _using_keys(policy, grant, keyset.datasets) if not _denied(policy, *case)}
            granted |= useful
            missing = sorted(useful - keyset.complete)
            if missing:
                none = len(missing) == len(useful)
                text = f"It needs the keyset {keyset.name}, which is not sealed to {', '.join(missing)}."
                remedy = f"Run `lepton keys grant {keyset.name} --recipient {missing[0]}`, or grant less."
                yield Finding(grant.id, "error" if none else "warning", "grant-without-key", text, remedy)
        for holder in sorted(keyset.holders - granted):
            text = f"It is sealed to {holder}, to whom no grant gives anything to do with it."
            remedy = (
                f"Run `lepton keys revoke {keyset.name} --recipient {holder}`, unless it keeps the keys for others."
            )
            yield Finding(f"keyset {keyset.name}", "warning", "key-without-grant", text, remedy)


def _broader(policy: Policy, keysets: Sequence[SealedKeyset]) -> Iterator[Finding]:
    """Grants of what needs keys that reach beyond the datasets that any keyset protects, if it is known of all of them."""
    protected = tuple(dict.fromkeys(pattern for keyset in keysets for pattern in keyset.datasets))
    if not keysets or not all(keyset.datasets for keyset in keysets):
        return
    for grant in policy.grants:
        if not _NEED_KEYS.intersection(grant.actions):
            continue
        for pattern in grant.datasets:
            name = outside(protected, pattern)
            if name is not None:
                nothing = not any(overlap(pattern, one) for one in protected)
                more = ", nor anything else that it matches" if nothing else ""
                text = (
                    f"No keyset protects its dataset {name!r}."
                    if name == pattern
                    else f"Its dataset {pattern!r} matches {name!r}, which no keyset protects{more}."
                )
                remedy = "Grant no more than the keysets protect, or say what else they do with --keyset."
                yield Finding(grant.id, "warning", "broad-grant", text, remedy)


def _using_keys(policy: Policy, grant: Grant, datasets: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Members, actions and patterns of a grant that are about datasets of a keyset, and need it."""
    parts = _parts(policy, grant)
    parts["actions"] = tuple(action for action in parts["actions"] if action in _NEED_KEYS)
    parts["datasets"] = tuple(one for one in parts["datasets"] if any(overlap(one, other) for other in datasets))
    yield from product(*parts.values())
