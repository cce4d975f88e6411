"""Exact numbers of a public table, without any bound: what :mod:`lepton_airflow.privacy.tuning` compares with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lepton_airflow.errors import MissingColumn
from lepton_airflow.privacy.design import GroupingSet, ReleaseDesign, key_text
from lepton_airflow.privacy.metrics import Metric

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The exact numbers of one group.

    :ivar values: by column how many values it has, without null and NaN
    :ivar numbers: by metric: one, or those of all quantiles; none where no value is. Histograms are not among them
    """

    rows: int
    values: Mapping[str, int]
    numbers: Mapping[str, Sequence[float]]


def check_presence(frame: DataFrame, design: ReleaseDesign) -> None:
    """See that a table has the columns of a design.

    :raises MissingColumn: it lacks one
    """
    missing = sorted(set(design.columns) - set(frame.columns))
    if missing:
        raise MissingColumn(
            f"There is no column {', '.join(missing)}.",
            place="public table",
            remedy="Choose a table with the columns of the spec.",
        )


def exact_numbers(frame: DataFrame, design: ReleaseDesign, grouping: GroupingSet) -> dict[str, Truth]:
    """Aggregate a public table by Spark alone. Rows without a unit are left out, as in releases; infinities are too.

    :returns: by the key's canonical text, in its order
    """
    from pyspark.sql import functions as F

    measures = {metric.column for metric in design.metrics if metric.column is not None}
    places = {column: f"v{place}" for place, column in enumerate(sorted(measures))}
    keys = [f"k{place}" for place in range(len(grouping.by))]
    rows = frame.where(F.col(_quoted(design.privacy_unit)).isNotNull()).select(
        F.col(_quoted(design.privacy_unit)).alias("unit"),
        *(F.col(_quoted(column)).alias(key) for column, key in zip(grouping.by, keys, strict=True)),
        *(_finite(F.col(_quoted(column)).cast("double")).alias(place) for column, place in places.items()),
    )
    exact = {metric.name: _exact(metric, places) for metric in design.metrics if metric.type != "histogram"}
    found = rows.groupBy(*keys).agg(
        F.count(F.lit(1)).alias("rows"),
        *(F.count(place).alias(f"n_{place}") for place in places.values()),
        *(column.alias(f"m_{name}") for name, column in exact.items()),
    )
    truths = {}
    for row in found.collect():
        truths[key_text([row[key] for key in keys])] = Truth(
            rows=row["rows"],
            values={column: row[f"n_{place}"] for column, place in places.items()},
            numbers={name: _numbers(row[f"m_{name}"]) for name in exact},
        )
    # Without columns to group by Spark has a row for an empty table too.
    return {text: truths[text] for text in sorted(truths) if truths[text].rows}


def _exact(metric: Metric, places: Mapping[str, str]) -> Column:
    from pyspark.sql import functions as F

    if metric.type == "count":
        return F.count(F.lit(1))
    if metric.type == "count_units":
        return F.count_distinct("unit")
    place = places[metric.column or ""]
    if metric.type == "quantiles":
        return F.percentile(place, [float(q) for q in metric.quantiles])
    of = {"mean": F.avg, "variance": F.var_pop, "standard_deviation": F.stddev_pop}
    # A sum of nothing is zero.
    return F.coalesce(F.sum(place), F.lit(0.0)) if metric.type == "sum" else of[metric.type](place)


def _finite(value: Column) -> Column:
    from pyspark.sql import functions as F

    # Comparisons put NaN above infinity.
    return F.when(F.abs(value) < F.lit(float("inf")), value)


def _numbers(value: Any) -> Sequence[float]:
    if value is None:
        return ()
    return tuple(map(float, value)) if isinstance(value, list) else (float(value),)


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
