"""The projected gradient descent attack: strength, limits, units, traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from lepton_airflow.models.architectures import tabular_classifier
from lepton_airflow.models.attacks.losses import cross_entropy
from lepton_airflow.models.attacks.pgd import ProjectedGradientDescent
from lepton_airflow.models.examples import Examples, Features
from lepton_airflow.models.inner_attack import worst_perturbation
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.perturbation import Perturbation

SCALE = np.array([1000.0, 0.01, 1.0, 3.0, 0.5], np.float32)
MEAN = np.array([5000.0, 0.2, 0.0, -4.0, 10.0], np.float32)


def ball(scale: Features) -> Perturbation:
    """Perturbations without constraints, measured in ``scale``."""
    names = [f"feature {position}" for position in range(len(scale))]
    return Perturbation(InputSpace.free(norm="linf", names=names, mean=np.zeros_like(scale), scale=scale))


def in_raw_units(examples: Examples) -> Examples:
    return Examples(
        features=examples.features * SCALE + MEAN,
        labels=examples.labels,
        units=examples.units,
        unit_ids=examples.unit_ids,
    )


def classifier(*, hidden: tuple[int, ...] = (), seed: int = 1) -> Any:
    return tabular_classifier(mean=MEAN, scale=SCALE, hidden=hidden, classes=2, seed=seed)


def attack_on(model: Any, *, restarts: int = 2, steps: int = 20, batch_size: int = 64) -> ProjectedGradientDescent:
    return ProjectedGradientDescent(
        model,
        perturbation=ball(SCALE),
        steps=steps,
        restarts=restarts,
        batch_size=batch_size,
        seed=3,
    )


def margins(model: Any, examples: Examples) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A linear model's margin of each example, [n], and the weights behind it in standard units, [features]."""
    kernel, bias = (weights.astype(np.float64) for weights in model.get_layer("logits").get_weights())
    weights, offset = kernel[:, 1] - kernel[:, 0], bias[1] - bias[0]
    standardised = (examples.features.astype(np.float64) - MEAN) / SCALE
    return (2 * examples.labels - 1) * (standardised @ weights + offset), weights


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 0.8])
def test_on_a_linear_model_the_attack_is_the_closed_form_worst_case(
    epsilon: float, blobs: Callable[..., Examples]
) -> None:
    # The worst case of a linear model over an L-infinity ball is its margin less epsilon times the L1 norm of its weights.
    examples = in_raw_units(blobs(300))
    model = classifier()
    margin, weights = margins(model, examples)
    worst = margin - epsilon * np.abs(weights).sum()
    survivors = attack_on(model).survivors(examples, epsilon)
    clear = np.abs(worst) > 1e-3  # closer to the boundary, single precision decides
    assert clear.sum() > 290
    assert np.array_equal(survivors[clear], worst[clear] > 0)
    assert 0 < survivors.sum() < len(examples)


def test_the_training_attack_reaches_the_worst_corner_of_a_linear_model(blobs: Callable[..., Examples]) -> None:
    examples = in_raw_units(blobs(64))
    model = classifier()
    _, weights = margins(model, examples)
    perturbation = ball(SCALE)
    d = tf.function(worst_perturbation, autograph=False)(
        model,
        tf.constant(examples.features),
        lambda logits: cross_entropy(logits, examples.labels),
        perturbation=perturbation,
        epsilon=tf.constant(0.5),
        steps=7,
        start=perturbation.random(tf.random.Generator.from_seed(1), tf.constant(examples.features), 0.5),
    ).numpy()
    assert np.allclose(d, -0.5 * np.sign(weights) * (2 * examples.labels[:, None] - 1))


def test_perturbations_stay_in_the_ball(blobs: Callable[..., Examples]) -> None:
    examples = in_raw_units(blobs(64))
    attack = attack_on(classifier(hidden=(16,)))
    outcome = attack.run(examples, 0.3)
    moved = np.abs(outcome.features - examples.features) / SCALE
    assert moved.max() <= 0.3 + 1e-5
    assert moved[~outcome.misled].max(axis=1).min() > 0.29, "the attack uses the ball it is given"


def test_epsilon_means_the_same_for_features_of_any_magnitude(blobs: Callable[..., Examples]) -> None:
    plain = blobs(200)
    model = classifier(hidden=(16,))
    unscaled = tabular_classifier(
        mean=np.zeros(5, np.float32), scale=np.ones(5, np.float32), hidden=(16,), classes=2, seed=1
    )
    unscaled.set_weights(model.get_weights())
    on_plain = ProjectedGradientDescent(
        unscaled,
        perturbation=ball(np.ones(5, np.float32)),
        steps=20,
        restarts=2,
        batch_size=64,
        seed=3,
    ).survivors(plain, 0.3)
    assert np.count_nonzero(attack_on(model).survivors(in_raw_units(plain), 0.3) != on_plain) <= 1


def test_at_radius_zero_exactly_the_correct_examples_survive(blobs: Callable[..., Examples]) -> None:
    examples = in_raw_units(blobs(100))
    model = classifier(hidden=(16,))
    correct = model.predict(examples.features, verbose=0).argmax(axis=1) == examples.labels
    assert 0 < correct.sum() < 100
    assert np.array_equal(attack_on(model).survivors(examples, 0.0), correct)


def test_an_example_that_is_wrong_already_is_never_robust(blobs: Callable[..., Examples]) -> None:
    examples = in_raw_units(blobs(200))
    model = classifier(hidden=(16,))
    wrong = model.predict(examples.features, verbose=0).argmax(axis=1) != examples.labels
    assert wrong.any()
    for epsilon in (0.01, 0.3, 2.0):
        assert not (attack_on(model).survivors(examples, epsilon) & wrong).any()


class ThinShell(keras.layers.Layer):  # type: ignore[misc]
    """Logits that are flat, and wrong only in a thin shell of the ball that few random starts hit."""

    def call(self, x: Any) -> Any:
        distance = tf.reduce_max(tf.abs(x), axis=-1)
        wrong = tf.cast((distance > 0.88) & (distance < 0.9), tf.float32)
        return tf.stack([1.0 - wrong, wrong], axis=-1) + 0.0 * tf.reduce_sum(x, axis=-1, keepdims=True)


class Dip(keras.layers.Layer):  # type: ignore[misc]
    """A margin that is negative only in a narrow dip around 0.9, over which the second step jumps back."""

    def call(self, x: Any) -> Any:
        margin = (x[:, 0] - 0.9) ** 2 - 0.05
        return tf.stack([margin, tf.zeros_like(margin)], axis=-1)


def attack_on_zeros(layer: Any, *, features: int, steps: int, restarts: int) -> int:
    """How many of 200 examples, all zero, survive at radius 1."""
    inputs = keras.Input((features,))
    examples = Examples(
        features=np.zeros((200, features), np.float32),
        labels=np.zeros(200, np.int32),
        units=np.arange(200),
        unit_ids=tuple(f"{unit:03}".encode() for unit in range(200)),
    )
    attack = ProjectedGradientDescent(
        keras.Model(inputs, layer(inputs)),
        perturbation=ball(np.ones(features, np.float32)),
        steps=steps,
        restarts=restarts,
        batch_size=200,
        seed=1,
    )
    return int(attack.survivors(examples, 1.0).sum())


def test_one_successful_restart_is_enough() -> None:
    # A random start is in the shell with probability 0.9^2 - 0.88^2 = 0.036; the gradient is zero and moves nothing.
    surviving = {restarts: attack_on_zeros(ThinShell(), features=2, steps=1, restarts=restarts) for restarts in (1, 20)}
    assert surviving[1] == 200, "from the example itself the attack goes nowhere"
    assert 70 < surviving[20] < 130, "200 * 0.964^19 = 100"


def test_one_misled_step_on_the_way_is_enough() -> None:
    assert attack_on_zeros(Dip(), features=1, steps=2, restarts=1) == 0


def test_the_last_step_counts_too(blobs: Callable[..., Examples]) -> None:
    examples = in_raw_units(blobs(100))
    model = classifier()
    margin, weights = margins(model, examples)
    worst = margin - 0.3 * np.abs(weights).sum()
    assert np.array_equal(attack_on(model, steps=1, restarts=1).survivors(examples, 0.3), worst > 0)


def test_restarts_continue_where_the_last_batch_is_filled_up(blobs: Callable[..., Examples]) -> None:
    examples = in_raw_units(blobs(70))
    model = classifier()
    margin, weights = margins(model, examples)
    worst = margin - 0.3 * np.abs(weights).sum()
    assert np.array_equal(attack_on(model, batch_size=64).survivors(examples, 0.3), worst > 0)


def test_all_radii_and_batches_share_one_trace(blobs: Callable[..., Examples]) -> None:
    examples = in_raw_units(blobs(150))
    attack = attack_on(classifier(hidden=(8,)))
    for epsilon in (0.0, 0.1, 0.5):
        attack.survivors(examples, epsilon)
    assert attack.attack.experimental_get_tracing_count() == 1


def test_more_steps_do_not_weaken_the_attack(blobs: Callable[..., Examples]) -> None:
    examples = in_raw_units(blobs(300))
    model = classifier(hidden=(32,))
    few = attack_on(model, steps=5, restarts=1).survivors(examples, 0.3).sum()
    many = attack_on(model, steps=40, restarts=5).survivors(examples, 0.3).sum()
    assert many <= few


def test_the_loss_is_that_of_the_true_class() -> None:
    logits: Features = np.array([[2.0, 0.0], [0.0, 2.0]], np.float32)
    losses = cross_entropy(tf.constant(logits), tf.constant([0, 0])).numpy()
    assert losses == pytest.approx([np.log1p(np.exp(-2)), np.log1p(np.exp(2))], rel=1e-6)
