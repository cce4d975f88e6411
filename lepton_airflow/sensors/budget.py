"""Wait until a privacy budget can pay."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from lepton_airflow.errors import BudgetError, BudgetExhausted, LeptonError
from lepton_airflow.hooks.lepton import LeptonHook

if TYPE_CHECKING:
    from airflow.sdk import Context

    from lepton_airflow.privacy.records import Balance


class PrivacyBudgetSensor(BaseSensorOperator):
    """Wait until the budget of a dataset and privacy unit has at least ``epsilon`` left: in a new period, or once a dead job's
    reservation is given back.

    It reserves nothing: another run can be faster, and the release itself is then refused. What no waiting can bring (there is
    no such budget, it is smaller than ``epsilon`` altogether, or it has no period and is spent) fails the task without a retry.
    Airflow's ``timeout`` is 7 days unless it is configured otherwise; give a budget for each month a longer one.

    :param dataset: the dataset whose budget pays (templated)
    :param unit: the privacy unit's column (templated)
    :param epsilon: what must be left (templated)
    :param lepton_conn_id: the Lepton connection: audit database
    :param poke_interval: how long between two looks; a period ends at midnight UTC, so there is no hurry
    :param mode: ``reschedule`` keeps no worker slot while it waits
    """

    template_fields: Sequence[str] = ("dataset", "unit", "epsilon")

    def __init__(
        self,
        *,
        dataset: str,
        unit: str,
        epsilon: str | float,
        lepton_conn_id: str = LeptonHook.default_conn_name,
        poke_interval: timedelta | float = timedelta(minutes=10),
        mode: str = "reschedule",
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, mode=mode, **kwargs)
        self.dataset = dataset
        self.unit = unit
        self.epsilon = epsilon
        self.lepton_conn_id = lepton_conn_id

    def poke(self, context: Context) -> bool:  # noqa: ARG002 - Airflow calls it so
        """Whether the budget can pay now.

        :raises AirflowFailException: waiting cannot help
        :raises AirflowException: the audit database cannot be reached
        """
        from lepton_airflow.audit.database import connect
        from lepton_airflow.privacy.ledger import Ledger

        try:
            engine = connect(LeptonHook(self.lepton_conn_id).settings)
            try:
                return self._can_pay(Ledger(engine).balance(dataset=self.dataset, unit=self.unit))
            finally:
                engine.dispose()
        except LeptonError as error:
            raised = AirflowFailException if error.final else AirflowException
            raise raised(f"[{error.code}] {error}") from None

    def _can_pay(self, balance: Balance) -> bool:
        from lepton_airflow.privacy.amount import amount_text, exact_decimal
        from lepton_airflow.privacy.records import RESERVED

        place = f"budget of {self.dataset} per {self.unit}"
        try:
            epsilon = exact_decimal(self.epsilon)
        except ValueError as error:
            raise BudgetError(f"The epsilon {error}.", place=place, remedy="Write a decimal, such as 0.5.") from None
        left = amount_text(balance.left)
        if balance.left >= epsilon:
            self.log.info("%s: epsilon %s is left, %s is needed.", place, left, epsilon)
            return True
        waiting = balance.period is not None or any(release.state == RESERVED for release in balance.releases)
        if epsilon > balance.epsilon or not waiting:
            raise BudgetExhausted(
                f"Of epsilon {amount_text(balance.epsilon)} there is {left} left and {epsilon} is needed; "
                "waiting brings no more.",
                place=place,
                remedy=f"Ask for less, or talk to the budget's owner, {balance.owner}.",
            )
        self.log.info("%s: epsilon %s is left, %s is needed; waiting.", place, left, epsilon)
        return False
