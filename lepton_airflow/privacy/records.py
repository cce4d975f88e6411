"""What the ledger's tables hold, as values: budgets, their releases, the mechanisms that they ran, and what is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import sqlalchemy as sql

from lepton_airflow.privacy.amount import amount_text
from lepton_airflow.privacy.tables import budget_table, mechanism_table, release_table

RESERVED, DRAWN, PUBLISHED, RELEASED = "reserved", "drawn", "published", "released"

LAPLACE, GAUSSIAN = "discrete Laplace", "discrete Gaussian"


@dataclass(frozen=True, kw_only=True)
class MechanismEvent:
    """One mechanism of a release: what an accountant needs to know. All of it follows from public parameters.

    One unit moves at most ``groups`` groups, each by at most ``per_group`` steps in L1 over the group's ``width`` entries; so
    the sensitivities are L1 = groups * per_group, L2**2 <= groups * per_group**2 and Linf <= per_group.

    :param query: its name, unique in the release
    :param mechanism: ``discrete Laplace`` or ``discrete Gaussian``
    :param width: entries of each group: 1, or the bins of a histogram, or a level of a quantile tree
    :param scale: the Laplace scale, or the Gaussian sigma, in steps
    :param epsilon: pure DP: what is charged, at least L1 / scale; 0 for Gaussian noise
    :param rho: zCDP: what is charged, at least L2**2 / (2 * scale**2); 0 for Laplace noise
    :param delta: the probability that a private selection of groups shows one which only one unit is in
    """

    query: str
    mechanism: str
    groups: int
    per_group: int
    width: int
    scale: float
    epsilon: Fraction
    rho: Fraction = Fraction(0)
    delta: Fraction = Fraction(0)

    @property
    def l1(self) -> int:
        """The L1 sensitivity of the exact input, in steps."""
        return self.groups * self.per_group


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release as the ledger has it, but for its numbers.

    :param epsilon: what was asked for; what a budget is charged for all its releases together is :class:`Spending`
    :param principal: the identity under which its job ran
    :param requested_by: the person who had it run, where that is known
    :param period_start: the first day of the budget's period in which it was reserved; None when the budget has no period
    :param approver: who approved that it is published; never ``principal`` or ``requested_by``
    """

    run_key: str
    dataset: str
    unit: str
    spec_digest: str
    state: str
    epsilon: Fraction
    delta: Fraction
    principal: str
    requested_by: str | None
    period_start: str | None
    needs_approval: bool
    approver: str | None
    approved_at: str | None
    reserved_at: str
    drawn_at: str | None
    published_at: str | None


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What the drawn and reserved releases of one period cost together, as epsilon at the budget's delta.

    :param basic: by basic composition, exact; None when there is Gaussian noise or the deltas exceed the budget's
    :param zcdp: by zero-concentrated DP; None when the budget's delta is 0, or used up by the mechanisms' own deltas
    :param pld: by privacy loss distributions; None likewise
    :param charged: the smallest of them, each of which is an upper bound; rounded up. This is the ledger's truth. None when
        none of them applies, which no reservation brings about
    :param left: epsilon that is not charged, never below 0
    """

    basic: Fraction | None
    zcdp: float | None
    pld: float | None
    charged: Fraction | None
    left: Fraction


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The budget of one dataset and privacy unit, which everybody shares.

    :param period: ``day``, ``week``, ``month``, ``quarter`` or ``year``; None for one budget for all time
    """

    id: int
    dataset: str
    unit: str
    epsilon: Fraction
    delta: Fraction
    period: str | None
    owner: str
    created_at: str


@dataclass(frozen=True, kw_only=True)
class Balance(Budget):
    """A budget in one of its periods.

    :param period_start: the period's first day (UTC, ``2026-11-01``); None when the budget has no period
    :param releases: those that were reserved in the period, oldest first
    """

    period_start: str | None
    releases: tuple[Release, ...]
    spending: Spending

    @property
    def spent(self) -> Fraction:
        """The sum of what the drawn releases asked for."""
        return _total(self.releases, DRAWN, PUBLISHED)

    @property
    def reserved(self) -> Fraction:
        """The sum of what the releases that are not drawn yet asked for."""
        return _total(self.releases, RESERVED)

    @property
    def left(self) -> Fraction:
        return self.spending.left


def budgets(
    connection: sql.Connection, *, dataset: str | None = None, unit: str | None = None, budget_id: int | None = None
) -> list[Budget]:
    """The budgets of a dataset, or of a dataset and unit, or one by its id, or all; by dataset and unit."""
    columns = {"dataset": dataset, "unit": unit, "id": budget_id}
    condition = [budget_table.c[name] == value for name, value in columns.items() if value is not None]
    query = sql.select(budget_table).where(*condition).order_by(budget_table.c.dataset, budget_table.c.unit)
    return [Budget(**_amounts(row)) for row in connection.execute(query).mappings()]


def releases(connection: sql.Connection, *condition: sql.ColumnElement[bool]) -> list[Release]:
    """The releases that fulfil ``condition``, oldest reservation first."""
    # All columns but the numbers and the spec: those can be large, and whoever adds up a budget does not need them.
    columns = [column for column in release_table.c if column.name not in ("result", "spec", "budget_id")]
    query = (
        sql.select(*columns, budget_table.c.dataset, budget_table.c.unit)
        .join(budget_table)
        .where(*condition)
        .order_by(release_table.c.reserved_at, release_table.c.run_key)
    )
    return [Release(**_amounts(row)) for row in connection.execute(query).mappings()]


def find_release(connection: sql.Connection, run_key: str) -> Release | None:
    """The release of a run key."""
    return next(iter(releases(connection, release_table.c.run_key == run_key)), None)


def of_period(budget: Budget, period_start: str | None) -> sql.ColumnElement[bool]:
    """The condition on releases that they were reserved in one period of a budget."""
    # SQLAlchemy writes a comparison with None as IS NULL.
    return sql.and_(release_table.c.budget_id == budget.id, release_table.c.period_start == period_start)


def mechanisms(
    connection: sql.Connection, condition: sql.ColumnElement[bool], *states: str
) -> dict[str, list[MechanismEvent]]:
    """The mechanisms of the releases that fulfil ``condition`` and are in one of ``states``: run key -> events."""
    query = (
        sql.select(mechanism_table)
        .join(release_table, release_table.c.run_key == mechanism_table.c.run_key)
        .where(condition, release_table.c.state.in_(states))
        .order_by(release_table.c.drawn_at, mechanism_table.c.run_key, mechanism_table.c.query)
    )
    found: dict[str, list[MechanismEvent]] = {}
    for row in connection.execute(query).mappings():
        event = MechanismEvent(
            query=row["query"],
            mechanism=row["mechanism"],
            groups=int(row["groups"]),
            per_group=int(row["per_group"]),
            width=int(row["width"]),
            scale=float(row["scale"]),
            epsilon=Fraction(row["epsilon"]),
            rho=Fraction(row["rho"]),
            delta=Fraction(row["delta"]),
        )
        found.setdefault(row["run_key"], []).append(event)
    return found


def store_mechanisms(connection: sql.Connection, run_key: str, events: Iterable[MechanismEvent]) -> None:
    """Write the mechanisms of a release in the place of those that an earlier, released reservation left."""
    connection.execute(mechanism_table.delete().where(mechanism_table.c.run_key == run_key))
    rows = [
        {
            "run_key": run_key,
            "query": event.query,
            "mechanism": event.mechanism,
            "groups": str(event.groups),
            "per_group": str(event.per_group),
            "width": str(event.width),
            "scale": repr(float(event.scale)),
            "epsilon": amount_text(event.epsilon),
            "rho": amount_text(event.rho),
            "delta": amount_text(event.delta),
        }
        for event in events
    ]
    if rows:
        connection.execute(mechanism_table.insert(), rows)


def _amounts(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The row by column names, its amounts as exact numbers."""
    return {**row, "epsilon": Fraction(row["epsilon"]), "delta": Fraction(row["delta"])}


def _total(releases: Sequence[Release], *states: str) -> Fraction:
    return sum((release.epsilon for release in releases if release.state in states), Fraction(0))
