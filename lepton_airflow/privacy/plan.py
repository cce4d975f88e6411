"""From a declared release to the integer vectors that are noised: sensitivities, shares of the budget, noise scales.

Neighbouring datasets differ by all rows of one privacy unit, added or removed. The bounding of
:mod:`lepton_airflow.privacy.bounding` treats every unit by itself, lets it count in at most L0 groups, and in each of them
with at most Linf rows' worth; so one unit moves, in each of at most L0 groups,

- the number of units by at most 1,
- the number of rows, and the number of values of a measure, by at most Linf,
- the sum of a measure by at most Linf * max(abs(lower), abs(upper)),
- the sum of its distances from the midpoint of the bounds by at most Linf * half their range, and that of their squares by at
  most Linf times the square of half their range,
- the numbers of values in the bins of a histogram, or on one level of a quantile tree, by at most Linf in all,

everything in whole steps. A mean is the noisy sum of distances from the midpoint over the noisy number of values: that sum moves
less than the plain one, and the division is post-processing. Each vector is one query with its own share of the budget. With
Laplace noise the shares add up to epsilon (Dwork, Roth: The Algorithmic Foundations of Differential Privacy, theorem 3.16), with
Gaussian noise to the rho that implies epsilon and delta (Bun, Steinke: Concentrated Differential Privacy, 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from lepton_airflow.errors import SpecError
from lepton_airflow.privacy.bins import tree_levels
from lepton_airflow.privacy.bounds import MAX_ROWS_PER_UNIT_AND_GROUP, ContributionBounds, Sensitivity
from lepton_airflow.privacy.measures import Measure, measures_of
from lepton_airflow.privacy.mechanisms import (
    MAX_SCALE,
    Backend,
    DiscreteGaussian,
    DiscreteLaplace,
    Mechanism,
    rho_of,
    threshold_for,
)
from lepton_airflow.privacy.metrics import BRANCHING, Metric
from lepton_airflow.privacy.records import MechanismEvent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Noise = Literal["laplace", "gaussian"]
Quantity = Literal["rows", "units", "values", "sum", "centred_sum", "centred_squares", "bins"]

#: Columns that the totals of every plan have.
UNITS, ROWS = 0, 1


@dataclass(frozen=True, kw_only=True)
class Query:
    """One vector to which noise is added.

    :param name: unique in the release
    :param metric: the name of the metric that it serves; None for what selects groups
    :param measure: the index of the measure in the plan; None for rows and units
    :param width: its entries for each group
    :param epsilon: its share of the release's epsilon; 0 for Gaussian noise
    :param rho: its share of the release's rho; 0 for Laplace noise
    """

    name: str
    metric: str | None
    quantity: Quantity
    measure: int | None
    width: int
    sensitivity: Sensitivity
    epsilon: Fraction
    rho: Fraction
    mechanism: Mechanism


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How the groups of a grouping are chosen: those whose noisy number of units reaches the threshold.

    :param delta: the probability that groups which only one unit is in are shown
    """

    query: Query
    threshold: int
    delta: Fraction


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """One set of columns to group by, as the author declares it.

    :param groups: how many keys there are; None if groups are chosen privately
    :param weight: its part of the budget
    """

    name: str
    by: tuple[str, ...]
    groups: int | None
    bounds: ContributionBounds
    weight: Fraction = Fraction(1)


@dataclass(frozen=True, kw_only=True)
class PlannedGrouping:
    """A grouping and its queries.

    :ivar bounds: with L0 no larger than the number of groups
    """

    name: str
    by: tuple[str, ...]
    groups: int | None
    bounds: ContributionBounds
    selection: Selection | None
    queries: tuple[Query, ...]

    def queries_of(self, metric: Metric) -> list[Query]:
        """The queries that serve ``metric``, in the order of :func:`_parts`."""
        return [query for query in self.queries if query.metric == metric.name]


@dataclass(frozen=True, kw_only=True)
class ReleasePlan:
    """Everything about a release that is known before any protected data is read, all of it public.

    :ivar width: columns of the totals of each group: units, rows, and those of the measures
    """

    noise: Noise
    backend: Backend
    epsilon: Fraction
    delta: Fraction
    metrics: tuple[Metric, ...]
    measures: tuple[Measure, ...]
    groupings: tuple[PlannedGrouping, ...]

    @property
    def width(self) -> int:
        return 2 + sum(measure.width for measure in self.measures)

    def events(self) -> list[MechanismEvent]:
        """What an accountant needs to know of the release."""
        return [
            MechanismEvent(
                query=query.name,
                mechanism=query.mechanism.name,
                groups=query.sensitivity.groups,
                per_group=query.sensitivity.per_group,
                width=query.width,
                scale=query.mechanism.scale,
                epsilon=query.epsilon,
                rho=query.rho,
                delta=delta,
            )
            for grouping in self.groupings
            for query, delta in [
                *([(grouping.selection.query, grouping.selection.delta)] if grouping.selection else []),
                *((query, Fraction(0)) for query in grouping.queries),
            ]
        ]

    def vector(self, query: Query, totals: NDArray[np.int64]) -> NDArray[np.int64]:
        """The exact entries of ``query``. Not private.

        :param totals: for each group (rows) the plan's totals (columns)
        :returns: for each group (rows) the query's entries (columns)
        """
        if query.measure is None:
            column = UNITS if query.quantity == "units" else ROWS
            return totals[:, column : column + 1]
        measure = self.measures[query.measure]
        own = totals[:, measure.offset : measure.offset + measure.width]
        if query.quantity == "bins":
            bins: NDArray[np.int64] = own.reshape(len(own), query.width, measure.width // query.width).sum(axis=2)
            return bins
        values, sums = own[:, 0:1], own[:, 1:2]
        if query.quantity == "values":
            return values
        if query.quantity == "sum" or measure.grid is None:
            return sums
        if query.quantity == "centred_sum":
            return sums - measure.grid.midpoint * values
        return own[:, 2:3]


def plan_release(
    *,
    metrics: Sequence[Metric],
    groupings: Sequence[Grouping],
    epsilon: Decimal | Fraction,
    delta: Decimal | Fraction = Fraction(0),
    noise: Noise = "laplace",
    backend: Backend = "opendp",
) -> ReleasePlan:
    """Split the budget over the groupings and their metrics by weight, evenly within a metric, and calibrate every noise.

    A grouping whose groups are chosen privately counts that choice as one more metric of weight 1. Such groupings share ``delta``
    evenly; with Gaussian noise they get half of it.

    :raises SpecError: an amount is missing, or bounds, granularity and amounts are such that 64-bit integers could overflow
    """
    total, delta = Fraction(epsilon), Fraction(delta)
    private = sum(grouping.groups is None for grouping in groupings)
    _check_delta(delta, noise=noise, private=private)
    measures, numbers = measures_of(metrics, backend)
    selection_delta = (delta / 2 if noise == "gaussian" else delta) / private if private else Fraction(0)
    amount = rho_of(total, delta - selection_delta * private) if noise == "gaussian" else total
    weights = sum(grouping.weight for grouping in groupings)
    return ReleasePlan(
        noise=noise,
        backend=backend,
        epsilon=total,
        delta=delta,
        metrics=tuple(metrics),
        measures=tuple(measures),
        groupings=tuple(
            _planned(
                grouping,
                metrics=metrics,
                measures=measures,
                numbers=numbers,
                amount=amount * grouping.weight / weights,
                delta=selection_delta,
                noise=noise,
                prefix=f"{grouping.name}/" if len(groupings) > 1 else "",
            )
            for grouping in groupings
        ),
    )


def _check_delta(delta: Fraction, *, noise: Noise, private: int) -> None:
    needs = "Gaussian noise" if noise == "gaussian" else "A private choice of groups" if private else ""
    if needs and not 0 < delta < 1:
        raise SpecError(
            f"{needs} needs a delta between 0 and 1.",
            place="delta",
            remedy="Give one far below 1 / the number of units, such as 1e-9.",
        )
    if not needs and delta:
        raise SpecError(
            "Laplace noise on public groups needs no delta.", place="delta", remedy="Leave it out; epsilon says it all."
        )


def _planned(
    grouping: Grouping,
    *,
    metrics: Sequence[Metric],
    measures: Sequence[Measure],
    numbers: dict[str, int],
    amount: Fraction,
    delta: Fraction,
    noise: Noise,
    prefix: str,
) -> PlannedGrouping:
    bounds = grouping.bounds
    if grouping.groups is not None:
        # A unit cannot count in more groups than there are.
        bounds = ContributionBounds(groups=max(min(bounds.groups, grouping.groups), 1), rows=bounds.rows)
    if bounds.rows > MAX_ROWS_PER_UNIT_AND_GROUP:
        raise SpecError(
            f"At most {MAX_ROWS_PER_UNIT_AND_GROUP} rows of a unit can count in a group.",
            place="max_rows_per_unit_and_group",
            remedy="Lower it: noise grows with it.",
        )
    weights = sum((Fraction(metric.weight) for metric in metrics), Fraction(0))
    selection = None
    if grouping.groups is None:
        weights += 1
        share = amount / weights
        if noise == "gaussian":
            # Pure epsilon-DP implies (epsilon**2 / 2)-zCDP (Bun, Steinke 2016, proposition 1.4). Rounded down.
            share = Fraction(math.sqrt(2 * share) * (1 - 1e-9))
        selection = _selection(f"{prefix}selection", bounds=bounds, epsilon=share, delta=delta)
    queries = []
    for metric in metrics:
        index = numbers.get(metric.name)
        parts = _parts(metric, bounds, None if index is None else measures[index])
        share = amount * Fraction(metric.weight) / weights / len(parts)
        for suffix, quantity, width, steps in parts:
            queries.append(
                _query(
                    f"{prefix}{metric.name}{suffix}",
                    metric=metric.name,
                    quantity=quantity,
                    measure=index,
                    width=width,
                    sensitivity=Sensitivity(groups=bounds.groups, per_group=steps),
                    share=share,
                    noise=noise,
                )
            )
    return PlannedGrouping(
        name=grouping.name,
        by=grouping.by,
        groups=grouping.groups,
        bounds=bounds,
        selection=selection,
        queries=tuple(queries),
    )


def _parts(metric: Metric, bounds: ContributionBounds, measure: Measure | None) -> list[tuple[str, Quantity, int, int]]:
    """The vectors behind a metric: suffix of the name, quantity, entries for each group, and by how many steps one unit moves one
    group at most.
    """
    rows = bounds.rows
    if metric.type == "count_units":
        return [("", "units", 1, 1)]
    if measure is None:
        return [("", "rows", 1, rows)]
    if measure.bins is not None:
        if metric.type == "histogram":
            return [("", "bins", measure.bins.count, rows)]
        return [(f".level{width}", "bins", width, rows) for width in tree_levels(measure.bins.count, BRANCHING)]
    grid = measure.grid
    assert grid is not None  # noqa: S101 - a measure has bins or a grid
    if metric.type == "sum":
        return [("", "sum", 1, rows * grid.magnitude)]
    parts: list[tuple[str, Quantity, int, int]] = [
        (".sum", "centred_sum", 1, rows * grid.half_range),
        (".count", "values", 1, rows),
    ]
    if metric.type == "mean":
        return parts
    return [*parts, (".squares", "centred_squares", 1, rows * grid.half_range**2)]


def _selection(name: str, *, bounds: ContributionBounds, epsilon: Fraction, delta: Fraction) -> Selection:
    sensitivity = Sensitivity(groups=bounds.groups, per_group=1)
    query = _query(
        name,
        metric=None,
        quantity="units",
        measure=None,
        width=1,
        sensitivity=sensitivity,
        share=epsilon,
        noise="laplace",
    )
    threshold = threshold_for(groups=bounds.groups, scale=query.mechanism.scale, delta=delta)
    return Selection(query=query, threshold=threshold, delta=delta)


def _query(
    name: str,
    *,
    metric: str | None,
    quantity: Quantity,
    measure: int | None,
    width: int,
    sensitivity: Sensitivity,
    share: Fraction,
    noise: Noise,
) -> Query:
    mechanism: Mechanism
    if noise == "gaussian":
        mechanism = DiscreteGaussian.calibrated(l2_squared=sensitivity.l2_squared, rho=share)
    else:
        mechanism = DiscreteLaplace.calibrated(l1=sensitivity.l1, epsilon=share)
    if mechanism.scale > MAX_SCALE:
        raise SpecError(
            f"The noise would have scale {mechanism.scale:.3g}, too large for 64-bit integers.",
            place=f"metric {metric or name}",
            remedy="Raise epsilon, lower the contribution bounds, or choose a larger granularity.",
        )
    return Query(
        name=name,
        metric=metric,
        quantity=quantity,
        measure=measure,
        width=width,
        sensitivity=sensitivity,
        epsilon=Fraction(0) if noise == "gaussian" else share,
        rho=share if noise == "gaussian" else Fraction(0),
        mechanism=mechanism,
    )
