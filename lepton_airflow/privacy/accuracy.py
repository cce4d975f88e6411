"""How accurate a release will be, from public parameters alone: no data is read, and nothing is spent.

Half widths are those of the intervals that the release document will have, computed by the same code for a notional group without
noise. Counts, sums and histograms have the same interval whatever the data are. What is divided by a number of values does not:
for means, variances and quantiles, the group is imagined to have a stated number of values, spread evenly over the bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

from lepton_airflow.privacy.design import ReleaseDesign
from lepton_airflow.privacy.estimates import Vectors, estimates_of
from lepton_airflow.privacy.fixed_point import FixedPoint
from lepton_airflow.privacy.intervals import CONFIDENCE
from lepton_airflow.privacy.measures import Measure
from lepton_airflow.privacy.metrics import Metric
from lepton_airflow.privacy.plan import PlannedGrouping, Query, ReleasePlan

#: Numbers of values that a group is imagined to have.
SIZES = (10, 100, 1000, 10_000)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How accurate one metric of one grouping will be.

    :ivar half_widths: by the number of rows, units or values in the group, half of the interval's width at 95%; for
        quantiles that of the widest, for histograms that of a bin
    :ivar relative: the same in proportion to :func:`natural_size`
    """

    grouping: str
    metric: Metric
    half_widths: Mapping[int, float]
    relative: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class PrivateGroups:
    """What a private choice of groups will show.

    :ivar threshold: on the noisy number of units
    :ivar likely: with this many units or more a group is shown in at least 95 of 100 releases
    """

    grouping: str
    threshold: int
    likely: int


def predicted(plan: ReleasePlan, *, sizes: Sequence[int] = SIZES) -> list[Accuracy]:
    """The accuracy of every metric in every grouping, for groups of each size."""
    found = []
    for grouping in plan.groupings:
        for metric in plan.metrics:
            widths = {size: half_width(metric, plan=plan, grouping=grouping, size=size) for size in sizes}
            relative = {size: width / natural_size(metric, size) for size, width in widths.items()}
            found.append(Accuracy(grouping=grouping.name, metric=metric, half_widths=widths, relative=relative))
    return found


def private_groups(plan: ReleasePlan) -> list[PrivateGroups]:
    """What decides whether a group is shown, for each grouping whose groups are chosen privately."""
    return [
        PrivateGroups(
            grouping=grouping.name,
            threshold=selection.threshold,
            # One side of the symmetric noise: it is below -t in at most 5 of 100 draws.
            likely=selection.threshold + selection.query.mechanism.half_width(1 - 2 * (1 - CONFIDENCE)),
        )
        for grouping in plan.groupings
        if (selection := grouping.selection) is not None
    ]


def half_width(metric: Metric, *, plan: ReleasePlan, grouping: PlannedGrouping, size: int) -> float:
    """Half of the interval's width in a group of ``size`` rows or values that are spread evenly over the bounds."""
    vectors: Vectors = {query.name: [_even(query, plan, size)] for query in grouping.queries_of(metric)}
    (entries,) = estimates_of(metric, plan=plan, grouping=grouping, vectors=vectors)
    return max(float(entry.high - entry.low) for entry in entries) / 2


def natural_size(metric: Metric, size: int) -> float:
    """What a half width is compared with: the number of rows or units (for a histogram: of values); for sums that number times
    half the largest value; for means, quantiles and standard deviations half the bounds' range, for variances its square.
    """
    if metric.type in ("count", "count_units", "histogram"):
        return size
    lower, upper = metric.bounds()
    if metric.type == "sum":
        return size * float(max(abs(lower), abs(upper))) / 2
    half_range = float(upper - lower) / 2
    return half_range**2 if metric.type == "variance" else half_range


def proposed_weights(design: ReleaseDesign, plan: ReleasePlan, *, size: int) -> dict[str, Decimal]:
    """Weights of the metrics that make the sum of their relative half widths as small as it can be, in groups of ``size``.

    The half width of metric i goes with k_i / share_i for Laplace noise, and k_i / sqrt(share_i) for Gaussian. Under a fixed sum
    of shares, the sum over i is least for shares in proportion to sqrt(k_i), or k_i ** (2/3) (Lagrange). k_i is found from the
    half widths under the present weights, added up over the groupings. For means, variances and quantiles that is an
    approximation, which is good where the noise is small beside the number of values; so it is repeated a few times.

    :returns: by metric, with two significant digits; their sum is about that of the present ones, so that what a private choice
        of groups gets stays as it is
    """
    weights = {metric.name: float(metric.weight) for metric in design.metrics}
    total = sum(weights.values())
    power = 1.0 if plan.noise == "laplace" else 0.5
    groups = [grouping.groups for grouping in plan.groupings]
    for _ in range(4):
        cost = {
            name: share**power * relative_width(_weighted(design, weights).plan(groups), name, size=size)
            for name, share in weights.items()
        }
        shares = {name: k ** (1 / (1 + power)) for name, k in cost.items()}
        weights = {name: share * total / sum(shares.values()) for name, share in shares.items()}
    return {name: Decimal(f"{weight:.2g}") for name, weight in weights.items()}


def reweighted(design: ReleaseDesign, weights: Mapping[str, Decimal]) -> ReleaseDesign:
    """The same design with other weights of its metrics."""
    metrics = tuple(metric.model_copy(update={"weight": weights[metric.name]}) for metric in design.metrics)
    return design.model_copy(update={"metrics": metrics})


def relative_width(plan: ReleasePlan, name: str | None = None, *, size: int) -> float:
    """The sum of relative half widths over all groupings: of one metric, or of all."""
    return sum(
        half_width(metric, plan=plan, grouping=grouping, size=size) / natural_size(metric, size)
        for grouping in plan.groupings
        for metric in plan.metrics
        if name is None or metric.name == name
    )


def _weighted(design: ReleaseDesign, weights: Mapping[str, float]) -> ReleaseDesign:
    return reweighted(design, {name: Decimal(f"{weight:.6g}") for name, weight in weights.items()})


def _even(query: Query, plan: ReleasePlan, size: int) -> list[int]:
    """The exact entries of a query for ``size`` values that are spread evenly over the bounds, in a group without noise."""
    if query.measure is None or query.quantity == "values":
        return [size]
    measure = plan.measures[query.measure]
    if measure.grid is None:
        return _even_bins(measure, query.width, size)
    grid = measure.grid
    if query.quantity == "sum":
        return [size * (grid.lower + grid.upper) // 2]
    return [0] if query.quantity == "centred_sum" else [_even_squares(grid, size)]


def _even_squares(grid: FixedPoint, size: int) -> int:
    return round(Fraction(size * (grid.upper - grid.lower) ** 2, 12))


def _even_bins(measure: Measure, width: int, size: int) -> list[int]:
    assert measure.bins is not None  # noqa: S101 - what is not summed is counted in bins
    edges = measure.bins.edges[:: measure.bins.count // width]
    below = [round(size * (edge - edges[0]) / (edges[-1] - edges[0])) for edge in edges]
    return [b - a for a, b in pairwise(below)]
