"""Budgets with a delta, with periods, and releases that somebody else must approve."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.errors import AccessDenied, ApprovalMissing, BudgetError, BudgetExhausted, LeptonError
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.periods import period_name, period_start
from lepton_airflow.privacy.records import DRAWN, GAUSSIAN, LAPLACE, PUBLISHED, MechanismEvent, Release

BOTH_STORES = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
DATASET, UNIT, OWNER = "clinic.visits", "patient_id", "officer"
DELTA = Decimal("1e-6")


class Clock:
    def __init__(self, text: str) -> None:
        self.now = datetime.fromisoformat(text)

    def __call__(self) -> datetime:
        return self.now


def laplace(epsilon: str, *, delta: str = "0") -> MechanismEvent:
    noise = {"groups": 1, "per_group": 1000, "width": 1, "scale": float(1000 / Fraction(epsilon)) * (1 + 1e-15)}
    amounts = {"epsilon": Fraction(epsilon), "delta": Fraction(delta)}
    return MechanismEvent(query="rows", mechanism=LAPLACE, **noise, **amounts)  # type: ignore[arg-type]


def gaussian(rho: str) -> MechanismEvent:
    noise = {"groups": 1, "per_group": 10, "width": 1, "scale": (50 / float(Fraction(rho))) ** 0.5 * (1 + 1e-15)}
    return MechanismEvent(query="rows", mechanism=GAUSSIAN, epsilon=Fraction(0), rho=Fraction(rho), **noise)  # type: ignore[arg-type]


def reserve(ledger: Ledger, run_key: str, event: MechanismEvent, **changes: Any) -> Release:
    fields: dict[str, Any] = {"principal": "job", "requested_by": "ada", "needs_approval": False, "spec": {}}
    return ledger.reserve(
        run_key=run_key,
        spec_digest="sha256:a",
        dataset=DATASET,
        unit=UNIT,
        **({"mechanisms": [event]} | fields | changes),
    )


def draw(ledger: Ledger, run_key: str) -> Release:
    return ledger.draw(run_key=run_key, spec_digest="sha256:a", result={"rows": [7]})


def left(ledger: Ledger, at: datetime | None = None) -> Fraction:
    return ledger.balance(dataset=DATASET, unit=UNIT, at=at).left


def test_a_budget_with_a_delta_pays_for_more_than_the_sum(ledger: Ledger) -> None:
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal("1"), delta=DELTA, owner=OWNER)
    for day in range(40):
        events = [replace(laplace("0.02"), query=str(hour)) for hour in range(5)]
        try:
            reserve(ledger, f"run{day}", events[0], mechanisms=events)
        except BudgetExhausted:
            break
    balance = ledger.balance(dataset=DATASET, unit=UNIT)
    cost = balance.spending
    # The sum allows 10.
    assert 20 < len(balance.releases) < 40
    assert cost.basic == Fraction(len(balance.releases), 10)
    assert cost.charged is not None
    assert cost.pld is not None
    assert cost.zcdp is not None
    assert cost.pld <= cost.charged <= 1
    assert cost.pld < cost.zcdp
    assert left(ledger) == 1 - cost.charged < Fraction(1, 10)


def test_what_looks_affordable_alone_is_refused_with_what_it_comes_to(ledger: Ledger) -> None:
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal("1"), delta=DELTA, owner=OWNER)
    reserve(ledger, "first", gaussian("0.01"))
    spent = ledger.balance(dataset=DATASET, unit=UNIT).spending
    assert spent.basic is None
    assert spent.charged is not None
    with pytest.raises(
        BudgetExhausted, match=r"asks for epsilon 0\.2; of 1 there is 0\.\d+ left\. Together .* come to 1\.\d+"
    ):
        reserve(ledger, "second", gaussian("0.02"), epsilon=Decimal("0.2"), delta=DELTA)
    assert left(ledger) == 1 - spent.charged


def test_deltas_of_selections_are_spent_too(ledger: Ledger) -> None:
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal("9"), delta=DELTA, owner=OWNER)
    reserve(ledger, "first", laplace("0.1", delta="0.0000006"))
    with pytest.raises(BudgetExhausted, match=r"asks for delta 0\.0000005; of 0\.000001 there is 0\.0000004 left\."):
        reserve(ledger, "second", laplace("0.1", delta="0.0000005"))
    reserve(ledger, "third", laplace("0.1", delta="0.0000004"))
    assert left(ledger) == Fraction(88, 10)


@pytest.mark.parametrize("event", [gaussian("0.00001"), laplace("0.1", delta="1e-9")])
def test_a_budget_without_a_delta_admits_no_mechanism_that_needs_one(ledger: Ledger, event: MechanismEvent) -> None:
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal("9"), owner=OWNER)
    with pytest.raises(BudgetError, match="delta is 0"):
        reserve(ledger, "run", event)
    assert left(ledger) == 9


@BOTH_STORES
def test_every_period_has_its_budget(engine: sql.Engine) -> None:
    clock = Clock("2026-11-30T23:59:59+00:00")
    ledger = Ledger(engine, clock=clock)
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal("1"), owner=OWNER, period="month")
    late = reserve(ledger, "late", laplace("0.7"))
    with pytest.raises(
        BudgetExhausted, match=r"asks for epsilon 0\.4; of 1 there is 0\.3 left in the period 2026-11\."
    ) as refused:
        reserve(ledger, "more", laplace("0.4"))
    assert "next period" in refused.value.remedy
    november = clock.now
    clock.now += timedelta(seconds=1)
    assert reserve(ledger, "more", laplace("0.4")).period_start == "2026-12-01"
    # The release belongs to the period of its reservation, however late it is drawn.
    assert draw(ledger, "late").period_start == late.period_start == "2026-11-01"
    assert (left(ledger), left(ledger, november)) == (Fraction(6, 10), Fraction(3, 10))
    balance = ledger.balance(dataset=DATASET, unit=UNIT)
    assert (balance.period, balance.period_start) == ("month", "2026-12-01")
    assert [release.run_key for release in balance.releases] == ["more"]
    assert [release.run_key for release in ledger.history(dataset=DATASET, unit=UNIT)] == ["late", "more"]


@pytest.mark.parametrize(
    ("period", "at", "start", "name"),
    [
        ("day", "2026-11-24T00:00:00+00:00", "2026-11-24", "2026-11-24"),
        ("week", "2026-11-22T23:59:59+00:00", "2026-11-16", "2026-W47"),
        ("week", "2026-11-23T00:00:00+00:00", "2026-11-23", "2026-W48"),
        ("week", "2027-01-03T12:00:00+00:00", "2026-12-28", "2026-W53"),
        ("month", "2028-02-29T12:00:00+00:00", "2028-02-01", "2028-02"),
        ("quarter", "2026-09-30T23:59:59+00:00", "2026-07-01", "2026-Q3"),
        ("quarter", "2026-10-01T00:00:00+00:00", "2026-10-01", "2026-Q4"),
        ("year", "2026-12-31T23:59:59+00:00", "2026-01-01", "2026"),
        (None, "2026-12-31T23:59:59+00:00", None, ""),
    ],
)
def test_periods_are_calendar_periods(period: str | None, at: str, start: str | None, name: str) -> None:
    assert period_start(period, datetime.fromisoformat(at)) == start
    assert period_name(period, start) == name


def test_periods_are_in_utc() -> None:
    tokyo = datetime(2026, 12, 1, 5, tzinfo=timezone(timedelta(hours=9)))
    assert period_start("month", tokyo) == "2026-11-01"
    with pytest.raises(ValueError, match="no time zone"):
        period_start("month", datetime(2026, 12, 1))
    assert period_start("day", datetime(2026, 12, 1, tzinfo=UTC)) == "2026-12-01"


def test_a_period_that_is_none_is_refused(ledger: Ledger) -> None:
    with pytest.raises(BudgetError, match="no period 'decade'"):
        ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(1), owner=OWNER, period="decade")  # type: ignore[arg-type]


@pytest.fixture
def waiting(ledger: Ledger) -> Ledger:
    """A ledger with the drawn release ``run``, which waits for its approval."""
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(1), owner=OWNER)
    reserve(ledger, "run", laplace("0.4"), needs_approval=True)
    draw(ledger, "run")
    return ledger


@BOTH_STORES
def test_a_release_is_published_once_somebody_else_approved_it(waiting: Ledger) -> None:
    with pytest.raises(ApprovalMissing, match="waits for an approval"):
        waiting.publish(run_key="run", spec_digest="sha256:a")
    assert (found := waiting.find("run")) is not None
    assert (found.state, found.approver, found.requested_by) == (DRAWN, None, "ada")
    approved = waiting.approve(run_key="run", approver="grace")
    assert (approved.state, approved.approver) == (DRAWN, "grace")
    assert approved.approved_at is not None
    published = waiting.publish(run_key="run", spec_digest="sha256:a")
    assert (published.state, published.approver) == (PUBLISHED, "grace")
    assert waiting.approve(run_key="run", approver="grace").approved_at == approved.approved_at
    with pytest.raises(BudgetError, match="approved already, by grace"):
        waiting.approve(run_key="run", approver="linus")


@pytest.mark.parametrize("approver", ["ada", "job", " Ada", "JOB", "", " "])
def test_who_requested_or_ran_a_release_cannot_approve_it(waiting: Ledger, approver: str) -> None:
    with pytest.raises(AccessDenied):
        waiting.approve(run_key="run", approver=approver)
    with pytest.raises(ApprovalMissing):
        waiting.publish(run_key="run", spec_digest="sha256:a")


def test_only_what_is_drawn_and_needs_it_is_approved(ledger: Ledger) -> None:
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(1), owner=OWNER)
    reserve(ledger, "early", laplace("0.1"), needs_approval=True)
    reserve(ledger, "free", laplace("0.1"))
    draw(ledger, "free")
    for run_key, text in (("early", "Nothing was drawn"), ("free", "needs no approval"), ("none", "No release")):
        with pytest.raises(BudgetError, match=text):
            ledger.approve(run_key=run_key, approver="grace")


@BOTH_STORES
def test_the_database_itself_separates_the_duties(waiting: Ledger, engine: sql.Engine) -> None:
    for change in ("state = 'published'", "approver = 'ada'", "approver = 'job'"):
        with pytest.raises(sql.exc.IntegrityError), engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE lepton_release SET {change}")


def test_a_missing_approval_is_not_retried() -> None:
    assert ApprovalMissing.final
    assert issubclass(ApprovalMissing, LeptonError)
