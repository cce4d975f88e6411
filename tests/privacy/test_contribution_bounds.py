"""Adding or removing any unit moves the vector that is noised by at most what is claimed: exactly, in whole numbers.

The claim is checked twice: on a plain Python kernel with many small tables, and on the Spark plan, which must also equal the
kernel.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_airflow.errors import InvalidData, SpecError, UnsupportedType
from lepton_airflow.privacy.aggregation import aggregate, check_columns
from lepton_airflow.privacy.bounds import MAX_ROWS_PER_UNIT_AND_GROUP, MAX_STEPS, ContributionBounds
from lepton_airflow.privacy.metrics import Metric
from lepton_airflow.privacy.plan import BoundedAggregates, ReleasePlan, plan_release

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Row = tuple[str | None, str | None, float | None]
SALT = 20_261_122
GROUPS = ("north", "south", "east", "west")


def plan_of(
    *,
    max_groups: int,
    max_rows: int,
    lower: float = -5,
    upper: float = 20,
    granularity: float | None = None,
    groups: int = len(GROUPS),
) -> ReleasePlan:
    measure = {"column": "value", "lower": lower, "upper": upper, "granularity": granularity}
    return plan_release(
        metrics=[
            Metric(name="rows", type="count"),
            Metric(name="units", type="count_units"),
            Metric(name="total", type="sum", **measure),
            Metric(name="average", type="mean", **measure),
        ],
        bounds=ContributionBounds(groups=max_groups, rows=max_rows),
        groups=groups,
        epsilon=Fraction(1),
    )


def kernel(rows: Sequence[Row], plan: ReleasePlan, hashed: Callable[[str, int], int]) -> BoundedAggregates:
    """What the Spark plan has to compute, one unit at a time. ``hashed`` orders the groups of a unit."""
    grid, limit = plan.measures[0].grid, plan.bounds.rows
    by_unit: dict[str, dict[int, list[int | None]]] = defaultdict(lambda: defaultdict(list))
    for unit, group, value in rows:
        if unit is not None and group in GROUPS:
            by_unit[unit][GROUPS.index(group)].append(grid.steps(value))
    units, counts, values, sums = ([0] * plan.groups for _ in range(4))
    for unit, groups in by_unit.items():
        for group in sorted(groups, key=lambda g: (hashed(unit, g), g))[: plan.bounds.groups]:
            present = [steps for steps in groups[group] if steps is not None]
            units[group] += 1
            counts[group] += min(len(groups[group]), limit)
            values[group] += min(len(present), limit)
            over = len(present) > limit
            sums[group] += math.floor(Fraction(sum(present) * limit, len(present))) if over else sum(present)
    return BoundedAggregates(units=tuple(units), rows=tuple(counts), values=(tuple(values),), sums=(tuple(sums),))


def check_sensitivity(plan: ReleasePlan, with_unit: BoundedAggregates, without: BoundedAggregates) -> None:
    """Assert what ``plan`` claims of two neighbours, for every query."""
    for query in plan.queries:
        pairs = zip(plan.vector(query, with_unit), plan.vector(query, without), strict=True)
        moved = [abs(a - b) for a, b in pairs]
        assert sum(step > 0 for step in moved) <= query.sensitivity.groups, query.name
        assert max(moved) <= query.sensitivity.per_group, query.name
        assert sum(moved) <= query.sensitivity.l1, query.name


def python_hash(unit: str, group: int) -> int:
    return hash((SALT, unit, group))


unit_names = st.one_of(st.sampled_from("abcd"), st.none())
tables = st.lists(
    st.tuples(
        unit_names, st.one_of(st.sampled_from([*GROUPS, "elsewhere"]), st.none()), st.one_of(st.floats(), st.none())
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(tables, st.integers(1, 5), st.integers(1, 4), st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_removing_any_unit_moves_each_vector_by_at_most_its_sensitivity(
    rows: list[Row], max_groups: int, max_rows: int, lower: int, width: int
) -> None:
    plan = plan_of(max_groups=max_groups, max_rows=max_rows, lower=lower / 1000, upper=(lower + width) / 1000)
    everything = kernel(rows, plan, python_hash)
    for unit in {row[0] for row in rows}:
        check_sensitivity(plan, everything, kernel([row for row in rows if row[0] != unit], plan, python_hash))


def worst_case(unit: str, *, groups: int = 4, rows: int = 5, value: float = math.inf) -> list[Row]:
    """A unit that contributes as much as it can."""
    return [(unit, group, value) for group in GROUPS[:groups] for _ in range(rows)]


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_the_claimed_sensitivity_is_reached(value: float) -> None:
    plan = plan_of(max_groups=2, max_rows=3, lower=-20, upper=20)
    nobody = kernel([], plan, python_hash)
    somebody = kernel(worst_case("a", value=value), plan, python_hash)
    for query in plan.queries:
        pairs = zip(plan.vector(query, somebody), plan.vector(query, nobody), strict=True)
        assert sum(abs(a - b) for a, b in pairs) == query.sensitivity.l1, query.name


def frame_of(spark: SparkSession, rows: Sequence[Row], *, partitions: int = 3) -> DataFrame:
    return spark.createDataFrame(list(rows), "unit string, region string, value double").repartition(partitions)


def spark_aggregates(frame: DataFrame, plan: ReleasePlan, *, salt: int = SALT) -> BoundedAggregates:
    return aggregate(
        frame,
        unit="unit",
        group_by=["region"],
        groups=[(group,) for group in GROUPS],
        plan=plan,
        salt=salt,
        dataset="clinic.visits",
    )


def spark_hash(spark: SparkSession, rows: Sequence[Row]) -> Callable[[str, int], int]:
    """The hash by which the Spark plan chooses groups, for the Python kernel."""
    from pyspark.sql import functions as F

    pairs = [(unit, group) for unit in {row[0] for row in rows if row[0] is not None} for group in range(len(GROUPS))]
    frame = spark.createDataFrame(pairs, "unit string, grp int")
    hashed = frame.select("unit", "grp", F.xxhash64(F.lit(SALT), "unit", "grp").alias("h")).collect()
    known = {(row["unit"], row["grp"]): row["h"] for row in hashed}
    return lambda unit, group: known[unit, group]


def random_rows(seed: int) -> list[Row]:
    chance = random.Random(seed)
    values = [None, math.nan, math.inf, -math.inf, -7.25, 0.1, 3.0, 19.99, 1e300]
    return [
        (chance.choice([*"abcdefgh", None]), chance.choice([*GROUPS, "elsewhere", None]), chance.choice(values))
        for _ in range(chance.randrange(60, 160))
    ]


@pytest.mark.parametrize(("seed", "max_groups", "max_rows"), [(1, 2, 3), (2, 1, 1), (3, 4, 2), (4, 3, 1000)])
def test_spark_computes_what_the_kernel_does_and_keeps_the_sensitivity(
    spark: SparkSession, seed: int, max_groups: int, max_rows: int
) -> None:
    rows = random_rows(seed)
    plan = plan_of(max_groups=max_groups, max_rows=max_rows)
    hashed = spark_hash(spark, rows)
    everything = spark_aggregates(frame_of(spark, rows), plan)
    assert everything == kernel(rows, plan, hashed)
    for unit in ("a", "e"):
        others = [row for row in rows if row[0] != unit]
        without = spark_aggregates(frame_of(spark, others), plan)
        assert without == kernel(others, plan, hashed)
        check_sensitivity(plan, everything, without)


def test_the_result_does_not_depend_on_order_partitions_or_adaptive_execution(spark: SparkSession) -> None:
    rows = random_rows(5)
    plan = plan_of(max_groups=2, max_rows=2)
    expected = spark_aggregates(frame_of(spark, rows), plan)
    assert spark_aggregates(frame_of(spark, rows[::-1], partitions=7), plan) == expected
    spark.conf.set("spark.sql.adaptive.enabled", "false")
    try:
        assert spark_aggregates(frame_of(spark, rows, partitions=1), plan) == expected
    finally:
        spark.conf.unset("spark.sql.adaptive.enabled")


def test_another_salt_keeps_other_groups_of_a_unit(spark: SparkSession) -> None:
    plan = plan_of(max_groups=1, max_rows=1)
    frame = frame_of(spark, [row for i in range(40) for row in worst_case(f"u{i}", rows=1)])
    first, second = (spark_aggregates(frame, plan, salt=salt).units for salt in (1, 2))
    assert sum(first) == sum(second) == 40
    assert first != second


MUTATIONS = {
    "no bound on groups": {"max_groups": 4, "max_rows": 3},
    "no bound on rows": {"max_groups": 2, "max_rows": 5},
    "bounds swapped": {"max_groups": 3, "max_rows": 2},
    "no clipping": {"max_groups": 2, "max_rows": 3, "lower": -100, "upper": 100},
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_an_aggregation_that_does_not_keep_the_bounds_is_caught(spark: SparkSession, mutation: str) -> None:
    claimed = plan_of(max_groups=2, max_rows=3, lower=-20, upper=20, granularity=1)
    broken = plan_of(**{"lower": -20, "upper": 20, "granularity": 1, **MUTATIONS[mutation]})
    rows = worst_case("a", value=1000.0)
    empty = spark_aggregates(frame_of(spark, []), claimed)
    check_sensitivity(claimed, spark_aggregates(frame_of(spark, rows), claimed), empty)
    with pytest.raises(AssertionError):
        check_sensitivity(claimed, spark_aggregates(frame_of(spark, rows), broken), empty)


def test_the_largest_sums_do_not_overflow(spark: SparkSession) -> None:
    from pyspark.sql import functions as F

    from lepton_airflow.privacy.aggregation import bounded_sum
    from lepton_airflow.privacy.bounds import MAX_ROWS

    cases = [
        (sign * MAX_ROWS * MAX_STEPS - off, MAX_ROWS, limit)
        for sign in (1, -1)
        for off in (0, 1, 12345)
        for limit in (1, 7, MAX_ROWS_PER_UNIT_AND_GROUP)
    ] + [(-7, 3, 2), (7, 3, 2), (-7, 3, 3), (-1, 5, 2)]
    frame = spark.createDataFrame(cases, "total long, count long, max long")
    for limit in {case[2] for case in cases}:
        selected = frame.where(F.col("max") == limit)
        for row in selected.select("*", bounded_sum(F.col("total"), F.col("count"), limit).alias("bounded")).collect():
            exact = row["total"] * limit // row["count"] if row["count"] > limit else row["total"]
            assert row["bounded"] == exact


def test_no_group_columns_give_one_number_and_an_empty_table_gives_zeros(spark: SparkSession) -> None:
    plan = plan_of(max_groups=1, max_rows=2, groups=1)

    def whole(rows: list[Row]) -> BoundedAggregates:
        return aggregate(
            frame_of(spark, rows), unit="unit", group_by=[], groups=[()], plan=plan, salt=SALT, dataset="clinic.visits"
        )

    assert whole([]) == BoundedAggregates(units=(0,), rows=(0,), values=((0,),), sums=((0,),))
    counted = whole(
        [("a", "north", 1.0), ("a", "south", None), ("a", None, 2.0), ("b", "north", 4.0), (None, "north", 9.0)]
    )
    assert (counted.units, counted.rows, counted.values) == ((2,), (3,), ((3,),))


def test_declared_keys_are_compared_in_the_type_of_their_column(spark: SparkSession) -> None:
    frame = spark.sql(
        "SELECT * FROM VALUES ('a', 1, DATE'2026-01-31', true), ('b', 1, DATE'2026-01-31', true), ('c', 2, null, false)"
        " AS t(unit, ward, day, open)"
    )
    plan = plan_release(
        metrics=[Metric(name="rows", type="count")], bounds=ContributionBounds(groups=3, rows=1), groups=3, epsilon=1
    )
    keys = [(1, "2026-01-31", True), (2, None, False), (1, None, True)]
    counted = aggregate(
        frame, unit="unit", group_by=["ward", "day", "open"], groups=keys, plan=plan, salt=SALT, dataset="clinic.visits"
    )
    assert counted.rows == (2, 1, 0)


@pytest.mark.parametrize(
    ("column", "keys"),
    [
        ("ward", [("1",)]),
        ("ward", [(True,)]),
        ("ward", [(2**31,)]),
        ("day", [("31.1.2026",)]),
        ("day", [("2026-01-31",), ("20260131",)]),
    ],
    ids=["text for a number", "boolean for a number", "out of range", "no date", "one date twice"],
)
def test_a_key_that_does_not_fit_its_column_is_refused(
    spark: SparkSession, column: str, keys: list[tuple[object, ...]]
) -> None:
    frame = spark.sql("SELECT 'a' AS unit, 1 AS ward, DATE'2026-01-31' AS day")
    plan = plan_release(
        metrics=[Metric(name="rows", type="count")],
        bounds=ContributionBounds(groups=1, rows=1),
        groups=len(keys),
        epsilon=1,
    )
    with pytest.raises(SpecError, match=r"clinic\.visits"):
        aggregate(frame, unit="unit", group_by=[column], groups=keys, plan=plan, salt=SALT, dataset="clinic.visits")


def test_an_encrypted_unit_under_two_keys_is_refused(spark: SparkSession) -> None:
    plan = plan_release(
        metrics=[Metric(name="rows", type="count")], bounds=ContributionBounds(groups=1, rows=1), groups=1, epsilon=1
    )
    first, second = (bytes([1, 0, 0, 0, key]) + b"ciphertext" for key in (7, 8))

    def counted(units: list[bytes]) -> tuple[int, ...]:
        frame = spark.createDataFrame([(unit,) for unit in units], "unit binary")
        return aggregate(
            frame,
            unit="unit",
            group_by=[],
            groups=[()],
            plan=plan,
            salt=SALT,
            dataset="clinic.visits",
            unit_is_encrypted=True,
        ).units

    assert counted([first, first]) == (1,)
    with pytest.raises(InvalidData, match=r"clinic\.visits\.unit.*2 or more keys"):
        counted([first, second])


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ("1.5D AS unit, 'n' AS region, 1 AS value", "unit"),
        ("'a' AS unit, 1.5D AS region, 1 AS value", "region"),
        ("'a' AS unit, 'n' COLLATE UTF8_LCASE AS region, 1 AS value", "region"),
        ("'a' AS unit, 'n' AS region, 'x' AS value", "value"),
        ("'a' AS unit, 'n' AS region, true AS value", "value"),
    ],
)
def test_columns_of_unfit_types_are_refused(spark: SparkSession, columns: str, named: str) -> None:
    with pytest.raises(UnsupportedType, match=rf"clinic\.visits\.{named}"):
        check_columns(
            spark.sql(f"SELECT {columns}"),
            unit="unit",
            group_by=["region"],
            plan=plan_of(max_groups=1, max_rows=1),
            dataset="clinic.visits",
        )


def test_unnoised_aggregates_have_no_text_form() -> None:
    secret = BoundedAggregates(units=(12345,), rows=(12345,), values=(), sums=())
    assert "12345" not in f"{secret!r} {secret}"
