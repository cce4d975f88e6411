"""Differentially private training (DP-SGD; Abadi et al.: Deep Learning with Differential Privacy, CCS 2016).

Each step takes every privacy unit with one probability (Poisson sampling), clips the mean gradient of each unit's examples to an
L2 norm, adds them up and adds Gaussian noise. So a unit, added or removed, moves a step's sum by at most that norm, however many
examples it has. What all steps cost together is computed from their privacy loss distributions by dp-accounting.

Sampling and noise come from the operating system and have no seed. The claim is that of Gaussian noise in real numbers. Here
clipped gradients are added up and noise is made in double precision, each value half the sum of four draws, against attacks on
the gaps between floating-point numbers (Holohan, Braghin: Secure Random Sampling in Differential Privacy, ESORICS 2021): that
makes such attacks hard, it does not prove them impossible.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lepton_airflow.errors import MissingDependency, SpecError
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.objectives import Objective
from lepton_airflow.models.plan import DifferentialPrivacyPlan, TrainingPlan

#: How costs are composed.
DISTRIBUTIONS, RENYI = "privacy loss distributions", "Renyi divergences"
#: Single precision may round a clipped gradient up by so much of its norm; it is clipped to that much less.
_ROUNDING = 1e-5
#: How far above the smallest noise that is enough the search may stop.
_NOISE_TOLERANCE = 1e-2
_LARGEST_NOISE = 1e5
_DRAWS = 4


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """What DP-SGD runs, all of it public.

    :param noise_multiplier: standard deviation of the noise on a step's sum, as a multiple of the clipping norm
    :param sampling_rate: probability of each unit to take part in a step
    :param steps: how many
    :param epsilon: what they cost together at ``delta``, per privacy unit, added or removed
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int
    epsilon: float
    delta: float


def schedule(plan: DifferentialPrivacyPlan) -> NoiseSchedule:
    """The least noise (to one in a hundred) whose cost is within the plan's epsilon at its delta.

    Renyi accounting finds noise that is enough in milliseconds; privacy loss distributions then show that less is.

    :raises SpecError: no noise is enough
    :raises MissingDependency: dp-accounting is not installed
    """
    target, delta = float(plan.epsilon), float(plan.delta)

    def is_enough(noise_multiplier: float, accounting: str) -> bool:
        cost = composed_epsilon(
            noise_multiplier=noise_multiplier,
            sampling_rate=plan.sampling_rate,
            steps=plan.steps,
            delta=delta,
            accounting=accounting,
        )
        return cost <= target

    enough = 1.0
    while not is_enough(enough, RENYI):
        enough *= 2
        if enough > _LARGEST_NOISE:
            raise SpecError(
                f"No noise makes {plan.steps} steps cost epsilon {target:g} at delta {delta:g}.",
                place="training.differential_privacy",
                remedy="Take fewer steps or a smaller sampling rate, or spend more.",
            )
    enough = _least(lambda noise: is_enough(noise, RENYI), enough / 2 if enough > 1 else 0.1, enough)
    enough = _least(lambda noise: is_enough(noise, DISTRIBUTIONS), enough / 2, enough)
    cost = composed_epsilon(noise_multiplier=enough, sampling_rate=plan.sampling_rate, steps=plan.steps, delta=delta)
    return NoiseSchedule(
        noise_multiplier=enough, sampling_rate=plan.sampling_rate, steps=plan.steps, epsilon=cost, delta=delta
    )


def composed_epsilon(
    *, noise_multiplier: float, sampling_rate: float, steps: int, delta: float, accounting: str = DISTRIBUTIONS
) -> float:
    """The epsilon at ``delta`` of so many steps, for units added or removed.

    :param accounting: by privacy loss distributions, the tighter bound, or by Renyi divergences, the faster one
    :raises MissingDependency: dp-accounting is not installed
    """
    try:
        import dp_accounting
        from dp_accounting.pld import PLDAccountant
        from dp_accounting.rdp import RdpAccountant
    except ImportError:
        raise MissingDependency(
            "Private training is accounted with dp-accounting, which is not installed.",
            place="training.differential_privacy",
            remedy='Install it: pip install "lepton-airflow[privacy]".',
        ) from None
    step = dp_accounting.PoissonSampledDpEvent(sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier))
    neighbours = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = (
        PLDAccountant(neighbours) if accounting == DISTRIBUTIONS else RdpAccountant(neighboring_relation=neighbours)
    )
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(delta))


def _least(is_enough: Callable[[float], bool], low: float, high: float) -> float:
    """The least noise between ``low`` and ``high``, which is enough, by halving."""
    while high - low > _NOISE_TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def train_privately(
    model: Any,
    examples: Examples,
    *,
    plan: TrainingPlan,
    objective: Objective,
    noise: NoiseSchedule,
    report: Callable[[int, int], None],
) -> None:
    """Train ``model`` in place with Adam along a cosine, each step on a noisy sum.

    Nothing but the steps taken is reported: loss and accuracy are exact statistics of the training data. A unit's examples
    beyond ``plan.batch_size`` are left out. Adam does not heed the length of gradients, so sums need no division by the
    number of units, which is no public number.

    :param objective: the loss of each example must depend on no other example
    :param noise: from :func:`schedule`
    :param report: called after every step with its number and that of all steps
    """
    assert plan.differential_privacy is not None  # noqa: S101 - the caller asked for private training
    norm = plan.differential_privacy.clipping_norm
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(plan.learning_rate, noise.steps))
    optimizer.build(model.trainable_variables)
    clipped_sum = compile_clipped_sum(model, objective=objective, batch_size=plan.batch_size, clipping_norm=norm)
    rows = rows_of_units(examples, most=plan.batch_size)
    shapes = [tuple(variable.shape) for variable in model.trainable_variables]
    size = sum(math.prod(shape) for shape in shapes)
    deviation = noise.noise_multiplier * norm
    for step in range(1, noise.steps + 1):
        total = np.zeros(size)
        for batch in _batches(examples, rows, poisson_sample(len(rows), noise.sampling_rate), size=plan.batch_size):
            total += clipped_sum(*batch).numpy()
        total += deviation * gaussian_noise(size)
        gradients = np.split((total / deviation).astype(np.float32), np.cumsum([math.prod(s) for s in shapes])[:-1])
        optimizer.apply(
            [tf.constant(g.reshape(s)) for g, s in zip(gradients, shapes, strict=True)], model.trainable_variables
        )
        report(step, noise.steps)


def compile_clipped_sum(model: Any, *, objective: Objective, batch_size: int, clipping_norm: float) -> Any:
    """The sum of the units' clipped gradients as one ``tf.function``.

    :returns: a function of features [b, d], labels [b] and membership [b, b] (row i holds 1 / n at the n examples of unit i) that
        gives one vector of float64 with the gradient of every trainable variable behind each other
    """
    bound = clipping_norm * (1 - _ROUNDING)

    def clipped_sum(x: Any, labels: Any, membership: Any) -> Any:
        with tf.GradientTape() as tape:
            losses, _ = objective(model, x, labels)
        jacobians = tape.jacobian(losses, model.trainable_variables)
        by_example = tf.concat([tf.reshape(jacobian, (batch_size, -1)) for jacobian in jacobians], axis=1)
        by_unit = tf.matmul(membership, by_example)
        # A gradient that is no number would pass every bound on its length: its unit takes no part.
        by_unit = tf.where(tf.reduce_all(tf.math.is_finite(by_unit), axis=1, keepdims=True), by_unit, 0.0)
        wide = tf.cast(by_unit, tf.float64)
        lengths = tf.norm(wide, axis=1, keepdims=True)
        return tf.reduce_sum(wide / tf.maximum(lengths / bound, 1), axis=0)

    return tf.function(
        clipped_sum,
        input_signature=(
            tf.TensorSpec((batch_size, model.input_shape[-1]), tf.float32),
            tf.TensorSpec((batch_size,), tf.int32),
            tf.TensorSpec((batch_size, batch_size), tf.float32),
        ),
    )


def rows_of_units(examples: Examples, *, most: int) -> list[npt.NDArray[np.int64]]:
    """The positions of each unit's examples, at most so many of each."""
    order = np.argsort(examples.units, kind="stable")
    starts = np.flatnonzero(np.diff(examples.units[order], prepend=-1))
    return [rows[:most] for rows in np.split(order, starts[1:])]


def poisson_sample(count: int, rate: float) -> npt.NDArray[np.int64]:
    """The positions of those who take part, each with probability ``rate`` by itself, in rising order."""
    draws = np.frombuffer(os.urandom(8 * count), "<u8")
    # 53 bits make a double exactly; so a rate of 1 takes everybody.
    return np.flatnonzero((draws >> np.uint64(11)) * 2.0**-53 < rate)


def gaussian_noise(size: int) -> npt.NDArray[np.float64]:
    """[size]: independent standard normal values, each half the sum of four (Holohan, Braghin 2021, section 4)."""
    pairs = _DRAWS * (-(-size // 2))
    uniform = (np.frombuffer(os.urandom(16 * pairs), "<u8") >> np.uint64(11)) * 2.0**-53
    # Box, Muller: A Note on the Generation of Random Normal Deviates, 1958.
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[:pairs])), 2 * np.pi * uniform[pairs:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).reshape(_DRAWS, -1)
    values: npt.NDArray[np.float64] = normal.sum(axis=0)[:size] / math.sqrt(_DRAWS)
    return values


def _batches(
    examples: Examples, rows: list[npt.NDArray[np.int64]], chosen: npt.NDArray[np.int64], *, size: int
) -> Iterator[tuple[Any, Any, Any]]:
    """Whole units in batches of one shape: features, labels and membership."""
    together: list[npt.NDArray[np.int64]] = []
    for unit in chosen:
        if sum(map(len, together)) + len(rows[unit]) > size:
            yield _batch(examples, together, size)
            together = []
        together.append(rows[unit])
    if together:
        yield _batch(examples, together, size)


def _batch(examples: Examples, units: list[npt.NDArray[np.int64]], size: int) -> tuple[Any, Any, Any]:
    positions = np.concatenate(units)
    membership = np.zeros((size, size), np.float32)
    start = 0
    for number, unit in enumerate(units):
        membership[number, start : start + len(unit)] = 1 / len(unit)
        start += len(unit)
    filled = np.resize(positions, size)
    return examples.features[filled], examples.labels[filled], membership
