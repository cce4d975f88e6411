"""Square (Andriushchenko, Croce, Flammarion, Hein: Square Attack: a Query-efficient Black-box Adversarial Attack via Random
Search, ECCV 2020): random search that only asks for predictions, so that no gradient can be hidden from it.

Each query changes the perturbation inside one window of every example and keeps the change where the margin of the true class
falls. A window of an image is a square, and its size shrinks along the paper's schedule. A row of a table has no neighbourhoods:
its window is a random subset of the features that can be moved, of the size that the schedule gives.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lepton_airflow.models.attacks.outcome import Outcome
from lepton_airflow.models.examples import Examples, Features
from lepton_airflow.models.input_space import InputSpace, Mask
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.prediction import Predict, correct, margins

#: The share of an example that the first windows cover.
FIRST_SHARE = 0.8
#: Of 10,000 queries, those after which the share is halved (the authors' implementation); other budgets are scaled to it.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

_TINY = 1e-12


def window_share(query: int, queries: int) -> float:
    """The share of an example that the window of a query covers.

    :param query: counted from 1
    :param queries: the budget
    """
    scaled = query * 10_000 // queries
    return FIRST_SHARE / 2.0 ** sum(scaled > halving for halving in HALVINGS)


class Square:
    """Random search in the ball of an input space.

    :param predict: all that is known of the model
    :param queries: predictions asked for, for each example
    :param seed: of the search
    """

    def __init__(self, predict: Predict, *, perturbation: Perturbation, queries: int, seed: int) -> None:
        self._predict = predict
        self._queries = queries
        self._seed = seed
        space = perturbation.space
        self._space = space
        self._windows: _Windows = _ImageWindows(space) if space.is_image else _TableWindows(space)

        def presented(x: Any, d: Any, epsilon: Any) -> tuple[Any, Any]:
            inside = perturbation.project(x, d, epsilon)
            return inside, perturbation.apply(x, inside, epsilon)

        rows = tf.TensorSpec((None, len(space)), tf.float32)
        self._presented = tf.function(
            presented, autograph=False, input_signature=(rows, rows, tf.TensorSpec((), tf.float32))
        )

    def run(self, examples: Examples, epsilon: float) -> Outcome:
        """Attack with radius ``epsilon``."""
        draw = np.random.default_rng(self._seed)
        x, labels = examples.features, examples.labels
        d, features = np.zeros_like(x), x.copy()
        margin = np.full(len(x), np.inf, np.float32)
        lost = np.zeros(len(x), np.bool_)
        for query in range(self._queries):
            # Who is misled leaves the search; the others go on together.
            left = np.flatnonzero(~lost)
            if not len(left):
                break
            if query:
                proposed = self._changed(draw, d[left], window_share(query, self._queries), epsilon)
            else:
                proposed = self._first(draw, len(left), epsilon)
            inside, tried = (part.numpy() for part in self._presented(x[left], proposed, epsilon))
            logits = self._predict(tried)
            reached = margins(logits, labels[left])
            wrong = ~correct(logits, labels[left])
            better = wrong | (reached < margin[left])
            rows = left[better]
            d[rows], features[rows], margin[rows] = inside[better], tried[better], reached[better]
            lost[left[wrong]] = True
        return Outcome(misled=lost, features=features)

    def _first(self, draw: np.random.Generator, count: int, epsilon: float) -> Features:
        """[count, features]: where the search begins: every feature at its limit, in L2 scaled to the ball."""
        if self._space.norm == "linf":
            return np.float32(epsilon) * self._windows.first_signs(draw, count)
        d = self._windows.first_bumps(draw, count)
        first: Features = (epsilon * d / _length(d)).astype(np.float32)
        return first

    def _changed(self, draw: np.random.Generator, d: Features, share: float, epsilon: float) -> Features:
        """[b, features]: ``d`` changed inside one window of every example."""
        if self._space.norm == "linf":
            window, signs = self._windows.signs(draw, len(d), share)
            return np.where(window, np.float32(epsilon) * signs, d)
        return self._moved_mass(draw, d, share, epsilon)

    def _moved_mass(self, draw: np.random.Generator, d: Features, share: float, epsilon: float) -> Features:
        """Algorithm 3 of the paper: what one window holds of the ball, and what of the ball is unused, goes to another."""
        taken, _ = self._windows.bumps(draw, len(d), share)
        given, bumps = self._windows.bumps(draw, len(d), share)
        channels = self._space.shape[-1] if self._space.is_image else 1

        def by_channel(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return values.reshape(len(d), -1, channels)

        before, to, emptied = by_channel(d.astype(np.float64)), by_channel(given), by_channel(taken)
        inside = np.where(to, before, 0)
        unused = np.maximum(epsilon**2 - (before**2).sum(axis=(1, 2), keepdims=True), 0)
        held = (np.where(to | emptied, before, 0) ** 2).sum(axis=1, keepdims=True)
        direction = by_channel(bumps) + inside / np.maximum(_length(inside), _TINY)
        direction *= np.sqrt(held + unused / channels) / np.maximum(_length(direction), _TINY)
        changed = np.where(to, direction, np.where(emptied, 0, before))
        result: Features = changed.reshape(d.shape).astype(np.float32)
        return result


class _Windows(Protocol):
    """Draws windows of many examples at once. Signs and bumps are 0 outside of them, and where nothing can be moved."""

    def first_signs(self, draw: np.random.Generator, count: int) -> Features:
        """[count, features]: -1 or 1, where the L-infinity search begins."""
        ...

    def signs(self, draw: np.random.Generator, count: int, share: float) -> tuple[Mask, Features]:
        """A window of each example, and the signs in it, [count, features] both."""
        ...

    def first_bumps(self, draw: np.random.Generator, count: int) -> Features:
        """[count, features]: where the L2 search begins."""
        ...

    def bumps(self, draw: np.random.Generator, count: int, share: float) -> tuple[Mask, Features]:
        """A window of each example, and in it a perturbation of length 1 in every channel, [count, features] both."""
        ...


class _ImageWindows:
    """Squares at random places, the same in all channels, each with its own sign."""

    def __init__(self, space: InputSpace) -> None:
        self._shape = space.shape

    def first_signs(self, draw: np.random.Generator, count: int) -> Features:
        """Vertical stripes, one pixel wide: networks are sensitive to them (section 3.3 of the paper)."""
        _, width, channels = self._shape
        stripes = _random_signs(draw, (count, 1, width, channels))
        return np.broadcast_to(stripes, (count, *self._shape)).reshape(count, -1)

    def signs(self, draw: np.random.Generator, count: int, share: float) -> tuple[Mask, Features]:
        side = max(round(math.sqrt(share * self._shape[0] * self._shape[1])), 1)
        return self._placed(draw, count, np.ones((1, 1, 1, 1), np.float32), side)

    def first_bumps(self, draw: np.random.Generator, count: int) -> Features:
        """A grid of five by five bumps."""
        height, width, _ = self._shape
        side = max(min(height, width) // 5, 1)
        field = np.zeros((count, *self._shape), np.float32)
        for top in range((height % side) // 2, height - side + 1, side):
            for left in range((width % side) // 2, width - side + 1, side):
                field[:, top : top + side, left : left + side] = self._signed_bumps(draw, count, side)
        return field.reshape(count, -1)

    def bumps(self, draw: np.random.Generator, count: int, share: float) -> tuple[Mask, Features]:
        # An odd side, so that a bump has a middle.
        side = max(round(math.sqrt(share * self._shape[0] * self._shape[1])), 3) // 2 * 2 + 1
        side = min(side, *self._shape[:2])
        return self._placed(draw, count, self._signed_bumps(draw, count, side, signs=False), side)

    def _signed_bumps(self, draw: np.random.Generator, count: int, side: int, *, signs: bool = True) -> Features:
        """[count, side, side, channels]: bumps of length 1, half of them lying on their side."""
        upright = two_bumps(side)
        lying = draw.random(count) < 0.5
        shapes = np.where(lying[:, np.newaxis, np.newaxis], upright.T, upright)[..., np.newaxis]
        if signs:
            return shapes * _random_signs(draw, (count, 1, 1, self._shape[2]))
        return shapes

    def _placed(self, draw: np.random.Generator, count: int, shapes: Features, side: int) -> tuple[Mask, Features]:
        """Shapes, [count or 1, side or 1, side or 1, 1], at random places and with random signs."""
        height, width, channels = self._shape
        side = min(side, height, width)
        rows = draw.integers(0, height - side + 1, (count, 1)) + np.arange(side)
        columns = draw.integers(0, width - side + 1, (count, 1)) + np.arange(side)
        field = np.zeros((count, *self._shape), np.float32)
        example = np.arange(count)[:, np.newaxis, np.newaxis]
        where = (example, rows[:, :, np.newaxis], columns[:, np.newaxis, :])
        field[where] = shapes * _random_signs(draw, (count, 1, 1, channels))
        window = np.zeros((count, *self._shape), np.bool_)
        window[where] = True
        return window.reshape(count, -1), field.reshape(count, -1)


class _TableWindows:
    """Random subsets of the features that can be moved, each feature with its own sign."""

    def __init__(self, space: InputSpace) -> None:
        self._movable: Mask = space.unit > 0

    def first_signs(self, draw: np.random.Generator, count: int) -> Features:
        return _random_signs(draw, (count, len(self._movable))) * self._movable

    def signs(self, draw: np.random.Generator, count: int, share: float) -> tuple[Mask, Features]:
        chosen = max(round(share * np.count_nonzero(self._movable)), 1)
        order = np.where(self._movable, draw.random((count, len(self._movable))), np.inf).argsort(axis=1)
        window = np.zeros((count, len(self._movable)), np.bool_)
        np.put_along_axis(window, order[:, :chosen], True, axis=1)
        window &= self._movable
        return window, _random_signs(draw, window.shape) * window

    def first_bumps(self, draw: np.random.Generator, count: int) -> Features:
        return self.first_signs(draw, count)

    def bumps(self, draw: np.random.Generator, count: int, share: float) -> tuple[Mask, Features]:
        window, signs = self.signs(draw, count, share)
        bumps: Features = (signs / np.maximum(_length(signs), _TINY)).astype(np.float32)
        return window, bumps


def two_bumps(side: int) -> Features:
    """[side, side]: a hill above a pit, together of length 1 (equation 2 of the paper).

    Each is built of rectangles around its middle, the k-th of which adds 1 / k^2.
    """
    above = _bump(side // 2, side)
    below = _bump(side - side // 2, side)
    both = np.concatenate([above, -below])
    result: Features = (both / np.linalg.norm(both)).astype(np.float32)
    return result


def _bump(height: int, width: int) -> npt.NDArray[np.float64]:
    """[height, width], of length 1."""
    row, column = np.abs(np.arange(height) - height // 2), np.abs(np.arange(width) - width // 2)
    rings = max(height, width) // 2 + 1
    # The value in ring k is the sum over all rectangles that reach it.
    values = np.cumsum(1 / np.arange(rings, 0, -1.0) ** 2)[::-1]
    bump: npt.NDArray[np.float64] = values[np.maximum(row[:, np.newaxis], column)]
    return bump / max(float(np.linalg.norm(bump)), _TINY)


def _random_signs(draw: np.random.Generator, shape: tuple[int, ...]) -> Features:
    signs: Features = np.where(draw.integers(0, 2, shape, dtype=np.int8), np.float32(1), np.float32(-1))
    return signs


def _length(d: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Euclidean lengths along axis 1, never 0."""
    lengths: npt.NDArray[Any] = np.maximum(np.linalg.norm(d, axis=1, keepdims=True), _TINY)
    return lengths
