"""Accuracy against attack strength."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lepton_airflow.models.attacks.pgd import RELATIVE_STEP, ProjectedGradientDescent
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.intervals import Proportion
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import EvaluationPlan

_BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """What an attacked model kept.

    :param curve: radius -> share of the examples that are correct and survive every attack of that radius; radius 0 is
        the clean accuracy
    """

    curve: dict[float, Proportion]

    @property
    def clean(self) -> Proportion:
        return self.curve[0.0]

    def at(self, epsilon: float) -> Proportion:
        return self.curve[epsilon]

    def to_list(self) -> list[dict[str, Any]]:
        return [{"epsilon": epsilon, **share.to_dict()} for epsilon, share in self.curve.items()]


def evaluate(
    model: Any, examples: Examples, *, perturbation: Perturbation, epsilon: float, plan: EvaluationPlan, seed: int
) -> Robustness:
    """Attack ``model`` at every radius of the plan, at 0 and at ``epsilon``.

    Each radius is attacked for itself: what a smaller radius broke is not carried over, so a curve that rises would
    betray an attack that has lost its way.
    """
    attack = ProjectedGradientDescent(
        model,
        perturbation=perturbation,
        steps=plan.steps,
        restarts=plan.restarts,
        batch_size=min(_BATCH_SIZE, len(examples)),
        seed=seed,
    )
    curve = {}
    for radius in sorted({0.0, epsilon, *plan.epsilons}):
        survivors = attack.survivors(examples, radius)
        curve[radius] = Proportion.of(survivors, examples.units)
    return Robustness(curve=curve)


def attack_parameters(plan: EvaluationPlan) -> dict[str, Any]:
    """The attack as a model card states it."""
    return {
        "name": "pgd",
        "loss": "cross-entropy",
        "steps": plan.steps,
        "restarts": plan.restarts,
        "step_length": f"{RELATIVE_STEP} * epsilon / steps",
        "start": "the example itself first, then uniformly in the ball",
    }
