"""Tells robustness from masked gradients: signs that attacks failed for another reason than that the model is robust.

The signs are those of Athalye, Carlini, Wagner: Obfuscated Gradients Give a False Sense of Security (ICML 2018), section 3.1, and
Carlini et al.: On Evaluating Adversarial Robustness (2019), with Croce and Hein (ICML 2020) for the difference between losses.
None is proof, and a model that shows none may still be masked; each says that this measurement cannot be believed.

A sign is held against chance: a share counts only if the lower end of its 95% interval lies above what honest models show. The
constants below were set on the tuning seeds of ``benchmarks/corpus/masked_models.py``; other seeds are tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf

from lepton_airflow.models.attacks.apgd import AutoProjectedGradientDescent
from lepton_airflow.models.attacks.gradient import view
from lepton_airflow.models.attacks.losses import LossName
from lepton_airflow.models.attacks.pgd import ProjectedGradientDescent
from lepton_airflow.models.attacks.suite import BATCH_SIZE, AttackSuite, Stage, SuiteResult
from lepton_airflow.models.batches import padded_batches
from lepton_airflow.models.comparison import paired
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.input_space import InputSpace, Mask
from lepton_airflow.models.intervals import Proportion
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import EvaluationPlan
from lepton_airflow.models.prediction import margins
from lepton_airflow.models.refusals import Refusal
from lepton_airflow.models.seeds import derived_seed

#: Share of the correct examples whose loss has no gradient. Honest models showed none: logits would have to be about 100 apart
#: before exp() underflows in single precision.
ZERO_GRADIENTS = 0.05
#: Share of all examples that Square or transfer broke after every gradient attack had failed on them.
BLACK_BOX_EXCESS = 0.01
#: Share of all examples that attacks on the logits' ratio broke after those on the cross-entropy had failed on them. Models
#: trained by TRADES reached 0.10 (0.08 at the interval's lower end) at twice the radius that they were trained for.
CE_DLR_GAP = 0.10
#: Share of all examples that twice the steps and new starts broke after every gradient attack had failed on them.
UNCONVERGED = 0.01
#: By how much doubled steps may lower the surviving examples' margin further, as a share of what they lowered it before.
STILL_RISING = 0.25
#: Two predictions of one example may differ by this share of the largest logit: single precision summed in another order.
RANDOMNESS = 1e-3
#: Gradients below the least normal number of single precision are none: processors flush them to 0.
_NO_GRADIENT = float(np.finfo(np.float32).tiny)
#: How far outputs may be from probabilities and still be taken for them.
_PROBABILITY_SLACK = 1e-4


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """What is diagnosed.

    :param model: a Keras model from raw features [b, d] to logits [b, classes]
    :param examples: n test examples
    :param suite: the attacks, made with ``model``, ``space`` and ``plan``
    :param result: what became of the examples at the threat model's epsilon
    :param curve: radius -> [n], who survived PGD of that radius, each radius attacked by itself
    :param batch_size: examples attacked at a time
    """

    model: Any
    examples: Examples
    space: InputSpace
    plan: EvaluationPlan
    seed: int
    suite: AttackSuite
    result: SuiteResult
    curve: Mapping[float, Mask]
    batch_size: int = BATCH_SIZE


def diagnose(suspect: Suspect) -> tuple[Refusal, ...]:
    """Every sign that the suite's result cannot be believed; none if there is none."""
    return (
        *outside_threat_model(suspect.result),
        *black_box_excess(suspect.result, suspect.examples),
        *(
            refusal
            for check in (
                _wrong_logits,
                _randomness,
                _zero_gradients,
                _ratio_beats_cross_entropy,
                _rises_with_epsilon,
                _not_at_chance_at_large_epsilon,
                _not_converged,
            )
            for refusal in check(suspect)
        ),
    )


def outside_threat_model(suite: SuiteResult) -> tuple[Refusal, ...]:
    """Refuse a result for which an attack left the ball or the constraints."""
    if not suite.violations:
        return ()
    n = len(suite.adversarial)
    return (
        Refusal(
            code="outside-threat-model",
            reason=f"{suite.violations} of {n} attacked examples lie outside the ball of radius {suite.epsilon:g} or break "
            "the constraints: the attack broke its own rules",
            measured={"violations": suite.violations, "n": n},
        ),
    )


def black_box_excess(suite: SuiteResult, examples: Examples) -> tuple[Refusal, ...]:
    """Refuse a result in which attacks without gradients succeed where those with gradients fail."""
    found = []
    for before, stage in pairwise(suite.stages):
        broken = _broken(before, stage, examples)
        if stage.kind in ("black-box", "transfer") and broken.interval[0] > BLACK_BOX_EXCESS:
            found.append(
                Refusal(
                    code="black-box-beats-white-box",
                    reason=f"{stage.name}, which does not see the model's gradients, broke {broken.successes} of "
                    f"{broken.examples} examples that every attack with gradients had failed on: the gradients mislead",
                    measured={"broken": broken.successes, "n": broken.examples},
                )
            )
    return tuple(found)


def _wrong_logits(suspect: Suspect) -> Iterator[Refusal]:
    """Probabilities declared as logits: a second softmax flattens them, and with them the attack's loss."""
    outputs = suspect.suite.predict(suspect.examples.features)
    inside = bool(((outputs >= -_PROBABILITY_SLACK) & (outputs <= 1 + _PROBABILITY_SLACK)).all())
    sums = outputs.sum(axis=1)
    if inside and bool((np.abs(sums - 1) <= _PROBABILITY_SLACK * outputs.shape[1]).all()):
        yield Refusal(
            code="wrong-logits",
            reason="the outputs are declared as logits but are probabilities: all lie in [0, 1] and each row sums to 1",
            measured={"least": float(outputs.min()), "greatest": float(outputs.max())},
        )


def _randomness(suspect: Suspect) -> Iterator[Refusal]:
    """Predicts every example twice, among other neighbours the second time."""
    if suspect.plan.expectation_samples > 1:
        return
    predict, features = suspect.suite.predict, suspect.examples.features
    first, second = predict(features), predict(features[::-1])[::-1]
    scale = float(np.abs(first).max())
    differs = np.abs(first - second).max(axis=1) > RANDOMNESS * scale
    if differs.any():
        changed = int(np.count_nonzero(first.argmax(axis=1) != second.argmax(axis=1)))
        yield Refusal(
            code="randomness",
            reason=f"two predictions of the same example differ for {np.count_nonzero(differs)} of {len(differs)} examples "
            f"({changed} even in their class): the model draws random numbers or looks at an example's neighbours. "
            "Attack it with evaluation.expectation_samples above 1, or take the randomness out",
            measured={"differ": int(np.count_nonzero(differs)), "classes_differ": changed, "n": len(differs)},
        )


def _zero_gradients(suspect: Suspect) -> Iterator[Refusal]:
    examples = suspect.examples.take(suspect.result.clean)
    if not len(examples):
        return
    without = {loss: Proportion.of(_lacks_gradient(suspect, examples, loss), examples.units) for loss in _PROBED}
    cross_entropy, margin = without["cross-entropy"], without["margin"]
    if cross_entropy.interval[0] > ZERO_GRADIENTS:
        cause = (
            "nor has the difference of the logits, so the model is not differentiable where attacks look"
            if margin.interval[0] > ZERO_GRADIENTS
            else "while the difference of the logits has one: the logits are so far apart that the loss is flat"
        )
        yield Refusal(
            code="zero-gradients",
            reason=f"the loss of {cross_entropy.successes} of {cross_entropy.examples} correct examples has no gradient, "
            f"{cause}",
            measured={
                "without_gradient": cross_entropy.successes,
                "without_margin_gradient": margin.successes,
                "n": cross_entropy.examples,
            },
        )


_PROBED: tuple[LossName, ...] = ("cross-entropy", "margin")


def _lacks_gradient(suspect: Suspect, examples: Examples, loss: LossName) -> Mask:
    """[n]: whether the loss does not change with any feature that could be moved, at the examples as they are."""
    perturbation = Perturbation(_unconstrained(suspect.space))

    shape = (suspect.batch_size, len(suspect.space))

    @tf.function(  # type: ignore[untyped-decorator]
        autograph=False, input_signature=(tf.TensorSpec(shape, tf.float32), tf.TensorSpec(shape[:1], tf.int32))
    )
    def steepest(x: Any, labels: Any) -> Any:
        seen = view(suspect.model, x, labels, tf.zeros_like(x), perturbation=perturbation, epsilon=1.0, loss=loss)
        return tf.reduce_max(tf.abs(seen.gradient), axis=-1)

    found = [
        steepest(batch.features, batch.labels).numpy()[: batch.count]
        for batch in padded_batches(examples.features, examples.labels, size=suspect.batch_size)
    ]
    lacking: Mask = np.concatenate(found) < _NO_GRADIENT
    return lacking


def _ratio_beats_cross_entropy(suspect: Suspect) -> Iterator[Refusal]:
    stages = {stage.name: stage for stage in suspect.result.stages}
    before = stages.get("apgd-ce", stages.get("pgd"))
    after = stages.get("apgd-dlr-targeted", stages.get("apgd-dlr"))
    if before is None or after is None:
        return
    broken = _broken(before, after, suspect.examples)
    if broken.interval[0] > CE_DLR_GAP:
        yield Refusal(
            code="ce-dlr-gap",
            reason=f"attacks on the ratio of logits broke {broken.successes} of {broken.examples} examples that attacks on the "
            "cross-entropy had failed on: the scale of the logits hides the loss",
            measured={"broken": broken.successes, "n": broken.examples},
        )


def _rises_with_epsilon(suspect: Suspect) -> Iterator[Refusal]:
    """A larger ball holds every perturbation of a smaller one, so a better score in it is the attack's failure."""
    for smaller, larger in pairwise(sorted(suspect.curve)):
        rise = paired(suspect.curve[smaller], suspect.curve[larger], suspect.examples.units)
        if rise.lower > 0:
            yield Refusal(
                code="rises-with-epsilon",
                reason=f"accuracy rises by {rise.mean:.3f} from epsilon {smaller:g} to {larger:g} ({rise.gained} examples "
                f"gained, {rise.lost} lost of {rise.n}): the attack loses its way",
                measured={"smaller": smaller, "larger": larger, "rise": rise.mean, "lower": rise.lower},
            )
            return


def _not_at_chance_at_large_epsilon(suspect: Suspect) -> Iterator[Refusal]:
    """In a ball that covers the data, every example can be turned into one of any other class, so an attack that works leaves
    next to nothing. Constraints are left out: they may forbid just that. So are random starts, for noise that large misleads
    any model without an attack.
    """
    space = _unconstrained(suspect.space)
    epsilon = covering_radius(suspect.examples, space)
    alive = _descent(suspect, Perturbation(space)).survivors(suspect.examples, epsilon)
    share = Proportion.of(alive, suspect.examples.units)
    chance = 1 / int(suspect.model.output_shape[-1])
    if share.interval[0] > chance:
        yield Refusal(
            code="not-at-chance-at-large-epsilon",
            reason=f"{share.successes} of {share.examples} examples survive even in a ball of radius {epsilon:.3g} that covers "
            f"all the data, more than a guess gets right ({chance:.2f}): the attack does not work on this model",
            measured={"epsilon": epsilon, "survivors": share.successes, "n": share.examples, "chance": chance},
        )


def _not_converged(suspect: Suspect) -> Iterator[Refusal]:
    """Attacks what survived all gradient attacks with twice the steps from new starts."""
    before = [stage for stage in suspect.result.stages if stage.kind in ("none", "white-box")][-1]
    alive, perturbation, units = before.survivors, Perturbation(suspect.space), suspect.examples.units
    if not alive.any():
        return
    survivors, epsilon = suspect.examples.take(alive), suspect.result.epsilon
    once, twice = (_descent(suspect, perturbation, times=times).run(survivors, epsilon) for times in (1, 2))
    longer = _longer_search(suspect, perturbation).run(survivors, epsilon)
    lost = np.zeros_like(alive)
    lost[alive] = twice.misled | longer.misled
    broken = Proportion.of(lost, units)
    if broken.interval[0] > UNCONVERGED:
        yield Refusal(
            code="not-converged",
            reason=f"twice the steps broke {broken.successes} of {broken.examples} examples that the attacks had failed on: "
            "attack with more steps and restarts",
            measured={"broken": broken.successes, "n": broken.examples},
        )
        return
    start, short, long = (
        float(np.mean(margins(suspect.suite.predict(features), survivors.labels)))
        for features in (survivors.features, once.features, twice.features)
    )
    if start > short and short - long > STILL_RISING * (start - short):
        yield Refusal(
            code="not-converged",
            reason=f"the surviving examples' mean margin falls from {start:.3g} to {short:.3g} under {suspect.plan.steps} steps "
            f"and on to {long:.3g} under twice as many: attack with more steps",
            measured={"margin": start, "after": short, "after_twice": long},
        )


def covering_radius(examples: Examples, space: InputSpace) -> float:
    """The radius of a ball around any example that covers the range of the examples' features, in units of epsilon."""
    reach = np.ptp(examples.features.astype(np.float64), axis=0) / space.unit
    return float(reach.max() if space.norm == "linf" else np.linalg.norm(reach))


def _unconstrained(space: InputSpace) -> InputSpace:
    """The same space where everything can be moved, within the bounds."""
    anything = np.zeros(len(space), np.bool_)
    return replace(
        space,
        unit=np.where(space.unit > 0, space.unit, space.scale),
        integer=anything,
        increasing=anything,
        decreasing=anything,
        one_hot=(),
    )


def _broken(before: Stage, after: Stage, examples: Examples) -> Proportion:
    return Proportion.of(before.survivors & ~after.survivors, examples.units)


def _descent(suspect: Suspect, perturbation: Perturbation, *, times: int = 1) -> ProjectedGradientDescent:
    """PGD from the examples themselves."""
    return ProjectedGradientDescent(
        suspect.model,
        perturbation=perturbation,
        steps=times * suspect.plan.steps,
        restarts=1,
        batch_size=suspect.batch_size,
        seed=suspect.seed,
        samples=suspect.plan.expectation_samples,
    )


def _longer_search(suspect: Suspect, perturbation: Perturbation) -> AutoProjectedGradientDescent:
    """Auto-PGD on the logits' ratio from a new start, with twice the steps."""
    return AutoProjectedGradientDescent(
        suspect.model,
        perturbation=perturbation,
        loss="dlr" if int(suspect.model.output_shape[-1]) > 2 else "margin",
        steps=2 * suspect.plan.apgd_steps,
        attempts=1,
        batch_size=suspect.batch_size,
        seed=derived_seed(suspect.seed, "longer search"),
        samples=suspect.plan.expectation_samples,
    )
