"""The lint: every kind of finding where it belongs, and none where it does not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_airflow.access.lint import Finding, SealedKeyset, lint
from lepton_airflow.access.policy import Policy, Request

GRANT: dict[str, Any] = {
    "id": "read",
    "role": "billing",
    "actions": ["decrypt"],
    "datasets": ["clinic.*"],
    "columns": ["email", "phone"],
    "purposes": ["billing"],
}
DENIAL = {**GRANT, "id": "no", "role": "*"}
RELEASE = {**GRANT, "id": "numbers", "actions": ["release"]}
ROLES = {"billing": {"members": ["ann", "bob"]}, "clerks": {"members": ["ann"]}, "nobody": {"members": []}}


def found(
    grants: list[dict[str, Any]], denials: list[dict[str, Any]] | None = None, *keysets: SealedKeyset, **roles: Any
) -> list[tuple[str, str, str]]:
    findings = all_findings(grants, *keysets, denials=denials, **roles)
    return [(finding.rule, finding.severity, finding.kind) for finding in findings]


def all_findings(
    grants: list[dict[str, Any]], *keysets: SealedKeyset, denials: list[dict[str, Any]] | None = None, **roles: Any
) -> tuple[Finding, ...]:
    used = {rule["role"] for rule in (*grants, *(denials or []))}
    fields = {
        "version": 1,
        "roles": {name: role for name, role in ROLES.items() if name in used} | roles,
        "grants": grants,
        "denials": denials or [],
    }
    findings = lint(Policy.parse(fields, place="test"), keysets=keysets, at=datetime(2026, 11, 24, tzinfo=UTC))
    assert all(
        (finding.text.endswith(".") and finding.remedy.endswith(".")) or "=" in finding.remedy for finding in findings
    )
    return findings


def test_a_policy_without_mistakes_has_no_findings() -> None:
    assert (
        found(
            [GRANT, {**GRANT, "id": "other", "columns": ["name"]}],
            [{**DENIAL, "columns": ["name"], "datasets": ["lab"]}],
        )
        == []
    )


@pytest.mark.parametrize(
    "denial",
    [
        {},
        {"columns": ["*"]},
        {"columns": ["EMAIL", "Phone"]},
        {"datasets": ["*"], "purposes": ["bill*"], "actions": ["decrypt", "train"]},
        {"role": "billing"},
    ],
)
def test_a_grant_that_denials_cover_is_unreachable(denial: dict[str, Any]) -> None:
    assert found([GRANT], [{**DENIAL, **denial}]) == [("read", "error", "unreachable-grant")]


def test_several_denials_can_cover_a_grant_together() -> None:
    one, other = ({**DENIAL, "id": column, "columns": [column]} for column in ("email", "phone"))
    assert found([GRANT], [one, other]) == [("read", "error", "unreachable-grant")]


@pytest.mark.parametrize(
    "denial",
    [
        {"datasets": ["clinic.visits"]},
        {"purposes": ["research"]},
        {"actions": ["train"]},
        {"columns": ["name"]},
    ],
)
def test_a_grant_of_which_something_is_left_is_reachable(denial: dict[str, Any]) -> None:
    assert found([GRANT], [{**DENIAL, **denial}]) == []


@pytest.mark.parametrize(
    ("denial", "part"),
    [({"columns": ["email"]}, "columns, 'email'"), ({"role": "clerks"}, "members, 'ann'")],
)
def test_a_part_of_a_grant_that_is_always_denied_is_named(denial: dict[str, Any], part: str) -> None:
    fields = {"version": 1, "roles": ROLES, "grants": [GRANT], "denials": [{**DENIAL, **denial}]}
    texts = [one.text for one in lint(Policy.parse(fields, place="")) if one.kind == "dead-part"]
    assert len(texts) == 1
    assert part in texts[0]
    assert "denied by no" in texts[0]


def test_the_dataset_as_a_whole_is_left_by_denials_of_columns() -> None:
    assert found([{**GRANT, "columns": ["*"]}], [{**DENIAL, "columns": ["**"]}]) == []
    assert found([{**GRANT, "columns": ["*"]}], [{**DENIAL, "columns": ["*"]}])[0][2] == "unreachable-grant"


def test_parts_of_columns_in_denials_and_grants() -> None:
    street = {**GRANT, "columns": ["address.street"]}
    whole = {**GRANT, "columns": ["address"]}
    assert found([street], [{**DENIAL, "columns": ["ADDRESS"]}])[0][2] == "unreachable-grant"
    # Of the whole column, the other fields are left.
    assert found([whole], [{**DENIAL, "columns": ["address.street"]}]) == []
    assert found([whole, {**street, "id": "part"}]) == [("part", "warning", "contained-rule")]
    assert found([{**GRANT, "columns": ["address", "address.street"]}])[0][2] == "redundant-pattern"
    # A denial of all names that end so does not forbid `address`; a denial of `address.street` does.
    other = {**GRANT, "columns": ["name"]}
    assert found([other], [{**DENIAL, "columns": ["*street", "address.street"]}]) == []
    assert found([other], [{**DENIAL, "columns": ["address", "address.street"]}])[0][2] == "redundant-pattern"


def test_roles_without_members_or_rules() -> None:
    assert found([{**GRANT, "role": "nobody"}]) == [("role nobody", "warning", "empty-role")]
    assert found([GRANT], idle={"members": ["x"]}) == [("role idle", "warning", "unused-role")]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"columns": ["email", "e*"]}, "redundant-pattern"),
        ({"columns": ["email", "email"]}, "redundant-pattern"),
        ({"datasets": ["clinic.*", "clinic.visits"]}, "redundant-pattern"),
        ({"purposes": ["billing", "*"]}, "redundant-pattern"),
        ({"columns": ["email", "[z-a]"]}, "impossible-pattern"),
    ],
)
def test_patterns_that_add_nothing(changes: dict[str, Any], kind: str) -> None:
    [(rule, _, named)] = found([{**GRANT, **changes}])
    assert (rule, named) == ("read", kind)


def test_the_star_of_columns_is_more_than_other_patterns_of_every_name() -> None:
    assert found([{**GRANT, "columns": ["*", "**"]}]) == [("read", "warning", "redundant-pattern")]
    assert found([{**GRANT, "columns": ["**", "*"]}]) == [("read", "warning", "redundant-pattern")]


@pytest.mark.parametrize(
    ("inner", "outer", "contained"),
    [
        ({}, {}, True),
        ({"columns": ["email"]}, {}, True),
        ({"datasets": ["clinic.visits"]}, {"actions": ["decrypt", "train"]}, True),
        ({"role": "clerks"}, {}, True),
        ({}, {"role": "clerks"}, False),
        ({"columns": ["*"]}, {"columns": ["**"]}, False),
        ({"conditions": {"environments": ["a"]}}, {"conditions": {"environments": ["a", "b"]}}, True),
        ({"conditions": {"environments": ["a"]}}, {"conditions": {"environments": ["b"]}}, False),
        ({}, {"conditions": {"environments": ["a"]}}, False),
        ({**RELEASE, "conditions": {"max_epsilon": 1.0}}, {**RELEASE, "conditions": {"max_epsilon": 2.0}}, True),
        ({**RELEASE, "conditions": {"approval": "required"}}, {**RELEASE}, True),
        ({**RELEASE}, {**RELEASE, "conditions": {"approval": "required"}}, False),
        ({"conditions": {"time": {"zone": "UTC", "days": ["monday"]}}}, {}, True),
    ],
)
def test_a_grant_that_another_contains(inner: dict[str, Any], outer: dict[str, Any], contained: bool) -> None:
    findings = found([{**GRANT, **outer, "id": "outer"}, {**GRANT, **inner, "id": "inner"}])
    assert (("inner", "warning", "contained-rule") in findings) is contained


def test_of_two_that_are_the_same_only_the_later_is_reported() -> None:
    assert found([GRANT, {**GRANT, "id": "again"}]) == [("again", "warning", "contained-rule")]
    assert found([], [DENIAL, {**DENIAL, "id": "less", "role": "billing"}]) == [("less", "warning", "contained-rule")]


def test_a_grant_that_has_ended() -> None:
    ended, ends = ({"time": {"zone": "UTC", "not_after": day}} for day in ("2026-11-23", "2026-11-24"))
    assert found([{**GRANT, "conditions": ended}]) == [("read", "warning", "expired-grant")]
    assert found([{**GRANT, "conditions": ends}]) == []


CAREFUL = {**RELEASE, "conditions": {"approval": "required"}}
APPROVE = {**GRANT, "id": "approve", "role": "clerks", "actions": ["approve"], "columns": ["*"]}


@pytest.mark.parametrize(
    ("approval", "denials", "finds"),
    [
        (None, [], True),
        (APPROVE, [], True),  # ann approves for bob, and nobody for ann
        ({**APPROVE, "role": "billing"}, [], False),
        ({**APPROVE, "role": "billing", "datasets": ["lab.*"]}, [], True),
        ({**APPROVE, "role": "billing", "columns": ["age"]}, [], True),
        ({**APPROVE, "role": "billing", "purposes": ["study"]}, [], True),
        ({**APPROVE, "role": "billing", "datasets": ["clinic.visits"]}, [], False),
        ({**APPROVE, "role": "billing"}, [{**APPROVE, "id": "no", "role": "clerks"}], True),
    ],
)
def test_an_approval_that_nobody_may_give_is_found(
    approval: dict[str, Any] | None, denials: list[dict[str, Any]], finds: bool
) -> None:
    grants = [CAREFUL, *([approval] if approval else [])]
    wanted = [("numbers", "error", "unapprovable-grant")]
    assert [one for one in found(grants, denials) if one[2] == "unapprovable-grant"] == wanted * finds


def keyset(*holders: str, datasets: tuple[str, ...] = ("clinic.*",), partly: tuple[str, ...] = ()) -> SealedKeyset:
    return SealedKeyset("clinic", frozenset(holders) | frozenset(partly), frozenset(holders), datasets)


def test_grants_and_keys_that_fit_have_no_findings() -> None:
    assert found([GRANT], [], keyset("ann", "bob")) == []
    assert found([RELEASE], [], keyset()) == []
    assert found([GRANT], [], keyset("ann", "bob", datasets=("clinic.[a-m]*", "clinic.[!a-m]*", "clinic."))) == []


@pytest.mark.parametrize(
    ("sealed", "severity"),
    [(keyset(), "error"), (keyset("ann"), "warning"), (keyset("ann", partly=("bob",)), "warning")],
)
def test_a_grant_broader_than_the_keys(sealed: SealedKeyset, severity: str) -> None:
    assert found([GRANT], [], sealed) == [("read", severity, "grant-without-key")]


@pytest.mark.parametrize(
    ("datasets", "reach"),
    [
        (("clinic.visits",), "matches 'clinic.', which no keyset protects."),
        (("clinic.?*",), "matches 'clinic.', which no keyset protects."),
        (("lab.*",), "which no keyset protects, nor anything else that it matches."),
    ],
)
def test_a_grant_broader_than_what_the_keys_protect(datasets: tuple[str, ...], reach: str) -> None:
    sealed = keyset("ann", "bob", datasets=datasets)
    (finding,) = [one for one in all_findings([GRANT], sealed) if one.kind == "broad-grant"]
    assert (finding.rule, finding.severity) == ("read", "warning")
    assert finding.text.endswith(reach)
    # Another keyset may protect the rest, and of one nothing is known.
    other = SealedKeyset("other", frozenset(), frozenset(), ("clinic*",))
    assert not [one for one in all_findings([GRANT], sealed, other) if one.kind == "broad-grant"]
    unknown = SealedKeyset("other", frozenset(), frozenset(), ())
    assert not [one for one in all_findings([GRANT], sealed, unknown) if one.kind == "broad-grant"]
    assert not [one for one in all_findings([RELEASE], sealed) if one.kind == "broad-grant"]


def test_a_grant_of_a_dataset_that_the_keys_leave_out_names_it_once() -> None:
    grant = {**GRANT, "datasets": ["clinic.visits", "clinic.letters"]}
    texts = [one.text for one in all_findings([grant], keyset("ann", "bob", datasets=("clinic.visits",)))]
    assert texts == ["No keyset protects its dataset 'clinic.letters'."]


def test_a_key_of_somebody_to_whom_nothing_is_granted() -> None:
    key = ("keyset clinic", "warning", "key-without-grant")
    assert found([GRANT], [], keyset("ann", "bob", "eve")) == [key]
    assert found([{**GRANT, "role": "clerks"}], [], keyset("ann", partly=("eve",))) == [key]
    # What is granted and always denied is not granted.
    assert key in found([GRANT], [{**DENIAL, "columns": ["*"]}], keyset("ann"))


def test_a_keyset_of_unknown_datasets_is_said_to_be_unchecked() -> None:
    assert found([GRANT], [], keyset("eve", datasets=())) == [("keyset clinic", "warning", "unmapped-keyset")]


NAMES = ["a", "b", "ab", "A"]
SOME = st.lists(st.sampled_from(["a", "b", "*", "a*", "?b", "A", "[ab]"]), min_size=1, max_size=2)
RULE = {
    "role": st.just("r"),
    "actions": st.just(["decrypt"]),
    **dict.fromkeys(("datasets", "columns", "purposes"), SOME),
}


@settings(max_examples=200, deadline=None)
@given(
    grants=st.lists(st.fixed_dictionaries(RULE), min_size=1, max_size=3),
    denials=st.lists(st.fixed_dictionaries(RULE), max_size=2),
)
def test_removing_a_grant_that_is_unreachable_or_contained_changes_no_decision(
    grants: list[dict[str, Any]], denials: list[dict[str, Any]]
) -> None:
    fields = {
        "version": 1,
        "roles": {"r": {"members": ["p"]}},
        "grants": [{"id": f"g{number}", **rule} for number, rule in enumerate(grants)],
        "denials": [{"id": f"d{number}", **rule} for number, rule in enumerate(denials)],
    }
    policy = Policy.parse(fields, place="")
    idle = {one.rule for one in lint(policy) if one.kind in ("unreachable-grant", "contained-rule")}
    without = Policy.parse(
        {**fields, "grants": [rule for rule in fields["grants"] if rule["id"] not in idle]}, place=""
    )
    for dataset in NAMES:
        for purpose in NAMES:
            for columns in ((), *((name,) for name in NAMES)):
                request = Request("p", "decrypt", dataset, columns, purpose)
                assert policy.decide(request).allow == without.decide(request).allow
