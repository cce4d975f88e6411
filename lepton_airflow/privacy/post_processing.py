"""What is done to estimates before they are published: consistent totals, no negative counts, rounding. It costs no privacy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from lepton_airflow.privacy.consistency import Level, consistent_totals
from lepton_airflow.privacy.design import Key, PostProcessing
from lepton_airflow.privacy.estimates import Estimates, step_of
from lepton_airflow.privacy.intervals import Estimate, Rational
from lepton_airflow.privacy.metrics import Metric
from lepton_airflow.privacy.plan import ReleasePlan

#: For each grouping, for each metric's name, its estimates.
Tables = Sequence[dict[str, Estimates]]

#: Metrics that add up over groups: a unit can count in several of them, so units do not.
ADDING = frozenset({"count", "sum"})
#: Metrics that are never below zero in truth, and whose noise can take them there.
COUNTING = frozenset({"count", "count_units", "histogram"})

_EFFECTS = {
    "consistent": "row counts and sums of a coarser grouping equal the totals of the next finer one: weighted least squares "
    "over all groupings, rounded to whole steps that add up; intervals are those of the noise as it was drawn, widened "
    "where the new number is outside",
    "nonnegative": "counts below zero are zero, and so are ends of their intervals; small counts are too high on average",
    "both": "consistent row counts below zero are zero, and the others of the same total pay for it: totals stay exact",
    "decimals": "numbers are rounded, ends of intervals outward",
}


def described(post_processing: PostProcessing) -> dict[str, object]:
    """What is done, in order, for the document."""
    names = [
        name
        for name in ("consistent", "nonnegative", "decimals")
        if getattr(post_processing, name) not in (False, None)
    ]
    steps = [{"step": name, "effect": _EFFECTS[name]} for name in names]
    if post_processing.consistent and post_processing.nonnegative:
        steps.insert(1, {"step": "consistent and nonnegative", "effect": _EFFECTS["both"]})
    return {**post_processing.model_dump(mode="json"), "steps": steps}


def post_processed(
    tables: Tables, *, plan: ReleasePlan, keys: Sequence[Sequence[Key]], post_processing: PostProcessing
) -> Tables:
    """Change the estimates as the design asks for, in this order: consistent, nonnegative, decimals.

    Intervals stay valid: they are only intersected with what is certain, or widened.
    """
    tables = [dict(table) for table in tables]
    for metric in plan.metrics:
        if post_processing.consistent and metric.type in ADDING:
            _make_consistent(metric, tables, plan=plan, keys=keys, post_processing=post_processing)
        if post_processing.nonnegative and metric.type in COUNTING:
            for table in tables:
                table[metric.name] = [[_nonnegative(entry) for entry in group] for group in table[metric.name]]
        if post_processing.decimals is not None:
            for table in tables:
                places = post_processing.decimals
                table[metric.name] = [[_rounded(entry, places) for entry in group] for group in table[metric.name]]
    return tables


def _make_consistent(
    metric: Metric,
    tables: Sequence[dict[str, Estimates]],
    *,
    plan: ReleasePlan,
    keys: Sequence[Sequence[Key]],
    post_processing: PostProcessing,
) -> None:
    order = sorted(range(len(tables)), key=lambda index: len(plan.groupings[index].by))
    queries = [plan.groupings[index].queries_of(metric)[0] for index in order]
    finest = min(query.mechanism.scale for query in queries)
    unit = step_of(queries[0], plan)
    if isinstance(unit, Fraction) and post_processing.decimals is not None:
        unit = Fraction(1, 10**post_processing.decimals)
    levels = [
        Level(
            by=plan.groupings[index].by,
            keys=keys[index],
            numbers=[entry.value for (entry,) in tables[index][metric.name]],
            # Any weights give totals that are consistent; short ones keep the arithmetic fast.
            variance=Fraction((query.mechanism.scale / finest) ** 2).limit_denominator(1000),
        )
        for index, query in zip(order, queries, strict=True)
    ]
    numbers = consistent_totals(levels, unit=unit, nonnegative=post_processing.nonnegative and metric.type in COUNTING)
    for index, own in zip(order, numbers, strict=True):
        table = tables[index]
        table[metric.name] = [[_moved(entry, number)] for (entry,), number in zip(table[metric.name], own, strict=True)]


def _moved(entry: Estimate, value: Rational) -> Estimate:
    return Estimate(value, min(entry.low, value), max(entry.high, value))


def _nonnegative(entry: Estimate) -> Estimate:
    if entry.low >= 0:
        return entry
    return Estimate(max(entry.value, 0), max(entry.low, 0), max(entry.high, 0))


def _rounded(entry: Estimate, places: int) -> Estimate:
    unit = Fraction(1, 10**places)
    ends = {
        name: down_or_up(Fraction(end) / unit) * unit
        for name, end, down_or_up in (("low", entry.low, math.floor), ("high", entry.high, math.ceil))
        if not isinstance(end, int)
    }
    value = entry.value if isinstance(entry.value, int) else round(entry.value / unit) * unit
    return replace(entry, value=value, **ends)
