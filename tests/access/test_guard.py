"""The guard: nothing runs without a grant and a committed intent, and every end of an operation is in the audit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.access.guard import Guard
from lepton_airflow.access.policy import Policy
from lepton_airflow.audit.database import connect, leaf_table, migrate
from lepton_airflow.audit.event import Actor
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.errors import AccessDenied, AuditUnavailable, InvalidData, KeyUnavailable
from lepton_airflow.settings import Settings

POLICY = Policy.parse(
    {
        "version": 1,
        "roles": {"etl": {"members": ["ann"]}},
        "grants": [
            {
                "id": "work",
                "role": "etl",
                "actions": ["decrypt", "train"],
                "datasets": ["clinic"],
                "columns": ["age"],
                "purposes": ["research"],
            },
            {
                "id": "numbers",
                "role": "etl",
                "actions": ["release"],
                "datasets": ["clinic"],
                "columns": ["age"],
                "purposes": ["research"],
                "conditions": {"max_epsilon": 1.0},
            },
        ],
    },
    place="test",
)
ALLOWED = {"action": "decrypt", "dataset": "clinic", "columns": ("age",), "purpose": "research"}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sql.Engine]:
    settings = Settings(home=tmp_path)
    migrate(connect(settings, check_schema=False))
    engine = connect(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def log(engine: sql.Engine) -> AuditLog:
    return AuditLog(engine, actor=Actor(principal="ann", host="here"), run_key="run")


@pytest.fixture
def guard(log: AuditLog) -> Guard:
    return Guard(log=log, policy=POLICY, principal="ann", spec_digest="sha256:spec")


def events(engine: sql.Engine) -> list[dict[str, Any]]:
    """All but the one that opens the log."""
    with engine.connect() as connection:
        payloads = connection.scalars(sql.select(leaf_table.c.payload).where(leaf_table.c.id > 1))
        return [json.loads(payload) for payload in payloads]


def phases(engine: sql.Engine) -> list[tuple[str, str]]:
    return [(event["action"], event["phase"]) for event in events(engine)]


def test_the_intent_is_committed_before_the_work_and_the_success_after_it(engine: sql.Engine, guard: Guard) -> None:
    with guard.operation(**ALLOWED, details={"keyset": "clinic"}) as operation:
        assert phases(engine) == [("decrypt", "intent")]
        operation.record(counts={"rows": 3}, details={"road": "direct"})
        operation.record(counts={"files": 1}, digests={"output": "sha256:out"})
    intent, success = events(engine)
    assert success["phase"] == "success"
    for event in (intent, success):
        assert event["dataset"] == "clinic"
        assert event["columns"] == ["age"]
        assert event["purpose"] == "research"
        assert event["rules"] == ["work"]
        assert event["policy_digest"] == POLICY.digest
        assert event["spec_digest"] == "sha256:spec"
    assert intent["details"] == {"keyset": "clinic"}
    assert success["intent"] == intent["event_id"] == operation.intent
    assert success["counts"] == {"rows": 3, "files": 1}
    assert success["digests"] == {"output": "sha256:out"}
    assert success["details"] == {"road": "direct"}


@pytest.mark.parametrize(
    "change",
    [{"columns": ("age", "email")}, {"action": "encrypt"}, {"purpose": "billing"}, {"dataset": "lab"}, {"columns": ()}],
)
def test_what_is_denied_does_not_run_and_is_in_the_audit(
    engine: sql.Engine, guard: Guard, change: dict[str, Any]
) -> None:
    asked = {**ALLOWED, **change}
    with pytest.raises(AccessDenied) as caught, guard.operation(**asked):
        pytest.fail("it ran")
    for name in ("ann", asked["action"], asked["dataset"], asked["purpose"], *asked["columns"]):
        assert name in str(caught.value)
    [denied] = events(engine)
    assert (denied["phase"], denied["action"], denied["columns"]) == ("denied", asked["action"], list(asked["columns"]))
    assert denied["details"]["reason"].startswith("no grant covers")
    assert guard.has_recorded(caught.value)


def test_a_release_is_held_to_its_epsilon_and_states_it(engine: sql.Engine, guard: Guard) -> None:
    release = {**ALLOWED, "action": "release"}
    with guard.operation(**release, epsilon=0.5):
        pass
    with pytest.raises(AccessDenied, match="conditions of numbers"), guard.operation(**release, epsilon=1.5):
        pytest.fail("it ran")
    intent, _, denied = events(engine)
    assert (intent["details"], denied["details"]["epsilon"]) == ({"epsilon": 0.5}, 1.5)


def test_conditions_are_held_against_the_clock_the_environment_and_the_release(
    engine: sql.Engine, log: AuditLog
) -> None:
    conditions = {
        "time": {"zone": "UTC", "days": ["monday"]},
        "environments": ["production"],
        "approval": "required",
    }
    fields = POLICY.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    fields["grants"][1]["conditions"] = conditions
    release = {**ALLOWED, "action": "release"}

    def guard(day: int, environment: str | None = "production") -> Guard:
        return Guard(
            log=log,
            policy=Policy.parse(fields, place="test"),
            principal="ann",
            spec_digest="sha256:spec",
            environment=environment,
            clock=lambda: datetime(2026, 11, day, tzinfo=UTC),
        )

    with guard(23).operation(**release, needs_approval=True):
        pass
    for refused, needs_approval in (
        (guard(24), True),
        (guard(23, "staging"), True),
        (guard(23, None), True),
        (guard(23), False),
    ):
        with pytest.raises(AccessDenied), refused.operation(**release, needs_approval=needs_approval):
            pytest.fail("it ran")
    intent, _, *denied = events(engine)
    assert intent["details"] == {"needs_approval": True, "environment": "production"}
    reasons = [event["details"]["reason"].partition("(")[2].partition(":")[0] for event in denied]
    assert reasons == ["time", "environments", "environments", "approval"]


def test_a_typed_failure_is_recorded_with_its_text_and_goes_on(engine: sql.Engine, guard: Guard) -> None:
    error = KeyUnavailable("No such key.", place="keyset clinic", remedy="Make one.")

    def work() -> None:
        with guard.operation(**ALLOWED) as operation:
            operation.record(counts={"rows": 1})
            raise error

    with pytest.raises(KeyUnavailable) as caught:
        work()
    assert caught.value is error
    failure = events(engine)[-1]
    assert failure["phase"] == "failure"
    assert failure["details"] == {"error": "KeyUnavailable", "text": str(error)}
    assert failure["counts"] == {"rows": 1}
    assert guard.has_recorded(error)


@pytest.mark.parametrize("raised", [ValueError("patient 4711"), KeyboardInterrupt(), SystemExit(3)])
def test_any_other_end_is_a_failure_whose_text_quotes_nothing(
    engine: sql.Engine, guard: Guard, raised: BaseException
) -> None:
    with pytest.raises(type(raised)), guard.operation(**ALLOWED):
        raise raised
    failure = events(engine)[-1]
    name = type(raised).__name__
    assert (failure["phase"], failure["details"]) == ("failure", {"error": name, "text": name})


def test_what_an_event_cannot_hold_fails_where_it_is_recorded(engine: sql.Engine, guard: Guard) -> None:
    with pytest.raises(InvalidData), guard.operation(**ALLOWED) as operation:
        operation.record(details={"loss": float("nan")})
    assert phases(engine) == [("decrypt", "intent"), ("decrypt", "failure")]


def test_an_operation_that_is_abandoned_is_a_failure(engine: sql.Engine, guard: Guard) -> None:
    operation = guard.operation(**ALLOWED)
    operation.__enter__()
    del operation
    assert phases(engine) == [("decrypt", "intent"), ("decrypt", "failure")]


def test_operations_nest_and_each_has_its_own_events(engine: sql.Engine, guard: Guard) -> None:
    with guard.operation(**ALLOWED), guard.operation(**{**ALLOWED, "action": "train"}):
        pass
    assert phases(engine) == [("decrypt", "intent"), ("train", "intent"), ("train", "success"), ("decrypt", "success")]


def test_nothing_runs_when_the_intent_cannot_be_committed(engine: sql.Engine, guard: Guard) -> None:
    with engine.begin() as connection:
        connection.execute(sql.text("ALTER TABLE lepton_audit_leaf RENAME TO gone"))
    with pytest.raises(AuditUnavailable), guard.operation(**ALLOWED):
        pytest.fail("it ran")


def test_a_denial_that_cannot_be_recorded_still_denies(engine: sql.Engine, guard: Guard) -> None:
    with engine.begin() as connection:
        connection.execute(sql.text("ALTER TABLE lepton_audit_leaf RENAME TO gone"))
    with pytest.raises(AuditUnavailable), guard.operation(**{**ALLOWED, "action": "encrypt"}):
        pytest.fail("it ran")


def test_work_whose_success_cannot_be_recorded_fails(engine: sql.Engine, guard: Guard) -> None:
    with pytest.raises(AuditUnavailable), guard.operation(**ALLOWED), engine.begin() as connection:
        connection.execute(sql.text("ALTER TABLE lepton_audit_leaf RENAME TO gone"))


def test_a_failure_that_cannot_be_recorded_keeps_its_own_error_and_says_so(engine: sql.Engine, guard: Guard) -> None:
    error = KeyUnavailable("No such key.", place="keyset clinic", remedy="Make one.")

    def work() -> None:
        with guard.operation(**ALLOWED), engine.begin() as connection:
            connection.execute(sql.text("ALTER TABLE lepton_audit_leaf RENAME TO gone"))
            connection.commit()
            raise error

    with pytest.raises(KeyUnavailable) as caught:
        work()
    assert "could not be recorded" in caught.value.__notes__[0]
    assert not guard.has_recorded(error)
