"""From declared metrics to the integer vectors that are noised: sensitivities, shares of epsilon, noise scales.

Neighbouring datasets differ by all rows of one privacy unit, added or removed. The bounding of
:mod:`lepton_airflow.privacy.aggregation` treats every unit by itself, lets it count in at most L0 groups, and in each of them
with at most Linf rows' worth; so one unit moves, in each of at most L0 groups,

- the number of units by at most 1,
- the number of rows, and the number of values of a measure, by at most Linf,
- the sum of a measure by at most Linf * max(abs(lower), abs(upper)),
- the sum of its distances from the midpoint of the bounds by at most Linf * half their range,

everything in whole steps. A mean is the noisy sum of distances from the midpoint over the noisy number of values: that sum moves
less than the plain one, and the division is post-processing. Each vector is one query with its own share of epsilon; by basic
composition (Dwork, Roth: The Algorithmic Foundations of Differential Privacy, theorem 3.16) the shares add up to the release's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from lepton_airflow.errors import SpecError
from lepton_airflow.privacy.bounds import MAX_ROWS_PER_UNIT_AND_GROUP, ContributionBounds, Sensitivity
from lepton_airflow.privacy.fixed_point import FixedPoint
from lepton_airflow.privacy.mechanisms import MAX_SCALE, DiscreteLaplace
from lepton_airflow.privacy.metrics import MEASURING, Metric

Quantity = Literal["rows", "units", "values", "sum", "centred_sum"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A column and the grid that its values are clipped and rounded to. Metrics with the same one share its sums."""

    column: str
    grid: FixedPoint


@dataclass(frozen=True, kw_only=True, repr=False)
class BoundedAggregates:
    """Exact integers for each group, in the order of the declared groups, after contribution bounding and before noise.

    These are not private: they stay in the driver's memory until noise is added, and have no text form that could be logged.

    :param units: per group, the units that count in it
    :param rows: per group, their rows, at most Linf each
    :param values: per measure and group, the values that are not missing, at most Linf for each unit
    :param sums: per measure and group, the sum of those values in steps
    """

    units: tuple[int, ...]
    rows: tuple[int, ...]
    values: tuple[tuple[int, ...], ...]
    sums: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Query:
    """One vector to which noise is added: an integer for each group.

    :param name: unique in the release: the metric's name, and for a mean ``<metric>.sum`` and ``<metric>.count``
    :param metric: the name of the metric that it serves
    :param measure: the index of the measure in the plan; None for rows and units
    :param epsilon: its share of the release's epsilon
    """

    name: str
    metric: str
    quantity: Quantity
    measure: int | None
    sensitivity: Sensitivity
    epsilon: Fraction
    mechanism: DiscreteLaplace


@dataclass(frozen=True, kw_only=True)
class ReleasePlan:
    """Everything about a release that is known before any data is read, all of it public."""

    bounds: ContributionBounds
    groups: int
    epsilon: Fraction
    metrics: tuple[Metric, ...]
    measures: tuple[Measure, ...]
    queries: tuple[Query, ...]

    def queries_of(self, metric: Metric) -> list[Query]:
        """The queries that serve ``metric``: of a mean the sum and then the count, else one."""
        return [query for query in self.queries if query.metric == metric.name]

    def grid(self, query: Query) -> FixedPoint | None:
        """The grid of the measure that ``query`` is about, if it is about one."""
        return None if query.measure is None else self.measures[query.measure].grid

    def vector(self, query: Query, aggregates: BoundedAggregates) -> list[int]:
        """The exact vector of ``query``, one entry for each group. Not private."""
        if query.quantity == "units":
            return list(aggregates.units)
        if query.quantity == "rows" or query.measure is None:
            return list(aggregates.rows)
        values, sums = aggregates.values[query.measure], aggregates.sums[query.measure]
        if query.quantity == "values":
            return list(values)
        if query.quantity == "sum":
            return list(sums)
        midpoint = self.measures[query.measure].grid.midpoint
        return [total - midpoint * count for total, count in zip(sums, values, strict=True)]


def plan_release(
    *, metrics: Sequence[Metric], bounds: ContributionBounds, groups: int, epsilon: Decimal | Fraction
) -> ReleasePlan:
    """Split ``epsilon`` over the metrics by weight, evenly within a mean, and calibrate the noise of every query.

    :param groups: how many groups are declared
    :raises SpecError: bounds, granularity or epsilon are such that 64-bit integers could overflow
    """
    # A unit cannot count in more groups than there are.
    bounds = ContributionBounds(groups=min(bounds.groups, groups), rows=bounds.rows)
    if bounds.rows > MAX_ROWS_PER_UNIT_AND_GROUP:
        raise SpecError(
            f"At most {MAX_ROWS_PER_UNIT_AND_GROUP} rows of a unit can count in a group.",
            place="max_rows_per_unit_and_group",
            remedy="Lower it: noise grows with it.",
        )
    total = Fraction(epsilon)
    weights = sum(Fraction(metric.weight) for metric in metrics)
    measures: list[Measure] = []
    queries: list[Query] = []
    for metric in metrics:
        index = None
        if metric.type in MEASURING:
            measure = _measure(metric)
            if measure not in measures:
                measures.append(measure)
            index = measures.index(measure)
        parts = _parts(metric, bounds, None if index is None else measures[index].grid)
        share = total * Fraction(metric.weight) / weights / len(parts)
        for suffix, quantity, steps in parts:
            sensitivity = Sensitivity(groups=bounds.groups, per_group=steps)
            queries.append(
                Query(
                    name=f"{metric.name}{suffix}",
                    metric=metric.name,
                    quantity=quantity,
                    measure=index,
                    sensitivity=sensitivity,
                    epsilon=share,
                    mechanism=_calibrated(metric, sensitivity, share),
                )
            )
    return ReleasePlan(
        bounds=bounds,
        groups=groups,
        epsilon=total,
        metrics=tuple(metrics),
        measures=tuple(measures),
        queries=tuple(queries),
    )


def _parts(metric: Metric, bounds: ContributionBounds, grid: FixedPoint | None) -> list[tuple[str, Quantity, int]]:
    """The vectors behind a metric: suffix of the name, quantity, and the steps by which one unit moves one group at most."""
    if metric.type == "count_units":
        return [("", "units", 1)]
    if grid is None:
        return [("", "rows", bounds.rows)]
    if metric.type == "sum":
        return [("", "sum", bounds.rows * grid.magnitude)]
    return [(".sum", "centred_sum", bounds.rows * grid.half_range), (".count", "values", bounds.rows)]


def _measure(metric: Metric) -> Measure:
    if metric.column is None or metric.lower is None or metric.upper is None:
        raise SpecError(
            f"A {metric.type} needs a column and bounds.",
            place=f"metric {metric.name}",
            remedy="Give column, lower, upper.",
        )
    grid = FixedPoint.from_bounds(
        lower=metric.lower, upper=metric.upper, granularity=metric.granularity, place=f"metric {metric.name}"
    )
    return Measure(column=metric.column, grid=grid)


def _calibrated(metric: Metric, sensitivity: Sensitivity, epsilon: Fraction) -> DiscreteLaplace:
    mechanism = DiscreteLaplace.calibrated(l1=sensitivity.l1, epsilon=epsilon)
    if mechanism.scale > MAX_SCALE:
        raise SpecError(
            f"The noise would have scale {mechanism.scale:.3g}, too large for 64-bit integers.",
            place=f"metric {metric.name}",
            remedy="Raise epsilon, lower the contribution bounds, or choose a larger granularity.",
        )
    return mechanism
