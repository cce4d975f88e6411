"""Conditions of grants: epsilon, time by the clocks of a zone, environment, approval; what cannot be judged is not met."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lepton_airflow.access.policy import Policy, Request, policy_schema
from lepton_airflow.errors import ConfigurationError, InvalidData


def policy(conditions: dict[str, Any], *, action: str = "release") -> Policy:
    grant = {
        "id": "rule",
        "role": "science",
        "actions": [action],
        "datasets": ["clinic"],
        "columns": ["*"],
        "purposes": ["*"],
        "conditions": conditions,
    }
    fields = {"version": 1, "roles": {"science": {"members": ["sam"]}}, "grants": [grant]}
    jsonschema.validate(fields, yaml.safe_load(policy_schema()))
    return Policy.parse(fields, place="policy.yaml")


def ask(**changes: Any) -> Request:
    return Request(principal="sam", action="release", dataset="clinic", columns=("age",), purpose="study", **changes)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


# 2026-11-24 is a Tuesday.
@pytest.mark.parametrize(
    ("window", "time", "open_"),
    [
        ({"from": "08:00", "to": "18:00"}, "2026-11-24T08:00+01:00", True),
        ({"from": "08:00", "to": "18:00"}, "2026-11-24T07:59:59+01:00", False),
        ({"from": "08:00", "to": "18:00"}, "2026-11-24T17:59:59+01:00", True),
        ({"from": "08:00", "to": "18:00"}, "2026-11-24T18:00+01:00", False),
        # The zone's clock counts, not the caller's.
        ({"from": "08:00", "to": "18:00"}, "2026-11-24T07:30Z", True),
        ({"from": "08:00", "to": "18:00"}, "2026-11-24T17:30Z", False),
        # An hour earlier in UTC while summer time holds.
        ({"from": "08:00", "to": "18:00"}, "2026-07-21T06:30Z", True),
        ({"from": "08:00", "to": "24:00"}, "2026-11-24T23:59:59+01:00", True),
        ({"days": ["monday", "tuesday"]}, "2026-11-24T12:00+01:00", True),
        ({"days": ["monday"]}, "2026-11-24T12:00+01:00", False),
        # Still Tuesday in UTC, Wednesday in Berlin.
        ({"days": ["tuesday"]}, "2026-11-24T23:30Z", False),
        # Past midnight: the window belongs to the day on which it began.
        ({"days": ["tuesday"], "from": "22:00", "to": "06:00"}, "2026-11-24T23:00+01:00", True),
        ({"days": ["tuesday"], "from": "22:00", "to": "06:00"}, "2026-11-25T05:59+01:00", True),
        ({"days": ["tuesday"], "from": "22:00", "to": "06:00"}, "2026-11-24T05:59+01:00", False),
        ({"days": ["tuesday"], "from": "22:00", "to": "06:00"}, "2026-11-25T23:00+01:00", False),
        ({"from": "22:00", "to": "06:00"}, "2026-11-24T12:00+01:00", False),
        ({"not_before": "2026-11-24"}, "2026-11-24T00:00+01:00", True),
        ({"not_before": "2026-11-24"}, "2026-11-23T23:59+01:00", False),
        ({"not_after": "2026-11-24"}, "2026-11-24T23:59+01:00", True),
        ({"not_after": "2026-11-24"}, "2026-11-24T23:30Z", False),
    ],
)
def test_a_time_window_is_read_by_the_clock_of_its_zone(window: dict[str, Any], time: str, open_: bool) -> None:
    decision = policy({"time": {"zone": "Europe/Berlin", **window}}).decide(ask(), at=at(time))
    assert decision.allow is open_
    assert open_ or ("conditions of rule" in decision.reason and "Europe/Berlin" in decision.reason)


def test_by_default_the_time_is_now() -> None:
    today = datetime.now(UTC).date().isoformat()
    assert policy({"time": {"zone": "UTC", "not_before": today}}).decide(ask()).allow
    assert not policy({"time": {"zone": "UTC", "not_after": "2020-01-01"}}).decide(ask()).allow


def test_a_time_without_an_offset_decides_nothing() -> None:
    with pytest.raises(InvalidData):
        policy({}).decide(ask(), at=datetime(2026, 11, 24))


@pytest.mark.parametrize(
    ("environment", "allowed"),
    [("production", True), ("staging", False), ("Production", False), ("", False), (None, False)],
)
def test_an_environment_is_compared_exactly_and_one_that_is_not_named_is_not_met(
    environment: str | None, allowed: bool
) -> None:
    decision = policy({"environments": ["production"]}).decide(ask(environment=environment))
    assert decision.allow is allowed
    assert allowed or "environments: " in decision.reason


@pytest.mark.parametrize(("needs_approval", "allowed"), [(True, True), (False, False)])
def test_a_release_that_must_wait_for_approval_must_ask_for_it(needs_approval: bool, allowed: bool) -> None:
    decision = policy({"approval": "required"}).decide(ask(needs_approval=needs_approval))
    assert decision.allow is allowed
    assert allowed or "approval: the release does not ask for approval" in decision.reason


def test_all_conditions_must_hold_and_a_refusal_names_each_that_does_not() -> None:
    every = policy(
        {
            "max_epsilon": 1.0,
            "time": {"zone": "UTC", "days": ["monday"]},
            "environments": ["production"],
            "approval": "required",
        }
    )
    met: dict[str, Any] = {"epsilon": 1.0, "environment": "production", "needs_approval": True}
    monday, tuesday = at("2026-11-23T12:00Z"), at("2026-11-24T12:00Z")
    assert every.decide(ask(**met), at=monday).allow
    for change in ({"epsilon": 1.1}, {"environment": "staging"}, {"needs_approval": False}):
        assert not every.decide(ask(**{**met, **change}), at=monday).allow
    reason = every.decide(ask(epsilon=1.5), at=tuesday).reason
    for part in ("max_epsilon: 1.5 is more than 1.0", "time: ", "environments: ", "approval: "):
        assert part in reason


def test_only_conditions_that_stand_in_the_way_are_named() -> None:
    rule = {"role": "science", "actions": ["release"], "datasets": ["clinic"], "purposes": ["*"]}
    both = Policy.parse(
        {
            "version": 1,
            "roles": {"science": {"members": ["sam"]}},
            "grants": [
                {**rule, "id": "other", "columns": ["name"], "conditions": {"approval": "required"}},
                {**rule, "id": "near", "columns": ["age"], "conditions": {"environments": ["production"]}},
            ],
        },
        place="policy.yaml",
    )
    reason = both.decide(ask()).reason
    assert "conditions of near" in reason
    assert "other" not in reason


@pytest.mark.parametrize(
    ("conditions", "named"),
    [
        ({"time": {"days": ["monday"]}}, "time.zone"),
        ({"time": {"zone": "Berlin", "days": ["monday"]}}, "time.zone"),
        ({"time": {"zone": "../etc/passwd", "days": ["monday"]}}, "time.zone"),
        ({"time": {"zone": "UTC"}}, "no limit"),
        ({"time": {"zone": "UTC", "days": []}}, "time.days"),
        ({"time": {"zone": "UTC", "days": ["Monday"]}}, "time.days.0"),
        ({"time": {"zone": "UTC", "from": "08:00"}}, "go together"),
        ({"time": {"zone": "UTC", "from": "8:00", "to": "18:00"}}, "time.from"),
        ({"time": {"zone": "UTC", "from": "08:00", "to": "24:01"}}, "time.to"),
        ({"time": {"zone": "UTC", "from": "08:00", "to": "08:00"}}, "window is empty"),
        ({"time": {"zone": "UTC", "from": 480, "to": 1080}}, "time.from"),
        ({"time": {"zone": "UTC", "not_before": "2026-02-30"}}, "time.not_before"),
        ({"time": {"zone": "UTC", "not_before": "2026-03-02", "not_after": "2026-03-01"}}, "window is empty"),
        ({"environments": []}, "environments"),
        ({"environment": "production"}, "conditions.environment"),
        ({"approval": True}, "approval"),
        ({"approval": "none"}, "approval"),
        ({"max_epsilon": None}, "`max_epsilon` is empty"),
        ({"time": None}, "`time` is empty"),
        ({"time": {"zone": "UTC", "days": ["monday"], "to": None}}, "`to` is empty"),
    ],
)
def test_a_wrong_condition_is_refused_naming_the_field(conditions: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Policy.parse(
            {
                "version": 1,
                "roles": {"science": {"members": ["sam"]}},
                "grants": [
                    {
                        "id": "rule",
                        "role": "science",
                        "actions": ["release"],
                        "datasets": ["*"],
                        "columns": ["*"],
                        "purposes": ["*"],
                        "conditions": conditions,
                    }
                ],
            },
            place="policy.yaml",
        )
    assert named in str(caught.value)


@pytest.mark.parametrize("condition", [{"approval": "required"}, {"max_epsilon": 1.0}])
def test_conditions_of_releases_belong_to_grants_of_releases(condition: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="only a grant of `release`"):
        policy(condition, action="decrypt")


def test_times_and_dates_need_no_quotes_in_the_file(tmp_path: Path) -> None:
    """YAML 1.1 would read 18:00 as the number 1080."""
    file = tmp_path / "policy.yaml"
    file.write_text("""
version: 1
roles: {science: {members: [sam, 2026-05-04]}}
grants:
  - id: rule
    role: science
    actions: [release]
    datasets: [clinic]
    columns: ["*"]
    purposes: ["*"]
    conditions:
      max_epsilon: 1.5
      time: {zone: UTC, from: 10:00, to: 18:00, not_before: 2026-01-01}
""")
    loaded = Policy.load(file)
    window = loaded.grants[0].conditions.time
    assert window is not None
    assert (window.from_, window.to, window.not_before) == ("10:00", "18:00", "2026-01-01")
    assert loaded.grants[0].conditions.max_epsilon == 1.5
    assert loaded.decide(ask(epsilon=1), at=at("2026-11-24T17:59Z")).allow


def test_a_condition_changes_the_digest_and_one_that_is_not_used_does_not() -> None:
    assert policy({}).digest != policy({"environments": ["production"]}).digest
    window = {"zone": "UTC", "from": "08:00", "to": "18:00"}
    assert policy({"time": window}).digest != policy({"time": {**window, "from": "09:00"}}).digest
