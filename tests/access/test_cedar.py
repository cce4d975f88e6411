"""Cedar as the second engine: what is loaded and refused, that errors deny, and what the translator cannot say."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.access.cedar import SCHEMA, CedarPolicy, entities_file, epsilon_in_billionths
from lepton_airflow.access.engine import load_policy
from lepton_airflow.access.guard import Guard
from lepton_airflow.access.policy import Policy, Request
from lepton_airflow.access.translation import to_cedar
from lepton_airflow.errors import ConfigurationError, MissingDependency
from lepton_airflow.settings import Settings

ENTITIES: list[dict[str, Any]] = [
    {"uid": {"type": "Role", "id": "staff"}, "attrs": {}, "parents": []},
    {"uid": {"type": "Role", "id": "billing"}, "attrs": {}, "parents": [{"type": "Role", "id": "staff"}]},
    {"uid": {"type": "Principal", "id": "ann"}, "attrs": {}, "parents": [{"type": "Role", "id": "billing"}]},
]
READ = '@id("read") permit (principal in Role::"staff", action == Action::"decrypt", resource in Dataset::"clinic");'


def cedar(*policies: str, entities: list[dict[str, Any]] = ENTITIES) -> CedarPolicy:
    return CedarPolicy("\n".join(policies), entities, place="policy.cedar")


def ask(columns: tuple[str, ...] = ("email",), **changes: Any) -> Request:
    fields = {"principal": "ann", "action": "decrypt", "dataset": "clinic", "purpose": "billing"}
    return Request(columns=columns, **{**fields, **changes})


def test_a_policy_written_by_hand_decides_by_roles_of_roles_and_by_dataset() -> None:
    policy = cedar(READ)
    decision = policy.decide(ask(("email", "phone")))
    assert decision.allow
    assert decision.rules == ("read",)
    assert decision.policy_digest == policy.digest
    for change in ({"principal": "eve"}, {"action": "encrypt"}, {"action": "delete"}, {"dataset": "lab"}):
        refused = policy.decide(ask(**change))
        assert (refused.allow, refused.rules) == (False, ())


def test_one_forbidden_column_takes_the_request_with_it() -> None:
    policy = cedar(
        READ,
        '@id("no") forbid (principal, action, resource) when { resource is Column && resource.column_folded == "phone" };',
    )
    assert policy.decide(ask(("email",))).allow
    decision = policy.decide(ask(("email", "PHONE")))
    assert (decision.allow, decision.rules) == (False, ("no",))


def test_a_forbid_that_fails_denies_though_cedar_would_skip_it() -> None:
    overflow = "context has epsilon_billionths && context.epsilon_billionths * 9223372036854775807 > 0"
    policy = cedar(READ, f'@id("no") forbid (principal, action, resource) when {{ {overflow} }};')
    assert policy.decide(ask()).allow
    decision = policy.decide(ask(epsilon=1.0))
    assert not decision.allow
    assert "Cedar could not decide" in decision.reason


def test_a_time_zone_that_a_policy_names_has_its_clock() -> None:
    office = 'when { Zone::"Europe/Berlin".minute < 720 && Zone::"Europe/Berlin".day == "tuesday" }'
    policy = cedar(READ.replace(";", f" {office};"))
    assert policy.decide(ask(), at=datetime.fromisoformat("2026-11-24T10:59Z")).allow
    assert not policy.decide(ask(), at=datetime.fromisoformat("2026-11-24T11:00Z")).allow
    assert not policy.decide(ask(), at=datetime.fromisoformat("2026-11-24T23:30Z")).allow


@pytest.mark.parametrize(
    ("policies", "named"),
    [
        ("permit (principal, action", "Cedar says"),
        ("permit (principal, action, resource);", "no @id"),
        (f"{READ}\n{READ}", "used twice"),
        ('@id("x") permit (principal, action, resource) when { context.colour == "red" };', "colour"),
        (
            '@id("x") permit (principal, action, resource) when { context.epsilon_billionths < 1 };',
            "epsilon_billionths",
        ),
        ('@id("x") permit (principal, action == Action::"delete", resource);', "delete"),
        ('@id("x") forbid (principal == ?principal, action, resource);', "template"),
        (READ.replace(";", ' when { Zone::"Berlin".minute < 1 };'), "Berlin"),
    ],
)
def test_a_wrong_policy_is_refused_saying_why(policies: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        cedar(policies)


@pytest.mark.parametrize(
    "entity",
    [
        {"uid": {"type": "Column", "id": '["clinic", "email"]'}, "attrs": {}, "parents": []},
        {"uid": {"type": "Principal", "id": "bob"}, "attrs": {"admin": True}, "parents": []},
        {"uid": {"type": "Principal", "id": "bob"}, "attrs": {}, "parents": [{"type": "Dataset", "id": "clinic"}]},
        "bob",
    ],
)
def test_wrong_entities_are_refused(entity: Any) -> None:
    with pytest.raises(ConfigurationError, match="not valid"):
        cedar(READ, entities=[*ENTITIES, entity])


def test_the_digest_is_of_policies_and_roles_and_not_of_comments() -> None:
    assert cedar(READ).digest == cedar(f"// for billing\n{READ}").digest
    assert cedar(READ).digest != cedar(READ, entities=ENTITIES[:2]).digest
    assert cedar(READ).digest != cedar(READ.replace("clinic", "lab")).digest


@pytest.mark.parametrize(
    ("epsilon", "billionths"),
    [
        *((none, None) for none in (None, 0.0, -1.0, float("nan"), float("inf"))),
        (0.1, 10**8),
        (1, 10**9),
        (1e-9, 1),
        (1e-12, 1),
        (0.1 + 2**-56, 10**8 + 1),
        (1e300, 2**63 - 1),
    ],
)
def test_epsilon_is_counted_in_billionths_and_rounded_against_the_release(
    epsilon: float | None, billionths: int | None
) -> None:
    assert epsilon_in_billionths(epsilon) == billionths


def yaml_policy(**changes: Any) -> Policy:
    rule = {
        "id": "rule",
        "role": "billing",
        "actions": ["release"],
        "datasets": ["clinic.*"],
        "columns": ["email"],
        "purposes": ["*"],
    }
    fields = {"version": 1, "roles": {"billing": {"members": ["ann"]}}, "grants": [{**rule, **changes}]}
    return Policy.parse(fields, place="policy.yaml")


@pytest.mark.parametrize(
    "window",
    [
        {"days": ["monday", "thursday"], "from": "22:00", "to": "06:00"},
        {"days": ["sunday"], "from": "08:00", "to": "24:00", "not_after": "2026-10-25"},
        {"from": "23:00", "to": "01:00", "not_before": "2026-10-23"},
        {"days": ["saturday", "sunday"]},
    ],
)
def test_a_translated_window_is_open_in_the_same_hours_of_a_week(window: dict[str, Any]) -> None:
    """The week in which summer time ends in Berlin."""
    policy = yaml_policy(conditions={"time": {"zone": "Europe/Berlin", **window}})
    translated = to_cedar(policy)
    other = CedarPolicy(translated.policies, translated.entities, place="translated")
    request = ask(action="release", dataset="clinic.visits")
    start = datetime(2026, 10, 20, 0, 30, tzinfo=UTC)
    hours = [start + timedelta(hours=hour) for hour in range(8 * 24)]
    opened = [policy.decide(request, at=hour).allow for hour in hours]
    assert opened == [other.decide(request, at=hour).allow for hour in hours]
    assert {True, False} == set(opened)


@pytest.mark.parametrize(
    "changes",
    [
        {"datasets": ["clinic.?"]},
        {"columns": ["[ab]"]},
        {"purposes": ["a", "b?"]},
        {"conditions": {"max_epsilon": 1e-10}},
        {"conditions": {"max_epsilon": 1e12}},
    ],
)
def test_what_cedar_cannot_say_is_not_translated(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        to_cedar(yaml_policy(**changes))
    assert caught.value.place == "rule rule"


def write(folder: Path, policy: Policy) -> Path:
    file = folder / "policy.cedar"
    translated = to_cedar(policy)
    file.write_text(translated.policies)
    entities_file(file).write_text(translated.entities_text)
    return file


def test_the_settings_choose_the_engine(tmp_path: Path) -> None:
    file = write(tmp_path, yaml_policy())
    chosen = load_policy(Settings(home=tmp_path, policy=file, policy_engine="cedar"))
    assert isinstance(chosen, CedarPolicy)
    assert chosen.rules == ("rule",)
    assert chosen.decide(ask(action="release", dataset="clinic.visits")).allow
    (tmp_path / "policy.yaml").write_text("version: 1")
    assert isinstance(load_policy(Settings(home=tmp_path)), Policy)


@pytest.mark.parametrize("fields", [{"policy_engine": "cedar"}, {"policy": "policy.cedar"}])
def test_a_policy_for_the_other_engine_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    (tmp_path / "policy.yaml").write_text("version: 1")
    write(tmp_path, yaml_policy())
    with pytest.raises(ConfigurationError, match="does not read this file"):
        load_policy(Settings(home=tmp_path, **fields))


def test_without_the_roles_nothing_is_loaded(tmp_path: Path) -> None:
    file = write(tmp_path, yaml_policy())
    entities_file(file).unlink()
    with pytest.raises(ConfigurationError) as caught:
        CedarPolicy.load(file)
    assert caught.value.place == str(entities_file(file))
    entities_file(file).write_text("{}")
    with pytest.raises(ConfigurationError, match="not a list"):
        CedarPolicy.load(file)


def test_without_cedarpy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cedarpy", None)
    with pytest.raises(MissingDependency, match="cedar"):
        cedar(READ)
    # Translating needs none.
    assert "permit" in to_cedar(yaml_policy()).policies


def test_the_guard_takes_either_engine() -> None:
    engines: list[Any] = [cedar(READ), yaml_policy()]
    for engine in engines:
        Guard(log=None, policy=engine, principal="ann", spec_digest="")  # type: ignore[arg-type]
        assert engine.digest.startswith("sha256:")


def test_the_schema_has_the_actions_and_is_cedars_own_syntax() -> None:
    import cedarpy

    cedarpy.Schema.from_str(SCHEMA)
    assert json.loads(cedarpy.policies_to_json_str(READ))["staticPolicies"]
