"""Accuracy before a release: what is predicted from public parameters is what the release then has."""

from __future__ import annotations

from decimal import Decimal
from itertools import product
from typing import Any

import pytest

from lepton_airflow.privacy.accuracy import (
    predicted,
    private_groups,
    proposed_weights,
    relative_width,
    reweighted,
)
from lepton_airflow.privacy.design import ReleaseDesign
from lepton_airflow.privacy.draw import draw
from lepton_airflow.privacy.estimates import estimates_of

BOUNDS = {"column": "x", "lower": 0, "upper": 100}
METRICS = [
    {"name": "n", "type": "count"},
    {"name": "u", "type": "count_units"},
    {"name": "s", "type": "sum", **BOUNDS},
    {"name": "m", "type": "mean", **BOUNDS},
    {"name": "v", "type": "variance", **BOUNDS},
    {"name": "d", "type": "standard_deviation", **BOUNDS},
    {"name": "q", "type": "quantiles", "quantiles": ["0.5"], **BOUNDS},
    {"name": "h", "type": "histogram", "bins": 4, **BOUNDS},
]


def design_of(metrics: list[dict[str, Any]] = METRICS, **fields: Any) -> ReleaseDesign:
    declared = {
        "privacy_unit": "unit",
        "metrics": metrics,
        "max_groups_per_unit": 2,
        "max_rows_per_unit_and_group": 3,
        "epsilon": 4,
    }
    if "groups" not in fields:
        declared |= {"group_by": ["g"], "groups": ["a", "b", "c"]}
    return ReleaseDesign.model_validate({**declared, **fields})


@pytest.mark.parametrize(("noise", "delta"), [("laplace", "0"), ("gaussian", "1e-6")])
def test_counts_and_sums_have_exactly_the_predicted_intervals(noise: str, delta: str) -> None:
    import numpy as np

    plan = design_of(noise=noise, delta=delta).plan([3])
    (grouping,) = plan.groupings
    stored = draw(plan, [np.zeros((3, plan.width), dtype=np.int64)], keys=[[("a",), ("b",), ("c",)]], declared=[True])
    vectors = stored["groupings"][grouping.name]["vectors"]
    for own in predicted(plan):
        if own.metric.name not in "nush":
            continue
        for group in estimates_of(own.metric, plan=plan, grouping=grouping, vectors=vectors):
            for entry in group:
                assert set(own.half_widths.values()) == {float(entry.high - entry.low) / 2}


def test_more_values_make_for_narrower_intervals() -> None:
    for own in predicted(design_of().plan([3])):
        widths = list(own.half_widths.values())
        if own.metric.name in "nush":
            assert len(set(widths)) == 1
            # In proportion, ten times as many are ten times as good.
            assert own.relative[10] == pytest.approx(1000 * own.relative[10_000])
        else:
            assert widths == sorted(widths, reverse=True)
            assert widths[-1] < widths[0] / 4, own.metric.name
            assert own.relative[10] <= 1


def test_every_grouping_and_metric_is_predicted() -> None:
    design = design_of(
        group_by=[], groups=[], groupings=[{"by": []}, {"by": ["g"], "keys": ["a", "b"]}], metrics=METRICS[:2]
    )
    found = [(own.grouping, own.metric.name) for own in predicted(design.plan([1, 2]))]
    assert found == list(product(["all", "g"], ["n", "u"]))


def test_a_likely_group_is_shown_in_95_of_100_releases() -> None:
    plan = design_of(METRICS[:1], groups="private", group_by=["g"], delta="1e-6").plan([None])
    (own,) = private_groups(plan)
    mechanism = plan.groupings[0].selection.query.mechanism
    draws = 4000
    shown = sum(number >= own.threshold for number in mechanism.add_noise([own.likely] * draws))
    # By the exact probabilities it is 0.964, and with one unit fewer 0.901; six standard deviations of the share are 0.018.
    assert 0.945 < shown / draws < 0.983
    assert not private_groups(design_of().plan([3]))


def weights_by_search(design: ReleaseDesign, size: int) -> float:
    """The smallest sum of relative half widths over a grid of weights of two metrics."""
    names = [metric.name for metric in design.metrics]
    shares = [Decimal(percent) / 100 for percent in range(2, 100, 2)]
    return min(
        relative_width(reweighted(design, dict(zip(names, (share, 1 - share), strict=True))).plan([3]), size=size)
        for share in shares
    )


@pytest.mark.parametrize(("noise", "delta"), [("laplace", "0"), ("gaussian", "1e-6")])
@pytest.mark.parametrize("pair", [(0, 2), (1, 3), (0, 5)])
def test_proposed_weights_are_the_best_ones(noise: str, delta: str, pair: tuple[int, int]) -> None:
    design = design_of([METRICS[place] for place in pair], noise=noise, delta=delta)
    plan = design.plan([3])
    weights = proposed_weights(design, plan, size=1000)
    proposed = relative_width(reweighted(design, weights).plan([3]), size=1000)
    assert proposed <= relative_width(plan, size=1000) * 1.001
    # Half widths of counts are whole numbers, and those of means only about in proportion to their scale.
    assert proposed <= weights_by_search(design, 1000) * 1.05
    assert float(sum(weights.values())) == pytest.approx(2, rel=0.1)


def test_equal_metrics_get_equal_weights() -> None:
    design = design_of([{"name": "a", "type": "count"}, {"name": "b", "type": "count"}])
    assert proposed_weights(design, design.plan([3]), size=100) == {"a": Decimal(1), "b": Decimal(1)}


def test_weights_go_with_the_root_of_the_cost() -> None:
    # A row of a unit counts nine times in the count and once among the units: weights are as 3 to 1.
    design = design_of(METRICS[:2], max_rows_per_unit_and_group=9, epsilon="0.01")
    weights = proposed_weights(design, design.plan([3]), size=1000)
    assert float(weights["n"] / weights["u"]) == pytest.approx(3, rel=0.03)
