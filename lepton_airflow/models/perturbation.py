"""How attacks move examples inside a threat model, in TensorFlow.

An attack searches over a perturbation ``d``, [b, features], in units of epsilon; the model sees ``x + d * unit``. So one epsilon
means the same for a feature measured in thousands and for one measured in hundredths. Features that cannot be moved have d = 0.

Ball, bounds and directions are convex, and :meth:`Perturbation.project` keeps ``d`` inside them while an attack searches. Whole
numbers and one-hot groups are not: the search passes over them, and :meth:`Perturbation.apply` moves to the nearest example on
the way back to ``x`` that the attacker could really present. Gradients pass through that last move as if it were none
(Bengio, Léonard, Courville 2013: straight-through).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lepton_airflow.models.examples import Features
from lepton_airflow.models.input_space import InputSpace

#: Single precision rounds x + d * unit and its inverse: how far beyond the ball a perturbation may seem to lie.
_TOLERANCE = 1e-4


class Perturbation:
    """Perturbations of the ball and the constraints of an input space. Tensors are float32; ``epsilon`` is a scalar.

    :param space: norm, units and constraints
    """

    def __init__(self, space: InputSpace) -> None:
        self.space = space
        movable = space.unit > 0
        self._unit = tf.constant(space.unit)
        self._movable = tf.constant(movable.astype(np.float32))
        divisor = np.where(movable, space.unit, 1)
        self._divisor = tf.constant(divisor.astype(np.float32))
        self._low, self._high = tf.constant(space.low), tf.constant(space.high)
        self._least = tf.constant(np.where(space.increasing, 0, -np.inf).astype(np.float32))
        self._most = tf.constant(np.where(space.decreasing, 0, np.inf).astype(np.float32))
        self._integer = tf.constant(space.integer)
        self._snaps = bool(space.integer.any()) or bool(space.one_hot)

    def random(self, generator: tf.random.Generator, x: Any, epsilon: Any) -> Any:
        """Draw perturbations of ``x`` inside the ball of radius ``epsilon``, uniformly, then bring them inside the constraints.

        :returns: [b, features]
        """
        if self.space.norm == "linf":
            return self.project(x, epsilon * generator.uniform(tf.shape(x), -1.0, 1.0), epsilon)
        direction = generator.normal(tf.shape(x)) * self._movable
        dimensions = tf.reduce_sum(self._movable)
        radius = generator.uniform((tf.shape(x)[0], 1)) ** (1 / tf.maximum(dimensions, 1))
        return self.project(x, epsilon * radius * direction / _length(direction), epsilon)

    def ascend(self, d: Any, gradient: Any, length: Any) -> Any:
        """Take one step along the steepest ascent of this norm.

        :param gradient: [b, features], of the loss over ``d``
        :param length: of the step: a scalar, or [b, 1]
        """
        if self.space.norm == "linf":
            return d + length * tf.sign(gradient)
        return d + length * gradient / _length(gradient)

    def project(self, x: Any, d: Any, epsilon: Any) -> Any:
        """Bring ``d`` into the ball of radius ``epsilon``, the bounds and the directions.

        Each later step only shortens ``d`` feature by feature, so none leaves what an earlier one reached.
        """
        inside = tf.clip_by_value(d, -epsilon, epsilon) if self.space.norm == "linf" else _shortened(d, epsilon)
        d = tf.clip_by_value(inside, self._least, self._most) * self._movable
        # x itself lies within the bounds, so 0 always does.
        return tf.clip_by_value(d, (self._low - x) / self._divisor, (self._high - x) / self._divisor)

    def apply(self, x: Any, d: Any, epsilon: Any) -> Any:
        """The examples that the model sees, [b, features]; ``d`` has been projected."""
        moved = x + d * self._unit
        # x + (high - x) may exceed high by a rounding.
        moved = tf.clip_by_value(moved, self._low, self._high)
        if not self._snaps:
            return moved
        snapped = tf.stop_gradient(self._snap(x, moved, epsilon) - moved)
        return moved + snapped

    def size(self, d: Any) -> Any:
        """[b]: the norm of each perturbation."""
        if self.space.norm == "linf":
            return tf.reduce_max(tf.abs(d), axis=-1)
        return tf.norm(d, axis=-1)

    def violations(self, x: Features, moved: Features, epsilon: float) -> npt.NDArray[np.bool_]:
        """[b]: which examples an attacker could not have presented in place of ``x``, computed without TensorFlow.

        :param x: [b, features], the examples before the attack
        :param moved: [b, features], after it
        """
        space = self.space
        difference = moved.astype(np.float64) - x
        slack = _TOLERANCE * np.maximum(1, np.abs(x)) * np.where(space.unit > 0, 0, 1)
        wrong = np.abs(difference) > np.where(space.unit > 0, np.inf, slack)
        d = np.where(space.unit > 0, difference / np.where(space.unit > 0, space.unit, 1), 0)
        rounding = np.where(space.unit > 0, np.abs(x) * 2**-22 / np.where(space.unit > 0, space.unit, 1), 0)
        excess = np.maximum(np.abs(d) - rounding, 0)
        size = excess.max(axis=1) if space.norm == "linf" else np.sqrt((excess**2).sum(axis=1))
        wrong |= (moved < space.low) | (moved > space.high)
        wrong |= space.integer & (moved != np.rint(moved))
        wrong |= space.increasing & (difference < 0) | space.decreasing & (difference > 0)
        found = wrong.any(axis=1) | (size > epsilon * (1 + _TOLERANCE)) | ~np.isfinite(moved).all(axis=1)
        for group in space.one_hot:
            members = moved[:, group]
            found |= (np.count_nonzero(members == 1, axis=1) != 1) | (members.sum(axis=1) != 1)
        result: npt.NDArray[np.bool_] = found
        return result

    def _snap(self, x: Any, moved: Any, epsilon: Any) -> Any:
        """Whole numbers are rounded towards ``x``; a one-hot group becomes its largest member if that lies in the ball."""
        towards = tf.where(moved >= x, tf.floor(moved), tf.math.ceil(moved))
        # 2 - 1e-7 is a 2 that was rounded.
        nearest = tf.round(moved)
        whole = tf.where(tf.abs(moved - nearest) < _TOLERANCE, nearest, towards)
        snapped = tf.where(self._integer, whole, moved)
        for group in self.space.one_hot:
            snapped = self._snap_group(x, snapped, group, epsilon)
        return snapped

    def _snap_group(self, x: Any, snapped: Any, group: tuple[int, ...], epsilon: Any) -> Any:
        members = tf.constant(group)
        before = tf.gather(x, members, axis=1)
        chosen = tf.one_hot(tf.argmax(tf.gather(snapped, members, axis=1), axis=1), len(group))
        inside = tf.constant(
            [[position == member for position in range(len(self.space))] for member in group], tf.float32
        )
        outside = 1 - tf.reduce_sum(inside, axis=0)
        flipped = snapped * outside + chosen @ inside
        d = (flipped - x) / self._divisor
        changed = tf.abs(flipped - x) > 0
        possible = tf.reduce_all(~changed | (self._movable > 0), axis=1) & (self.size(d) <= epsilon * (1 + _TOLERANCE))
        possible &= tf.reduce_all((d >= self._least) & (d <= self._most), axis=1)
        return tf.where(possible[:, tf.newaxis], flipped, snapped * outside + before @ inside)


def _length(d: Any) -> Any:
    """[b, 1]: Euclidean lengths, never 0."""
    return tf.maximum(tf.norm(d, axis=-1, keepdims=True), 1e-12)


def _shortened(d: Any, epsilon: Any) -> Any:
    return d * tf.minimum(1.0, epsilon / _length(d))
