"""The privacy ledger: budgets that cannot be overspent, and releases that happen once.

A release goes ``reserved -> drawn -> published`` under the run key of its job:

- *reserved*: its epsilon is set aside, before any data is read. A job that dies here has released nothing; the rerun under
  the same run key takes the reservation up again, or the budget's owner releases it (state ``released``).
- *drawn*: the noisy numbers are stored, and the epsilon is spent. There is no way back from here: whoever asks again under the
  same run key gets these numbers.
- *published*: the release file is written.

Transactions are serializable: ``BEGIN IMMEDIATE`` on SQLite, ``SERIALIZABLE`` with bounded retries on PostgreSQL. Amounts are
added as exact rationals, by basic composition (Dwork, Roth: The Algorithmic Foundations of Differential Privacy, theorem 3.16).

This module imports neither Spark, Arrow, NumPy nor OpenDP: the Airflow side reads the ledger too.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import TypeVar

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from lepton_airflow.audit.database import reading
from lepton_airflow.errors import AccessDenied, AuditUnavailable, BudgetError, BudgetExhausted, RunKeyConflict
from lepton_airflow.privacy import records
from lepton_airflow.privacy.amount import amount_text
from lepton_airflow.privacy.records import DRAWN, PUBLISHED, RELEASED, RESERVED, Balance, MechanismEvent, Release
from lepton_airflow.privacy.tables import budget_table, mechanism_table, release_table

T = TypeVar("T")

#: Version of the stored noisy numbers.
DRAW_SCHEMA = "lepton.draw/1"
#: PostgreSQL: serialization_failure, deadlock_detected, and unique_violation, which a lost race for one run key can show as.
_RETRYABLE = ("40001", "40P01", "23505")
_ATTEMPTS = 12


class Ledger:
    """The ledger in the audit database.

    :param engine: from :func:`lepton_airflow.audit.database.connect`
    """

    def __init__(self, engine: sql.Engine) -> None:
        self._reading_engine = engine
        if engine.dialect.name == "postgresql":
            engine = engine.execution_options(isolation_level="SERIALIZABLE")
        self._engine = engine

    def create(
        self,
        *,
        dataset: str,
        unit: str,
        epsilon: Decimal | Fraction,
        delta: Decimal | Fraction = Fraction(0),
        owner: str,
    ) -> Balance:
        """Open a budget.

        :raises BudgetError: there is one for this dataset and unit already, or an amount is out of range
        """
        place = _place(dataset, unit)
        if epsilon <= 0 or not 0 <= delta < 1:
            raise BudgetError(
                "A budget needs epsilon above 0 and delta from 0 to below 1.",
                place=place,
                remedy="Correct the amounts.",
            )

        def work(connection: sql.Connection) -> Balance:
            if records.find_budget(connection, dataset, unit) is not None:
                raise BudgetError(
                    "There is a budget already.",
                    place=place,
                    remedy="See `lepton budget show`; budgets are not replaced.",
                )
            connection.execute(
                budget_table.insert().values(
                    dataset=dataset,
                    unit=unit,
                    epsilon=amount_text(epsilon),
                    delta=amount_text(delta),
                    owner=owner,
                    created_at=_now(),
                )
            )
            return _balance(connection, dataset, unit)

        return self._transaction(work)

    def balance(self, *, dataset: str, unit: str) -> Balance:
        """What is spent, reserved and left.

        :raises BudgetError: there is no such budget
        """
        with reading(self._reading_engine) as connection:
            return _balance(connection, dataset, unit)

    def balances(self, dataset: str | None = None) -> list[Balance]:
        """All budgets, or those of ``dataset``, by dataset and unit."""
        with reading(self._reading_engine) as connection:
            return records.budgets(connection, sql.true() if dataset is None else budget_table.c.dataset == dataset)

    def find(self, run_key: str) -> Release | None:
        """The release of ``run_key``; None when it never asked for budget."""
        with reading(self._reading_engine) as connection:
            return records.find_release(connection, run_key)

    def numbers(self, run_key: str) -> dict[str, list[int]]:
        """The noisy numbers of a drawn release: query -> one integer for each group.

        :raises BudgetError: nothing was drawn under this run key
        """
        with reading(self._reading_engine) as connection:
            stored = connection.execute(
                sql.select(release_table.c.result).where(release_table.c.run_key == run_key)
            ).scalar_one_or_none()
        if stored is None:
            raise BudgetError("Nothing was drawn.", place=f"run {run_key}", remedy="Run the release again.")
        vectors: dict[str, list[int]] = json.loads(stored)["vectors"]
        return vectors

    def mechanisms(self, *, dataset: str, unit: str) -> list[MechanismEvent]:
        """Every mechanism that was run on a budget, in the order of the draws."""
        with reading(self._reading_engine) as connection:
            return records.mechanisms(connection, dataset=dataset, unit=unit)

    def reserve(
        self, *, run_key: str, spec_digest: str, dataset: str, unit: str, epsilon: Decimal | Fraction, principal: str
    ) -> Release:
        """Set ``epsilon`` aside for ``run_key``, or find what an earlier try of the same run and spec got to; that costs nothing.

        :returns: in state reserved; or drawn or published, if an earlier try was
        :raises BudgetExhausted: more than is left; nothing is reserved
        :raises BudgetError: there is no such budget
        :raises RunKeyConflict: the run key holds another spec
        """

        def work(connection: sql.Connection) -> Release:
            earlier = records.find_release(connection, run_key)
            if earlier is not None and earlier.state != RELEASED:
                _check_spec(earlier, spec_digest)
                return earlier
            balance = _balance(connection, dataset, unit)
            if epsilon > balance.left:
                raise BudgetExhausted(
                    f"The release asks for epsilon {amount_text(epsilon)}, of {amount_text(balance.epsilon)} there is "
                    f"{amount_text(balance.left)} left.",
                    place=_place(dataset, unit),
                    remedy="Lower the release's epsilon, or talk to the budget's owner, "
                    f"{balance.owner}. `lepton budget show` lists what it was spent on.",
                )
            row = {
                "budget_id": balance.id,
                "spec_digest": spec_digest,
                "state": RESERVED,
                "epsilon": amount_text(epsilon),
                "delta": "0",
                "principal": principal,
                "reserved_at": _now(),
            }
            if earlier is None:
                connection.execute(release_table.insert().values(run_key=run_key, **row))
            else:
                connection.execute(_update(run_key).values(row))
            return _existing(connection, run_key)

        return self._transaction(work)

    def draw(
        self,
        *,
        run_key: str,
        spec_digest: str,
        vectors: Mapping[str, Sequence[int]],
        mechanisms: Sequence[MechanismEvent],
    ) -> Release:
        """Store noisy numbers and so spend what is reserved. The first call under a run key wins: what counts is
        :meth:`numbers` afterwards, not ``vectors``.

        :param vectors: query -> one noisy integer for each group
        :raises BudgetError: nothing is reserved, or the mechanisms cost more than is
        :raises RunKeyConflict: the run key holds another spec
        """

        def work(connection: sql.Connection) -> Release:
            release = records.find_release(connection, run_key)
            if release is None or release.state == RELEASED:
                raise BudgetError(
                    "The run has no reservation: it was released meanwhile, or never made.",
                    place=f"run {run_key}",
                    remedy="Run the release again; nothing was spent and nothing left the driver.",
                )
            _check_spec(release, spec_digest)
            if release.state != RESERVED:
                return release
            cost = sum((event.epsilon for event in mechanisms), Fraction(0))
            if cost > release.epsilon:
                raise BudgetError(
                    f"The mechanisms cost epsilon {amount_text(cost)}, reserved is {amount_text(release.epsilon)}.",
                    place=f"run {run_key}",
                    remedy="This is a defect of the release's plan; report it.",
                )
            stored = json.dumps({"schema": DRAW_SCHEMA, "vectors": {name: list(v) for name, v in vectors.items()}})
            connection.execute(_update(run_key).values(state=DRAWN, drawn_at=_now(), result=stored))
            for event in mechanisms:
                connection.execute(
                    mechanism_table.insert().values(
                        run_key=run_key,
                        query=event.query,
                        mechanism=event.mechanism,
                        sensitivity=str(event.sensitivity),
                        scale=repr(event.scale),
                        epsilon=amount_text(event.epsilon),
                    )
                )
            return _existing(connection, run_key)

        return self._transaction(work)

    def publish(self, *, run_key: str, spec_digest: str) -> Release:
        """Note that the release file of ``run_key`` is durable; again is no error.

        :raises BudgetError: nothing was drawn
        :raises RunKeyConflict: the run key holds another spec
        """

        def work(connection: sql.Connection) -> Release:
            release = _existing(connection, run_key)
            _check_spec(release, spec_digest)
            if release.state not in (DRAWN, PUBLISHED):
                raise BudgetError("Nothing was drawn yet.", place=f"run {run_key}", remedy="Run the release again.")
            if release.state == DRAWN:
                connection.execute(_update(run_key).values(state=PUBLISHED, published_at=_now()))
            return _existing(connection, run_key)

        return self._transaction(work)

    def cancel(self, *, run_key: str, spec_digest: str) -> None:
        """Give back the reservation of a job that stops before it has read any data; what is drawn stays spent."""

        def work(connection: sql.Connection) -> None:
            mine = (release_table.c.spec_digest == spec_digest) & (release_table.c.state == RESERVED)
            connection.execute(_update(run_key).where(mine).values(state=RELEASED))

        self._transaction(work)

    def release_reservation(self, *, run_key: str, principal: str) -> Release:
        """Give back the reservation of a job that died before it drew.

        :param principal: who asks; only the budget's owner may
        :raises AccessDenied: not the owner
        :raises BudgetError: there is no such release, or its numbers are drawn, and drawn numbers are spent
        """

        def work(connection: sql.Connection) -> Release:
            release = _existing(connection, run_key)
            owner = _balance(connection, release.dataset, release.unit).owner
            if owner != principal:
                raise AccessDenied(
                    f"Only the owner of the budget, {owner}, can release a reservation, not {principal}.",
                    place=_place(release.dataset, release.unit),
                    remedy="Ask the owner.",
                )
            if release.state != RESERVED:
                raise BudgetError(
                    f"The release is {release.state}: only a reservation can be given back.",
                    place=f"run {run_key}",
                    remedy="Budget that was drawn on is spent, also when nobody has seen the numbers.",
                )
            connection.execute(_update(run_key).values(state=RELEASED))
            return _existing(connection, run_key)

        return self._transaction(work)

    def _transaction(self, work: Callable[[sql.Connection], T]) -> T:
        for attempt in range(_ATTEMPTS):
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in _RETRYABLE:
                    raise
            # Jitter keeps those who lost together from meeting again.
            time.sleep(secrets.randbelow(10_000) * 1e-6 * 2 ** min(attempt, 6))
        raise AuditUnavailable(
            f"The ledger is so busy that a transaction failed {_ATTEMPTS} times.",
            place="privacy ledger",
            remedy="Try again; nothing was changed.",
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _place(dataset: str, unit: str) -> str:
    return f"budget of {dataset} per {unit}"


def _update(run_key: str) -> sql.Update:
    return release_table.update().where(release_table.c.run_key == run_key)


def _balance(connection: sql.Connection, dataset: str, unit: str) -> Balance:
    balance = records.find_budget(connection, dataset, unit)
    if balance is None:
        raise BudgetError(
            "There is no privacy budget.",
            place=_place(dataset, unit),
            remedy=f"Its owner makes it: `lepton budget create {dataset} --unit {unit} --epsilon ...`.",
        )
    return balance


def _existing(connection: sql.Connection, run_key: str) -> Release:
    release = records.find_release(connection, run_key)
    if release is None:
        raise BudgetError("No release has this run key.", place=f"run {run_key}", remedy="See `lepton budget show`.")
    return release


def _check_spec(release: Release, spec_digest: str) -> None:
    if release.spec_digest != spec_digest:
        raise RunKeyConflict(
            f"The run key holds a release ({release.state}) of another spec.",
            place=f"run {release.run_key}",
            remedy="Use a new run for the changed spec"
            + (
                "."
                if release.state != RESERVED
                else ", or `lepton budget release-reservation` if the earlier job is dead."
            ),
        )
