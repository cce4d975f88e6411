"""Proportions with confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

#: The two-sided 95% quantile of the standard normal distribution.
_QUANTILE_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """A share of examples, with its 95% interval.

    :param successes: how many
    :param examples: out of how many
    :param units: privacy units behind them. Rows of one unit are not independent, so the interval is that of a sample
        of ``units``: exact when each unit has one row, cautious when it has more
    """

    successes: int
    examples: int
    units: int

    @property
    def share(self) -> float:
        return self.successes / self.examples

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (Wilson 1927), which stays within [0, 1] and holds its level near both ends."""
        return wilson_interval(self.share, self.units)

    def to_dict(self) -> dict[str, float | int | list[float]]:
        return {
            "accuracy": self.share,
            "interval_95": list(self.interval),
            "successes": self.successes,
            "n": self.examples,
            "units": self.units,
        }


def wilson_interval(share: float, trials: int) -> tuple[float, float]:
    """The 95% score interval of a share seen in ``trials`` independent trials."""
    square = _QUANTILE_95**2
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = _QUANTILE_95 / (1 + square / trials) * sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)
