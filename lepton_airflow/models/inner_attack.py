"""The attack inside a training step: it climbs a loss for a fixed number of steps and keeps where it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from lepton_airflow.models.attacks.pgd import RELATIVE_STEP
from lepton_airflow.models.perturbation import Perturbation


class InnerAttack:
    """Attacks from random starts, a fresh one for every example of every batch.

    :param epsilon: radius of the ball, in the perturbation's units
    :param steps: gradient steps
    :param seed: of the starts
    :param length: of a step in multiples of epsilon; by default ``RELATIVE_STEP / steps``
    """

    def __init__(
        self, *, perturbation: Perturbation, epsilon: float, steps: int, seed: int, length: float | None = None
    ) -> None:
        self._perturbation = perturbation
        self._epsilon = tf.constant(epsilon, tf.float32)
        self._steps = steps
        self._length = None if length is None else length * self._epsilon
        self._random = tf.random.Generator.from_seed(seed)
        #: The variables that change from attack to attack.
        self.state: tuple[Any, ...] = (self._random.state,)

    def examples(self, model: Any, x: Any, loss: Callable[[Any], Any]) -> Any:
        """[b, features]: what the model sees where the attack ends. To be called inside a ``tf.function``.

        :param x: [b, features]
        :param loss: from logits, [b, classes], to what is to be raised, [b]
        """
        d = worst_perturbation(
            model,
            x,
            loss,
            perturbation=self._perturbation,
            epsilon=self._epsilon,
            steps=self._steps,
            start=self._perturbation.random(self._random, x, self._epsilon),
            length=self._length,
        )
        return self._perturbation.apply(x, d, self._epsilon)


def worst_perturbation(
    model: Any,
    x: Any,
    loss: Callable[[Any], Any],
    *,
    perturbation: Perturbation,
    epsilon: Any,
    steps: int,
    start: Any,
    length: Any = None,
) -> Any:
    """Projected gradient ascent (Madry et al. 2018). To be called inside a ``tf.function``.

    :param x: [b, features]
    :param loss: from logits, [b, classes], to what is to be raised, [b]
    :param start: [b, features], where the attack begins, inside the ball
    :param length: of a step; by default ``RELATIVE_STEP * epsilon / steps``
    :returns: [b, features], inside the ball and the constraints
    """
    length = RELATIVE_STEP * epsilon / steps if length is None else length

    def climb(step: Any, d: Any) -> tuple[Any, Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(d)
            losses = loss(model(perturbation.apply(x, d, epsilon), training=False))
        # The sum over examples: none of them bears on another's gradient.
        gradient = tape.gradient(losses, d, unconnected_gradients="zero")
        return step + 1, perturbation.project(x, perturbation.ascend(d, gradient, length), epsilon)

    _, d = tf.while_loop(lambda step, _: step < steps, climb, (tf.constant(0), start), parallel_iterations=1)
    return tf.stop_gradient(d)
