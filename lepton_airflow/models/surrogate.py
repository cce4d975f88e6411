"""Surrogates: a model with gradients that has learned to answer as a model without them, so that what misleads the one can be
tried on the other (Papernot, McDaniel, Goodfellow, Jha, Celik, Swami: Practical Black-Box Attacks against Machine Learning,
ASIA CCS 2017).

An integer model rounds, so its parent's gradients are not its own. A copy of the parent that is trained on the integer model's
answers, inside the ball and then where the copy itself is weakest, comes nearer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lepton_airflow.models.attacks.losses import cross_entropy
from lepton_airflow.models.batches import Batch, padded_batches
from lepton_airflow.models.examples import Examples, Features
from lepton_airflow.models.inner_attack import InnerAttack
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.prediction import Logits, Predict
from lepton_airflow.models.seeds import derived_seed

#: Points asked for around each example in each round, the example itself included.
_POINTS = 4
_ATTACK_STEPS = 10
_BATCH_SIZE = 128


def surrogate_of(
    predict: Predict,
    parent: Any,
    examples: Examples,
    *,
    perturbation: Perturbation,
    epsilon: float,
    seed: int,
    epochs: int = 10,
    learning_rate: float = 1e-3,
) -> Any:
    """A copy of ``parent`` that imitates ``predict`` in the balls around ``examples``.

    Two rounds: on the examples and random points of their balls; then on these and on the points to which an attack on the
    surrogate leads, as ``predict`` answers there.

    :param predict: the model without gradients
    :param parent: a Keras model of the form that the surrogate gets; its weights are where it begins; it is not changed
    :param examples: whose labels are true; an attacker has them
    :param epsilon: radius of the balls
    :param seed: of points and batches
    :param epochs: of each round
    :returns: a Keras model, another parent for :meth:`~lepton_airflow.models.attacks.suite.AttackSuite.black_box`
    """
    student = type(parent).from_config(parent.get_config())
    student.set_weights(parent.get_weights())
    points = _Points(student, perturbation=perturbation, epsilon=epsilon, seed=derived_seed(seed, "points"))
    asked = [examples.features, *(points.random(examples) for _ in range(_POINTS - 1))]
    for round_ in ("random", "attacked"):
        if round_ == "attacked":
            asked += [points.attacked(examples) for _ in range(_POINTS)]
        features = np.concatenate(asked)
        order = np.random.default_rng(derived_seed(seed, round_))
        _imitate(student, features, predict(features), order=order, epochs=epochs, learning_rate=learning_rate)
    return student


class _Points:
    """Points of the balls around examples."""

    def __init__(self, model: Any, *, perturbation: Perturbation, epsilon: float, seed: int) -> None:
        generator = tf.random.Generator.from_seed(derived_seed(seed, "random"))
        attack = InnerAttack(
            perturbation=perturbation, epsilon=epsilon, steps=_ATTACK_STEPS, seed=derived_seed(seed, "attack")
        )
        width = int(model.input_shape[-1])
        points, classes = tf.TensorSpec((_BATCH_SIZE, width), tf.float32), tf.TensorSpec((_BATCH_SIZE,), tf.int32)
        radius = tf.constant(epsilon, tf.float32)

        @tf.function(autograph=False, input_signature=(points,))  # type: ignore[untyped-decorator]
        def random(x: Any) -> Any:
            return perturbation.apply(x, perturbation.random(generator, x, radius), radius)

        @tf.function(autograph=False, input_signature=(points, classes))  # type: ignore[untyped-decorator]
        def attacked(x: Any, labels: Any) -> Any:
            return attack.examples(model, x, lambda logits: cross_entropy(logits, labels))

        self._random, self._attacked = random, attacked

    def random(self, examples: Examples) -> Features:
        """[n, d], uniformly in each ball."""
        return np.concatenate([self._random(batch.features).numpy()[: batch.count] for batch in _batches(examples)])

    def attacked(self, examples: Examples) -> Features:
        """[n, d], where an attack on the model ended."""
        return np.concatenate(
            [self._attacked(batch.features, batch.labels).numpy()[: batch.count] for batch in _batches(examples)]
        )


def _batches(examples: Examples) -> Iterator[Batch]:
    return padded_batches(examples.features, examples.labels, size=_BATCH_SIZE)


def _imitate(
    student: Any,
    features: Features,
    answers: Logits,
    *,
    order: np.random.Generator,
    epochs: int,
    learning_rate: float,
) -> None:
    """Least squares on the differences between logits: their common height says nothing."""
    centred = answers - answers.mean(axis=1, keepdims=True)
    steps = -(-len(features) // _BATCH_SIZE) * epochs
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps))
    optimizer.build(student.trainable_variables)
    signature = (
        tf.TensorSpec((_BATCH_SIZE, features.shape[1]), tf.float32),
        tf.TensorSpec((_BATCH_SIZE, answers.shape[1]), tf.float32),
        tf.TensorSpec((_BATCH_SIZE,), tf.float32),
    )

    @tf.function(autograph=False, input_signature=signature)  # type: ignore[untyped-decorator]
    def step(x: Any, wanted: Any, weights: Any) -> None:
        with tf.GradientTape() as tape:
            logits = student(x, training=True)
            centre = tf.reduce_mean(logits, axis=1, keepdims=True)
            losses = tf.reduce_mean((logits - centre - wanted) ** 2, axis=1)
            loss = tf.reduce_sum(weights * losses) / tf.reduce_sum(weights)
        variables = student.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    rows = np.arange(len(features), dtype=np.int32)
    for _ in range(epochs):
        shuffled = order.permutation(len(features))
        for batch in padded_batches(features, rows, size=_BATCH_SIZE, order=shuffled):
            step(batch.features, centred[batch.labels], batch.weights)
