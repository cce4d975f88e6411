"""Models whose robustness is a mask, and honest ones: what a gate must tell apart.

A masked model is a trained one behind something that spoils its gradients, and with them the attacks that follow gradients
(Athalye, Carlini, Wagner: Obfuscated Gradients Give a False Sense of Security, ICML 2018). It classifies as well as before and is
no more robust than before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.ndimage import median_filter
from sklearn.datasets import load_breast_cancer, load_digits

from lepton_airflow.models.architectures import image_classifier, tabular_classifier
from lepton_airflow.models.examples import Examples, split_by_unit
from lepton_airflow.models.input_space import InputSpace, image_space, table_space
from lepton_airflow.models.objectives import Objective, pgd_objective, standard_objective, trades_objective
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import ImageColumn, TrainingPlan
from lepton_airflow.models.seeds import derived_seed
from lepton_airflow.models.threat_model import ThreatModel
from lepton_airflow.models.training import train


@dataclass(frozen=True, kw_only=True)
class Case:
    """Data to train on and to attack, and how far."""

    name: str
    learned_from: Examples
    held_out: Examples
    space: InputSpace
    epsilon: float
    classes: int


def digits(seed: int) -> Case:
    """scikit-learn's digits, L-infinity 0.1 of the pixel range; the split is drawn by the seed."""
    data = load_digits()
    image = ImageColumn(column="pixels", shape=(8, 8, 1), high=16.0)
    threat_model = ThreatModel(norm="linf", epsilon=0.1, units="pixel range")
    learned_from, held_out = _split(data.data, data.target, seed=seed)
    return Case(
        name="digits",
        learned_from=learned_from,
        held_out=held_out,
        space=image_space(image, threat_model=threat_model),
        epsilon=threat_model.epsilon,
        classes=10,
    )


def breast_cancer(seed: int) -> Case:
    """scikit-learn's breast cancer records, L-infinity half a standard deviation; the split is drawn by the seed."""
    data = load_breast_cancer()
    threat_model = ThreatModel(norm="linf", epsilon=0.5, units="standard deviations")
    learned_from, held_out = _split(data.data, data.target, seed=seed)
    names = tuple(str(name) for name in data.feature_names)
    return Case(
        name="breast cancer",
        learned_from=learned_from,
        held_out=held_out,
        space=table_space(learned_from, names=names, threat_model=threat_model, place="breast cancer"),
        epsilon=threat_model.epsilon,
        classes=2,
    )


def honest_models(case: Case, seed: int, *, epochs: int, names: Collection[str] | None = None) -> dict[str, Any]:
    """Five models that hide nothing: trained without attack, by PGD and by TRADES, dense and (for images) convolutional.

    :param names: make only these
    """
    second = derived_seed(seed, "second")
    attack: dict[str, Any] = {
        "perturbation": Perturbation(case.space),
        "epsilon": case.epsilon,
        "seed": seed,
        "steps": 5,
    }
    standard, pgd, trades = standard_objective(), pgd_objective(**attack), trades_objective(**attack, beta=6)
    kinds: dict[str, tuple[Callable[[Case, int], Any], Objective, int]] = {
        "standard, dense": (_dense, standard, seed),
        "PGD, dense": (_dense, pgd, second),
        "TRADES, dense": (_dense, trades, seed),
        **(
            {
                "standard, convolutional": (_convolutional, standard, seed),
                "PGD, convolutional": (_convolutional, pgd, second),
            }
            if case.space.is_image
            else {
                "standard, two layers": (_two_layers, standard, seed),
                "PGD, linear": (_linear, pgd, second),
            }
        ),
    }
    return {
        name: _trained(build(case, derived_seed(start, "weights")), case, objective, seed=start, epochs=epochs)
        for name, (build, objective, start) in kinds.items()
        if names is None or name in names
    }


def masked_models(case: Case, base: Any) -> dict[str, Any]:
    """Five masks on ``base``, which stays as it is."""
    return {name: masked(case, base, name) for name in MASKS}


@keras.saving.register_keras_serializable(package="corpus")
class Apply(keras.layers.Layer):
    """A layer that is a function of a tensor and the case's input space."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self._function = function

    def call(self, x: Any) -> Any:
        return self._function(x)


def _quantised(space: InputSpace, x: Any) -> Any:
    """Four levels of an image's pixel, or steps of half a standard deviation: rounding has no gradient."""
    step = space.scale / 3 if space.is_image else space.scale / 2
    return space.mean + step * tf.round((x - space.mean) / step)


def _noisy(space: InputSpace, x: Any) -> Any:
    return x + tf.random.normal(tf.shape(x), stddev=0.15 if space.is_image else 0.3) * space.scale


def _smoothed(space: InputSpace, x: Any) -> Any:
    """A median filter, or two decimal digits: computed in NumPy, through which no gradient comes."""

    def smooth(values: Any) -> Any:
        if not space.is_image:
            return (space.mean + space.scale * np.round((values - space.mean) / space.scale, 1)).astype(np.float32)
        images = values.reshape(-1, *space.shape)
        return median_filter(images, size=(1, 2, 1, 1)).reshape(values.shape).astype(np.float32)

    return tf.ensure_shape(tf.numpy_function(smooth, [x], tf.float32), x.shape)


def _scaled(logits: Any) -> Any:
    return 200.0 * logits


def _saturated(logits: Any) -> Any:
    """A steep sigmoid around the middle of the two largest logits: flat wherever they differ."""
    largest = tf.math.top_k(logits, 2).values
    return 10.0 * tf.sigmoid(50.0 * (logits - tf.reduce_mean(largest, axis=-1, keepdims=True)))


@dataclass(frozen=True)
class Mask:
    """What stands before and after the model."""

    before: Callable[[InputSpace, Any], Any] | None = None
    after: Callable[[Any], Any] | None = None


MASKS: Mapping[str, Mask] = {
    "scaled logits": Mask(after=_scaled),
    "quantised input": Mask(before=_quantised),
    "random layer": Mask(before=_noisy),
    "non-differentiable preprocessing": Mask(before=_smoothed),
    "saturated sigmoid": Mask(after=_saturated),
}


def masked(case: Case, base: Any, name: str) -> Any:
    """One of the masks on ``base``, by its name."""
    mask = MASKS[name]
    x = inputs = keras.Input((len(case.space),))
    if mask.before is not None:
        before = mask.before
        x = Apply(lambda values: before(case.space, values))(x)
    x = base(x)
    if mask.after is not None:
        x = Apply(mask.after)(x)
    return keras.Model(inputs, x)


def _split(features: Any, labels: Any, *, seed: int) -> tuple[Examples, Examples]:
    examples = Examples(
        features=features.astype(np.float32),
        labels=labels.astype(np.int32),
        units=np.arange(len(labels)),
        unit_ids=tuple(f"{unit:06}".encode() for unit in range(len(labels))),
    )
    return split_by_unit(examples, test_fraction=0.3, key=seed.to_bytes(32, "big"))


def _dense(case: Case, seed: int, hidden: tuple[int, ...] = (64,)) -> Any:
    return tabular_classifier(
        mean=case.space.mean, scale=case.space.scale, hidden=hidden, classes=case.classes, seed=seed
    )


def _two_layers(case: Case, seed: int) -> Any:
    return _dense(case, seed, hidden=(64, 64))


def _linear(case: Case, seed: int) -> Any:
    return _dense(case, seed, hidden=())


def _convolutional(case: Case, seed: int) -> Any:
    return image_classifier(case.space, filters=16, hidden=(64,), classes=case.classes, seed=seed)


def _trained(model: Any, case: Case, objective: Objective, *, seed: int, epochs: int) -> Any:
    train(
        model,
        case.learned_from,
        name="corpus",
        plan=TrainingPlan(epochs=epochs, batch_size=64, learning_rate=0.003),
        objective=objective,
        seed=derived_seed(seed, "order"),
        report=lambda _report: None,
    )
    return model
