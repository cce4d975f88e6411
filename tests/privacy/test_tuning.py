"""Tuning on a public table: biases are what the bounds really cut off, and noise is what the plan says."""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lepton_airflow.errors import EmptyTable, MissingColumn, SpecError
from lepton_airflow.privacy.accuracy import half_width
from lepton_airflow.privacy.design import ReleaseDesign
from lepton_airflow.privacy.plot import draw_tuning
from lepton_airflow.privacy.tuning import FACTORS, best_of, tune, write_table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

BOUNDS = {"column": "spent", "lower": 0, "upper": 40}
METRICS = [
    {"name": "rows", "type": "count"},
    {"name": "people", "type": "count_units"},
    {"name": "total", "type": "sum", **BOUNDS},
    {"name": "typical", "type": "mean", **BOUNDS},
    {"name": "shape", "type": "histogram", "column": "spent", "edges": [0, 50, 200]},
]


def design_of(metrics: list[dict[str, Any]] = METRICS, **fields: Any) -> ReleaseDesign:
    declared = {
        "privacy_unit": "person",
        "metrics": metrics,
        "max_groups_per_unit": 1,
        "max_rows_per_unit_and_group": 2,
        "epsilon": 4,
        "group_by": ["shop"],
        "groups": ["a", "b"],
    }
    return ReleaseDesign.model_validate(declared | fields)


@pytest.fixture(scope="module")
def table(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    """A hundred people, each four times in shop a for 10, 20, 30 and 100, and once in b for 5; and rows that count nowhere."""
    rows = [(f"p{i}", "a", float(spent)) for i in range(100) for spent in (10, 20, 30, 100)]
    rows += [(f"p{i}", "b", 5.0) for i in range(100)]
    rows += [(None, "a", 7.0), ("p1", "undeclared", 9.0)]
    path = str(tmp_path_factory.mktemp("tuning") / "table")
    spark.createDataFrame(rows, "person string, shop string, spent double").write.parquet(path)
    return spark.read.parquet(path)


def test_bias_is_what_the_bounds_cut_off(table: DataFrame) -> None:
    outcomes = tune(design_of(), table, groups=[2], rows=[1, 4], clips=[Decimal("0.5"), Decimal(1), Decimal("2.5")])
    found = {(one.rows, one.clip): one for one in outcomes}
    loose = found[4, Decimal("2.5")]
    # Nothing is cut off with all groups, all rows, and values of up to 100.
    assert loose.rows_lost == 0
    for name, metric in loose.metrics.items():
        assert metric.bias == pytest.approx(0, abs=1e-6), name
        assert metric.lost == (None if name == "typical" else pytest.approx(0, abs=1e-6))
    # Clipping 100 to 40 takes 60 of each 160 in shop a, nothing in b; the sums are 16,000 and 500.
    clipped = found[4, Decimal(1)].metrics["total"]
    assert clipped.lost == pytest.approx(6000 / 16_500, abs=1e-4)
    assert clipped.bias == pytest.approx(6000 / 2 / (16_500 / 2), abs=1e-4)
    assert clipped.values_lost == 0
    # The mean in a is 25 instead of 40, in b it stays; in proportion to half of the declared range.
    assert found[4, Decimal(1)].metrics["typical"].bias == pytest.approx((15 + 0) / 2 / 20, abs=1e-4)
    # Clipped to 20 it is 17.5. The proportion stays that of the declared range, or combinations could not be compared.
    assert found[4, Decimal("0.5")].metrics["typical"].bias == pytest.approx((22.5 + 0) / 2 / 20, abs=1e-4)
    # Of four rows in a one counts: 300 of 500 are lost, but nobody is.
    tight = found[1, Decimal("2.5")]
    assert tight.rows_lost == pytest.approx(300 / 500)
    assert tight.metrics["rows"].bias == pytest.approx(150 / 250)
    assert tight.metrics["people"].bias == 0
    assert tight.metrics["shape"].values_lost == pytest.approx(300 / 500)
    # A unit beyond the bound counts with its mean, 40, which is below 100 and so not clipped.
    assert tight.metrics["total"].lost == pytest.approx((16_000 - 4000) / 16_500, abs=1e-4)


def test_bounds_of_quantiles_are_tried_and_wider_ones_make_them_coarser(table: DataFrame) -> None:
    quantiles = {"type": "quantiles", "quantiles": ["0.5", "0.9"], "bins": 16, **BOUNDS}
    design = design_of([{"name": "typical", **quantiles}], groups=["a"], epsilon=1000)
    assert [one.clip for one in tune(design, table, groups=[2], rows=[4])] == list(FACTORS)
    narrow, declared, wide = tune(
        design, table, groups=[2], rows=[4], clips=[Decimal("0.5"), Decimal(1), Decimal("2.5")]
    )
    # In shop a a quarter each is 10, 20, 30 and 100: the median is 25, nine tenths are up to 100. In proportion to half of 40.
    # Clipped to 20, what is half lies between 10 and 20, and nine tenths are at most 20; to 40, at most 40; each within a bin.
    for outcome, below, within in ((narrow, 5 + 80, 10 + 80), (declared, 60 - 4, 60 + 4), (wide, 0, 20)):
        assert below / 2 / 20 <= outcome.metrics["typical"].bias <= within / 2 / 20
    bin_width = {one.clip: float(40 * one.clip) / 16 for one in (narrow, declared, wide)}
    for one in (narrow, declared, wide):
        assert one.metrics["typical"].noise >= bin_width[one.clip] / 2 / 20
    assert wide.metrics["typical"].noise > declared.metrics["typical"].noise > narrow.metrics["typical"].noise


def test_fewer_groups_for_each_unit_lose_the_rest(table: DataFrame) -> None:
    (one,) = tune(design_of(METRICS[:2]), table, groups=[1], rows=[4], clips=[])
    # Everybody is in two shops and counts in one of them.
    assert one.metrics["people"].lost == pytest.approx(0.5)
    assert 0.2 <= one.rows_lost <= 0.8
    assert one.clip == 1


def test_noise_is_what_the_plan_says(table: DataFrame) -> None:
    outcomes = tune(design_of(METRICS[:2]), table, groups=[1], rows=[2, 4])
    for one in outcomes:
        plan = design_of(METRICS[:2], max_groups_per_unit=one.groups, max_rows_per_unit_and_group=one.rows).plan([2])
        for metric, mean in zip(plan.metrics, (250, 100), strict=True):
            width = half_width(metric, plan=plan, grouping=plan.groupings[0], size=10)
            assert one.metrics[metric.name].noise == pytest.approx(width / mean)
    assert [one.declared for one in outcomes] == [True, False]


def test_the_declared_bounds_are_varied_by_default(table: DataFrame) -> None:
    outcomes = tune(design_of(METRICS[2:3], max_rows_per_unit_and_group=1), table, groups=[1])
    assert {one.rows for one in outcomes} == {1, 2, 4}
    assert {one.clip for one in outcomes} == set(FACTORS)
    assert sum(one.declared for one in outcomes) == 1
    best = best_of(outcomes)
    assert best.error == min(one.error for one in outcomes)


def test_private_and_nested_groupings_are_tried_too(table: DataFrame) -> None:
    design = design_of(
        METRICS[:1],
        group_by=[],
        groups=[],
        groupings=[{"by": []}, {"by": ["shop"], "keys": "private", "max_groups_per_unit": 2}],
        delta="1e-6",
    )
    one, other = tune(design, table, groups=[1, 2], rows=[4])
    # The undeclared shop is a group here, and 501 rows count twice. Everybody has five rows in all, p1 six: four count. By shop
    # everybody has two groups, p1 three, of which it loses one, of one row or of four.
    assert 102 <= round(one.rows_lost * 1002) <= 105
    assert other.rows_lost * 1002 == pytest.approx(101)
    assert other.metrics["rows"].noise > one.metrics["rows"].noise


@pytest.mark.parametrize("clip", ["0.1", "0.5"])
def test_bounds_of_one_sign_keep_the_nearer_one(table: DataFrame, clip: str) -> None:
    metrics = [{**METRICS[2], "lower": 10, "upper": 40}]
    if clip == "0.1":
        with pytest.raises(SpecError, match="leave no range"):
            tune(design_of(metrics), table, groups=[2], rows=[4], clips=[Decimal(clip)])
        return
    (one,) = tune(design_of(metrics), table, groups=[2], rows=[4], clips=[Decimal(clip)])
    # Clipped to [10, 20]: in a 10 + 20 + 20 + 20 of 160, in b 10 instead of 5.
    assert one.metrics["total"].lost == pytest.approx(1 - (7000 + 1000) / 16_500, abs=1e-4)


def test_tables_that_do_not_fit_are_refused(table: DataFrame) -> None:
    with pytest.raises(MissingColumn, match="spent"):
        tune(design_of(), table.drop("spent"))
    with pytest.raises(EmptyTable):
        tune(design_of(METRICS[:1], groups=["z"]), table)


def test_outcomes_are_written_and_drawn(table: DataFrame, tmp_path: Path) -> None:
    outcomes = tune(design_of(METRICS[:3]), table, rows=[4], clips=[Decimal(1), Decimal(2)])
    assert [one.groups for one in outcomes] == [1, 1, 2, 2, 4, 4]
    write_table(outcomes, tmp_path / "tuning.csv")
    with (tmp_path / "tuning.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 6 * 3
    assert {line["metric"] for line in lines if line["best"] == "1"} == {"rows", "people", "total"}
    total = next(line for line in lines if line["metric"] == "total")
    assert float(total["bias"]) == pytest.approx(outcomes[0].metrics["total"].bias, rel=1e-4)
    draw_tuning(outcomes, tmp_path / "tuning.svg")
    text = (tmp_path / "tuning.svg").read_text()
    assert "L0 2, Linf 4, clip × 2" in text
    assert "bias: cut off by the bounds" in text
