"""A private training and the ledger: paid before data is read, once, and not given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.access.engine import load_policy
from lepton_airflow.access.guard import Guard
from lepton_airflow.audit.database import connect
from lepton_airflow.audit.event import Actor
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.errors import AccessDenied, BudgetError, BudgetExhausted, GateRefused
from lepton_airflow.jobs.training_budget import TrainingBudget, mechanisms, reserved
from lepton_airflow.models.plan import DifferentialPrivacyPlan
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.records import DRAWN, PUBLISHED, RELEASED
from lepton_airflow.settings import Settings

PLAN = DifferentialPrivacyPlan(epsilon=Decimal("1.5"), delta=Decimal("1e-6"), sampling_rate=0.1, steps=10)
WITH_BASELINES = PLAN.model_copy(
    update={"baselines": ("linear_regression", "gaussian_naive_bayes"), "baseline_epsilon": Decimal("0.25")}
)


@pytest.fixture
def engine(home: Settings) -> Iterator[sql.Engine]:
    engine = connect(home)
    yield engine
    engine.dispose()


@pytest.fixture
def ledger(engine: sql.Engine) -> Ledger:
    ledger = Ledger(engine)
    ledger.create(dataset="clinic", unit="patient", epsilon=Decimal(3), delta=Decimal("1e-5"), owner="ann")
    return ledger


@pytest.fixture
def training(home: Settings, engine: sql.Engine, ledger: Ledger) -> Callable[..., Any]:
    """Opens the budget of a training as a job would."""

    @contextmanager
    def open_budget(
        run_key: str, plan: DifferentialPrivacyPlan = PLAN, *, purpose: str = "test", spec_digest: str = "spec"
    ) -> Iterator[TrainingBudget]:
        log = AuditLog(engine, actor=Actor(principal="tester", host="here"), run_key=run_key)
        guard = Guard(log=log, policy=load_policy(home), principal="tester", spec_digest=spec_digest)
        job: Any = SimpleNamespace(
            engine=engine,
            guard=guard,
            run_key=run_key,
            spec_digest=spec_digest,
            principal="tester",
            requested_by=None,
        )
        with reserved(job, plan, dataset="clinic", unit="patient", purpose=purpose, spec={}) as budget:
            yield budget
        log.close()

    return open_budget


def state(ledger: Ledger, run_key: str) -> str:
    release = ledger.find(run_key)
    assert release is not None
    return release.state


def test_a_training_costs_what_its_plan_says(ledger: Ledger, training: Callable[..., Any]) -> None:
    with training("run", WITH_BASELINES) as budget:
        budget.draw({"model": "sha256:0"})
        budget.publish()
        assert budget.summary()["epsilon_spent"] == "2"
    assert state(ledger, "run") == PUBLISHED
    balance = ledger.balance(dataset="clinic", unit="patient")
    # The smallest bound: basic composition, 1.5 + 2 * 0.25, or less.
    assert Fraction(3, 2) < balance.spending.charged <= 2
    stored = ledger.mechanisms(dataset="clinic", unit="patient")
    assert {(event.query, event.epsilon, event.delta) for event in stored} == {
        ("training", Fraction(3, 2), Fraction(1, 10**6)),
        ("baseline linear_regression", Fraction(1, 4), 0),
        ("baseline gaussian_naive_bayes", Fraction(1, 4), 0),
    }


def test_releases_and_trainings_share_one_budget(training: Callable[..., Any]) -> None:
    with training("first") as budget:
        budget.draw({})
    reached = []
    with pytest.raises(BudgetExhausted, match="asks for epsilon 2"), training("second", WITH_BASELINES):
        reached.append("data")
    assert not reached, "refused before any data could be read"


def test_an_error_before_the_draw_costs_nothing(ledger: Ledger, training: Callable[..., Any]) -> None:
    with pytest.raises(GateRefused), training("run"):
        raise GateRefused("Something.", place="here", remedy="None.")
    assert state(ledger, "run") == RELEASED
    assert ledger.balance(dataset="clinic", unit="patient").left == 3
    with training("run") as budget:
        budget.draw({})


def test_an_error_after_the_draw_leaves_it_spent_and_draws_no_second_time(
    ledger: Ledger, training: Callable[..., Any]
) -> None:

    def refused() -> None:
        with training("run") as budget:
            budget.draw({"model": "sha256:0"})
            raise GateRefused("Not robust.", place="here", remedy="None.")

    with pytest.raises(GateRefused):
        refused()
    assert state(ledger, "run") == DRAWN
    assert ledger.balance(dataset="clinic", unit="patient").left < Fraction(3, 2) + Fraction(1, 100)
    reached = []
    with pytest.raises(BudgetError, match="drew its weights before"), training("run"):
        reached.append("a second training for the price of one")
    assert not reached


def test_a_killed_training_keeps_its_reservation_for_the_next_try(ledger: Ledger, training: Callable[..., Any]) -> None:
    with pytest.raises(KeyboardInterrupt), training("run"):
        raise KeyboardInterrupt
    assert state(ledger, "run") == "reserved"
    with training("run") as budget:
        budget.draw({})
    assert len(ledger.history(dataset="clinic", unit="patient")) == 1


def test_the_policy_decides_about_the_cost(training: Callable[..., Any], ledger: Ledger) -> None:
    with pytest.raises(AccessDenied), training("run", purpose="curiosity"):
        pass
    assert ledger.find("run") is None


def test_noise_that_the_ledger_checks_covers_what_is_charged() -> None:
    for event in mechanisms(WITH_BASELINES):
        assert Fraction(event.scale) * event.epsilon >= event.l1
