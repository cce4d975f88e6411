"""What becomes of a column's values before they are aggregated: steps of a grid, or bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lepton_airflow.privacy.bins import Bins
from lepton_airflow.privacy.fixed_point import FixedPoint
from lepton_airflow.privacy.mechanisms import Backend
from lepton_airflow.privacy.metrics import BINNING, BRANCHING, MEASURING, Metric

#: Steps of the default grid for diffprivlib, whose scales must stay small.
_DIFFPRIVLIB_STEPS = 2**10


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A column and what becomes of its values. Metrics with the same one share its totals.

    :ivar grid: what values are clipped and rounded to, to be summed
    :ivar squares: the squares of their distances from the grid's midpoint are summed as well
    :ivar bins: what values are counted in instead
    :ivar offset: of its first column in the totals
    """

    column: str
    grid: FixedPoint | None = None
    squares: bool = False
    bins: Bins | None = None
    offset: int = 0

    @property
    def width(self) -> int:
        """Its columns in the totals: values, their sum and perhaps their squares' sum; or one for each bin."""
        if self.bins is not None:
            return self.bins.count
        return 3 if self.squares else 2


def measures_of(metrics: Sequence[Metric], backend: Backend) -> tuple[list[Measure], dict[str, int]]:
    """The distinct measures, and by metric the index of its own."""
    found: dict[Measure, int] = {}
    numbers = {}
    for metric in metrics:
        if metric.type in MEASURING:
            numbers[metric.name] = found.setdefault(_measure(metric, backend), len(found))
    measures, offset = [], 2
    for measure in found:
        measures.append(
            Measure(column=measure.column, grid=measure.grid, squares=measure.squares, bins=measure.bins, offset=offset)
        )
        offset += measure.width
    return measures, numbers


def _measure(metric: Metric, backend: Backend) -> Measure:
    place = f"metric {metric.name}"
    assert metric.column is not None  # noqa: S101 - Metric requires it
    lower, upper = metric.bounds()
    if metric.type in BINNING:
        bins = (
            Bins(tuple(Fraction(edge) for edge in metric.edges))
            if metric.edges
            else Bins.equal(lower=lower, upper=upper, count=metric.bins or BRANCHING**2)
        )
        bins.check(place)
        return Measure(column=metric.column, bins=bins)
    squares = metric.type in ("variance", "standard_deviation")
    limit = {"steps": _DIFFPRIVLIB_STEPS} if backend == "diffprivlib" else {}
    grid = FixedPoint.from_bounds(
        lower=lower, upper=upper, granularity=metric.granularity, place=place, squares=squares, **limit
    )
    return Measure(column=metric.column, grid=grid, squares=squares)
