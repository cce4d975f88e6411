"""Proportions with confidence intervals.

Examples of one privacy unit are not independent. How many independent ones a sample is worth is counted as if all examples of
a unit gave one answer: Kish's effective size, (sum of m)^2 / (sum of m^2) for units of m examples (Survey Sampling, 1965). It is
the number of units when all have equally many examples, and less when a few units hold most of them, so intervals are cautious.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

#: The two-sided 95% quantile of the standard normal distribution.
_QUANTILE_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """A share of examples, with its 95% interval.

    :param successes: how many
    :param examples: out of how many
    :param units: privacy units behind them
    :param effective: how many independent examples they are worth
    """

    successes: int
    examples: int
    units: int
    effective: float

    @classmethod
    def of(cls, successes: npt.NDArray[np.bool_], units: npt.NDArray[np.int64]) -> Proportion:
        """The share of successes among examples.

        :param successes: [n]
        :param units: [n], the privacy unit of each
        """
        return cls(
            successes=int(np.count_nonzero(successes)),
            examples=len(successes),
            units=len(np.unique(units)),
            effective=effective_size(units),
        )

    @property
    def share(self) -> float:
        return self.successes / self.examples

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (Wilson 1927), which stays within [0, 1] and holds its level near both ends."""
        return wilson_interval(self.share, self.effective)

    def to_dict(self) -> dict[str, float | int | list[float]]:
        return {
            "accuracy": self.share,
            "interval_95": list(self.interval),
            "successes": self.successes,
            "n": self.examples,
            "units": self.units,
        }


def effective_size(units: npt.NDArray[np.int64]) -> float:
    """How many independent examples these are worth.

    :param units: [n], the privacy unit of each example; n at least 1
    """
    sizes = np.unique(units, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def wilson_interval(share: float, trials: float) -> tuple[float, float]:
    """The 95% score interval of a share seen in ``trials`` independent trials, a number above 0."""
    square = _QUANTILE_95**2
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = _QUANTILE_95 / (1 + square / trials) * sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)
