"""The privacy ledger: budgets that cannot be overspent, and releases that happen once.

A release goes ``reserved -> drawn -> published`` under the run key of its job:

- *reserved*: its mechanisms are stored and charged, before any data is read. A job that dies here has released nothing; the
  rerun under the same run key takes the reservation up again, or the budget's owner releases it (state ``released``).
- *drawn*: the noisy numbers are stored, and what they cost is spent. There is no way back from here: whoever asks again under
  the same run key gets these numbers. If the release needs an approval, it waits here for somebody else's.
- *published*: the release file is written.

What all releases of a budget cost together is what :mod:`lepton_airflow.privacy.accountant` says of their mechanisms, at the
budget's delta. A budget with a period is one budget for each calendar period (UTC), and its guarantee is for each period; a
release belongs to the period in which it was reserved.

Transactions are serializable (see :mod:`lepton_airflow.audit.transactions`).

This module imports neither Spark, Arrow, NumPy nor OpenDP: the Airflow side reads the ledger too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeVar

import sqlalchemy as sql

from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.audit.database import reading, require_reachable
from lepton_airflow.audit.transactions import serializable
from lepton_airflow.errors import BudgetError
from lepton_airflow.privacy import admission, records
from lepton_airflow.privacy.accountant import check_event, spending
from lepton_airflow.privacy.admission import budget_place, run_place
from lepton_airflow.privacy.amount import amount_text
from lepton_airflow.privacy.periods import PERIODS, Period, period_start
from lepton_airflow.privacy.records import (
    DRAWN,
    PUBLISHED,
    RELEASED,
    RESERVED,
    Balance,
    Budget,
    MechanismEvent,
    Release,
)
from lepton_airflow.privacy.tables import budget_table, release_table

T = TypeVar("T")

#: Version of the stored noisy numbers. Version 1 had one key, ``vectors``.
DRAW_SCHEMA = "lepton.draw/2"


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """The ledger in the audit database.

    :param engine: from :func:`lepton_airflow.audit.database.connect`
    :param clock: the time, with its zone; it decides to which period a reservation belongs
    """

    def __init__(self, engine: sql.Engine, *, clock: Callable[[], datetime] = _utc_now) -> None:
        self._engine = engine
        self._clock = clock

    def require_reachable(self) -> None:
        """Ask for the database, right before something shows that is to be noted in it.

        :raises AuditUnavailable: it cannot be reached
        """
        require_reachable(self._engine)

    def create(
        self,
        *,
        dataset: str,
        unit: str,
        epsilon: Decimal | Fraction,
        delta: Decimal | Fraction = Fraction(0),
        owner: str,
        period: Period | None = None,
    ) -> Balance:
        """Open a budget.

        :param period: a budget of epsilon and delta for each calendar period (UTC; weeks are ISO weeks). The guarantee is then
            for each period: what a unit may lose over several periods adds up
        :raises BudgetError: there is one for this dataset and unit already, or an amount or the period is none
        """
        place = budget_place(dataset, unit)
        if epsilon <= 0 or not 0 <= delta < 1:
            raise BudgetError(
                "A budget needs epsilon above 0 and delta from 0 to below 1.",
                place=place,
                remedy="Correct the amounts.",
            )
        if period is not None and period not in PERIODS:
            raise BudgetError(
                f"There is no period {period!r}.", place=place, remedy=f"Choose one of {', '.join(PERIODS)}, or none."
            )

        def work(connection: sql.Connection) -> Balance:
            if records.budgets(connection, dataset=dataset, unit=unit):
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
                    created_at=self._now(),
                    period=period,
                )
            )
            return self._balance(connection, admission.budget(connection, dataset, unit), None)

        return self._transaction(work)

    def balance(self, *, dataset: str, unit: str, at: datetime | None = None) -> Balance:
        """What is charged and left in the period that holds ``at`` (default: now).

        :raises BudgetError: there is no such budget
        :raises MissingDependency: the budget has a delta, and dp-accounting is not installed
        """
        with reading(self._engine) as connection:
            return self._balance(connection, admission.budget(connection, dataset, unit), at)

    def balances(self, dataset: str | None = None, *, at: datetime | None = None) -> list[Balance]:
        """All budgets, or those of ``dataset``, by dataset and unit; as :meth:`balance`."""
        with reading(self._engine) as connection:
            return [self._balance(connection, budget, at) for budget in records.budgets(connection, dataset=dataset)]

    def history(self, *, dataset: str, unit: str) -> list[Release]:
        """Every release of a budget, of all periods, oldest reservation first."""
        with reading(self._engine) as connection:
            budget = admission.budget(connection, dataset, unit)
            return records.releases(connection, release_table.c.budget_id == budget.id)

    def find(self, run_key: str) -> Release | None:
        """The release of ``run_key``; None when it never asked for budget."""
        with reading(self._engine) as connection:
            return records.find_release(connection, run_key)

    def result(self, run_key: str) -> dict[str, Any]:
        """The noisy numbers of a drawn release, as :meth:`draw` was given them the first time.

        :raises BudgetError: nothing was drawn under this run key
        """
        stored = self._stored(run_key, release_table.c.result)
        if stored is None:
            raise BudgetError("Nothing was drawn.", place=run_place(run_key), remedy="Run the release again.")
        drawn = json.loads(stored)
        numbers: dict[str, Any] = drawn["result"] if "result" in drawn else {"vectors": drawn["vectors"]}
        return numbers

    def spec(self, run_key: str) -> dict[str, Any]:
        """The spec of a release, so that it can be published without its job.

        :raises BudgetError: no such release, or one of an older version of this package, which stored none
        """
        stored = self._stored(run_key, release_table.c.spec)
        if stored is None:
            raise BudgetError("No spec is stored.", place=run_place(run_key), remedy="Run the release's job again.")
        spec: dict[str, Any] = json.loads(stored)
        return spec

    def mechanisms(self, *, dataset: str, unit: str) -> list[MechanismEvent]:
        """Every mechanism that was run on a budget, in the order of the draws."""
        by_release = self.mechanisms_by_release(dataset=dataset, unit=unit)
        return [event for events in by_release.values() for event in events]

    def mechanisms_by_release(self, *, dataset: str, unit: str) -> dict[str, list[MechanismEvent]]:
        """Every mechanism that was run on a budget, by run key, in the order of the draws."""
        with reading(self._engine) as connection:
            budget = admission.budget(connection, dataset, unit)
            return records.mechanisms(connection, release_table.c.budget_id == budget.id, DRAWN, PUBLISHED)

    def reserve(
        self,
        *,
        run_key: str,
        spec_digest: str,
        spec: Mapping[str, Any],
        dataset: str,
        unit: str,
        mechanisms: Sequence[MechanismEvent],
        principal: str,
        requested_by: str | None = None,
        needs_approval: bool = False,
        epsilon: Decimal | Fraction | None = None,
        delta: Decimal | Fraction | None = None,
    ) -> Release:
        """Charge the budget for ``mechanisms``, or find what an earlier try of the same run and spec got to; that costs nothing.

        :param spec: what is released; stored, for :meth:`spec`
        :param mechanisms: all that the release will run, with different names
        :param requested_by: the person who has it run; neither they nor ``principal`` can approve it
        :param needs_approval: it is only published after :meth:`approve`
        :param epsilon: what a release with Gaussian noise is said to ask for; others ask for the sum of their mechanisms'
        :param delta: likewise
        :returns: in state reserved; or drawn or published, if an earlier try was
        :raises BudgetExhausted: more than is left; nothing is reserved
        :raises BudgetError: there is no such budget, it does not admit such mechanisms, or a mechanism has too little noise
        :raises RunKeyConflict: the run key holds another spec
        :raises MissingDependency: the budget has a delta, and dp-accounting is not installed
        """
        place = run_place(run_key)
        for event in mechanisms:
            check_event(event, place=place)
        if len({event.query for event in mechanisms}) < len(mechanisms):
            raise BudgetError("Two mechanisms have one name.", place=place, remedy="This is a defect; report it.")
        spec_text = canonical_json(dict(spec)).decode()

        def admit(connection: sql.Connection) -> tuple[Release | None, Budget, str | None]:
            """The earlier try, if it still counts; else what the release would cost must be left."""
            earlier = records.find_release(connection, run_key)
            budget = admission.budget(connection, dataset, unit)
            start = period_start(budget.period, self._clock())
            if earlier is not None and earlier.state != RELEASED:
                admission.check_spec(earlier, spec_digest)
            else:
                admission.check_affordable(budget, start, _events(connection, budget, start), mechanisms, asked=epsilon)
            return earlier, budget, start

        def work(connection: sql.Connection) -> Release:
            earlier, budget, start = admit(connection)
            if earlier is not None and earlier.state != RELEASED:
                return earlier
            asked = admission.amounts_asked(budget, mechanisms, epsilon, delta)
            row = {
                "budget_id": budget.id,
                "spec_digest": spec_digest,
                "spec": spec_text,
                "state": RESERVED,
                "epsilon": amount_text(asked[0]),
                "delta": amount_text(asked[1]),
                "principal": principal,
                "requested_by": requested_by,
                "period_start": start,
                "needs_approval": needs_approval,
                "reserved_at": self._now(),
            }
            if earlier is None:
                connection.execute(release_table.insert().values(run_key=run_key, **row))
            else:
                connection.execute(_update(run_key).values(row))
            records.store_mechanisms(connection, run_key, mechanisms)
            return admission.existing(connection, run_key)

        # Accounting can take a while. Done here first, it is found in a cache by the transaction, which keeps others waiting.
        with reading(self._engine) as connection:
            admit(connection)
        return self._transaction(work)

    def draw(self, *, run_key: str, spec_digest: str, result: Mapping[str, Any]) -> Release:
        """Store noisy numbers; from here on, what they cost is spent. The first call under a run key wins: what counts is
        :meth:`result` afterwards, not the argument.

        :param result: what JSON can hold: the noisy numbers, nothing else that comes from data
        :raises BudgetError: nothing is reserved
        :raises RunKeyConflict: the run key holds another spec
        """
        stored = json.dumps({"schema": DRAW_SCHEMA, "result": dict(result)}, allow_nan=False)

        def work(connection: sql.Connection) -> Release:
            release = records.find_release(connection, run_key)
            if release is None or release.state == RELEASED:
                raise BudgetError(
                    "The run has no reservation: it was released meanwhile, or never made.",
                    place=run_place(run_key),
                    remedy="Run the release again; nothing was spent and nothing left the driver.",
                )
            admission.check_spec(release, spec_digest)
            if release.state == RESERVED:
                connection.execute(_update(run_key).values(state=DRAWN, drawn_at=self._now(), result=stored))
            return admission.existing(connection, run_key)

        return self._transaction(work)

    def approve(self, *, run_key: str, approver: str) -> Release:
        """Let a drawn release be published; again by the same person is no error.

        :raises AccessDenied: the approver is who requested the release, or the identity that ran it
        :raises BudgetError: nothing was drawn, no approval is needed, or somebody else approved
        """

        def work(connection: sql.Connection) -> Release:
            release = admission.existing(connection, run_key)
            admission.check_approver(release, approver)
            if release.approver is None:
                connection.execute(_update(run_key).values(approver=approver, approved_at=self._now()))
            return admission.existing(connection, run_key)

        return self._transaction(work)

    def publish(self, *, run_key: str, spec_digest: str) -> Release:
        """Note that the release file of ``run_key`` is durable; again is no error.

        :raises ApprovalMissing: it needs an approval and has none
        :raises BudgetError: nothing was drawn
        :raises RunKeyConflict: the run key holds another spec
        """

        def work(connection: sql.Connection) -> Release:
            release = admission.existing(connection, run_key)
            admission.check_spec(release, spec_digest)
            admission.check_publishable(release)
            if release.state == DRAWN:
                connection.execute(_update(run_key).values(state=PUBLISHED, published_at=self._now()))
            return admission.existing(connection, run_key)

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
            release = admission.existing(connection, run_key)
            owner = admission.budget(connection, release.dataset, release.unit).owner
            admission.check_releasable(release, owner=owner, principal=principal)
            connection.execute(_update(run_key).values(state=RELEASED))
            return admission.existing(connection, run_key)

        return self._transaction(work)

    def _balance(self, connection: sql.Connection, budget: Budget, at: datetime | None) -> Balance:
        start = period_start(budget.period, self._clock() if at is None else at)
        return Balance(
            **vars(budget),
            period_start=start,
            releases=tuple(records.releases(connection, records.of_period(budget, start))),
            spending=spending(_events(connection, budget, start), epsilon=budget.epsilon, delta=budget.delta),
        )

    def _stored(self, run_key: str, column: sql.Column[str | None]) -> str | None:
        with reading(self._engine) as connection:
            return connection.execute(sql.select(column).where(release_table.c.run_key == run_key)).scalar_one_or_none()

    def _now(self) -> str:
        return self._clock().astimezone(UTC).isoformat(timespec="microseconds")

    def _transaction(self, work: Callable[[sql.Connection], T]) -> T:
        return serializable(self._engine, work, place="privacy ledger")


def _update(run_key: str) -> sql.Update:
    return release_table.update().where(release_table.c.run_key == run_key)


def _events(connection: sql.Connection, budget: Budget, start: str | None) -> list[MechanismEvent]:
    """All that is charged in a period: reserved as well as drawn."""
    found = records.mechanisms(connection, records.of_period(budget, start), RESERVED, DRAWN, PUBLISHED)
    return [event for events in found.values() for event in events]
