"""Two models on the same examples: how far their accuracies are apart, with a 95% interval.

The interval is method 10 of Newcombe: Improved confidence intervals for the difference between binomial proportions based on
paired data, Statistics in Medicine 17 (1998) 2635-2650. It joins Wilson's intervals of both shares by their correlation, which
is corrected for continuity, and holds its level where few examples tell the models apart. Where examples share privacy units, the
table of agreements is taken for one of the effective number of units (see :mod:`lepton_airflow.models.intervals`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from lepton_airflow.models.intervals import effective_size, wilson_interval

Answers = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The challenger's accuracy minus the champion's.

    :param mean: over the examples
    :param lower: the interval's lower end
    :param upper: the interval's upper end
    :param gained: examples that only the challenger answers correctly
    :param lost: examples that only the champion answers correctly
    :param n: examples
    :param units: privacy units behind them
    """

    mean: float
    lower: float
    upper: float
    gained: int
    lost: int
    n: int
    units: int

    def to_dict(self) -> dict[str, float | int | list[float]]:
        return {
            "difference": self.mean,
            "interval_95": [self.lower, self.upper],
            "gained": self.gained,
            "lost": self.lost,
            "n": self.n,
            "units": self.units,
        }


def paired(champion_correct: Answers, challenger_correct: Answers, units: npt.NDArray[np.int64]) -> Difference:
    """Compare two models on the same examples.

    :param champion_correct: [n]; for robust accuracy: which examples survive every attack
    :param challenger_correct: [n], of the same examples
    :param units: [n], the privacy unit of each example; n at least 1
    """
    count, effective = len(units), effective_size(units)
    both = float(np.mean(champion_correct & challenger_correct))
    gained = float(np.mean(challenger_correct & ~champion_correct))
    lost = float(np.mean(champion_correct & ~challenger_correct))
    challenger, champion = both + gained, both + lost
    low_1, high_1 = wilson_interval(challenger, effective)
    low_2, high_2 = wilson_interval(champion, effective)
    correlation = _correlation(both=both, gained=gained, lost=lost, count=effective)
    mean = gained - lost
    return Difference(
        mean=mean,
        lower=mean - _joined(challenger - low_1, high_2 - champion, correlation),
        upper=mean + _joined(high_1 - challenger, champion - low_2, correlation),
        gained=int(np.count_nonzero(challenger_correct & ~champion_correct)),
        lost=int(np.count_nonzero(champion_correct & ~challenger_correct)),
        n=count,
        units=len(np.unique(units)),
    )


def _correlation(*, both: float, gained: float, lost: float, count: float) -> float:
    """Phi of the table of agreements, corrected for continuity where it is positive; 0 where a margin is empty."""
    neither = 1 - both - gained - lost
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if margins <= 0:
        return 0.0
    association = both * neither - gained * lost
    if association > 0:
        association = max(0.0, association - 0.5 / count)
    return association / sqrt(margins)


def _joined(first: float, second: float, correlation: float) -> float:
    # Rounding may leave a square that is 0 a little below it.
    return sqrt(max(0.0, first**2 - 2 * correlation * first * second + second**2))
