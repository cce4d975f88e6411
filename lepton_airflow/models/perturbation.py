"""How far an attacker may move an example: perturbations inside a threat model, in its own units.

An attack searches over a perturbation ``d`` of shape [b, features] in standard deviations; the model sees ``x + d *
scale``. So one epsilon means the same for a feature measured in thousands and for one measured in hundredths.
"""

from __future__ import annotations

from typing import Any, Protocol

import tensorflow as tf

from lepton_airflow.models.examples import Features


class Perturbation(Protocol):
    """What an attack needs to know of a threat model. Tensors are float32; ``epsilon`` is a scalar in the model's
    units."""

    def random(self, generator: tf.random.Generator, shape: tuple[int, int], epsilon: Any) -> Any:
        """Draw perturbations inside the ball of radius ``epsilon``."""

    def ascend(self, d: Any, gradient: Any, length: Any) -> Any:
        """Take one step of ``length`` along the steepest ascent of this norm."""

    def project(self, d: Any, epsilon: Any) -> Any:
        """Bring ``d`` back into the ball of radius ``epsilon``."""

    def apply(self, x: Any, d: Any) -> Any:
        """The examples that the model sees."""

    def size(self, d: Any) -> Any:
        """[b]: the norm of each perturbation."""


class LinfPerturbation:
    """The L-infinity ball.

    :param scale: [features], how much of the feature one unit is
    """

    def __init__(self, scale: Features) -> None:
        self._scale = tf.constant(scale, tf.float32)

    def random(self, generator: tf.random.Generator, shape: tuple[int, int], epsilon: Any) -> Any:
        return epsilon * generator.uniform(shape, -1.0, 1.0)

    def ascend(self, d: Any, gradient: Any, length: Any) -> Any:
        return d + length * tf.sign(gradient)

    def project(self, d: Any, epsilon: Any) -> Any:
        return tf.clip_by_value(d, -epsilon, epsilon)

    def apply(self, x: Any, d: Any) -> Any:
        return x + d * self._scale

    def size(self, d: Any) -> Any:
        return tf.reduce_max(tf.abs(d), axis=-1)
