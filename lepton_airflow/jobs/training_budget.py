"""What a private training costs, charged to the same ledger as releases: reserved before data is read, drawn once, never again.

To the ledger a training is one mechanism of which only epsilon and delta are known, and each baseline another. Weights that
were drawn and lost, because the gate refused them or the job died before it published them, stay paid for: the run key
then trains no second time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lepton_airflow.errors import BudgetError, LeptonError
from lepton_airflow.models.plan import DifferentialPrivacyPlan
from lepton_airflow.privacy.amount import amount_text
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.records import RESERVED, MechanismEvent, Release

if TYPE_CHECKING:
    from lepton_airflow.jobs.runner import Job

_TRAINING, _BASELINE = "DP-SGD", "diffprivlib model"


class TrainingBudget:
    """The reservation of one private training."""

    def __init__(self, ledger: Ledger, job: Job, release: Release) -> None:
        self._ledger = ledger
        self._job = job
        self._release = release

    def draw(self, result: Mapping[str, Any]) -> None:
        """Spend what was reserved; to be called before anything that depends on the noisy weights leaves the driver.

        :param result: what was trained: digests and public parameters
        """
        self._ledger.draw(run_key=self._job.run_key, spec_digest=self._job.spec_digest, result=result)

    def publish(self) -> None:
        """Note that the model is in the champion's place; again is no error."""
        self._ledger.publish(run_key=self._job.run_key, spec_digest=self._job.spec_digest)

    def summary(self) -> dict[str, str]:
        """``epsilon_spent`` by this run, and ``epsilon_left`` in the budget."""
        balance = self._ledger.balance(dataset=self._release.dataset, unit=self._release.unit)
        return {"epsilon_spent": amount_text(self._release.epsilon), "epsilon_left": amount_text(balance.left)}


def mechanisms(plan: DifferentialPrivacyPlan) -> list[MechanismEvent]:
    """What the ledger stores of a private training."""
    events = [_event("training", _TRAINING, Fraction(plan.epsilon), Fraction(plan.delta))]
    if plan.baseline_epsilon is not None:
        cost = Fraction(plan.baseline_epsilon)
        events += [_event(f"baseline {kind}", _BASELINE, cost, Fraction(0)) for kind in plan.baselines]
    return events


@contextmanager
def reserved(
    job: Job, plan: DifferentialPrivacyPlan, *, dataset: str, unit: str, purpose: str, spec: Mapping[str, Any]
) -> Iterator[TrainingBudget]:
    """Authorise and reserve; an error of ours before the draw gives the reservation back.

    :param dataset: the dataset whose budget pays
    :param spec: of the job, as JSON
    :raises AccessDenied: the policy grants no ``release`` of so much epsilon
    :raises BudgetExhausted: more than is left; no data was read
    :raises BudgetError: there is no such budget, or this run drew its weights before
    """
    ledger = Ledger(job.engine)
    events = mechanisms(plan)
    asked = sum((event.epsilon for event in events), Fraction(0))
    with job.guard.operation(
        action="release",
        dataset=dataset,
        columns=(unit,),
        purpose=purpose,
        epsilon=float(asked),
        details={"released": "model", "privacy_unit": unit},
    ) as operation:
        release = ledger.reserve(
            run_key=job.run_key,
            spec_digest=job.spec_digest,
            spec=spec,
            dataset=dataset,
            unit=unit,
            mechanisms=events,
            principal=job.principal,
            requested_by=job.requested_by,
        )
        if release.state != RESERVED:
            raise BudgetError(
                f"This run drew its weights before ({release.state}), and they are not in the champion's place.",
                place=f"run {job.run_key}",
                remedy="What they cost is spent. Train again under a new run key, at a new cost.",
            )
        budget = TrainingBudget(ledger, job, release)
        try:
            yield budget
        except LeptonError:
            ledger.cancel(run_key=job.run_key, spec_digest=job.spec_digest)
            raise
        operation.record(
            details={**budget.summary(), "delta_spent": amount_text(release.delta), "budget": dataset},
        )


def _event(query: str, mechanism: str, epsilon: Fraction, delta: Fraction) -> MechanismEvent:
    return MechanismEvent(
        query=query,
        mechanism=mechanism,
        groups=1,
        per_group=1,
        width=1,
        scale=math.nextafter(float(1 / epsilon), math.inf),
        epsilon=epsilon,
        delta=delta,
    )
