"""How attacks move examples inside a threat model, in TensorFlow.

An attack searches over a perturbation ``d``, [b, features], measured in the threat model's units; the model sees
``x + d * unit``. So one epsilon means the same for a feature measured in thousands and for one measured in hundredths. Features
that cannot be moved have d = 0.

Ball, bounds and directions are convex, and :meth:`Perturbation.project` keeps ``d`` inside them while an attack searches. Whole
numbers and one-hot groups are not: the search passes over them, and :meth:`Perturbation.apply` moves to an example close by,
on the way back to ``x``, that the attacker could really present. Gradients pass through that last move as if it were none
(Bengio, Léonard, Courville 2013: straight-through).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lepton_airflow.models.examples import Features
from lepton_airflow.models.input_space import InputSpace

#: How much longer than epsilon, relatively, a perturbation may seem after it was rounded to single precision.
_TOLERANCE = 1e-4
#: Single precision's least normal number: TensorFlow takes smaller ones for 0.
_LEAST_NORMAL = float(np.finfo(np.float32).tiny)
#: Of the search for the shortening that just reaches the ball; three leave less than a thousandth of it unused.
_SHORTENINGS = 3


class Perturbation:
    """Perturbations of the ball and the constraints of an input space. Tensors are float32; ``epsilon`` is a scalar.

    :param space: norm, units and constraints
    """

    def __init__(self, space: InputSpace) -> None:
        self.space = space
        movable = space.unit >= _LEAST_NORMAL
        self._movable = tf.constant(movable.astype(np.float32))
        self._unit = tf.constant(np.where(movable, space.unit, 0).astype(np.float32))
        self._divisor = tf.constant(np.where(movable, space.unit, 1).astype(np.float32))
        # Of whole numbers, so that cutting at a bound leaves them whole.
        low, high = _flushed(space.low), _flushed(space.high)
        low, high = np.where(space.integer, np.ceil(low), low), np.where(space.integer, np.floor(high), high)
        # Finite, so that no example overflows.
        largest = np.finfo(np.float32).max
        self._low = tf.constant(np.maximum(low, -largest).astype(np.float32))
        self._high = tf.constant(np.minimum(high, largest).astype(np.float32))
        self._least = tf.constant(np.where(space.increasing | ~movable, 0, -np.inf).astype(np.float32))
        self._most = tf.constant(np.where(space.decreasing | ~movable, 0, np.inf).astype(np.float32))
        self._integer = tf.constant(space.integer)
        self._has_integers = bool(space.integer.any())
        self._grouped = np.zeros(len(space), np.bool_)
        for group in space.one_hot:
            self._grouped[list(group)] = True

    def random(self, generator: tf.random.Generator, x: Any, epsilon: Any) -> Any:
        """Draw perturbations of ``x`` inside the ball of radius ``epsilon``, uniformly, then bring them inside the constraints.

        :returns: [b, features]
        """
        if self.space.norm == "linf":
            return self.project(x, epsilon * generator.uniform(tf.shape(x), -1.0, 1.0), epsilon)
        direction = generator.normal(tf.shape(x)) * self._movable
        dimensions = tf.reduce_sum(self._movable)
        radius = generator.uniform((tf.shape(x)[0], 1)) ** (1 / tf.maximum(dimensions, 1))
        return self.project(x, epsilon * radius * _direction(direction), epsilon)

    def ascend(self, d: Any, gradient: Any, length: Any) -> Any:
        """Take one step along the steepest ascent of this norm; where the gradient is no number, none.

        :param gradient: [b, features], of the loss over ``d``
        :param length: of the step: a scalar, or [b, 1]
        """
        gradient = tf.where(tf.math.is_finite(gradient), gradient, 0.0)
        if self.space.norm == "linf":
            return d + length * tf.sign(gradient)
        return d + length * _direction(gradient)

    def project(self, x: Any, d: Any, epsilon: Any) -> Any:
        """Bring ``d`` into the ball of radius ``epsilon``, the bounds and the directions.

        The result is the nearest such point: exactly in L-infinity, and nearly in L2, where it is ``d`` shortened by some
        factor t and then cut at the limits. Cutting shortens too, so t may grow by epsilon over the length that is left;
        as that length, divided by t, only falls when t grows, this never leaves the ball.
        """
        # x itself lies within the limits, so 0 always does.
        least = tf.maximum(self._least, (self._low - x) / self._divisor)
        most = tf.minimum(self._most, (self._high - x) / self._divisor)
        if self.space.norm == "linf":
            return tf.clip_by_value(d, tf.maximum(least, -epsilon), tf.minimum(most, epsilon))
        share = tf.minimum(1.0, epsilon / _length(d))
        for _ in range(_SHORTENINGS):
            cut = tf.clip_by_value(share * d, least, most)
            share = tf.minimum(1.0, share * epsilon / _length(cut))
        return tf.clip_by_value(share * d, least, most)

    def apply(self, x: Any, d: Any, epsilon: Any) -> Any:
        """The examples that the model sees, [b, features]; ``d`` has been projected."""
        moved = x + d * self._unit
        return _straight_through(moved, self._presentable(x, d, moved, epsilon))

    def size(self, d: Any) -> Any:
        """[b]: the norm of each perturbation."""
        if self.space.norm == "linf":
            return tf.reduce_max(tf.abs(d), axis=-1)
        return tf.norm(d, axis=-1)

    def violations(self, x: Features, moved: Features, epsilon: float) -> npt.NDArray[np.bool_]:
        """[b]: which examples an attacker could not have presented in place of ``x``, computed without TensorFlow.

        Numbers that TensorFlow takes for 0 are 0 here too: to the model they make no difference.

        :param x: [b, features], the examples before the attack
        :param moved: [b, features], after it
        """
        space = self.space
        x, moved, low, high = (_flushed(numbers) for numbers in (x, moved, space.low, space.high))
        movable = space.unit >= _LEAST_NORMAL
        finite = np.isfinite(moved)
        difference = np.where(finite, moved, x).astype(np.float64) - x
        wrong = ~finite | ~movable & (difference != 0)
        wrong |= (moved < low) | (moved > high)
        wrong |= space.integer & (moved != np.rint(moved))
        wrong |= space.increasing & (difference < 0) | space.decreasing & (difference > 0)
        # x + d * unit lies on the grid of single precision.
        rounding = 2.0**-23 * np.maximum(np.abs(x), np.abs(x + difference))
        d = np.where(movable, np.maximum(np.abs(difference) - rounding, 0) / np.where(movable, space.unit, 1), 0)
        size = d.max(axis=1) if space.norm == "linf" else np.sqrt((d**2).sum(axis=1))
        found = wrong.any(axis=1) | (size > epsilon * (1 + _TOLERANCE))
        for group in space.one_hot:
            members = moved[:, group]
            found |= (np.count_nonzero(members == 1, axis=1) != 1) | (np.count_nonzero(members, axis=1) != 1)
        result: npt.NDArray[np.bool_] = found
        return result

    def _presentable(self, x: Any, d: Any, moved: Any, epsilon: Any) -> Any:
        """The example that the attacker presents: one-hot groups first, what they leave of the ball for the others."""
        if self.space.one_hot:
            chosen = self._chosen(x, moved, epsilon)
            if self.space.norm == "l2":
                spent = tf.reduce_sum(tf.where(self._grouped, (chosen - x) / self._divisor, 0.0) ** 2, axis=-1)
                left = tf.sqrt(tf.maximum(epsilon**2 - spent, 0.0))[:, tf.newaxis]
                others = tf.where(self._grouped, 0.0, d)
                moved = x + others * tf.minimum(1.0, left / _length(others)) * self._unit
            moved = tf.where(self._grouped, chosen, moved)
        if self._has_integers:
            moved = tf.where(self._integer, _towards(x, moved), moved)
        # x + (high - x) may exceed high by a rounding.
        return tf.clip_by_value(moved, self._low, self._high)

    def _chosen(self, x: Any, moved: Any, epsilon: Any) -> Any:
        """``x`` with each one-hot group turned to its largest member, if the attacker can do that inside the ball."""
        chosen = x
        for group in self.space.one_hot:
            largest = tf.argmax(tf.gather(moved, group, axis=1), axis=1)
            turned = tf.where(
                _members(group, len(self.space)), tf.gather(_one_hot_rows(group, len(self.space)), largest), chosen
            )
            difference = turned - x
            d = difference / self._divisor
            possible = tf.reduce_all(
                (difference == 0)
                | (self._movable > 0)
                & (d >= self._least)
                & (d <= self._most)
                & (turned >= self._low)
                & (turned <= self._high),
                axis=1,
            )
            possible &= self.size(d) <= epsilon * (1 + _TOLERANCE / 2)
            chosen = tf.where(possible[:, tf.newaxis], turned, chosen)
        return chosen


def _flushed(numbers: Features) -> Features:
    """``numbers``, as TensorFlow reads them: less than the least normal number is 0."""
    return np.where(np.abs(numbers) < _LEAST_NORMAL, np.float32(0), numbers)


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _straight_through(_: Any, presented: Any) -> tuple[Any, Any]:
    """The second argument, to the last bit, with the gradients of the first."""
    return tf.identity(presented), lambda gradient: (gradient, None)


def _towards(x: Any, moved: Any) -> Any:
    """Whole numbers between ``x``, which is whole, and ``moved``: the farthest."""
    nearest = tf.round(moved)
    # 1.9999999 is a 2 that was rounded.
    reached = tf.abs(nearest - x) <= tf.abs(moved - x) * (1 + _TOLERANCE / 2)
    return tf.where(reached, nearest, tf.where(moved >= x, tf.floor(moved), tf.math.ceil(moved)))


def _members(group: tuple[int, ...], features: int) -> npt.NDArray[np.bool_]:
    """[features]: whether a feature belongs to the group."""
    belongs = np.zeros(features, np.bool_)
    belongs[list(group)] = True
    return belongs


def _one_hot_rows(group: tuple[int, ...], features: int) -> npt.NDArray[np.float32]:
    """[members, features]: each row turns the group to one member."""
    rows = np.zeros((len(group), features), np.float32)
    rows[np.arange(len(group)), list(group)] = 1
    return rows


def _direction(d: Any) -> Any:
    """[b, features]: ``d`` at Euclidean length 1, however small it is; 0 stays 0."""
    # Squares of the gradients of a saturated model would vanish before their length is known.
    largest = tf.reduce_max(tf.abs(d), axis=-1, keepdims=True)
    scaled = d / tf.maximum(largest, _LEAST_NORMAL)
    return scaled / _length(scaled)


def _length(d: Any) -> Any:
    """[b, 1]: Euclidean lengths, never 0."""
    return tf.maximum(tf.norm(d, axis=-1, keepdims=True), 1e-12)
