"""What the ledger's tables hold, as values: budgets, their releases, the mechanisms that they ran, and what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import sqlalchemy as sql

from lepton_airflow.privacy.tables import budget_table, mechanism_table, release_table

RESERVED, DRAWN, PUBLISHED, RELEASED = "reserved", "drawn", "published", "released"


@dataclass(frozen=True, kw_only=True)
class MechanismEvent:
    """One mechanism of a release: what an accountant needs to know.

    :param sensitivity: the L1 sensitivity of its exact input, in steps
    :param scale: of its noise, in steps
    """

    query: str
    mechanism: str
    sensitivity: int
    scale: float
    epsilon: Fraction


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release as the ledger has it, but for its numbers.

    :param epsilon: reserved or spent, by ``state``
    :param principal: the identity under which its job ran
    """

    run_key: str
    dataset: str
    unit: str
    spec_digest: str
    state: str
    epsilon: Fraction
    delta: Fraction
    principal: str
    reserved_at: str
    drawn_at: str | None
    published_at: str | None


@dataclass(frozen=True, kw_only=True)
class Balance:
    """The budget of one dataset and privacy unit, which everybody shares, and its releases, oldest first."""

    id: int
    dataset: str
    unit: str
    epsilon: Fraction
    delta: Fraction
    owner: str
    created_at: str
    releases: tuple[Release, ...]

    @property
    def spent(self) -> Fraction:
        return _total(self.releases, DRAWN, PUBLISHED)

    @property
    def reserved(self) -> Fraction:
        return _total(self.releases, RESERVED)

    @property
    def left(self) -> Fraction:
        return self.epsilon - self.spent - self.reserved


def find_budget(connection: sql.Connection, dataset: str, unit: str) -> Balance | None:
    """The budget of a dataset and privacy unit, with its releases."""
    condition = sql.and_(budget_table.c.dataset == dataset, budget_table.c.unit == unit)
    return next(iter(budgets(connection, condition)), None)


def budgets(connection: sql.Connection, condition: sql.ColumnElement[bool]) -> list[Balance]:
    """The budgets that fulfil ``condition``, by dataset and unit."""
    query = sql.select(budget_table).where(condition).order_by(budget_table.c.dataset, budget_table.c.unit)
    return [
        Balance(
            **_amounts(row),
            releases=tuple(releases(connection, release_table.c.budget_id == row["id"])),
        )
        for row in connection.execute(query).mappings().all()
    ]


def releases(connection: sql.Connection, condition: sql.ColumnElement[bool]) -> list[Release]:
    """The releases that fulfil ``condition``, oldest reservation first."""
    # All columns but the numbers: those can be large, and whoever adds up a budget does not need them.
    columns = [column for column in release_table.c if column.name not in ("result", "budget_id")]
    query = (
        sql.select(*columns, budget_table.c.dataset, budget_table.c.unit)
        .join(budget_table)
        .where(condition)
        .order_by(release_table.c.reserved_at, release_table.c.run_key)
    )
    return [Release(**_amounts(row)) for row in connection.execute(query).mappings()]


def find_release(connection: sql.Connection, run_key: str) -> Release | None:
    """The release of a run key."""
    return next(iter(releases(connection, release_table.c.run_key == run_key)), None)


def mechanisms(connection: sql.Connection, *, dataset: str, unit: str) -> list[MechanismEvent]:
    """Every mechanism that was run on a budget, in the order of the draws."""
    query = (
        sql.select(mechanism_table)
        .join(release_table, release_table.c.run_key == mechanism_table.c.run_key)
        .join(budget_table, budget_table.c.id == release_table.c.budget_id)
        .where(budget_table.c.dataset == dataset, budget_table.c.unit == unit)
        .order_by(release_table.c.drawn_at, mechanism_table.c.run_key, mechanism_table.c.query)
    )
    return [
        MechanismEvent(
            query=row["query"],
            mechanism=row["mechanism"],
            sensitivity=int(row["sensitivity"]),
            scale=float(row["scale"]),
            epsilon=Fraction(row["epsilon"]),
        )
        for row in connection.execute(query).mappings()
    ]


def _amounts(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The row by column names, its amounts as exact numbers."""
    return {**row, "epsilon": Fraction(row["epsilon"]), "delta": Fraction(row["delta"])}


def _total(releases: Sequence[Release], *states: str) -> Fraction:
    return sum((release.epsilon for release in releases if release.state in states), Fraction(0))
