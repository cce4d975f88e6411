"""What training against attack reaches, and what it costs beside the same training through ART.

Scores are accuracies on test examples, the mean over the seeds: as the examples are, and after every attack of the suite that the
gate uses; an example counts only if it survives all of them. Each seed draws a split, first weights, batches and attack starts.
Ten percent of the training split choose the epoch; the test split is touched once, at the end. Methods and their parameters were
chosen on the validation split of other seeds (101 and up).

- ``digits_01``, ``digits_02``: the convolutional network on scikit-learn's 8x8 digits, 500 test images, L-inf, epsilon 0.1 and
  0.2 of the pixel range;
- ``cancer_05``: the multilayer perceptron on the breast cancer records, 30% of them for testing, L-inf, epsilon 0.5 standard
  deviations.

The ratio compares one step of PGD adversarial training, ours compiled with its attack, and ART's attack (the same network, batch,
number of steps and step length) followed by a compiled step on what it found. Both run in turn; the ratio is the median of ART's
time over ours, so above 1 we are faster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
import warnings
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from lepton_airflow.models.runtime import load_tensorflow

load_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
from corpus.records import examples_of  # noqa: E402
from sklearn.datasets import load_breast_cancer, load_digits  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402

from lepton_airflow.models.architectures import classifier_for  # noqa: E402
from lepton_airflow.models.attacks.pgd import RELATIVE_STEP  # noqa: E402
from lepton_airflow.models.attacks.suite import AttackSuite  # noqa: E402
from lepton_airflow.models.examples import Examples  # noqa: E402
from lepton_airflow.models.input_space import InputSpace, image_space, table_space  # noqa: E402
from lepton_airflow.models.objectives import objective_for, standard_objective  # noqa: E402
from lepton_airflow.models.perturbation import Perturbation  # noqa: E402
from lepton_airflow.models.plan import EvaluationPlan, ImageColumn, TrainingPlan  # noqa: E402
from lepton_airflow.models.seeds import derived_seed  # noqa: E402
from lepton_airflow.models.threat_model import ThreatModel  # noqa: E402
from lepton_airflow.models.training import compile_step, train  # noqa: E402
from lepton_airflow.models.validation import Validation  # noqa: E402

SEEDS = (0, 1, 2, 3, 4)
VALIDATION = 0.1
METHODS = ("pgd", "trades", "fast", "generator")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained, and what it must reach.

    :param least: clean and robust accuracy, set before anything was tested
    """

    digits: bool
    epsilon: float
    plan: TrainingPlan
    least: tuple[float, float]


SETTINGS = {
    "digits_01": Setting(
        digits=True,
        epsilon=0.1,
        plan=TrainingPlan(method="trades", epochs=40, learning_rate=0.002),
        least=(0.98, 0.85),
    ),
    "digits_02": Setting(
        digits=True,
        epsilon=0.2,
        plan=TrainingPlan(method="trades", epochs=40, learning_rate=0.002),
        least=(0.96, 0.52),
    ),
    "cancer_05": Setting(
        digits=False,
        epsilon=0.5,
        plan=TrainingPlan(method="pgd", epochs=80, hidden=(64, 64)),
        least=(0.93, 0.70),
    ),
}


def load(setting: Setting, seed: int) -> tuple[InputSpace, Examples, Examples, Examples]:
    """The input space, and examples to learn from, to choose by and to test on; classes are as frequent in each."""
    data = load_digits() if setting.digits else load_breast_cancer()
    test_size: Any = 500 if setting.digits else 0.3
    rest, test, rest_labels, test_labels = train_test_split(
        data.data, data.target, test_size=test_size, random_state=seed, stratify=data.target
    )
    learned, chosen, learned_labels, chosen_labels = train_test_split(
        rest, rest_labels, test_size=VALIDATION, random_state=seed, stratify=rest_labels
    )
    train_examples = examples_of(learned, learned_labels)
    if setting.digits:
        image = ImageColumn(column="pixels", shape=(8, 8, 1), high=16)
        space = image_space(image, threat_model=ThreatModel(norm="linf", epsilon=setting.epsilon, units="pixel range"))
    else:
        space = table_space(
            train_examples,
            names=[str(name) for name in data.feature_names],
            threat_model=ThreatModel(norm="linf", epsilon=setting.epsilon, units="standard deviations"),
            place="breast cancer",
        )
    return space, train_examples, examples_of(chosen, chosen_labels), examples_of(test, test_labels)


def run(setting: Setting, seed: int, evaluation: EvaluationPlan, *, tested: int | None) -> dict[str, Any]:
    """Train and attack once.

    :param tested: how many of the test examples are attacked; all by default
    """
    space, learned, chosen, test = load(setting, seed)
    test = test.take(np.arange(len(test)) < (tested or len(test)))
    perturbation = Perturbation(space)
    classes = len(np.unique(learned.labels))
    model = classifier_for(space, plan=setting.plan, classes=classes, seed=derived_seed(seed, "weights"))
    start = time.perf_counter()
    record = train(
        model,
        learned,
        name="hardened",
        plan=setting.plan,
        objective=objective_for(
            setting.plan,
            perturbation=perturbation,
            epsilon=setting.epsilon,
            classes=classes,
            seed=derived_seed(seed, "objective"),
        ),
        seed=derived_seed(seed, "order"),
        report=lambda _report: None,
        validation=Validation(examples=chosen, perturbation=perturbation, epsilon=setting.epsilon),
    )
    trained = time.perf_counter() - start
    start = time.perf_counter()
    suite = AttackSuite(model, space=space, plan=evaluation, seed=derived_seed(seed, "evaluation"))
    result = suite.run(test, setting.epsilon)
    assert not result.violations, "the attack left its own threat model"
    return {
        "clean": float(result.clean.mean()),
        "robust": float(result.robust.mean()),
        "kept_epoch": record.kept_epoch,
        "stages": {stage.name: round(float(stage.survivors.mean()), 4) for stage in result.stages},
        "train_s": round(trained, 1),
        "attack_s": round(time.perf_counter() - start, 1),
    }


def step_against_art(rounds: int) -> float:
    """The median over rounds of ART's time for one hardened training step over ours, on the digits' network."""
    import tensorflow as tf

    # It warns that PyTorch is not there.
    warnings.simplefilter("ignore")
    from art.attacks.evasion import ProjectedGradientDescentTensorFlowV2
    from art.estimators.classification import TensorFlowV2Classifier

    warnings.resetwarnings()
    setting = SETTINGS["digits_01"]
    plan = replace_plan(setting.plan, method="pgd")
    space, learned, _, _ = load(setting, 0)
    features, labels = learned.features[: plan.batch_size], learned.labels[: plan.batch_size]
    weights = np.ones(plan.batch_size, np.float32)
    reach = float(space.unit[0])

    def stepper(objective: Any) -> tuple[Any, Any]:
        model = classifier_for(space, plan=plan, classes=10, seed=1)
        optimizer = keras.optimizers.Adam(plan.learning_rate)
        optimizer.build(model.trainable_variables)
        return model, compile_step(model, optimizer, objective=objective, batch_size=plan.batch_size)

    _, ours = stepper(
        objective_for(plan, perturbation=Perturbation(space), epsilon=setting.epsilon, classes=10, seed=1)
    )
    model, after_art = stepper(standard_objective())
    attack = ProjectedGradientDescentTensorFlowV2(
        TensorFlowV2Classifier(
            model=model,
            nb_classes=10,
            input_shape=(len(space),),
            loss_object=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            clip_values=(0.0, reach),
        ),
        norm=np.inf,
        eps=setting.epsilon * reach,
        eps_step=RELATIVE_STEP * setting.epsilon * reach / plan.steps,
        max_iter=plan.steps,
        num_random_init=1,
        batch_size=plan.batch_size,
        verbose=False,
    )

    def through_art() -> None:
        float(after_art(attack.generate(features, labels), labels, weights)[0])

    def compiled() -> None:
        float(ours(features, labels, weights)[0])

    ratios = []
    for number in range(rounds + 1):
        times = []
        for run_once in (through_art, compiled):
            start = time.perf_counter()
            run_once()
            times.append(time.perf_counter() - start)
        # The first round traces both.
        if number:
            ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def replace_plan(plan: TrainingPlan, **changes: Any) -> TrainingPlan:
    return TrainingPlan.model_validate({**plan.model_dump(), **changes})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one seed, 20 epochs for digits, weaker attacks on 200 test examples, without digits_02",
    )
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--method", choices=METHODS, help="train all settings by this method in place of their own")
    options = parser.parse_args()
    settings = {name: SETTINGS[name] for name in options.settings}
    if options.method:
        settings = {
            name: replace(setting, plan=replace_plan(setting.plan, method=options.method))
            for name, setting in settings.items()
        }
    evaluation, tested, seeds = EvaluationPlan(), None, options.seeds
    if options.quick:
        settings = {
            name: replace(setting, plan=replace_plan(setting.plan, epochs=20)) if setting.digits else setting
            for name, setting in settings.items()
            if name != "digits_02"
        }
        evaluation = EvaluationPlan(steps=20, restarts=1, apgd_steps=10, square_queries=100)
        tested, seeds = 200, seeds[:1]
    ratio = step_against_art(3 if options.quick else 30)
    print(f"training step on the digits' network, PGD: ART's time over ours {ratio:.2f}", flush=True)
    scores, reached = {}, {}
    for name, setting in settings.items():
        results = []
        for seed in seeds:
            results.append(run(setting, seed, evaluation, tested=tested))
            print(f"{name}, seed {seed}: {json.dumps(results[-1])}", flush=True)
        for position, kind in enumerate(("clean", "robust")):
            scores[f"{name}_{kind}"] = round(statistics.mean(result[kind] for result in results), 4)
            reached[f"{name}_{kind}"] = setting.least[position]
            print(f"{name} {kind}: {scores[f'{name}_{kind}']:.4f}, to reach {setting.least[position]}", flush=True)
    print(
        json.dumps(
            {
                "benchmark": "adversarial_training",
                "ratios": {"training_step_vs_art_cnn": round(ratio, 2)},
                "scores": scores,
                "setup": {
                    "quick": options.quick,
                    "seeds": len(seeds),
                    "methods": {name: setting.plan.method for name, setting in settings.items()},
                    "epochs": {name: setting.plan.epochs for name, setting in settings.items()},
                    "test_examples": tested or "500 digits, 171 records",
                    "attacks": evaluation.model_dump(include={"steps", "restarts", "apgd_steps", "square_queries"}),
                    "to_reach": reached,
                    "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                    "cores": os.cpu_count(),
                    "python": platform.python_version(),
                    **{package: version(package) for package in ("tensorflow", "adversarial-robustness-toolbox")},
                },
            }
        )
    )


if __name__ == "__main__":
    main()
