"""Attacks beside those of the Adversarial Robustness Toolbox (ART) on the same Keras models.

Speed: projected gradient descent with the same steps, step length, start and batches, run in turn, round after round; a ratio is
the median over the rounds of ART's time over ours, so above 1 we are faster. The examples are repeated until batches are full and
the models are correct on all of them; a batch stops early only when all of it is lost, which does not happen here.

Strength: the share of the test examples that survive, after PGD and after Auto-PGD with as many steps and starts. Ours must
leave no more than one point above what ART's leaves. The perturbed examples of both are judged by the same predictions, and both
must lie in the ball.

Masks: five masked and five honest models of each data set, attacked by the whole suite and diagnosed as before a gate, on seeds
on which no threshold was set. All masked models are to be refused, and no honest one. See ``corpus/masked_models.py``.

The models are trained on scikit-learn's digits (a convolutional network, L-infinity 0.1 of the pixel range) and breast cancer
records (a multilayer perceptron, L-infinity 0.5 standard deviations), in this run, against PGD with few steps.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from lepton_airflow.models.runtime import load_tensorflow

load_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
from corpus.records import examples_of  # noqa: E402
from corpus.telling_apart import shares, told_apart  # noqa: E402
from sklearn.datasets import load_breast_cancer, load_digits  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402

from lepton_airflow.models.architectures import classifier_for  # noqa: E402
from lepton_airflow.models.attacks.apgd import AutoProjectedGradientDescent  # noqa: E402
from lepton_airflow.models.attacks.losses import LossName  # noqa: E402
from lepton_airflow.models.attacks.pgd import RELATIVE_STEP, ProjectedGradientDescent  # noqa: E402
from lepton_airflow.models.examples import Examples, Features  # noqa: E402
from lepton_airflow.models.input_space import InputSpace, image_space, table_space  # noqa: E402
from lepton_airflow.models.objectives import pgd_objective  # noqa: E402
from lepton_airflow.models.perturbation import Perturbation  # noqa: E402
from lepton_airflow.models.plan import ImageColumn, TrainingPlan  # noqa: E402
from lepton_airflow.models.prediction import correct, prediction_of  # noqa: E402
from lepton_airflow.models.threat_model import ThreatModel  # noqa: E402
from lepton_airflow.models.training import train  # noqa: E402

BATCH, STEPS = 128, 40

#: What each ratio should reach.
RATIOS = {"pgd_vs_art_cnn": 2.5, "pgd_vs_art_mlp": 15.0}
#: How many points of robust accuracy an attack may leave above ART's.
ALLOWANCE = 1.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A trained model and what it is attacked on."""

    name: str
    model: Any
    space: InputSpace
    test: Examples
    epsilon: float


def split(data: Any, *, test_size: int) -> tuple[Examples, Examples]:
    learned, held, learned_labels, held_labels = train_test_split(
        data.data, data.target, test_size=test_size, random_state=0, stratify=data.target
    )
    return examples_of(learned, learned_labels), examples_of(held, held_labels)


def digits(*, epochs: int) -> Case:
    learned, test = split(load_digits(), test_size=500)
    threat_model = ThreatModel(norm="linf", epsilon=0.1, units="pixel range")
    space = image_space(ImageColumn(column="image", shape=(8, 8, 1), high=16), threat_model=threat_model)
    return trained(
        "cnn", learned, test, space=space, epsilon=0.1, plan=TrainingPlan(epochs=epochs, learning_rate=0.002)
    )


def cancer(*, epochs: int) -> Case:
    learned, test = split(load_breast_cancer(), test_size=171)
    threat_model = ThreatModel(norm="linf", epsilon=0.5, units="standard deviations")
    names = [f"feature {position}" for position in range(30)]
    space = table_space(learned, names=names, threat_model=threat_model, place="breast cancer")
    return trained("mlp", learned, test, space=space, epsilon=0.5, plan=TrainingPlan(epochs=epochs))


def trained(
    name: str, learned: Examples, test: Examples, *, space: InputSpace, epsilon: float, plan: TrainingPlan
) -> Case:
    classes = int(learned.labels.max()) + 1
    model = classifier_for(space, plan=plan, classes=classes, seed=1)
    objective = pgd_objective(perturbation=Perturbation(space), epsilon=epsilon, steps=3, seed=2)
    train(model, learned, name=name, plan=plan, objective=objective, seed=3, report=lambda _: None)
    return Case(name=name, model=model, space=space, test=test, epsilon=epsilon)


class Art:
    """ART's attacks in the case's ball. ART knows one radius for all features: the raw features are standardised before its
    model, in a layer that ours has to undo."""

    def __init__(self, case: Case) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescent
            from art.estimators.classification import TensorFlowV2Classifier
        logging.getLogger("art").setLevel(logging.ERROR)
        self._unit, self._mean = case.space.unit, case.space.mean
        width = len(case.space)
        inputs = keras.Input((width,))
        raw = keras.layers.Rescaling(self._unit.tolist(), offset=self._mean.tolist())(inputs)
        low, high = ((bound - self._mean) / self._unit for bound in (case.space.low, case.space.high))
        self._estimator = TensorFlowV2Classifier(
            model=keras.Model(inputs, case.model(raw, training=False)),
            nb_classes=case.model.output_shape[-1],
            input_shape=(width,),
            loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            clip_values=(float(low.min()), float(high.max())) if np.isfinite(low).all() else None,
        )
        self._epsilon = case.epsilon
        self._pgd, self._apgd = ProjectedGradientDescent, AutoProjectedGradientDescent

    def pgd(self, examples: Examples) -> Features:
        attack = self._pgd(
            self._estimator,
            norm=np.inf,
            eps=self._epsilon,
            eps_step=RELATIVE_STEP * self._epsilon / STEPS,
            max_iter=STEPS,
            num_random_init=0,
            batch_size=BATCH,
            verbose=False,
        )
        return self._found(attack, examples)

    def apgd(self, examples: Examples, *, loss: str) -> Features:
        attack = self._apgd(
            self._estimator,
            norm=np.inf,
            eps=self._epsilon,
            eps_step=2 * self._epsilon,
            max_iter=STEPS,
            nb_random_init=1,
            batch_size=BATCH,
            loss_type=loss,
            verbose=False,
        )
        return self._found(attack, examples)

    def _found(self, attack: Any, examples: Examples) -> Features:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            standard = attack.generate(x=(examples.features - self._mean) / self._unit, y=examples.labels)
        raw: Features = (standard * self._unit + self._mean).astype(np.float32)
        return raw


def our_pgd(case: Case) -> ProjectedGradientDescent:
    return ProjectedGradientDescent(
        case.model, perturbation=Perturbation(case.space), steps=STEPS, restarts=1, batch_size=BATCH, seed=1
    )


def our_apgd(case: Case, loss: LossName) -> AutoProjectedGradientDescent:
    return AutoProjectedGradientDescent(
        case.model,
        perturbation=Perturbation(case.space),
        loss=loss,
        steps=STEPS,
        attempts=1,
        batch_size=BATCH,
        seed=1,
    )


def speed(case: Case, *, rounds: int) -> tuple[float, float]:
    """The medians of ART's time over ours, and of our seconds for one step of one batch."""
    right = case.test.take(correct(prediction_of(case.model)(case.test.features), case.test.labels))
    rows = np.resize(np.arange(len(right)), 2 * BATCH)
    examples = examples_of(right.features[rows], right.labels[rows])
    ours, theirs = our_pgd(case), Art(case)

    def mine() -> None:
        if ours.run(examples, case.epsilon).misled.reshape(2, BATCH).all(axis=1).any():
            raise SystemExit(
                f"{case.name}: a whole batch is lost, so that the attack stopped early: no fair comparison"
            )

    seconds: dict[str, list[float]] = {"ours": [], "ART": []}
    steps: dict[str, Callable[[], object]] = {"ours": mine, "ART": lambda: theirs.pgd(examples)}
    for number in range(rounds + 1):
        for name in list(steps) if number % 2 else reversed(steps):
            start = time.perf_counter()
            steps[name]()
            if number:  # the first one traces
                seconds[name].append(time.perf_counter() - start)
    ratio = statistics.median(peer / own for own, peer in zip(seconds["ours"], seconds["ART"], strict=True))
    return ratio, statistics.median(seconds["ours"]) / (2 * STEPS)


def strength(case: Case, *, count: int, quick: bool) -> Iterator[tuple[str, float, float]]:
    """Of each attack its name, and the percentages of the examples that survive ours and ART's; when quick, PGD alone for images,
    where ART's Auto-PGD takes longest."""
    examples = examples_of(case.test.features[:count], case.test.labels[:count])
    predict, perturbation, art = prediction_of(case.model), Perturbation(case.space), Art(case)

    def surviving(features: Features) -> float:
        # ART computes in standard units, from which the way back rounds once more.
        if perturbation.violations(examples.features, features, case.epsilon * 1.001).any():
            raise SystemExit(f"{case.name}: an attack left the ball")
        return 100 * float(np.mean(correct(predict(features), examples.labels)))

    yield (
        f"{case.name}_pgd",
        surviving(our_pgd(case).run(examples, case.epsilon).features),
        surviving(art.pgd(examples)),
    )
    losses: list[tuple[str, LossName, str]] = [("apgd_ce", "cross-entropy", "cross_entropy")]
    if case.model.output_shape[-1] > 2:  # the ratio needs three classes
        losses.append(("apgd_dlr", "dlr", "difference_logits_ratio"))
    if quick and case.space.is_image:
        return
    for name, loss, their_loss in losses:
        yield (
            f"{case.name}_{name}",
            surviving(our_apgd(case, loss).run(examples, case.epsilon).features),
            surviving(art.apgd(examples, loss=their_loss)),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, epochs and examples")
    options = parser.parse_args()
    rounds, count = (2, 50) if options.quick else (11, 500)
    cases = [digits(epochs=3 if options.quick else 20), cancer(epochs=10 if options.quick else 40)]
    ratios: dict[str, float] = {}
    scores: dict[str, float] = {}
    setup: dict[str, Any] = {}
    for case in cases:
        name = f"pgd_vs_art_{case.name}"
        ratios[name], step = speed(case, rounds=rounds)
        setup[f"pgd_step_milliseconds_{case.name}"] = round(1e3 * step, 3)
        print(f"{name:24} {ratios[name]:7.2f}  (to reach: {RATIOS[name]:g}); one step of ours: {1e3 * step:.2f} ms")
    for case in cases:
        for name, ours, theirs in strength(case, count=count, quick=options.quick):
            scores[name], scores[f"{name}_art"] = round(ours, 2), round(theirs, 2)
            verdict = "" if ours <= theirs + ALLOWANCE else "  WEAKER than ART's"
            print(f"{name:24} survivors: ours {ours:5.1f}%, ART's {theirs:5.1f}%{verdict}")
    told = []
    for one in told_apart(quick=options.quick):
        told.append(one)
        print(
            f"{'masked' if one.masked else 'honest'} {one.case} {one.seed}, {one.model}: clean {one.clean:.3f}, "
            f"robust {one.robust:.3f}, refused for {', '.join(one.codes) or 'nothing'}"
        )
    scores |= shares(told)
    result = {
        "benchmark": "robustness",
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "scores": scores,
        "setup": {
            "rounds": rounds,
            "examples": count,
            "batch": BATCH,
            "steps": STEPS,
            **setup,
            "python": platform.python_version(),
            "tensorflow": version("tensorflow"),
            "art": version("adversarial-robustness-toolbox"),
            "cores": os.cpu_count(),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
