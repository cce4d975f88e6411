"""From noisy integers to the numbers that people read: estimates in the metrics' own units, with confidence intervals.

All of it is post-processing of numbers that are private already, and costs nothing. A metric that rests on several noisy numbers
splits the allowed error evenly over them, so that all of their intervals hold at once in at least 95 of 100 draws; the interval
of the metric is then the hull of what it can be within them, in exact arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from lepton_airflow.privacy.fixed_point import FixedPoint
from lepton_airflow.privacy.intervals import CONFIDENCE, Estimate, Rational, clipped
from lepton_airflow.privacy.metrics import Metric
from lepton_airflow.privacy.plan import PlannedGrouping, Query, ReleasePlan

#: For each query, for each group its noisy integers.
Vectors = Mapping[str, Sequence[Sequence[int]]]
#: For each group its estimates: one, or those of all bins of a histogram, or of all quantiles.
Estimates = list[list[Estimate]]


def estimates_of(metric: Metric, *, plan: ReleasePlan, grouping: PlannedGrouping, vectors: Vectors) -> Estimates:
    """The estimates of one metric for every group of a grouping.

    Counts and sums are not cut off at zero: the noise can take them below it, so that they are right on average. A mean, a
    variance or a standard deviation is kept within what its bounds allow; a noisy number of values below 1 is taken as 1. What
    an interval says of them, or of quantiles, has no meaning in a group that has no value.
    """
    queries = grouping.queries_of(metric)
    if metric.type == "quantiles":
        from lepton_airflow.privacy.quantiles import quantiles

        return quantiles(metric, plan=plan, queries=queries, vectors=vectors)
    grid = grid_of(queries[0], plan)
    if grid is not None and metric.type != "sum":
        moments = _Moments(queries, grid)
        kind: dict[str, Callable[[Sequence[int]], Estimate]] = {
            "mean": moments.mean,
            "variance": moments.variance,
            "standard_deviation": moments.standard_deviation,
        }
        parts = zip(*(vectors[query.name] for query in queries), strict=True)
        return [[kind[metric.type]([entry for (entry,) in group])] for group in parts]
    (query,) = queries
    step, width = step_of(query, plan), query.mechanism.half_width(CONFIDENCE)
    return [
        [Estimate(number * step, (number - width) * step, (number + width) * step) for number in numbers]
        for numbers in vectors[query.name]
    ]


def grid_of(query: Query, plan: ReleasePlan) -> FixedPoint | None:
    """The grid that the query's measure is rounded to; None where rows, units, or values in bins are counted."""
    return None if query.measure is None else plan.measures[query.measure].grid


def step_of(query: Query, plan: ReleasePlan) -> Rational:
    """What one step of the query is in the metric's own unit (for squares: in its square). Counts are counted as they are."""
    grid = grid_of(query, plan)
    if grid is None or query.quantity == "values":
        return 1
    return grid.granularity**2 if query.quantity == "centred_squares" else grid.granularity


class _Moments:
    """Mean and variance from noisy sums of distances from the midpoint of the bounds, of values, and of squared distances."""

    def __init__(self, queries: Sequence[Query], grid: FixedPoint) -> None:
        each = 1 - (1 - CONFIDENCE) / len(queries)
        self._widths = [query.mechanism.half_width(each) for query in queries]
        self._grid = grid
        # Popoviciu: no distribution within bounds has a larger variance than one half at either of them.
        self._largest = Fraction((grid.upper - grid.lower) ** 2, 4)

    def mean(self, numbers: Sequence[int]) -> Estimate:
        """Midpoint + noisy sum of distances from it / noisy number of values."""
        (distance, values), (wide, uncertain) = numbers, self._widths
        fewest, most = max(values - uncertain, 1), max(values + uncertain, 1)
        low, high = distance - wide, distance + wide
        return Estimate(
            self._mean(distance, max(values, 1)),
            self._mean(low, fewest if low < 0 else most),
            self._mean(high, most if high < 0 else fewest),
        )

    def _mean(self, distance: int, values: int) -> Fraction:
        grid = self._grid
        steps = clipped(grid.midpoint * values + distance, grid.lower * values, grid.upper * values)
        return Fraction(int(steps) * grid.granularity.numerator, values * grid.granularity.denominator)

    def variance(self, numbers: Sequence[int]) -> Estimate:
        """Noisy mean of squared distances - square of the noisy mean of distances.

        With u = 1 / values this is squares * u - (distance * u)**2: largest for the smallest distance and the largest squares,
        and concave in u. So its maximum is at an end of u's interval or at the vertex of that parabola, its minimum at an end.
        """
        distance, values, squares = numbers
        wide, uncertain, rough = self._widths
        ends = [Fraction(1, max(values + offset, 1)) for offset in (uncertain, -uncertain)]
        far = max(abs(distance - wide), abs(distance + wide))
        near = max(abs(distance) - wide, 0)
        above = list(ends)
        if near and ends[0] < (vertex := Fraction(squares + rough, 2 * near**2)) < ends[1]:
            above.append(vertex)
        return Estimate(
            self._variance(squares, distance, Fraction(1, max(values, 1))),
            min(self._variance(squares - rough, far, u) for u in ends),
            max(self._variance(squares + rough, near, u) for u in above),
        )

    def _variance(self, squares: int, distance: int, u: Fraction) -> Rational:
        return clipped(squares * u - (distance * u) ** 2, 0, self._largest) * self._grid.granularity**2

    def standard_deviation(self, numbers: Sequence[int]) -> Estimate:
        """The root of the variance; the ends of its interval are rounded outward."""
        variance = self.variance(numbers)
        low, high = (Fraction(math.sqrt(end)) for end in (variance.low, variance.high))
        # A double's own root is the nearest one, on either side.
        if low**2 > variance.low:
            low = Fraction(math.nextafter(low, 0))
        if high**2 < variance.high:
            high = Fraction(math.nextafter(high, math.inf))
        return Estimate(Fraction(math.sqrt(variance.value)), low, high)
