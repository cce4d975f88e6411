"""The release document: noisy numbers, their confidence intervals, and everything that tells how they were made.

It is computed from the stored noisy integers and public parameters alone, so it is post-processing and costs no privacy, and
it comes out the same whenever it is computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lepton_airflow.privacy.amount import amount_text
from lepton_airflow.privacy.fixed_point import FixedPoint
from lepton_airflow.privacy.groups import KeyValue
from lepton_airflow.privacy.metrics import Metric
from lepton_airflow.privacy.plan import Query, ReleasePlan
from lepton_airflow.privacy.records import Release

SCHEMA = "lepton.release/1"
CONFIDENCE = 0.95
MECHANISM = "discrete Laplace"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A released number and its confidence interval, in the metric's own unit."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "interval": [self.low, self.high]}


def build_document(
    *,
    release: Release,
    numbers: Mapping[str, Sequence[int]],
    plan: ReleasePlan,
    dataset: str,
    group_by: Sequence[str],
    groups: Sequence[Sequence[KeyValue]],
) -> dict[str, Any]:
    """The JSON of a drawn release, schema ``lepton.release/1``.

    Each interval holds the number that noise was added to in at least 95 of 100 draws. It speaks of the noise only, not of
    what clipping and contribution bounds left out. Counts and sums can be below zero: the noise is not cut off, so that they are
    right on average.

    :param numbers: the stored noisy integers of each query of ``plan``
    """
    columns = {metric.name: _cells(metric, numbers=numbers, plan=plan) for metric in plan.metrics}
    return {
        "schema": SCHEMA,
        "dataset": dataset,
        "privacy_unit": release.unit,
        "neighbours": "add or remove all rows of one privacy unit",
        "epsilon": amount_text(release.epsilon),
        "delta": amount_text(release.delta),
        "budget": release.dataset,
        "run_key": release.run_key,
        "spec_digest": release.spec_digest,
        "drawn_at": release.drawn_at,
        "bounds": {
            "max_groups_per_unit": plan.bounds.groups,
            "max_rows_per_unit_and_group": plan.bounds.rows,
        },
        "confidence": CONFIDENCE,
        "group_by": list(group_by),
        "metrics": [_metric(metric, plan) for metric in plan.metrics],
        "cells": [
            {
                "group": dict(zip(group_by, key, strict=True)),
                "values": {name: cells[index].to_json() for name, cells in columns.items()},
            }
            for index, key in enumerate(groups)
        ],
    }


def _metric(metric: Metric, plan: ReleasePlan) -> dict[str, Any]:
    queries = plan.queries_of(metric)
    described: dict[str, Any] = {
        "name": metric.name,
        "type": metric.type,
        "epsilon": amount_text(sum((query.epsilon for query in queries), Fraction(0))),
    }
    grid = plan.grid(queries[0])
    if grid is not None:
        described |= {
            "column": metric.column,
            "lower": grid.value(grid.lower),
            "upper": grid.value(grid.upper),
            "granularity": grid.value(1),
        }
    return described | {
        "noise": [
            {
                "query": query.name,
                "mechanism": MECHANISM,
                "epsilon": amount_text(query.epsilon),
                "l1_sensitivity": _in_unit(query.sensitivity.l1, query, plan),
                "scale": _in_unit(Fraction(query.mechanism.scale), query, plan),
            }
            for query in queries
        ]
    }


def _cells(metric: Metric, *, numbers: Mapping[str, Sequence[int]], plan: ReleasePlan) -> list[Cell]:
    queries = plan.queries_of(metric)
    grid = plan.grid(queries[0])
    if metric.type == "mean" and grid is not None:
        total, count = queries
        return _means(total, count, numbers=numbers, grid=grid)
    query = queries[0]
    width = query.mechanism.half_width(CONFIDENCE)
    return [
        Cell(
            value=_in_unit(number, query, plan),
            low=_in_unit(number - width, query, plan),
            high=_in_unit(number + width, query, plan),
        )
        for number in numbers[query.name]
    ]


def _means(total: Query, count: Query, *, numbers: Mapping[str, Sequence[int]], grid: FixedPoint) -> list[Cell]:
    """Midpoint + noisy sum of distances from it / noisy count, kept within the bounds.

    Half of the allowed error goes to the interval of the sum and half to that of the count; both hold at once in at least 95 of
    100 draws, and then the mean is between the extremes of their quotients (counts below 1 have no mean and are taken as 1).
    """
    each = 1 - (1 - CONFIDENCE) / 2
    total_width, count_width = total.mechanism.half_width(each), count.mechanism.half_width(each)

    def mean(distance: int, values: int) -> float:
        steps = grid.midpoint + Fraction(distance, max(values, 1))
        return grid.value(min(max(steps, Fraction(grid.lower)), Fraction(grid.upper)))

    cells = []
    for distance, values in zip(numbers[total.name], numbers[count.name], strict=True):
        corners = [
            mean(distance + t, values + c) for t in (-total_width, total_width) for c in (-count_width, count_width)
        ]
        cells.append(Cell(value=mean(distance, values), low=min(corners), high=max(corners)))
    return cells


def _in_unit(steps: Fraction | int, query: Query, plan: ReleasePlan) -> float:
    """Steps of a sum in the measure's unit; rows, units and values are counted as they are."""
    grid = plan.grid(query)
    if query.quantity in ("sum", "centred_sum") and grid is not None:
        return grid.value(steps)
    return steps if isinstance(steps, int) else float(steps)
