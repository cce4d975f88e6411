"""Chooses between TensorFlow's own kernels and XLA for a graph that will run many times.

On CPUs neither is always faster: XLA fuses the small operations of dense networks, and is several times slower at convolutions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

#: Below so many seconds of work in all, there is nothing to gain that would pay for compiling twice: XLA takes ten and more for a
#: training step.
_WORTHWHILE = 120.0
#: Timings differ by themselves; XLA, whose results differ in the last bits, must be clearly faster.
_CLEARLY = 1.1
_ROUNDS = 5


def faster(
    build: Callable[[bool], Any], *, arguments: Sequence[Any], calls: int, state: Sequence[Any] = ()
) -> tuple[Any, bool]:
    """The function to use for ``calls`` calls, by a probe of a few.

    Both ways compute the same up to rounding and up to the random numbers that they draw from one seed, which are others. Where
    the calls take less than two minutes, TensorFlow's kernels are used without a comparison, so that small runs do not depend
    on timings.

    :param build: from whether to use XLA to a ``tf.function``
    :param arguments: of a call
    :param state: all variables that a call changes; they end as they began
    :returns: the function, and whether it uses XLA
    """
    before = [variable.numpy() for variable in state]
    try:
        plain = build(False)
        plain(*arguments)
        if _seconds(plain, arguments, rounds=1) * calls < _WORTHWHILE:
            return plain, False
        try:
            compiled = build(True)
            compiled(*arguments)
        except tf.errors.OpError:
            # XLA does not know an operation of the model.
            return plain, False
        if _seconds(compiled, arguments) * _CLEARLY < _seconds(plain, arguments):
            return compiled, True
        return plain, False
    finally:
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)


def _seconds(function: Any, arguments: Sequence[Any], *, rounds: int = _ROUNDS) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for result in tf.nest.flatten(function(*arguments)):
            result.numpy()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
