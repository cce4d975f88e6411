"""The release document: noisy numbers, their confidence intervals, and everything that tells how they were made.

It is computed from the stored noisy integers and public parameters alone, so it is post-processing and costs no privacy, and
it comes out the same whenever it is computed again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

from lepton_airflow.privacy.amount import amount_text
from lepton_airflow.privacy.design import GroupingSet, Key, ReleaseDesign
from lepton_airflow.privacy.estimates import estimates_of, step_of
from lepton_airflow.privacy.intervals import CONFIDENCE, Estimate, Rational, down, up
from lepton_airflow.privacy.metrics import Metric
from lepton_airflow.privacy.plan import PlannedGrouping, Query, ReleasePlan
from lepton_airflow.privacy.post_processing import described, post_processed
from lepton_airflow.privacy.records import Release

SCHEMA = "lepton.release/2"
NEIGHBOURS = "add or remove all rows of one privacy unit"


def build_document(
    *, design: ReleaseDesign, plan: ReleasePlan, result: Mapping[str, Any], release: Release, dataset: str
) -> dict[str, Any]:
    """The JSON of a drawn release, schema ``lepton.release/2``.

    Each interval holds the number that noise was added to in at least 95 of 100 draws. It speaks of the noise only, not of
    what clipping, bins and contribution bounds left out. Sensitivities and scales are in steps, as they were drawn; ``step`` says
    what one step is in the number's own unit.

    :param plan: of ``design``, for the keys that are stored in ``result``
    :param result: the stored noisy integers, schema ``lepton.draw/2``
    :param dataset: whose numbers these are
    """
    keys = [
        (grouping.declared or ()) if (stored := result["groupings"][grouping.name]["keys"]) is None else stored
        for grouping in design.sets
    ]
    tables = post_processed(
        [
            {
                metric.name: estimates_of(
                    metric, plan=plan, grouping=grouping, vectors=result["groupings"][grouping.name]["vectors"]
                )
                for metric in plan.metrics
            }
            for grouping in plan.groupings
        ],
        plan=plan,
        keys=keys,
        post_processing=design.post_processing,
    )
    return {
        "schema": SCHEMA,
        "dataset": dataset,
        "privacy_unit": design.privacy_unit,
        "neighbours": NEIGHBOURS,
        "noise": plan.noise,
        "backend": plan.backend,
        "epsilon": amount_text(plan.epsilon),
        "delta": amount_text(plan.delta),
        "budget": release.dataset,
        "run_key": release.run_key,
        "spec_digest": release.spec_digest,
        "drawn_at": release.drawn_at,
        **({"approved_by": release.approver} if design.approval == "required" else {}),
        "confidence": CONFIDENCE,
        "metrics": [_metric(metric, plan) for metric in plan.metrics],
        "post_processing": described(design.post_processing),
        "groupings": [
            _grouping(own, grouping, plan, keys=group_keys, table=table)
            for own, grouping, group_keys, table in zip(design.sets, plan.groupings, keys, tables, strict=True)
        ],
    }


def _metric(metric: Metric, plan: ReleasePlan) -> dict[str, Any]:
    queries = [query for grouping in plan.groupings for query in grouping.queries_of(metric)]
    described: dict[str, Any] = {"name": metric.name, "type": metric.type, **_cost(queries)}
    if queries[0].measure is None:
        return described
    measure = plan.measures[queries[0].measure]
    described["column"] = measure.column
    if measure.grid is not None:
        grid = measure.grid
        return described | {
            "lower": grid.value(grid.lower),
            "upper": grid.value(grid.upper),
            "granularity": grid.value(1),
        }
    assert measure.bins is not None  # noqa: S101 - a measure has a grid or bins
    edges = [float(edge) for edge in measure.bins.edges]
    described |= {"lower": edges[0], "upper": edges[-1]}
    if metric.type == "histogram":
        return described | {"edges": edges}
    return described | {"bins": measure.bins.count, "quantiles": [amount_text(q) for q in metric.quantiles]}


def _cost(queries: Sequence[Query]) -> dict[str, Any]:
    """What queries cost together: exact for pure differential privacy; rho rounded up to a double."""
    if any(query.rho for query in queries):
        return {"rho": up(sum((query.rho for query in queries), Fraction(0)))}
    return {"epsilon": amount_text(sum((query.epsilon for query in queries), Fraction(0)))}


def _grouping(
    own: GroupingSet,
    grouping: PlannedGrouping,
    plan: ReleasePlan,
    *,
    keys: Sequence[Key],
    table: Mapping[str, list[list[Estimate]]],
) -> dict[str, Any]:
    selection = grouping.selection
    header: dict[str, Any] = {
        "name": grouping.name,
        "group_by": list(grouping.by),
        "keys": "private" if own.keys == "private" else "declared" if own.declared is not None else "table",
        "bounds": {
            "max_groups_per_unit": grouping.bounds.groups,
            "max_rows_per_unit_and_group": grouping.bounds.rows,
        },
    }
    if selection is not None:
        header["selection"] = {"threshold": selection.threshold, "delta": amount_text(selection.delta)}
    queries = [*([selection.query] if selection else []), *grouping.queries]
    shapes = [(metric, _Shape(metric, plan, grouping)) for metric in plan.metrics]
    return header | {
        "noise": [_noise(query, plan) for query in queries],
        "cells": [
            {
                "group": dict(zip(grouping.by, key, strict=True)),
                "values": {metric.name: shape.json(table[metric.name][index]) for metric, shape in shapes},
            }
            for index, key in enumerate(keys)
        ],
    }


def _noise(query: Query, plan: ReleasePlan) -> dict[str, Any]:
    sensitivity = query.sensitivity
    return {
        "query": query.name,
        "mechanism": query.mechanism.name,
        **_cost([query]),
        "sensitivity": {
            "l1": sensitivity.l1,
            "l2": math.sqrt(sensitivity.l2_squared),
            "linf": sensitivity.linf,
        },
        "scale": query.mechanism.scale,
        "step": float(step_of(query, plan)),
    }


class _Shape:
    """How the estimates of a metric in one group are written."""

    def __init__(self, metric: Metric, plan: ReleasePlan, grouping: PlannedGrouping) -> None:
        index = grouping.queries_of(metric)[0].measure
        bins = None if index is None else plan.measures[index].bins
        edges = [] if bins is None else [float(edge) for edge in bins.edges]
        self._bins = list(pairwise(edges)) if metric.type == "histogram" else None
        self._quantiles = [amount_text(q) for q in metric.quantiles]

    def json(self, entries: Sequence[Estimate]) -> dict[str, Any]:
        if self._bins is not None:
            return {
                "bins": [
                    {"from": low, "to": high, **_cell(entry)}
                    for (low, high), entry in zip(self._bins, entries, strict=True)
                ]
            }
        if self._quantiles:
            return {q: _cell(entry) for q, entry in zip(self._quantiles, entries, strict=True)}
        return _cell(entries[0])


def _cell(entry: Estimate) -> dict[str, Any]:
    return {"value": _number(entry.value), "interval": [down(entry.low), up(entry.high)]}


def _number(value: Rational) -> float | int:
    return value if isinstance(value, int) else float(value)
