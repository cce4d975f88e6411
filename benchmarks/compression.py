"""What 8-bit integers cost: size, clean accuracy, and accuracy under attack, beside the float model that they were made from.

Robust classifiers are trained by PGD: a convolutional network on scikit-learn's 8x8 digits (L-inf, epsilon 0.1 of the pixel
range), a multilayer perceptron on the breast cancer records (L-inf, epsilon 0.5 standard deviations). The float model goes
through the whole suite with gradients; the integer model, which has none, through what misleads its parent, what misleads a
surrogate that imitates it, and Square. The losses compare the two. So that weaker attacks do not flatter the integer model, the
float model's accuracy under the same attacks without gradients of its own is given too.

A ratio is the size of ``model.keras`` over that of ``model.tflite``: the two files that are published. In the setup are also the
size of the float model as a LiteRT file, and the clean accuracy of an integer model whose standardisation is in integers too, as
the converter does it by default.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lepton_airflow.models.runtime import load_tensorflow

load_tensorflow()

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from corpus.records import examples_of  # noqa: E402
from sklearn.datasets import load_breast_cancer, load_digits  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402

from lepton_airflow.models.architectures import classifier_for  # noqa: E402
from lepton_airflow.models.attacks.suite import BATCH_SIZE, AttackSuite  # noqa: E402
from lepton_airflow.models.examples import Examples, Features  # noqa: E402
from lepton_airflow.models.input_space import InputSpace, image_space, table_space  # noqa: E402
from lepton_airflow.models.int8 import int8_predict, to_int8  # noqa: E402
from lepton_airflow.models.objectives import objective_for  # noqa: E402
from lepton_airflow.models.perturbation import Perturbation  # noqa: E402
from lepton_airflow.models.plan import EvaluationPlan, ImageColumn, TrainingPlan  # noqa: E402
from lepton_airflow.models.prediction import prediction_of  # noqa: E402
from lepton_airflow.models.seeds import derived_seed  # noqa: E402
from lepton_airflow.models.surrogate import surrogate_of  # noqa: E402
from lepton_airflow.models.threat_model import ThreatModel  # noqa: E402
from lepton_airflow.models.training import train  # noqa: E402

#: Least size ratio, and greatest losses of clean and robust accuracy.
SMALLER, CLEAN_LOSS, ROBUST_LOSS = 3.5, 0.01, 0.02
EPSILON = {"cnn": 0.1, "mlp": 0.5}
PLANS = {
    "cnn": TrainingPlan(epochs=12, learning_rate=0.002, steps=5),
    "mlp": TrainingPlan(epochs=60, steps=7),
}
QUICK_EPOCHS, QUICK_EXAMPLES = {"cnn": 2, "mlp": 20}, 64


def load(network: str, seed: int) -> tuple[InputSpace, Examples, Examples]:
    data = load_digits() if network == "cnn" else load_breast_cancer()
    learned, tested, learned_labels, tested_labels = train_test_split(
        data.data, data.target, test_size=500 if network == "cnn" else 0.3, random_state=seed, stratify=data.target
    )
    train_examples = examples_of(learned, learned_labels)
    if network == "cnn":
        image = ImageColumn(column="pixels", shape=(8, 8, 1), high=16)
        threat_model = ThreatModel(norm="linf", epsilon=EPSILON[network], units="pixel range")
        space = image_space(image, threat_model=threat_model)
    else:
        space = table_space(
            train_examples,
            names=[str(name) for name in data.feature_names],
            threat_model=ThreatModel(norm="linf", epsilon=EPSILON[network], units="standard deviations"),
            place="breast cancer",
        )
    return space, train_examples, examples_of(tested, tested_labels)


def converted(model: Any, representative: Features | None = None) -> bytes:
    """The converter's own answer: in floats, or with examples all in integers, standardisation too."""

    def sample() -> Iterator[list[Features]]:
        for position in range(len(representative)):  # type: ignore[arg-type]
            yield [representative[position : position + 1]]  # type: ignore[index]

    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, format="tf_saved_model", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if representative is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = sample
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        content: bytes = converter.convert()
    return content


def run(
    network: str, seed: int, plan: TrainingPlan, evaluation: EvaluationPlan, tested: int | None
) -> dict[str, float]:
    """Train, convert and attack once; sizes in bytes, shares of the test examples.

    :param tested: how many of the test examples are attacked
    """
    space, learned, test = load(network, seed)
    test = test.take(np.arange(len(test)) < (tested or len(test)))
    perturbation, epsilon = Perturbation(space), EPSILON[network]
    classes = len(np.unique(learned.labels))
    model = classifier_for(space, plan=plan, classes=classes, seed=derived_seed(seed, "weights"))
    objective = objective_for(
        plan, perturbation=perturbation, epsilon=epsilon, classes=classes, seed=derived_seed(seed, "objective")
    )
    order = derived_seed(seed, "order")
    train(model, learned, name=network, plan=plan, objective=objective, seed=order, report=lambda _: None)
    content = to_int8(model, learned.features)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        model.save(file)
        keras_bytes = file.stat().st_size
    # One batch size for all attacks, no larger than what is attacked.
    size = min(BATCH_SIZE, len(test))
    attack: dict[str, Any] = {
        "space": space,
        "plan": evaluation,
        "seed": derived_seed(seed, "evaluation"),
        "batch_size": size,
    }
    floats = AttackSuite(model, **attack).run(test, epsilon)
    predict = int8_predict(content)
    surrogate = surrogate_of(
        predict, model, test, perturbation=perturbation, epsilon=epsilon, seed=derived_seed(seed, "surrogate")
    )
    integers = AttackSuite.black_box(predict, parents={"float parent": model, "surrogate": surrogate}, **attack).run(
        test, epsilon
    )
    same = AttackSuite.black_box(prediction_of(model), parents={"itself": model}, **attack).run(test, epsilon)
    all_integers = int8_predict(converted(model, learned.features[:300]))(test.features)
    return {
        "keras_bytes": keras_bytes,
        "int8_bytes": len(content),
        "float_tflite_bytes": len(converted(model)),
        "float_clean": float(floats.clean.mean()),
        "int8_clean": float(integers.clean.mean()),
        "float_robust": float(floats.robust.mean()),
        "float_robust_without_gradients": float(same.robust.mean()),
        "int8_robust": float(integers.robust.mean()),
        "integers_from_the_input_clean": float((all_integers.argmax(axis=1) == test.labels).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, little training, few examples, weak attacks")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    seeds = range(1 if options.quick else options.seeds)
    weak = EvaluationPlan(steps=10, restarts=1, apgd_steps=10, square_queries=50)
    evaluation = weak if options.quick else EvaluationPlan()
    means: dict[str, dict[str, float]] = {}
    start = time.perf_counter()
    for network, plan in PLANS.items():
        used = plan.model_copy(update={"epochs": QUICK_EPOCHS[network]}) if options.quick else plan
        runs = []
        for seed in seeds:
            runs.append(run(network, seed, used, evaluation, QUICK_EXAMPLES if options.quick else None))
            tf.keras.backend.clear_session()
            print(f"{network}, seed {seed}: {runs[-1]}", flush=True)
        means[network] = {name: statistics.fmean(found[name] for found in runs) for name in runs[0]}
    ratios = {f"int8_smaller_{name}": mean["keras_bytes"] / mean["int8_bytes"] for name, mean in means.items()}
    print()
    for name, mean in means.items():
        clean, robust = mean["float_clean"] - mean["int8_clean"], mean["float_robust"] - mean["int8_robust"]
        print(
            f"{name}: {ratios[f'int8_smaller_{name}']:.2f} times smaller (to reach: {SMALLER}); "
            f"loss of clean accuracy {clean:+.4f} (at most {CLEAN_LOSS}), "
            f"of robust accuracy {robust:+.4f} (at most {ROBUST_LOSS})"
        )
    result = {
        "benchmark": "compression",
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "setup": {
            "seeds": len(seeds),
            "quick": options.quick,
            "seconds": round(time.perf_counter() - start, 1),
            **{name: {key: round(value, 4) for key, value in mean.items()} for name, mean in means.items()},
            "tensorflow": version("tensorflow"),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
