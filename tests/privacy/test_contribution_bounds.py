"""Bounded aggregation on Spark: both roads give one result, whatever Spark does to rows and tasks, and no unit moves it further
than is claimed. What the kernel computes is tested by itself in test_bounding.py."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lepton_airflow.columnar.dataset import open_table
from lepton_airflow.errors import InvalidData, SpecError, UnsupportedType
from lepton_airflow.jobs.failure import as_typed_error
from lepton_airflow.privacy.aggregation import _Run, aggregate, check_columns
from lepton_airflow.privacy.bounds import ContributionBounds
from lepton_airflow.privacy.design import ReleaseDesign
from lepton_airflow.privacy.metrics import Metric
from lepton_airflow.privacy.plan import Grouping, ReleasePlan, plan_release
from lepton_airflow.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from lepton_airflow.encryption.roads import Reveal

Row = tuple[str | None, str | None, int | None, float | None]
SALT = 20_261_122
REGIONS = ("north", "south", "east", "west")
BY: list[tuple[str, ...]] = [("region",), ("ward", "region"), ("region", "ward"), ()]
KEYS: list[list[tuple[Any, ...]] | None] = [
    [(region,) for region in REGIONS],
    None,
    [(region, ward) for region in REGIONS for ward in (1, 2, None)],
    [()],
]


def plan_of(*, max_groups: int = 2, max_rows: int = 3) -> ReleasePlan:
    bounds: dict[str, Any] = {"column": "value", "lower": Decimal(-5), "upper": Decimal(20)}
    return plan_release(
        metrics=[
            Metric(name="rows", type="count"),
            Metric(name="average", type="mean", **bounds),
            Metric(name="spread", type="variance", **bounds),
            Metric(name="shape", type="histogram", bins=5, **bounds),
        ],
        groupings=[
            Grouping(
                name=f"g{place}",
                by=by,
                groups=None if keys is None else len(keys),
                bounds=ContributionBounds(groups=max_groups, rows=max_rows),
            )
            for place, (by, keys) in enumerate(zip(BY, KEYS, strict=True))
        ],
        epsilon=Fraction(1),
        delta=Fraction(1, 10**9),
    )


def counting(by: tuple[str, ...], groups: int | None, *, max_groups: int = 10) -> ReleasePlan:
    return plan_release(
        metrics=[Metric(name="rows", type="count")],
        groupings=[Grouping(name="g", by=by, groups=groups, bounds=ContributionBounds(groups=max_groups, rows=5))],
        epsilon=Fraction(1),
        delta=Fraction(0 if groups is not None else 1, 10**9),
    )


def random_rows(seed: int) -> list[Row]:
    chance = random.Random(seed)
    values = [None, math.nan, math.inf, -math.inf, -7.25, 0.1, 3.0, 19.99, 1e300]
    return [
        (
            chance.choice([*"abcdefgh", None]),
            chance.choice([*REGIONS, "elsewhere", None]),
            chance.choice([1, 2, 3, None]),
            chance.choice(values),
        )
        for _ in range(chance.randrange(150, 250))
    ]


def frame_of(spark: SparkSession, rows: Sequence[Row], *, partitions: int = 3) -> DataFrame:
    return spark.createDataFrame(list(rows), "unit string, region string, ward int, value double").repartition(
        partitions
    )


Totals = list[dict[str, list[int]]]


def read(found: Any, keys: Sequence[Sequence[Any] | None]) -> Totals:
    """Totals by group, for each grouping."""
    totals: Totals = []
    for known, own in zip(keys, found, strict=True):
        if known is None:
            totals.append({k.decode(): t for chunk, some in own for k, t in zip(chunk, some.tolist(), strict=True)})
        else:
            names = [json.dumps(list(key), separators=(",", ":")) for key in known]
            totals.append(dict(zip(names, own.tolist(), strict=True)))
    return totals


def totals_of(spark: SparkSession, source: Any, plan: ReleasePlan, **options: Any) -> Totals:
    found = aggregate(
        spark,
        source,
        **{"plan": plan, "keys": KEYS, "unit": "unit", "salt": SALT, "dataset": "clinic.visits", **options},
    )
    return read(found, options.get("keys", KEYS))


def table_at(spark: SparkSession, path: Path) -> Any:
    return open_table(spark.read.parquet(str(path)))


@contextmanager
def settings_of(spark: SparkSession, **settings: str) -> Iterator[None]:
    names = {name: name.replace("_", ".") for name in settings}
    for name, value in settings.items():
        spark.conf.set(names[name], value)
    try:
        yield
    finally:
        for name in settings:
            spark.conf.unset(names[name])


def test_both_roads_agree_whatever_the_order_and_the_partitions(spark: SparkSession, tmp_path: Path) -> None:
    rows, plan = random_rows(5), plan_of()
    expected = totals_of(spark, frame_of(spark, rows), plan)
    assert sum(total[0] for total in expected[0].values()) > 10
    assert len(expected[1]) > 5
    frame_of(spark, rows[::-1], partitions=2).write.option("parquet.block.size", 1).parquet(str(tmp_path / "table"))
    for partitions in (1, 7):
        shuffled = random.Random(partitions).sample(rows, len(rows))
        frame = frame_of(spark, shuffled, partitions=partitions)
        assert totals_of(spark, frame, plan, partitions=partitions) == expected
        assert totals_of(spark, table_at(spark, tmp_path / "table"), plan, partitions=partitions) == expected


def test_a_small_table_is_bounded_in_one_task_and_gives_the_same(spark: SparkSession, tmp_path: Path) -> None:
    rows, plan = random_rows(9), plan_of()
    frame_of(spark, rows, partitions=1).write.parquet(str(tmp_path / "table"))
    table, tracker = table_at(spark, tmp_path / "table"), spark.sparkContext.statusTracker()

    def stages(group: str, **options: Any) -> tuple[Totals, list[int]]:
        """The totals, and how many tasks each stage had."""
        spark.sparkContext.setJobGroup(group, group)
        found = totals_of(spark, table, plan, **options)
        jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
        known = {stage: tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds}
        spark.sparkContext.setJobGroup("", "")
        return found, [stage.numTasks for stage in known.values() if stage]

    shuffled, several = stages("shuffled", partitions=2)
    assert len(several) > 1
    assert stages("at once") == (shuffled, [1])


def test_adaptive_execution_changes_nothing(spark: SparkSession, tmp_path: Path) -> None:
    rows, plan = random_rows(6), plan_of()
    frame_of(spark, rows).write.parquet(str(tmp_path / "table"))
    expected = totals_of(spark, table_at(spark, tmp_path / "table"), plan)
    for enabled in ("true", "false"):
        with settings_of(
            spark, spark_sql_adaptive_enabled=enabled, spark_sql_adaptive_coalescePartitions_enabled=enabled
        ):
            assert totals_of(spark, frame_of(spark, rows, partitions=5), plan, partitions=5) == expected
            assert totals_of(spark, table_at(spark, tmp_path / "table"), plan, partitions=5) == expected
    assert totals_of(spark, frame_of(spark, rows), plan, salt=SALT + 1) != expected


@pytest.mark.parametrize(("seed", "max_groups", "max_rows"), [(1, 2, 3), (3, 4, 1)])
def test_removing_a_unit_moves_each_vector_by_at_most_its_sensitivity(
    spark: SparkSession, seed: int, max_groups: int, max_rows: int
) -> None:
    rows, plan = random_rows(seed), plan_of(max_groups=max_groups, max_rows=max_rows)
    everything = totals_of(spark, frame_of(spark, rows), plan)
    for unit in ("a", "e"):
        without = totals_of(spark, frame_of(spark, [row for row in rows if row[0] != unit]), plan)
        for grouping, one, other in zip(plan.groupings, everything, without, strict=True):
            keys, nothing = sorted(one.keys() | other.keys()), [0] * plan.width
            first, second = (np.array([totals.get(key, nothing) for key in keys]) for totals in (one, other))
            for query in grouping.queries:
                moved = np.abs(plan.vector(query, first) - plan.vector(query, second)).sum(axis=1)
                assert (moved > 0).sum() <= query.sensitivity.groups, query.name
                assert moved.max() <= query.sensitivity.per_group, query.name
                assert moved.sum() <= query.sensitivity.l1, query.name


RETRIED = """
import json, os, signal, sys
os.environ["PYSPARK_PYTHON"] = sys.executable
from fractions import Fraction
from pyspark import TaskContext
from pyspark.sql import SparkSession
from lepton_airflow.columnar.dataset import open_table
from lepton_airflow.privacy.aggregation import aggregate
from lepton_airflow.privacy.bounds import ContributionBounds
from lepton_airflow.privacy.metrics import Metric
from lepton_airflow.privacy.plan import Grouping, plan_release

class Dies:
    "Ends its process in the midst of the first try of every task: after one batch, on the DataFrame road after some."
    def __init__(self): self.batches = 0
    def schema(self, before): return before
    def __call__(self, batch):
        self.batches += 1
        if self.batches == 2 and TaskContext.get().attemptNumber() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch, {}

spark = (SparkSession.builder.master("local[2,3]").config("spark.ui.enabled", "false").config("spark.log.level", "OFF")
         .config("spark.driver.bindAddress", "127.0.0.1").getOrCreate())
rows = spark.range(0, 600_000, 1, 2).selectExpr("id % 1000 AS unit", "pmod(hash(id), 20) AS ward")
rows.coalesce(1).write.parquet(sys.argv[1])
plan = plan_release(metrics=[Metric(name="rows", type="count")], epsilon=Fraction(1), groupings=[
    Grouping(name="g", by=("ward",), groups=20, bounds=ContributionBounds(groups=3, rows=7))])
def run(source, reveal):
    return aggregate(spark, source, plan=plan, keys=[[(i,) for i in range(20)]], unit="unit", salt=1, dataset="t",
                     reveal=reveal)[0].tolist()
frame = spark.read.parquet(sys.argv[1])
print(json.dumps([run(open_table(frame), None), run(open_table(frame), Dies()), run(frame, Dies())]))
"""


@pytest.mark.slow
def test_workers_that_are_killed_and_tried_again_change_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RETRIED, str(tmp_path / "table")], capture_output=True, text=True, check=True
    )
    whole, direct, frame = json.loads(done.stdout.splitlines()[-1])
    assert direct == whole
    assert frame == whole
    assert sum(totals[0] for totals in whole) == 3000


def reveal_of(home: Settings, frame: DataFrame, columns: Sequence[str]) -> Reveal:
    from lepton_airflow.encryption.planning import protectors_of
    from lepton_airflow.encryption.roads import Reveal

    protectors = protectors_of(
        frame.schema, keyring=home.keyring, identity_file=home.identity_file, columns=columns, dataset="clinic.visits"
    )
    return Reveal(protectors)


def test_a_protected_table_gives_what_the_table_in_clear_does(
    spark: SparkSession, home: Settings, tmp_path: Path
) -> None:
    """Group and measure are decrypted on the way; the unit stays encrypted, so other groups of units are kept: without a choice
    the results are equal."""
    from lepton_airflow.encryption.dataframe import protect_columns
    from lepton_airflow.encryption.planning import plan_protection
    from lepton_airflow.encryption.protection import Protection
    from lepton_airflow.keys.reference import KeysetReference

    rows = [row for row in random_rows(7) if row[3] is None or not math.isnan(row[3])]
    plan = plan_of(max_groups=100, max_rows=1000)
    frame = frame_of(spark, rows)
    keysets = {
        cipher: KeysetReference(
            keyring=str(home.keyring), name="clinic", cipher=cipher, identity_file=str(home.identity_file)
        )
        for cipher in ("AES256_GCM", "AES256_SIV")
    }
    gcm, siv = Protection(cipher="AES256_GCM"), Protection(cipher="AES256_SIV")
    protectors = plan_protection(
        frame.schema,
        dataset="clinic.visits",
        protections={"unit": siv, "region": siv, "ward": gcm, "value": gcm},
        keysets=keysets,
    )
    protect_columns(frame, protectors).write.parquet(str(tmp_path / "protected"))
    expected = totals_of(spark, frame, plan)
    protected = spark.read.parquet(str(tmp_path / "protected"))
    for source in (protected, open_table(protected)):
        reveal = reveal_of(home, protected, ["region", "ward", "value"])
        assert totals_of(spark, source, plan, reveal=reveal, unit_is_encrypted=True) == expected


def test_an_encrypted_unit_under_two_keys_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    first, second = (bytes([1, 0, 0, 0, key]) + b"ciphertext" for key in (7, 8))
    for name, units in {"one": [first, first], "two": [first, second], "none": []}.items():
        spark.createDataFrame([(unit,) for unit in units], "unit binary").write.parquet(str(tmp_path / name))

    def counted(name: str, *, direct: bool, keys: Any = ((),)) -> Totals:
        frame = spark.read.parquet(str(tmp_path / name))
        plan = counting((), 1)
        return totals_of(spark, open_table(frame) if direct else frame, plan, keys=[list(keys)], unit_is_encrypted=True)

    for direct in (True, False):
        assert counted("one", direct=direct) == [{"[]": [1, 2]}]
        assert counted("none", direct=direct) == [{"[]": [0, 0]}]
        with pytest.raises(InvalidData, match=r"clinic\.visits\.unit.*2 or more keys"):
            counted("two", direct=direct)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param("'ü', 'x', 'ü', null", id="text"),
        pytest.param("-9223372036854775808, 9223372036854775807, -9223372036854775808, null", id="numbers far apart"),
        pytest.param("1Y, 2Y, 1Y, null", id="small numbers"),
        pytest.param("true, false, true, null", id="booleans"),
        pytest.param("DATE'0001-01-01', DATE'9999-12-31', DATE'0001-01-01', null", id="dates"),
        pytest.param("1.10BD, -1.10BD, 1.1BD, null", id="decimals"),
        pytest.param("TIMESTAMP'2026-01-01 01:00:01', TIMESTAMP'2026-01-01', TIMESTAMP'2026-01-01 01:00:01', null", id="times"),
        pytest.param("TIMESTAMP_NTZ'2026-01-01', TIMESTAMP_NTZ'2026-01-02', TIMESTAMP_NTZ'2026-01-01', null", id="local times"),
        pytest.param("X'00', X'0000', X'00', null", id="bytes"),
    ],
)  # fmt: skip
def test_a_unit_can_have_any_plain_type(spark: SparkSession, tmp_path: Path, values: str) -> None:
    a, b, c, none = (value.strip() for value in values.split(", "))
    spark.sql(f"SELECT * FROM VALUES ({a}, 'n'), ({b}, 'n'), ({c}, 's'), ({none}, 's') AS t(unit, region)").coalesce(
        1
    ).write.parquet(str(tmp_path / "table"))
    frame = spark.read.parquet(str(tmp_path / "table"))
    for source in (frame, open_table(frame)):
        assert totals_of(
            spark, source, counting(("region",), 3, max_groups=1), keys=[[("n",), ("s",), ("x",)]], partitions=2
        ) in (
            [{'["n"]': [2, 2], '["s"]': [0, 0], '["x"]': [0, 0]}],
            [{'["n"]': [1, 1], '["s"]': [1, 1], '["x"]': [0, 0]}],
        )


def test_groups_are_streamed_to_the_driver_in_bounded_pieces(spark: SparkSession) -> None:
    """The totals of 300,000 groups leave the workers a part at a time; each part is at most so large."""
    frame = spark.range(0, 300_000, 1, 4).selectExpr("id AS unit", "id AS ward", "id % 3 AS region")
    found = aggregate(
        spark,
        frame,
        plan=counting(("ward",), None, max_groups=1),
        keys=[None],
        unit="unit",
        salt=SALT,
        dataset="clinic.visits",
        partitions=3,
    )
    seen = 0
    for keys, totals in found[0]:
        assert totals.size <= 2**21
        assert totals.tolist() == [[1, 1]] * len(keys)
        seen += len(keys)
    assert seen == 300_000


@pytest.mark.parametrize("constant", ["_SKEW", "_MOST_GUESSED"])
def test_rows_are_counted_where_the_estimate_of_their_number_does_not_do(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: str
) -> None:
    rows, plan = random_rows(8), counting(("region",), 4)
    keys = [[(region,) for region in REGIONS]]
    frame_of(spark, rows).write.parquet(str(tmp_path / "table"))
    frame = spark.read.parquet(str(tmp_path / "table"))
    expected = totals_of(spark, frame_of(spark, rows), plan, keys=keys)
    counted: list[int] = []
    partitions = _Run.partitions

    def counting_partitions(run: _Run, number: int, parallelism: int) -> int:
        counted.append(number)
        return partitions(run, number, parallelism)

    monkeypatch.setattr(_Run, "partitions", counting_partitions)
    assert totals_of(spark, frame, plan, keys=keys) == expected
    assert counted == []
    monkeypatch.setattr(f"lepton_airflow.privacy.aggregation.{constant}", 0)
    assert totals_of(spark, frame, plan, keys=keys) == expected
    assert counted == [len(rows)]


def test_many_declared_groups_are_summed_on_the_workers(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, plan = random_rows(8), counting(("region",), 4)
    keys = [[(region,) for region in REGIONS]]
    expected = totals_of(spark, frame_of(spark, rows), plan, keys=keys)
    monkeypatch.setattr("lepton_airflow.privacy.aggregation._COLLECTED", 0)
    assert totals_of(spark, frame_of(spark, rows), plan, keys=keys, partitions=3) == expected


def test_no_group_columns_give_one_number_and_an_empty_table_gives_zeros(spark: SparkSession, tmp_path: Path) -> None:
    frame_of(spark, [], partitions=1).write.parquet(str(tmp_path / "empty"))
    empty = spark.read.parquet(str(tmp_path / "empty"))
    plan = plan_of()
    for source in (empty, open_table(empty)):
        public, private, *_, whole = totals_of(spark, source, plan)
        assert set(map(tuple, public.values())) == {(0,) * plan.width}
        assert private == {}
        assert whole == {"[]": [0] * plan.width}
    rows: list[Row] = [("a", "north", 1, 1.0), ("a", "south", 1, None), ("b", "north", 1, 4.0), (None, "north", 1, 9.0)]
    whole = totals_of(spark, frame_of(spark, rows), plan)[-1]
    assert whole["[]"][:2] == [2, 3]


def test_names_with_dots_and_quotes_are_columns_as_they_are(spark: SparkSession, tmp_path: Path) -> None:
    table = pa.table({"u.id": ["a", "b"], "u": [1.0, 2.0], "a`b": ["x", "x"], "a": [True, False]})
    pq.write_table(table, tmp_path / "table.parquet")
    frame = spark.read.parquet(str(tmp_path / "table.parquet"))
    for source in (frame, open_table(frame)):
        found = totals_of(spark, source, counting(("a`b", "a"), 1), unit="u.id", keys=[[("x", True)]])
        assert found == [{'["x",true]': [1, 1]}]


def test_declared_keys_are_compared_in_the_type_of_their_column(spark: SparkSession) -> None:
    frame = spark.sql(
        "SELECT * FROM VALUES ('a', 1, DATE'2026-01-31', true), ('b', 1, DATE'2026-01-31', true), ('c', 2, null, false)"
        " AS t(unit, ward, day, open)"
    )
    keys = [(1, "2026-01-31", True), (2, None, False), (1, None, True)]
    by = ("ward", "day", "open")
    declared = totals_of(spark, frame, counting(by, 3), keys=[keys])
    assert [totals[1] for totals in declared[0].values()] == [2, 1, 0]
    chosen = totals_of(spark, frame, counting(by, None), keys=[None])
    assert chosen == [{key: totals for key, totals in declared[0].items() if any(totals)}]


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
    spark: SparkSession, column: str, keys: list[tuple[Any, ...]]
) -> None:
    frame = spark.sql("SELECT 'a' AS unit, 1 AS ward, DATE'2026-01-31' AS day")
    with pytest.raises(SpecError, match=r"clinic\.visits"):
        totals_of(spark, frame, counting((column,), len(keys)), keys=[keys])


def test_an_error_of_a_worker_is_a_typed_one_and_quotes_no_data(spark: SparkSession) -> None:
    frame = frame_of(spark, [("secret", "north", 1, 1.0)])

    class Broken:
        def schema(self, before: Any) -> Any:
            return before

        def __call__(self, batch: pa.RecordBatch) -> Any:
            raise ValueError(str(batch.to_pylist()))

    with pytest.raises(Exception) as caught:
        totals_of(spark, frame, plan_of(), reveal=Broken())
    error = as_typed_error(caught.value, place="elsewhere")
    assert "clinic.visits" in str(error)
    assert "ValueError at test_contribution_bounds.py" in str(error)
    assert "secret" not in str(caught.value)


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
    design = ReleaseDesign(
        privacy_unit="unit",
        metrics=[{"name": "total", "type": "sum", "column": "value", "lower": 0, "upper": 1}],
        group_by=["region"],
        groups=["n"],
        max_groups_per_unit=1,
        max_rows_per_unit_and_group=1,
        epsilon="1",
    )
    with pytest.raises(UnsupportedType, match=rf"clinic\.visits\.{named}"):
        check_columns(
            spark.sql(f"SELECT {columns}").schema, design=design, plan=design.plan([1]), dataset="clinic.visits"
        )
