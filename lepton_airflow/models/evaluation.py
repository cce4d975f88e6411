"""What a model keeps under attack: the suite at the threat model's epsilon, a curve over radii, and whether to believe them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lepton_airflow.models.attacks.suite import BATCH_SIZE, AttackSuite, Cascade, SuiteResult
from lepton_airflow.models.comparison import Difference, paired
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.input_space import InputSpace, Mask
from lepton_airflow.models.intervals import Proportion
from lepton_airflow.models.masking import Suspect, diagnose, outside_threat_model
from lepton_airflow.models.plan import EvaluationPlan
from lepton_airflow.models.prediction import correct
from lepton_airflow.models.refusals import Refusal

#: Radius -> share of the examples that are correct and survive PGD of that radius; radius 0 is the clean accuracy.
Curve = Mapping[float, Proportion]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an attacked model kept.

    :param suite: what became of each example at the threat model's epsilon
    :param curve: by PGD alone, each radius attacked by itself
    :param refusals: why the result is not believed; none if there is no reason
    :param units: [n], the privacy unit of each example
    """

    suite: SuiteResult
    curve: Curve
    refusals: tuple[Refusal, ...]
    units: Any

    @property
    def epsilon(self) -> float:
        return self.suite.epsilon

    @property
    def clean(self) -> Proportion:
        return Proportion.of(self.suite.clean, self.units)

    @property
    def robust(self) -> Proportion:
        """The share that is correct and survives every attack of the suite."""
        return Proportion.of(self.suite.robust, self.units)

    def stages(self) -> list[dict[str, Any]]:
        """The suite as a model card states it: each attack with its parameters and what was left after it."""
        return [
            {
                "name": stage.name,
                "kind": stage.kind,
                "parameters": dict(stage.parameters),
                **Proportion.of(stage.survivors, self.units).to_dict(),
            }
            for stage in self.suite.stages
        ]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A challenger against the champion on the same examples."""

    clean: Difference
    robust: Difference

    def to_dict(self) -> dict[str, Any]:
        return {"clean": self.clean.to_dict(), "robust": self.robust.to_dict()}


def evaluate(
    model: Any,
    examples: Examples,
    *,
    space: InputSpace,
    epsilon: float,
    plan: EvaluationPlan,
    seed: int,
    champion: Any = None,
) -> Evaluation:
    """Attack ``model`` with the whole suite at ``epsilon`` and with PGD at the plan's radii; look for signs of masked gradients.

    :param model: a Keras model from raw features [b, d] to logits [b, classes]
    :param examples: test examples, n at least 1
    :param champion: what misleads this model is tried on ``model`` too
    """
    batch_size = min(BATCH_SIZE, len(examples))
    suite = AttackSuite(model, space=space, plan=plan, seed=seed, champion=champion, batch_size=batch_size)
    result = suite.run(examples, epsilon)
    survivors = _curve(suite, examples, {epsilon, *plan.epsilons}, clean=result.clean)
    suspect = Suspect(
        model=model,
        examples=examples,
        space=space,
        plan=plan,
        seed=seed,
        suite=suite,
        result=result,
        curve=survivors,
        batch_size=batch_size,
    )
    return Evaluation(
        suite=result, curve=_shares(survivors, examples), refusals=diagnose(suspect), units=examples.units
    )


def withstood(suite: Cascade, examples: Examples, epsilon: float) -> Evaluation:
    """What a model kept under ``suite`` at ``epsilon`` alone, for one whose other figures nobody asks for."""
    result = suite.run(examples, epsilon)
    return Evaluation(suite=result, curve={}, refusals=outside_threat_model(result), units=examples.units)


def accuracy_curve(
    model: Any, examples: Examples, *, space: InputSpace, radii: Iterable[float], plan: EvaluationPlan, seed: int
) -> Curve:
    """Accuracy by PGD alone, for a model that is a baseline and stands before no gate.

    :param radii: in the threat model's units; 0 is always measured
    """
    batch_size = min(BATCH_SIZE, len(examples))
    suite = AttackSuite(model, space=space, plan=plan, seed=seed, batch_size=batch_size)
    logits = suite.predict(examples.features)
    return _shares(_curve(suite, examples, radii, clean=correct(logits, examples.labels)), examples)


def compare(champion: Evaluation, challenger: Evaluation) -> Comparison:
    """Hold two evaluations on the same examples against each other, example by example."""
    return Comparison(
        clean=paired(champion.suite.clean, challenger.suite.clean, challenger.units),
        robust=paired(champion.suite.robust, challenger.suite.robust, challenger.units),
    )


def curve_points(curve: Curve) -> list[dict[str, Any]]:
    """A curve as a model card states it."""
    return [{"epsilon": epsilon, **share.to_dict()} for epsilon, share in curve.items()]


def _curve(suite: AttackSuite, examples: Examples, radii: Iterable[float], *, clean: Mask) -> dict[float, Mask]:
    """Each radius is attacked for itself: what a smaller radius broke is not carried over, so a curve that rises betrays an
    attack that has lost its way."""
    pgd = next(planned.attack for planned in suite.attacks if planned.name == "pgd")
    return {0.0: clean} | {radius: ~pgd.run(examples, radius).misled for radius in sorted(set(radii)) if radius > 0}


def _shares(survivors: Mapping[float, Mask], examples: Examples) -> dict[float, Proportion]:
    return {radius: Proportion.of(alive, examples.units) for radius, alive in survivors.items()}
