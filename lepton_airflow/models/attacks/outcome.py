"""What an attack found, and the loop over batches and attempts that all gradient attacks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lepton_airflow.models.batches import Batch, padded_batches
from lepton_airflow.models.examples import Examples, Features
from lepton_airflow.models.input_space import Mask


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of n attacked examples.

    :param misled: [n], whether the model was misled
    :param features: [n, features], the examples that misled it, or else the last that were tried
    """

    misled: Mask
    features: Features


class Attack(Protocol):
    """Searches the ball around each example for one that misleads the model."""

    def run(self, examples: Examples, epsilon: float) -> Outcome:
        """Attack with radius ``epsilon``. The same examples and radius give the same outcome again."""
        ...


def attack_in_batches(
    attempt: Callable[[int, Batch], tuple[Any, Any]], examples: Examples, *, attempts: int, batch_size: int
) -> Outcome:
    """Try each example until it misleads the model, up to ``attempts`` times, in batches of one shape.

    :param attempt: from the attempt's number and a batch to which examples were misled, [b], and the examples that the
        attack came to, [b, features]
    """
    lost = np.zeros(len(examples), np.bool_)
    features = examples.features.copy()
    for number in range(attempts):
        left = np.flatnonzero(~lost)
        start = 0
        for batch in padded_batches(examples.features, examples.labels, size=batch_size, order=left):
            rows = left[start : start + batch.count]
            start += batch.count
            misled, moved = attempt(number, batch)
            lost[rows] = np.asarray(misled)[: batch.count]
            features[rows] = np.asarray(moved)[: batch.count]
    return Outcome(misled=lost, features=features)
