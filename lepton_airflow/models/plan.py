"""What a retraining is asked to do: inputs, training, hardening, evaluation and gate, as they stand in a spec.

Nothing here imports TensorFlow: operators validate these models while a DAG is parsed.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lepton_airflow.models.threat_model import PlanModel, ThreatModel

_Width = Annotated[int, Field(ge=1)]


class ImageColumn(PlanModel):
    """A column of images: arrays of ``height * width * channels`` numbers, row by row, channels last.

    :param column: its name
    :param shape: height, width, channels
    :param low: the value of the darkest pixel
    :param high: the value of the brightest pixel
    """

    column: str = Field(min_length=1)
    shape: tuple[_Width, _Width, _Width]
    low: float = 0.0
    high: float

    @model_validator(mode="after")
    def _range_rises(self) -> ImageColumn:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self

    @property
    def pixels(self) -> int:
        """How many numbers an image has."""
        height, width, channels = self.shape
        return height * width * channels


class DifferentialPrivacyPlan(PlanModel):
    """DP-SGD (Abadi et al. 2016): what the trained weights may tell of one privacy unit, added or removed.

    Nothing here may be chosen from the data.

    :param epsilon: the budget to spend, charged to the ledger of the dataset and its unit
    :param delta: the probability with which epsilon may not hold
    :param sampling_rate: the probability with which each unit takes part in a step (Poisson sampling)
    :param steps: of the optimizer; they take the place of epochs
    :param clipping_norm: the L2 norm to which the mean gradient of each unit's examples is clipped
    :param baselines: small private models of diffprivlib to be compared with
    :param baseline_epsilon: what each baseline costs; it is charged to the ledger too
    """

    epsilon: Decimal = Field(gt=0)
    delta: Decimal = Field(gt=0, lt=1)
    sampling_rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    clipping_norm: float = Field(default=1.0, gt=0)
    baselines: tuple[Literal["linear_regression", "gaussian_naive_bayes"], ...] = ()
    baseline_epsilon: Decimal | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _baselines_are_paid(self) -> DifferentialPrivacyPlan:
        if bool(self.baselines) != (self.baseline_epsilon is not None):
            raise ValueError("baselines and baseline_epsilon go together")
        return self


class TrainingPlan(PlanModel):
    """How the hardened model is trained. The standard model, its baseline, differs only in seeing no attack.

    :param method: ``pgd``: train on the worst examples that projected gradient descent finds (Madry et al. 2018);
        ``trades``: trade clean accuracy against the divergence under attack (Zhang et al. 2019); ``fast``: one step from a
        random start (Wong et al. 2020); ``generator``: a second network learns to make the perturbations, and the classifier
        trains against it and against PGD
    :param epochs: passes over the training split
    :param batch_size: examples a step; the training split must hold at least one batch
    :param learning_rate: Adam's first learning rate; it falls to 0 along a cosine
    :param steps: gradient steps of the attack inside each training step
    :param hidden: widths of the dense hidden layers; none makes a linear model
    :param filters: channels of the first convolutions of an image model
    :param shift: images are shifted by up to so many pixels each way, anew in every epoch; 0 for tables
    :param trades_beta: weight of the divergence in ``trades``
    :param averaging: decay of the moving average of the weights that is kept; 0 keeps the last weights
    :param warm_start: begin with the champion's weights, if there is one
    :param validation_fraction: share of the training units that are not learned from and choose the best epoch; 0 keeps the
        last one
    :param checkpoint_interval: seconds between two checkpoints of a network
    :param workers: tasks of a Spark barrier stage that train together
    :param differential_privacy: train by DP-SGD
    """

    method: Literal["pgd", "trades", "fast", "generator"] = "pgd"
    epochs: int = Field(default=80, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=0.003, gt=0)
    steps: int = Field(default=7, ge=1)
    hidden: tuple[_Width, ...] = (128,)
    filters: int = Field(default=32, ge=1)
    shift: int = Field(default=0, ge=0)
    trades_beta: float = Field(default=6.0, gt=0)
    averaging: float = Field(default=0.0, ge=0, lt=1)
    warm_start: bool = False
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    checkpoint_interval: float = Field(default=30.0, ge=0)
    workers: int = Field(default=1, ge=1)
    differential_privacy: DifferentialPrivacyPlan | None = None


class HardeningPlan(PlanModel):
    """What is made of the trained network before it is attacked.

    :param ensemble: how many networks are trained from different first weights; their logits are averaged
    :param distil: train one student of the first network's form on the ensemble's logits, and ship it instead
    :param pruning: share of the smallest weights of each layer that are set to 0
    :param int8: ship a LiteRT model of 8-bit integers too, which is attacked by itself
    """

    ensemble: int = Field(default=1, ge=1)
    distil: bool = False
    pruning: float = Field(default=0.0, ge=0, lt=1)
    int8: bool = False

    @model_validator(mode="after")
    def _something_to_distil(self) -> HardeningPlan:
        if self.distil and self.ensemble < 2:
            raise ValueError("distil needs an ensemble of at least 2")
        return self


class EvaluationPlan(PlanModel):
    """How the trained models are attacked on the test split.

    An example counts as robust only if it survives every attack: PGD, APGD on the cross-entropy and on the difference of
    logits ratio, Square, and what misled the champion.

    :param epsilons: radii of the curve, rising, in the threat model's units; 0 and the threat model's own are always
        measured
    :param steps: gradient steps of each PGD attack
    :param restarts: PGD attacks on each example
    :param apgd_steps: gradient steps of each APGD attack
    :param square_queries: predictions that Square may ask for, for each example
    :param expectation_samples: predictions over which gradients and decisions of a model with randomness are averaged
        (expectation over transformation); with 1 such a model is refused
    :param test_fraction: share of the privacy units that are held out
    :param example_images: how many attacked images the card's page shows. They are derived from persons' records and are
        published with the model, so there are none unless asked for
    """

    epsilons: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5)
    steps: int = Field(default=40, ge=1)
    restarts: int = Field(default=5, ge=1)
    apgd_steps: int = Field(default=100, ge=10)
    square_queries: int = Field(default=1000, ge=1)
    expectation_samples: int = Field(default=1, ge=1)
    test_fraction: float = Field(default=0.3, gt=0, lt=1)
    example_images: int = Field(default=0, ge=0, le=64)

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
    :param allowed_clean_loss: how much clean accuracy may be lost against the champion: the lower 95% bound of the difference
        on the same examples must not lie below minus this
    :param allowed_robust_loss: the same for the robust accuracy
    """

    minimum_clean_accuracy: float = Field(ge=0, le=1)
    minimum_robust_accuracy: float = Field(ge=0, le=1)
    allowed_clean_loss: float = Field(default=0.02, ge=0, le=1)
    allowed_robust_loss: float = Field(default=0.05, ge=0, le=1)


class RetrainingPlan(PlanModel):
    """A whole retraining.

    :param image: when the examples are images of one column
    :param seed: fixes weights, batches, attack starts and the split, so that a run can be repeated; without one they
        come from the operating system. They protect nothing, so a seed is allowed here
    """

    threat_model: ThreatModel
    training: TrainingPlan
    hardening: HardeningPlan = HardeningPlan()
    evaluation: EvaluationPlan
    gate: GatePlan
    image: ImageColumn | None = None
    seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _only_images_shift(self) -> RetrainingPlan:
        if self.training.shift and self.image is None:
            raise ValueError("training.shift is for images")
        return self

    @model_validator(mode="after")
    def _private_training_is_told_nothing_else(self) -> RetrainingPlan:
        """Whatever else would be learned from the training units is not covered by the noise."""
        if self.training.differential_privacy is None:
            return self
        training, hardening = self.training, self.hardening
        refused = {
            "training.warm_start": training.warm_start,
            "training.validation_fraction": training.validation_fraction > 0,
            "training.workers above 1": training.workers > 1,
            "training.averaging": training.averaging > 0,
            "training.shift": training.shift > 0,
            "training.method generator": training.method == "generator",
            "hardening.ensemble": hardening.ensemble > 1,
            "hardening.pruning": hardening.pruning > 0,
            "hardening.int8": hardening.int8,
            "standard deviations": self.image is None and self.threat_model.units == "standard deviations",
        }
        if unusable := [name for name, given in refused.items() if given]:
            raise ValueError(f"differential_privacy does not go with {', '.join(unusable)}")
        return self
