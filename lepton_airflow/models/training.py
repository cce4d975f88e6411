"""The training loop: one compiled step, batches of one shape, Adam along a cosine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lepton_airflow.models.batches import padded_batches
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.objectives import Objective
from lepton_airflow.models.plan import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """How an epoch went.

    :param model: which model is being trained
    :param loss: mean over the epoch's examples, as the model saw them: under attack, when it is hardened
    :param accuracy: the same for the share classified correctly
    """

    model: str
    epoch: int
    epochs: int
    loss: float
    accuracy: float


def compile_step(model: Any, optimizer: Any, *, objective: Objective, batch_size: int) -> Any:
    """One training step as one ``tf.function``, inner attack included.

    :returns: a function of features [b, d], labels [b] and weights [b] that updates ``model`` and returns the weighted
        sums of the loss and of the correct answers
    """

    def step(x: Any, labels: Any, weights: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            losses, logits = objective(model, x, labels)
            total = tf.reduce_sum(weights * losses)
            mean = total / tf.reduce_sum(weights)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(mean, variables), variables)
        correct = tf.argmax(logits, axis=-1, output_type=tf.int32) == labels
        return total, tf.reduce_sum(weights * tf.cast(correct, tf.float32))

    return tf.function(
        step,
        input_signature=(
            tf.TensorSpec((batch_size, model.input_shape[-1]), tf.float32),
            tf.TensorSpec((batch_size,), tf.int32),
            tf.TensorSpec((batch_size,), tf.float32),
        ),
    )


def train(
    model: Any,
    examples: Examples,
    *,
    name: str,
    plan: TrainingPlan,
    objective: Objective,
    seed: int,
    report: Callable[[EpochReport], None],
) -> None:
    """Train ``model`` in place.

    :param name: what progress reports call it
    :param seed: of the order of the examples
    :param report: called after every epoch
    """
    steps = -(-len(examples) // plan.batch_size) * plan.epochs
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(plan.learning_rate, steps))
    optimizer.build(model.trainable_variables)
    step = compile_step(model, optimizer, objective=objective, batch_size=plan.batch_size)
    shuffle = np.random.default_rng(seed)
    for epoch in range(1, plan.epochs + 1):
        order = shuffle.permutation(len(examples))
        loss = correct = 0.0
        for batch in padded_batches(examples.features, examples.labels, size=plan.batch_size, order=order):
            batch_loss, batch_correct = step(batch.features, batch.labels, batch.weights)
            loss += float(batch_loss)
            correct += float(batch_correct)
        report(
            EpochReport(
                model=name,
                epoch=epoch,
                epochs=plan.epochs,
                loss=loss / len(examples),
                accuracy=correct / len(examples),
            )
        )
