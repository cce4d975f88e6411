"""What a white-box attack sees of a model at one perturbation."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from lepton_airflow.models.attacks.losses import LossName, attack_loss
from lepton_airflow.models.perturbation import Perturbation


class View(NamedTuple):
    """``logits`` [b, classes]; ``losses`` [b]; ``gradient`` [b, features], of the losses over the perturbation."""

    logits: Any
    losses: Any
    gradient: Any


def view(
    model: Any,
    x: Any,
    labels: Any,
    d: Any,
    *,
    perturbation: Perturbation,
    epsilon: Any,
    loss: LossName = "cross-entropy",
    targets: Any = None,
    samples: int = 1,
) -> View:
    """Logits, losses and gradients at ``x`` moved by ``d``. To be called inside a ``tf.function``.

    :param targets: [b], for a targeted loss
    :param samples: predictions to average over, for models that draw random numbers (expectation over transformation:
        Athalye, Engstrom, Ilyas, Kwok: Synthesizing Robust Adversarial Examples, ICML 2018)
    """

    def once() -> View:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(d)
            logits = model(perturbation.apply(x, d, epsilon), training=False)
            losses = attack_loss(loss, logits, labels, targets)
        # The sum over examples: none of them bears on another's gradient.
        return View(logits, losses, tape.gradient(losses, d, unconnected_gradients="zero"))

    if samples == 1:
        return once()
    first = once()

    def add(sample: Any, *sums: Any) -> tuple[Any, ...]:
        return sample + 1, *(total + value for total, value in zip(sums, once(), strict=True))

    _, *sums = tf.while_loop(lambda sample, *_: sample < samples, add, (tf.constant(1), *first), parallel_iterations=1)
    return View(*(total / samples for total in sums))
