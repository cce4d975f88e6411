"""What a training step minimises: one function for each training method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from lepton_airflow.models.attacks.losses import cross_entropy
from lepton_airflow.models.attacks.pgd import strongest_perturbation
from lepton_airflow.models.perturbation import Perturbation

#: From the model, features [b, d] and labels [b] to the loss of each example, [b], and the logits behind it, [b,
#: classes].
Objective = Callable[[Any, Any, Any], tuple[Any, Any]]


def standard_objective() -> Objective:
    """The cross-entropy of the examples as they are."""

    def objective(model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
        logits = model(x, training=True)
        return cross_entropy(logits, labels), logits

    return objective


def pgd_objective(*, perturbation: Perturbation, epsilon: float, steps: int, seed: int) -> Objective:
    """PGD adversarial training (Madry et al. 2018): the cross-entropy of the worst examples found from a random start.

    :param epsilon: radius of the ball, in the perturbation's units
    :param steps: gradient steps of the inner attack
    :param seed: of the random starts
    """
    generator = tf.random.Generator.from_seed(seed)
    radius = tf.constant(epsilon, tf.float32)

    def objective(model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
        start = perturbation.random(generator, x, radius)
        d = strongest_perturbation(
            model, x, labels, perturbation=perturbation, epsilon=radius, steps=steps, start=start
        )
        logits = model(perturbation.apply(x, d, radius), training=True)
        return cross_entropy(logits, labels), logits

    return objective
