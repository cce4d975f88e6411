"""Bounded aggregation in Spark: whole numbers for each group, in which one unit counts no more than its bounds allow.

Two roads lead to one kernel. On the direct road Spark tasks read row groups of Parquet through pyarrow, and only the columns that
are needed; on the DataFrame road Spark reads, and hands over Arrow batches. Either way a task turns rows into messages of whole
numbers (:mod:`lepton_airflow.privacy.scatter`), Spark shuffles messages by unit, each partition is bounded by itself
(:mod:`lepton_airflow.privacy.bounding`), and what a partition gives is summed by group: on the driver, or, where groups are
chosen privately or are many, after another shuffle by group. Nothing here is private: noise is added to what comes out.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql import types as T

from lepton_airflow.columnar.batches import read_batches
from lepton_airflow.columnar.dataset import ParquetTable
from lepton_airflow.columnar.failures import errors_for_the_driver
from lepton_airflow.columnar.tasks import Task, plan_tasks
from lepton_airflow.columnar.types import arrow_type
from lepton_airflow.errors import UnsupportedType
from lepton_airflow.privacy.bounding import SaltedHash
from lepton_airflow.privacy.design import Key, ReleaseDesign
from lepton_airflow.privacy.groups import GROUP_TYPES, declared_keys
from lepton_airflow.privacy.plan import ReleasePlan
from lepton_airflow.privacy.scatter import PrivateKeys, PublicKeys, Scatter
from lepton_airflow.privacy.totals import Aggregates, Merge, PartitionTotals, packed, unpacked

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Batches = Iterator[pa.RecordBatch]

#: Bytes of messages that a partition holds at most, on average: what bounds a worker's memory, to about ten times as much.
_PARTITION_BYTES = 96 << 20
#: Bytes of a row in messages: its unit, and each group and measure.
_UNIT_BYTES, _COLUMN_BYTES = 16, 4
_MOST_PARTITIONS = 1 << 16
#: Totals that the driver takes from all partitions together; more are summed on the workers first.
_COLLECTED = 1 << 22

_MESSAGES = "partition int, message binary"
_TOTALS = "bucket int, grouping int, message binary"


class Reveal(Protocol):
    """Decrypts columns of a table; see :class:`lepton_airflow.encryption.roads.Reveal`. Travels to the workers."""

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Mapping[str, int]]:
        """Decrypt them in one batch, which has all of them."""

    def schema(self, before: T.StructType) -> T.StructType:
        """Spark's schema of the result."""


def new_salt() -> int:
    """A fresh 63-bit salt for the choice of groups."""
    return secrets.randbits(63)


def check_columns(schema: T.StructType, *, design: ReleaseDesign, plan: ReleasePlan, dataset: str) -> None:
    """Check the types of the columns that a release uses; reads no data.

    :param schema: of the table, with those columns in clear that are decrypted for the release
    :raises UnsupportedType: a unit or group column that is no plain value, a measure that is not a number
    """
    units = (*GROUP_TYPES, T.DecimalType, T.TimestampType, T.TimestampNTZType, T.BinaryType)
    wanted: list[tuple[str, tuple[type[T.DataType], ...], str]] = [
        (
            design.privacy_unit,
            units,
            "A privacy unit is text, a whole number, a decimal, a date, a time, or an encrypted column.",
        ),
        *(
            (name, GROUP_TYPES, "Groups are text, whole numbers, booleans or dates.")
            for grouping in plan.groupings
            for name in grouping.by
        ),
        *((measure.column, (T.NumericType,), "Measures are numbers.") for measure in plan.measures),
    ]
    for name, supported, remedy in wanted:
        kind = schema[name].dataType
        # Under another collation than the binary one two declared keys, or two units, could be equal and yet differ.
        if not isinstance(kind, supported) or (isinstance(kind, T.StringType) and kind != T.StringType()):
            raise UnsupportedType(
                f"The column has type {kind.simpleString()}.", place=f"{dataset}.{name}", remedy=remedy
            )


def aggregate(
    spark_session: SparkSession,
    source: DataFrame | ParquetTable,
    *,
    plan: ReleasePlan,
    keys: Sequence[Sequence[Key] | None],
    unit: str,
    salt: int,
    dataset: str,
    unit_is_encrypted: bool = False,
    reveal: Reveal | None = None,
    partitions: int | None = None,
) -> Aggregates:
    """Aggregate a table under the contribution bounds of ``plan``.

    Rows whose unit is null are left out: they belong to nobody whom the bounds could protect. Rows of groups that were not
    declared are left out too. An empty table gives zeros, and no groups that are chosen privately.

    :param source: a DataFrame, whose rows are counted first; or, for the direct road, a Parquet table
    :param keys: for each grouping of the plan the declared keys, whose order the results keep; None where they are not declared
    :param salt: 63 bits, see :mod:`lepton_airflow.privacy.bounding`
    :param dataset: its name, for errors
    :param unit_is_encrypted: the unit column holds deterministic ciphertexts, one for each unit as long as one key made them
    :param reveal: decrypts columns of the source
    :param partitions: over how many the units are spread, 1 to 65536; by default so many that each has a few million rows
    :returns: for each grouping exact integers, not private
    :raises SpecError: a declared key does not fit its column's type, or two keys are equal in it
    :raises InvalidData: the unit column was encrypted under several keys, so that one unit can have several ciphertexts
    :raises Exception: as Spark wraps it, with a :class:`LeptonError` on the wire inside
    """
    grouped = [name for grouping in plan.groupings for name in grouping.by]
    names = list(dict.fromkeys([unit, *grouped, *(measure.column for measure in plan.measures)]))
    read = T.StructType([source.schema[name] for name in names])
    schema = read if reveal is None else reveal.schema(read)
    groupings = tuple(
        PrivateKeys(grouping.by)
        if own is None
        else PublicKeys(grouping.by, declared_keys(schema, by=grouping.by, keys=own, dataset=dataset))
        for grouping, own in zip(plan.groupings, keys, strict=True)
    )
    if partitions is None:
        rows = source.rows if isinstance(source, ParquetTable) else source.select(_column(unit)).count()
        size = _UNIT_BYTES + _COLUMN_BYTES * (len(groupings) + len(plan.measures))
        parallelism = spark_session.sparkContext.defaultParallelism
        partitions = min(max(math.ceil(rows * size / _PARTITION_BYTES), parallelism), _MOST_PARTITIONS)
    hashed = SaltedHash(salt)
    scatter = Scatter(
        unit=unit,
        groupings=groupings,
        measures=plan.measures,
        types={name: cast("pa.DataType", arrow_type(schema[name].dataType)) for name in names},
        hashed=hashed,
        partitions=partitions,
        reveal=reveal,
    )
    if isinstance(source, ParquetTable):
        tasks = plan_tasks(source.row_groups, parallelism=spark_session.sparkContext.defaultParallelism)
        rows_of = _Reading(source, tasks, names, schema)
        # Each Spark task gets one number, and reads the row groups that go by it.
        frame = spark_session.range(0, len(tasks), 1, max(len(tasks), 1))
        messages = frame.mapInArrow(
            _in_workers(lambda numbers: _scattered(scatter, rows_of(numbers)), dataset), _MESSAGES
        )
    else:
        # Spark looks columns up by name, and does not cope with dots and quotes in them.
        frame = source.select(*(F.col(_column(name)).alias(f"column{place}") for place, name in enumerate(names)))
        named = _in_workers(lambda batches: _scattered(scatter, _named(batches, names)), dataset)
        messages = frame.mapInArrow(named, _MESSAGES)
    public = plan.width * sum(len(grouping.keys) for grouping in groupings if isinstance(grouping, PublicKeys))
    large = public * partitions > _COLLECTED
    merged = large or any(isinstance(grouping, PrivateKeys) for grouping in groupings)
    work = PartitionTotals(
        plan=plan,
        groupings=groupings,
        hashed=hashed,
        unit_is_encrypted=unit_is_encrypted,
        buckets=tuple(partitions if large or isinstance(grouping, PrivateKeys) else 1 for grouping in groupings),
    )
    bounded = _in_workers(lambda rows: _bounded(work, rows), dataset)
    totals = messages.repartitionById(partitions, "partition").mapInArrow(bounded, _TOTALS)
    if merged:
        # Buckets are numbered by grouping, so that what streams to the driver comes grouping by grouping.
        merge = _in_workers(lambda rows: _merged(Merge(plan=plan, groupings=groupings), rows), dataset)
        totals = totals.repartitionById(1 + sum(work.buckets), "bucket").mapInArrow(merge, _TOTALS)
    collected = totals.toLocalIterator() if merged else iter(totals.collect())
    return Aggregates(collected, plan=plan, groupings=groupings, place=f"{dataset}.{unit}")


class _Reading:
    """Reads the columns of a release from the row groups that a task's number stands for. Travels to the workers."""

    def __init__(self, table: ParquetTable, tasks: Sequence[Task], columns: Sequence[str], clear: T.StructType) -> None:
        self._tasks, self._columns, self._file_keys = tasks, columns, table.file_keys
        # Text repeats itself; but what is decrypted has nothing to do with how it was stored.
        self._dictionaries = [
            name
            for name in columns
            if isinstance(table.schema[name].dataType, T.StringType) and table.schema[name] == clear[name]
        ]

    def __call__(self, batches: Batches) -> Batches:
        for number in [number for batch in batches for number in batch.column(0).to_pylist()]:
            yield from read_batches(
                self._tasks[number], self._file_keys, columns=self._columns, dictionaries=self._dictionaries
            )


def _scattered(scatter: Scatter, batches: Batches) -> Batches:
    for partition, message in scatter.messages(batches):
        yield _row(partition=partition, message=message)


def _named(batches: Batches, names: Sequence[str]) -> Batches:
    for batch in batches:
        yield pa.RecordBatch.from_arrays(batch.columns, names=list(names))


def _bounded(work: PartitionTotals, rows: Batches) -> Batches:
    partitions = _gathered(rows, "partition")
    for number in list(partitions):
        # What is done with leaves the memory.
        for bucket, grouping, message in work.of(partitions.pop(number)):
            yield _row(bucket=bucket, grouping=grouping, message=message)


def _merged(merge: Merge, rows: Batches) -> Batches:
    buckets = _gathered(rows, "bucket", "grouping")
    for bucket, grouping in sorted(buckets):
        for message in merge.of(grouping, buckets.pop((bucket, grouping))):
            yield _row(bucket=bucket, grouping=grouping, message=message)


def _gathered(rows: Batches, *names: str) -> dict[Any, list[pa.RecordBatch]]:
    """Messages by what is said of them; as Spark's settings are, several partitions can come to one task."""
    found: dict[Any, list[pa.RecordBatch]] = {}
    for batch in rows:
        keys = zip(*(batch[name].to_pylist() for name in names), strict=True)
        for key, message in zip(keys, batch["message"], strict=True):
            found.setdefault(key if len(names) > 1 else key[0], []).append(unpacked(message.as_buffer()))
    return found


def _row(*, message: pa.RecordBatch, **numbers: int) -> pa.RecordBatch:
    columns: dict[str, pa.Array] = {name: pa.array([number], pa.int32()) for name, number in numbers.items()}
    return pa.RecordBatch.from_pydict({**columns, "message": pa.array([packed(message)], pa.binary())})


def _in_workers(work: Callable[[Batches], Batches], place: str) -> Callable[[Batches], Batches]:
    """``work``, whose errors reach the driver.

    :param place: for errors that do not know where they happened
    """

    def guarded(batches: Batches) -> Batches:
        with errors_for_the_driver(place):
            yield from work(batches)

    return guarded


def _column(name: str) -> str:
    """A column name as it is: without quoting, a dot in it would mean a field of a struct."""
    return "`" + name.replace("`", "``") + "`"
