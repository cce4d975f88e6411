"""Decisions of the policy: default deny, denials win, every column must be granted; and the errors of a wrong file."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lepton_airflow.access.cedar import CedarPolicy
from lepton_airflow.access.explain import consider
from lepton_airflow.access.policy import Policy, Request, policy_schema
from lepton_airflow.access.translation import to_cedar
from lepton_airflow.errors import ConfigurationError

RULE = {
    "id": "read",
    "role": "billing",
    "actions": ["decrypt"],
    "datasets": ["clinic.*"],
    "columns": ["email", "phone"],
    "purposes": ["billing"],
}
POLICY: dict[str, Any] = {
    "version": 1,
    "roles": {"billing": {"members": ["ann"]}, "science": {"members": ["sam"]}},
    "grants": [
        RULE,
        {**RULE, "id": "names", "columns": ["name"]},
        {
            "id": "statistics",
            "role": "science",
            "actions": ["release"],
            "datasets": ["clinic.visits"],
            "columns": ["*"],
            "purposes": ["*"],
            "conditions": {"max_epsilon": 1.0},
        },
    ],
    "denials": [{**RULE, "id": "no-phones", "role": "*", "columns": ["phone"], "purposes": ["*"]}],
}


def policy(**changes: Any) -> Policy:
    return Policy.parse({**POLICY, **changes}, place="policy.yaml")


def ask(columns: tuple[str, ...] = ("email",), **changes: Any) -> Request:
    fields = {"principal": "ann", "action": "decrypt", "dataset": "clinic.visits", "purpose": "billing"}
    return Request(columns=columns, **{**fields, **changes})


def test_a_granted_request_is_allowed_and_names_the_grants() -> None:
    decision = policy().decide(ask(("email", "name")))
    assert decision.allow
    assert decision.rules == ("read", "names")
    assert decision.policy_digest == policy().digest


@pytest.mark.parametrize(
    "change",
    [
        {"principal": "sam"},
        {"principal": "Ann"},
        {"action": "encrypt"},
        {"action": "no-such-action"},
        {"dataset": "lab.visits"},
        {"dataset": "CLINIC.visits"},
        {"purpose": "curiosity"},
        {"columns": ("email", "diagnosis")},
        {"columns": ("EMAIL",)},
        {"columns": ()},
    ],
)
def test_what_no_grant_covers_is_denied(change: dict[str, Any]) -> None:
    decision = policy().decide(ask(**change))
    assert not decision.allow
    assert decision.rules == ()
    assert "no grant covers" in decision.reason


def test_an_empty_policy_denies_everything() -> None:
    assert not Policy.parse({"version": 1}, place="policy.yaml").decide(ask()).allow


def test_a_denial_wins_over_a_grant_and_takes_the_whole_request_with_it() -> None:
    decision = policy().decide(ask(("email", "phone")))
    assert not decision.allow
    assert decision.rules == ("no-phones",)


@pytest.mark.parametrize(
    ("denied", "column", "allowed"),
    [
        # What it is a part of is denied.
        ("address", "address.street", False),
        ("address", "ADDRESS.Street.no", False),
        ("addr*", "address.street", False),
        ("address", "`address`", False),
        ("address", "`address`.street", False),
        ("*.home", "address.home.street", False),
        # A part of it is denied.
        ("address.street", "address", False),
        ("address.street", "Address", False),
        ("address.street.no", "address.street", False),
        ("`address`.street", "address", False),
        ("address.*", "address", False),
        ("*.street", "address", False),
        ("address.[ab.]x", "address", False),
        ("address.*.no", "address.street", False),
        # A column with a dot in its name, however it is written.
        ("a.b", "`a.b`", False),
        ("`a.b`", "a.b", False),
        ("`a.b`.c", "a.b", False),
        ("a.b", "`a.b`.c", False),
        # Neither.
        ("address.street", "address.city", True),
        ("address.street", "address_2", True),
        ("address", "addresses.street", True),
        ("address.*.no", "address.street.name", True),
        ("street", "address.street", True),
        ("home.street", "street", True),
    ],
)
def test_a_denial_forbids_what_its_column_is_in_and_what_is_in_it(denied: str, column: str, allowed: bool) -> None:
    rules = policy(grants=[{**RULE, "columns": ["*"]}], denials=[{**RULE, "id": "no", "columns": [denied]}])
    assert rules.decide(ask((column,))).allow is allowed
    if "[" not in denied:
        translated = to_cedar(rules)
        cedar = CedarPolicy(translated.policies, translated.entities, place="translated")
        assert cedar.decide(ask((column,))).allow is allowed


@pytest.mark.parametrize(
    ("granted", "column", "allowed"),
    [
        ("address", "address.street", True),
        ("address", "address.street.no", True),
        ("address.street", "address", False),
        ("address.*", "address", False),
        ("address.street", "address.city", False),
        ("address", "ADDRESS.street", False),
        ("address", "addresses.street", False),
        ("address", "`address.street`", False),
        ("street", "address.street", False),
    ],
)
def test_a_grant_of_a_whole_includes_its_parts_and_not_the_reverse(granted: str, column: str, allowed: bool) -> None:
    rules = policy(grants=[{**RULE, "columns": [granted]}], denials=[])
    translated = to_cedar(rules)
    cedar = CedarPolicy(translated.policies, translated.entities, place="translated")
    for engine in (rules, cedar):
        assert engine.decide(ask((column,))).allow is allowed
    assert (not consider(rules, ask((column,)))[0].obstacles) is allowed


@pytest.mark.parametrize("column", ["Phone", "PHONE", "phoNe"])
def test_a_denial_cannot_be_passed_by_another_case_since_spark_ignores_case(column: str) -> None:
    everything = policy(grants=[{**RULE, "columns": ["*"]}])
    assert everything.decide(ask(("email",))).allow
    assert everything.decide(ask((column,))).rules == ("no-phones",)


@pytest.mark.parametrize("change", [{"dataset": "clinic.VISITS"}, {"purpose": "Billing"}])
def test_a_denial_ignores_the_case_of_datasets_and_purposes_too(change: dict[str, Any]) -> None:
    anything = {**RULE, "columns": ["*"], "datasets": ["*"], "purposes": ["*"]}
    forbidden = {**RULE, "id": "stop", "datasets": ["Clinic.visits"]}
    assert policy(grants=[anything], denials=[forbidden]).decide(ask(**change)).rules == ("stop",)


@pytest.mark.parametrize(("spelled", "denied"), [("\u212aey", "key"), ("\u0131d", "id"), ("\u0130D", "id")])
def test_a_denial_folds_case_like_javas_equals_ignore_case(spelled: str, denied: str) -> None:
    rules = policy(grants=[{**RULE, "columns": ["*"]}], denials=[{**RULE, "id": "no", "columns": [denied]}])
    assert not rules.decide(ask((spelled,))).allow


@pytest.mark.parametrize(
    ("epsilon", "allowed"),
    [(0.5, True), (1.0, True), (1.01, False), (None, False), (0.0, False), (-1.0, False), (float("nan"), False)],
)
def test_a_release_is_held_to_its_largest_epsilon(epsilon: float | None, allowed: bool) -> None:
    decision = policy().decide(ask(("age",), principal="sam", action="release", purpose="study", epsilon=epsilon))
    assert decision.allow is allowed
    assert allowed or "conditions of statistics" in decision.reason


def test_the_dataset_as_a_whole_needs_the_column_pattern_star() -> None:
    whole = ask((), principal="sam", action="release", epsilon=0.1)
    assert policy().decide(whole).allow
    assert not policy(grants=[{**POLICY["grants"][2], "columns": ["age"]}]).decide(whole).allow
    forbidden = {**POLICY["grants"][2], "id": "stop"}
    del forbidden["conditions"]
    assert policy(denials=[forbidden]).decide(whole).rules == ("stop",)


def test_the_digest_is_of_the_meaning_not_of_the_layout(tmp_path: Path) -> None:
    plain, commented = tmp_path / "a.yaml", tmp_path / "b.yaml"
    plain.write_text(yaml.safe_dump(POLICY))
    commented.write_text("# a comment\n" + json.dumps(POLICY))
    assert Policy.load(plain).digest == Policy.load(commented).digest
    assert Policy.load(plain).digest != policy(denials=[]).digest


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("version: 2", "version"),
        ("roles: {}", "version"),
        ("[]", "policy.yaml"),
        ("", "policy.yaml"),
        ("version: 1\ngrants:\n  - {id: a}", "grants.0.role"),
        ("version: 1\nrules: []", "rules"),
        ("version: 1\nroles: {etl: {members: [no]}}", "roles.etl.members.0"),
        ("version: 1\nroles: {etl: {members: etl}}", "roles.etl.members"),
        ("version: 1\ndenials: [1]\ndenials: []", "'denials' is given twice"),
        ("version: 1\nroles: {a: {members: [x]}, a: {members: [y]}}", "'a' is given twice"),
        ("version: [", "line 1"),
        ("version: !!python/object/apply:os.system [id]", "line 1"),
    ],
)
def test_a_wrong_file_is_refused_naming_the_field(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        Policy.load(file)
    assert named in str(caught.value)
    assert str(file) in caught.value.place


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="FileNotFoundError"):
        Policy.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"grants": [RULE, RULE]}, "grants.1.id"),
        ({"denials": [RULE]}, "denials.0.id"),
        ({"grants": [{**RULE, "role": "*"}]}, "grants.0.role"),
        ({"denials": [{**RULE, "id": "x", "role": "nobody"}]}, "denials.0.role"),
        ({"grants": [{**RULE, "conditions": {"max_epsilon": 1}}]}, "grants.0.conditions.max_epsilon"),
        ({"grants": [{**RULE, "actions": ["decript"]}]}, "grants.0.actions.0"),
        ({"grants": [{**RULE, "actions": []}]}, "grants.0.actions"),
        ({"denials": [{**RULE, "id": "x", "conditions": {}}]}, "denials.0.conditions"),
    ],
)
def test_contradictions_are_refused_naming_the_field(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        policy(**changes)
    assert named in str(caught.value)


def test_the_shipped_schema_is_the_models_and_accepts_the_policy() -> None:
    text = files("lepton_airflow.access").joinpath("policy.schema.json").read_text()
    assert text == policy_schema()
    shipped = json.loads(text)
    assert shipped["$id"] == f"urn:lepton-airflow:policy:{POLICY['version']}"
    assert "null" not in text
    jsonschema.Draft202012Validator.check_schema(shipped)
    jsonschema.validate(POLICY, shipped)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**POLICY, "rules": []}, shipped)


def test_the_template_denies_everything_and_its_examples_are_valid(tmp_path: Path) -> None:
    text = files("lepton_airflow.access").joinpath("policy.template.yaml").read_text()
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    assert Policy.load(file).grants == ()
    examples = [
        line.replace("#", " ", 1) if line.startswith("# ") else line.split(":")[0] + ":"
        for line in text.splitlines()
        if line.startswith(("#  ", "roles", "grants", "denials"))
    ]
    file.write_text("\n".join(["version: 1", *examples]))
    loaded = Policy.load(file)
    assert len(loaded.grants) == 4
    assert len(loaded.denials) == 1
