"""The attacks that a model must survive, one after the other: an example counts as robust only if none misled the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lepton_airflow.models.attacks.apgd import AutoProjectedGradientDescent
from lepton_airflow.models.attacks.losses import LossName
from lepton_airflow.models.attacks.outcome import Attack
from lepton_airflow.models.attacks.pgd import RELATIVE_STEP, ProjectedGradientDescent
from lepton_airflow.models.attacks.square import FIRST_SHARE, Square
from lepton_airflow.models.attacks.transfer import Transfer
from lepton_airflow.models.examples import Examples, Features
from lepton_airflow.models.input_space import InputSpace, Mask
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import EvaluationPlan
from lepton_airflow.models.prediction import Predict, correct, margins, prediction_of
from lepton_airflow.models.seeds import derived_seed

StageName = Literal["clean", "pgd", "apgd-ce", "apgd-dlr", "apgd-dlr-targeted", "square", "transfer"]
StageKind = Literal["none", "white-box", "black-box", "transfer"]

#: Examples attacked at a time, by default.
BATCH_SIZE = 128
#: Classes that the targeted attack pulls towards, the likeliest (Croce and Hein 2020).
_TARGETS = 9
#: What is tried of the attacks on another model.
_TRANSFERRED: tuple[StageName, ...] = ("pgd", "apgd-ce", "apgd-dlr")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One attack, and who survived it and all before it.

    :param parameters: of the attack, as a model card states them
    :param survivors: [n]
    """

    name: StageName
    kind: StageKind
    parameters: dict[str, Any] = field(default_factory=dict)
    survivors: Mask


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """What n examples went through at one radius.

    :param stages: the first is the model's answer to the examples as they are
    :param adversarial: [n, d]: what misled the model, or else, of what the attacks came to, that with the smallest margin
    :param violations: adversarial examples outside the ball or the constraints: above 0 the attack broke its own rules
    """

    epsilon: float
    stages: tuple[Stage, ...]
    adversarial: Features
    violations: int

    @property
    def clean(self) -> Mask:
        """[n]: classified correctly before any attack."""
        return self.stages[0].survivors

    @property
    def robust(self) -> Mask:
        """[n]: classified correctly before and after every attack."""
        return self.stages[-1].survivors


@dataclass(frozen=True, kw_only=True)
class PlannedAttack:
    """An attack of the suite with what is told of it."""

    name: StageName
    kind: StageKind
    attack: Attack
    parameters: dict[str, Any]


class Cascade:
    """Attacks on one model, one after the other.

    :param predict: how the model predicts
    """

    def __init__(self, attacks: Iterable[PlannedAttack], *, perturbation: Perturbation, predict: Predict) -> None:
        self.attacks = tuple(attacks)
        self.perturbation = perturbation
        self.predict = predict

    def run(self, examples: Examples, epsilon: float) -> SuiteResult:
        """Attack with radius ``epsilon``; each attack is given what survived those before it."""
        logits = self.predict(examples.features)
        alive = correct(logits, examples.labels)
        margin = margins(logits, examples.labels)
        adversarial = examples.features.copy()
        stages = [Stage(name="clean", kind="none", survivors=alive)]
        for planned in self.attacks:
            chosen = np.flatnonzero(alive)
            outcome = planned.attack.run(examples.take(alive), epsilon)
            reached = margins(self.predict(outcome.features), examples.labels[chosen])
            stronger = outcome.misled | (reached < margin[chosen])
            adversarial[chosen[stronger]] = outcome.features[stronger]
            margin[chosen[stronger]] = reached[stronger]
            alive = alive.copy()
            alive[chosen[outcome.misled]] = False
            stages.append(Stage(name=planned.name, kind=planned.kind, parameters=planned.parameters, survivors=alive))
        broken = self.perturbation.violations(examples.features, adversarial, epsilon)
        return SuiteResult(
            epsilon=epsilon,
            stages=tuple(stages),
            adversarial=adversarial,
            violations=int(np.count_nonzero(broken)),
        )


class AttackSuite(Cascade):
    """The attacks on a model whose gradients can be had. Their graphs are traced once, whatever the radii and the number of
    examples.

    :param model: a Keras model from raw features [b, d] to logits [b, classes]
    :param seed: of random starts and random search
    :param champion: what misleads it is tried on ``model`` too
    :param predict: how ``model`` predicts, if not through itself
    :param batch_size: examples attacked at a time
    """

    def __init__(
        self,
        model: Any,
        *,
        space: InputSpace,
        plan: EvaluationPlan,
        seed: int,
        champion: Any = None,
        predict: Predict | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        perturbation = Perturbation(space)
        predict = predict or prediction_of(model, batch_size=batch_size, samples=plan.expectation_samples)
        tools = _Tools(perturbation=perturbation, predict=predict, plan=plan, seed=seed, batch_size=batch_size)
        attacks = [*tools.white_box(model), tools.square()]
        if champion is not None:
            attacks.append(tools.transfer(champion, source="champion"))
        super().__init__(attacks, perturbation=perturbation, predict=predict)

    @staticmethod
    def black_box(
        predict: Predict,
        *,
        parents: Mapping[str, Any],
        space: InputSpace,
        plan: EvaluationPlan,
        seed: int,
        batch_size: int = BATCH_SIZE,
    ) -> Cascade:
        """The attacks on a model that only predicts, as an int8 model does.

        :param predict: how it predicts
        :param parents: Keras models that it was made from or that imitate it, by what to call them; what misleads them is
            tried on it. See :func:`~lepton_airflow.models.surrogate.surrogate_of`
        """
        perturbation = Perturbation(space)
        tools = _Tools(perturbation=perturbation, predict=predict, plan=plan, seed=seed, batch_size=batch_size)
        attacks = [tools.transfer(parent, source=name) for name, parent in parents.items()]
        return Cascade([*attacks, tools.square()], perturbation=perturbation, predict=predict)


@dataclass(frozen=True, kw_only=True)
class _Tools:
    """Makes the attacks of a suite."""

    perturbation: Perturbation
    predict: Predict
    plan: EvaluationPlan
    seed: int
    batch_size: int

    def white_box(self, model: Any, *, use: str = "") -> Iterator[PlannedAttack]:
        """The attacks by gradients.

        :param use: tells the seeds of attacks on other models apart
        """
        plan = self.plan
        yield PlannedAttack(
            name="pgd",
            kind="white-box",
            attack=ProjectedGradientDescent(
                model,
                perturbation=self.perturbation,
                steps=plan.steps,
                restarts=plan.restarts,
                batch_size=self.batch_size,
                seed=derived_seed(self.seed, f"{use}pgd"),
                samples=plan.expectation_samples,
            ),
            parameters={
                "loss": "cross-entropy",
                "steps": plan.steps,
                "restarts": plan.restarts,
                "step_length": f"{RELATIVE_STEP} * epsilon / steps",
                "start": "the example itself first, then uniformly in the ball",
            },
        )
        classes = int(model.output_shape[-1])
        # The ratio is not defined for two classes, where it would always be 1 or -1: their margin is what is left of it.
        ratio: LossName = "dlr" if classes > 2 else "margin"
        losses: list[tuple[StageName, LossName, int]] = [("apgd-ce", "cross-entropy", 1), ("apgd-dlr", ratio, 1)]
        if classes > 3:
            losses.append(("apgd-dlr-targeted", "targeted-dlr", min(_TARGETS, classes - 1)))
        for name, loss, attempts in losses:
            yield PlannedAttack(
                name=name,
                kind="white-box",
                attack=AutoProjectedGradientDescent(
                    model,
                    perturbation=self.perturbation,
                    loss=loss,
                    steps=plan.apgd_steps,
                    attempts=attempts,
                    batch_size=self.batch_size,
                    seed=derived_seed(self.seed, f"{use}{name}"),
                    samples=plan.expectation_samples,
                ),
                parameters={
                    "loss": loss,
                    "steps": plan.apgd_steps,
                    "targets" if loss == "targeted-dlr" else "restarts": attempts,
                },
            )

    def square(self) -> PlannedAttack:
        return PlannedAttack(
            name="square",
            kind="black-box",
            attack=Square(
                self.predict,
                perturbation=self.perturbation,
                queries=self.plan.square_queries,
                seed=derived_seed(self.seed, "square"),
            ),
            parameters={"queries": self.plan.square_queries, "first_share": FIRST_SHARE},
        )

    def transfer(self, model: Any, *, source: str) -> PlannedAttack:
        on_other = self.white_box(model, use=f"{source}/")
        attacks = [planned.attack for planned in on_other if planned.name in _TRANSFERRED]
        return PlannedAttack(
            name="transfer",
            kind="transfer",
            attack=Transfer(attacks, predict=self.predict),
            parameters={"from": source, "attacks": list(_TRANSFERRED)},
        )
