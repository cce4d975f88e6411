"""What bounds cut off, beside the noise that they need: tried on a public table.

Low bounds lose rows and values (bias), high bounds need more noise. Which are best depends on the data, and looking at the
protected table would leak from it; so they are tried on a table that is public or synthetic and resembles it. There the exact
numbers may be known: Spark computes them without any bound, the release's own kernel with each combination of bounds, and the
noise follows from the plan. (Exemplar: the utility analysis of PipelineDP, by Google and OpenMined.) No noise is drawn, and no
budget is touched.

Groups that are chosen privately are all taken as shown here: what the threshold hides is not part of the error.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lepton_airflow.errors import EmptyTable, SpecError
from lepton_airflow.privacy.accuracy import natural_size
from lepton_airflow.privacy.bounds import MAX_ROWS_PER_UNIT_AND_GROUP
from lepton_airflow.privacy.design import Key, ReleaseDesign, key_of, key_text
from lepton_airflow.privacy.estimates import estimates_of
from lepton_airflow.privacy.metrics import MEASURING, Metric
from lepton_airflow.privacy.plan import ROWS, PlannedGrouping, ReleasePlan
from lepton_airflow.privacy.truth import Truth, check_presence, exact_numbers

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

#: What declared bounds are multiplied by, if nothing else is asked for.
FACTORS = (Decimal("0.25"), Decimal("0.5"), Decimal(1), Decimal(2), Decimal(4))
#: Metrics whose bounds are tried. The edges of a histogram are part of what it asks.
_CLIPPED = MEASURING - {"histogram"}


@dataclass(frozen=True, kw_only=True)
class MetricOutcome:
    """What becomes of one metric, all in proportion to the mean size of its exact numbers (of those that measure a distribution:
    to half the declared range of values, for variances its square).

    :ivar bias: the mean distance between the exact number and the one that is left within the bounds
    :ivar noise: the mean half width of the interval at 95%
    :ivar lost: of counts and sums the share of the total that is lost; negative if it grew. None of the others
    :ivar values_lost: the share of the measure's values that is lost; None where rows or units are counted
    """

    bias: float
    noise: float
    lost: float | None
    values_lost: float | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one combination of bounds does.

    :ivar groups: L0
    :ivar rows: Linf
    :ivar clip: what the clipping bounds are multiplied by
    :ivar declared: it is the design's own combination
    :ivar rows_lost: the share of rows that is lost to L0 and Linf
    """

    groups: int
    rows: int
    clip: Decimal
    declared: bool
    rows_lost: float
    metrics: dict[str, MetricOutcome]

    @property
    def error(self) -> float:
        """Bias and noise, added up over the metrics."""
        return sum(outcome.bias + outcome.noise for outcome in self.metrics.values())


def tune(
    design: ReleaseDesign,
    frame: DataFrame,
    *,
    groups: Sequence[int] = (),
    rows: Sequence[int] = (),
    clips: Sequence[Decimal] = (),
) -> list[Outcome]:
    """Try all combinations of bounds on a public table.

    :param frame: the public table; it has the design's columns, in clear
    :param groups: values of L0, instead of the declared one times :data:`FACTORS`; where groupings have their own, those change
        in proportion
    :param rows: values of Linf, likewise
    :param clips: factors of the clipping bounds, likewise. Of bounds of one sign only that farther from zero is changed.
        Quantiles keep their number of bins, so wider bounds make them coarser; histograms keep their edges
    :returns: in the order tried
    :raises SpecError: a clipping factor leaves no range
    :raises MissingColumn: the table lacks a column of the design
    :raises UnsupportedType: a column has a type that no release can use
    :raises EmptyTable: no row is in any group
    """
    groups = groups or sorted({max(round(design.max_groups_per_unit * factor), 1) for factor in FACTORS})
    most = MAX_ROWS_PER_UNIT_AND_GROUP
    rows = rows or sorted({min(max(round(design.max_rows_per_unit_and_group * f), 1), most) for f in FACTORS})
    clips = clips or _possible_clips(design)
    wide = _measuring(design, clips)
    trial = _Trial(design, frame, wide, clips)
    return [outcome for own, limit in product(groups, rows) for outcome in trial.outcomes(own, limit)]


def best_of(outcomes: Sequence[Outcome]) -> Outcome:
    """The combination with the smallest error; of equal ones the first."""
    return min(outcomes, key=lambda outcome: outcome.error)


def write_table(outcomes: Sequence[Outcome], file: Path) -> None:
    """Write all outcomes as CSV, one line for each combination and metric."""
    best = best_of(outcomes)
    header = "groups rows clip metric bias noise lost values_lost rows_lost total_error declared best"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header.split())
        for one in outcomes:
            for name, metric in one.metrics.items():
                parts = (metric.bias, metric.noise, metric.lost, metric.values_lost, one.rows_lost, one.error)
                texts = ["" if part is None else f"{part:.6g}" for part in parts]
                writer.writerow([one.groups, one.rows, one.clip, name, *texts, int(one.declared), int(one is best)])


class _Trial:
    """A public table whose exact numbers are known, and what the kernel makes of it under various bounds."""

    def __init__(self, design: ReleaseDesign, frame: DataFrame, wide: ReleaseDesign, clips: Sequence[Decimal]) -> None:
        from lepton_airflow.columnar.dataset import NotOnDirectRoad, open_table
        from lepton_airflow.privacy.aggregation import check_columns, new_salt

        self._design, self._wide, self._clips = design, wide, clips
        self._spark, self._salt = frame.sparkSession, new_salt()
        place = "public table"
        check_presence(frame, design)
        check_columns(frame.schema, design=design, plan=design.plan_for([((),)] * len(design.sets)), dataset=place)
        self._truths = [exact_numbers(frame, design, grouping) for grouping in design.sets]
        self._keys = [
            list(grouping.declared) if grouping.declared is not None else [key_of(text) for text in truth]
            for grouping, truth in zip(design.sets, self._truths, strict=True)
        ]
        if not any(self._truth(place, key) for place, keys in enumerate(self._keys) for key in keys):
            raise EmptyTable(
                "No row is in any group.", place=place, remedy="Choose a table that resembles the real one."
            )
        self._source: Any = frame
        with suppress(NotOnDirectRoad):
            self._source = open_table(frame)
        self._bins = self._unbounded_bins()

    def outcomes(self, groups: int, rows: int) -> list[Outcome]:
        """One pass of the kernel for all clipping bounds."""
        wide = _with_bounds(self._wide, groups, rows)
        plan = wide.plan_for(self._keys)
        totals = self._totals(plan)
        found = []
        for place, clip in enumerate(self._clips):
            design = _with_bounds(_clipped(self._design, clip), groups, rows)
            tried = design.plan_for(self._keys)
            metrics = {
                metric.name: self._metric(metric, tried, plan, totals, f"c{place}_{metric.name}")
                for metric in tried.metrics
            }
            declared = (self._design.max_groups_per_unit, self._design.max_rows_per_unit_and_group, Decimal(1))
            found.append(
                Outcome(
                    groups=groups,
                    rows=rows,
                    clip=clip,
                    declared=(groups, rows, clip) == declared,
                    rows_lost=self._rows_lost(totals),
                    metrics=metrics,
                )
            )
        return found

    def _totals(self, plan: ReleasePlan) -> list[Any]:
        from lepton_airflow.privacy.aggregation import aggregate

        return list(
            aggregate(
                self._spark,
                self._source,
                plan=plan,
                keys=self._keys,
                unit=self._design.privacy_unit,
                salt=self._salt,
                dataset="public table",
            )
        )

    def _truth(self, place: int, key: Key) -> Truth | None:
        return self._truths[place].get(key_text(key))

    def _unbounded_bins(self) -> dict[str, list[list[list[int]]]]:
        """Of every histogram the numbers of values without contribution bounds: by metric, grouping and group."""
        names = [metric for metric in self._design.metrics if metric.type == "histogram"]
        if not names:
            return {}
        plan = _with_bounds(self._design, max(map(len, self._keys)), MAX_ROWS_PER_UNIT_AND_GROUP).plan_for(self._keys)
        totals = self._totals(plan)
        return {
            metric.name: [
                plan.vector(grouping.queries_of(metric)[0], own).tolist()
                for grouping, own in zip(plan.groupings, totals, strict=True)
            ]
            for metric in names
        }

    def _metric(
        self, metric: Metric, tried: ReleasePlan, plan: ReleasePlan, totals: Sequence[Any], copied: str
    ) -> MetricOutcome:
        """Compare what is left of one metric with the truth, over all groups of all groupings."""
        copy = next(one for one in plan.metrics if one.name == copied)
        biases, noises, sizes, left, kept, values = [], [], [], 0.0, 0, 0
        for place, (own, grouping) in enumerate(zip(tried.groupings, plan.groupings, strict=True)):
            queries = zip(own.queries_of(metric), grouping.queries_of(copy), strict=True)
            vectors = {mine.name: plan.vector(theirs, totals[place]).tolist() for mine, theirs in queries}
            estimates = estimates_of(metric, plan=tried, grouping=own, vectors=vectors)
            kept += _values(plan, grouping, copy, totals[place])
            for index, (key, entries) in enumerate(zip(self._keys[place], estimates, strict=True)):
                truth = self._truth(place, key)
                exact = self._bins[metric.name][place][index] if metric.name in self._bins else _exact(truth, metric)
                values += truth.values[metric.column] if truth and metric.column else 0
                for entry, number in zip(entries, exact, strict=False):
                    biases.append(abs(float(entry.value) - number))
                    noises.append(float(entry.high - entry.low) / 2)
                    sizes.append(abs(number))
                    left += float(entry.value)
        adding = metric.type in ("count", "count_units", "sum", "histogram")
        declared = next(one for one in self._design.metrics if one.name == metric.name)
        size = (fmean(sizes) if sizes else 0.0) if adding else natural_size(declared, 1)
        total = math.fsum(sizes)
        return MetricOutcome(
            bias=fmean(biases) / (size or 1) if biases else 0.0,
            noise=fmean(noises) / (size or 1) if noises else 0.0,
            lost=1 - left / total if adding and total else None,
            values_lost=1 - kept / values if values else None,
        )

    def _rows_lost(self, totals: Sequence[Any]) -> float:
        rows = sum(
            truth.rows for place, keys in enumerate(self._keys) for key in keys if (truth := self._truth(place, key))
        )
        return 1 - sum(int(own[:, ROWS].sum()) for own in totals) / rows


def _values(plan: ReleasePlan, grouping: PlannedGrouping, metric: Metric, totals: Any) -> int:
    """How many values of the metric's measure are left, over all groups."""
    index = grouping.queries_of(metric)[0].measure
    if index is None:
        return 0
    measure = plan.measures[index]
    own = totals[:, measure.offset : measure.offset + measure.width]
    return int((own if measure.bins is not None else own[:, :1]).sum())


def _exact(truth: Truth | None, metric: Metric) -> Sequence[float]:
    """The exact numbers of a group; counts and sums of one that has no rows are zero, anything else has none."""
    if truth is None:
        return (0.0,) if metric.type in ("count", "count_units", "sum") else ()
    return truth.numbers[metric.name]


def _possible_clips(design: ReleaseDesign) -> tuple[Decimal, ...]:
    """The factors that leave every metric a range; only 1 if no metric clips."""
    if not any(metric.type in _CLIPPED for metric in design.metrics):
        return (Decimal(1),)
    possible = []
    for factor in FACTORS:
        try:
            possible.append((factor, _clipped(design, factor)))
        except SpecError:
            continue
    return tuple(factor for factor, _ in possible)


def _clipped(design: ReleaseDesign, factor: Decimal) -> ReleaseDesign:
    """The design with other clipping bounds."""
    return design.model_copy(update={"metrics": tuple(_clip(metric, factor) for metric in design.metrics)})


def _clip(metric: Metric, factor: Decimal) -> Metric:
    if metric.type not in _CLIPPED or factor == 1:
        return metric
    lower, upper = metric.bounds()
    changed = {
        "lower": lower * factor if lower < 0 else lower,
        "upper": upper * factor if upper > 0 else upper,
        "granularity": metric.granularity * factor if metric.granularity else None,
    }
    if changed["lower"] >= changed["upper"]:  # type: ignore[operator]
        raise SpecError(
            f"Times {factor} the bounds leave no range.", place=f"metric {metric.name}", remedy="Try larger factors."
        )
    return metric.model_copy(update=changed)


def _measuring(design: ReleaseDesign, clips: Sequence[Decimal]) -> ReleaseDesign:
    """A design that has every metric under every clipping bound, so that one pass serves them all."""
    metrics = [
        _clip(metric, clip).model_copy(update={"name": f"c{place}_{metric.name}"})
        for place, clip in enumerate(clips)
        for metric in design.metrics
    ]
    return design.model_copy(update={"metrics": tuple(metrics)})


def _with_bounds(design: ReleaseDesign, groups: int, rows: int) -> ReleaseDesign:
    sets = [
        own.model_copy(
            update={
                "max_groups_per_unit": own.max_groups_per_unit
                and max(round(own.max_groups_per_unit * groups / design.max_groups_per_unit), 1)
            }
        )
        for own in design.groupings
    ]
    changed = {"max_groups_per_unit": groups, "max_rows_per_unit_and_group": rows, "groupings": tuple(sets)}
    return design.model_copy(update=changed)
