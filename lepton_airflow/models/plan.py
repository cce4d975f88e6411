"""What a retraining is asked to do: threat model, training, evaluation and gate, as they stand in a spec.

Nothing here imports TensorFlow: operators validate these models while a DAG is parsed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class PlanModel(BaseModel):
    """Base of the parts of a plan: frozen, an unknown field is an error, infinity and NaN are no numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LinfThreatModel(PlanModel):
    """The attacker may move every feature of an example at once, each by at most ``epsilon``.

    :param epsilon: the radius of the L-infinity ball
    :param units: what ``epsilon`` is measured in; one unit is the feature's standard deviation over the training split
    """

    norm: Literal["linf"]
    epsilon: float = Field(gt=0)
    units: Literal["standard deviations"]


class TrainingPlan(PlanModel):
    """How the hardened model is trained. The standard model, its baseline, differs only in seeing no attack.

    :param method: ``pgd``: train on the worst examples that projected gradient descent finds (Madry et al. 2018)
    :param epochs: passes over the training split
    :param batch_size: examples a step; the training split must hold at least one batch
    :param learning_rate: Adam's first learning rate; it falls to 0 along a cosine
    :param steps: gradient steps of the attack inside each training step
    :param hidden: widths of the hidden layers; none makes a linear model
    """

    method: Literal["pgd"] = "pgd"
    epochs: int = Field(default=80, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=0.003, gt=0)
    steps: int = Field(default=7, ge=1)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128,)


class EvaluationPlan(PlanModel):
    """How the trained models are attacked on the test split.

    :param epsilons: radii of the curve, rising, in the threat model's units; 0 and the threat model's own are always
        measured
    :param steps: gradient steps of each attack
    :param restarts: attacks on each example; it is robust only if it survives all of them
    :param test_fraction: share of the privacy units that are held out
    """

    epsilons: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5)
    steps: int = Field(default=40, ge=1)
    restarts: int = Field(default=5, ge=1)
    test_fraction: float = Field(default=0.3, gt=0, lt=1)

    @field_validator("epsilons")
    @classmethod
    def _rising(cls, epsilons: tuple[float, ...]) -> tuple[float, ...]:
        if any(left >= right for left, right in pairwise(epsilons)):
            raise ValueError("epsilons must rise")
        return epsilons


class GatePlan(PlanModel):
    """What a model must reach on the test split before it may replace the champion.

    :param minimum_clean_accuracy: share of the test examples classified correctly
    :param minimum_robust_accuracy: share still classified correctly under every attack at the threat model's epsilon
    """

    minimum_clean_accuracy: float = Field(ge=0, le=1)
    minimum_robust_accuracy: float = Field(ge=0, le=1)


class RetrainingPlan(PlanModel):
    """A whole retraining.

    :param seed: fixes weights, batches, attack starts and the split, so that a run can be repeated; without one they
        come from the operating system. They protect nothing, so a seed is allowed here
    """

    threat_model: LinfThreatModel
    training: TrainingPlan
    evaluation: EvaluationPlan
    gate: GatePlan
    seed: int | None = Field(default=None, ge=0)
