"""Bounded aggregation in Spark: whole numbers for each group, in which one unit counts no more than its bounds allow.

Two roads lead to one kernel. On the direct road Spark tasks read row groups of Parquet through pyarrow, and only the columns that
are needed; on the DataFrame road Spark reads, and hands over Arrow batches. Either way a task turns rows into messages of whole
numbers (:mod:`lepton_airflow.privacy.scatter`), Spark shuffles messages by unit, each partition is bounded by itself
(:mod:`lepton_airflow.privacy.bounding`), and what a partition gives is summed by group: on the driver, or, where groups are
chosen privately or are many, after another shuffle by group. A small table on the direct road takes all these steps in one task,
without a shuffle. Nothing here is private: noise is added to what comes out.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol, cast

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from lepton_airflow.columnar.batches import read_batches
from lepton_airflow.columnar.dataset import ParquetTable
from lepton_airflow.columnar.failures import errors_for_the_driver
from lepton_airflow.columnar.tasks import Task, plan_tasks
from lepton_airflow.columnar.types import arrow_type
from lepton_airflow.errors import UnsupportedType, from_wire
from lepton_airflow.privacy.design import Key, ReleaseDesign
from lepton_airflow.privacy.groups import GROUP_TYPES, declared_keys
from lepton_airflow.privacy.plan import ReleasePlan
from lepton_airflow.privacy.salted_hash import SaltedHash
from lepton_airflow.privacy.scatter import PrivateKeys, PublicKeys, Scatter
from lepton_airflow.privacy.totals import Aggregates, Merge, PartitionTotals, Total, packed, unpacked

if TYPE_CHECKING:
    from pyspark import RDD
    from pyspark.sql import SparkSession

Batches = Iterator[pa.RecordBatch]

#: Bytes of messages that a partition holds at most, on average: what bounds a worker's memory, to about ten times as much.
_PARTITION_BYTES = 96 << 20
#: Bytes of a row in messages: its unit, and each group and measure.
_UNIT_BYTES, _COLUMN_BYTES = 16, 4
_MOST_PARTITIONS = 1 << 16
#: Bytes of messages up to which a shuffle costs more than a second core saves.
_ONE_TASK_BYTES = 16 << 20
#: How much larger a partition may be than guessed before rows are counted; and guesses, in partitions that work at once, that are
#: believed at all.
_SKEW, _MOST_GUESSED = 4, 64
#: Totals that the driver takes from all partitions together; more are summed on the workers first.
_COLLECTED = 1 << 22


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

    :param source: for the direct road, a Parquet table; or a DataFrame, whose rows are counted if Spark's estimate does not do
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
    stored = T.StructType([source.schema[name] for name in names])
    schema = stored if reveal is None else reveal.schema(stored)
    groupings = tuple(
        PrivateKeys(grouping.by)
        if own is None
        else PublicKeys(grouping.by, declared_keys(schema, by=grouping.by, keys=own, dataset=dataset))
        for grouping, own in zip(plan.groupings, keys, strict=True)
    )
    run = _Run(
        plan=plan,
        groupings=groupings,
        names=tuple(names),
        types={name: cast("pa.DataType", arrow_type(schema[name].dataType)) for name in names},
        unit=unit,
        hashed=SaltedHash(salt),
        dataset=dataset,
        unit_is_encrypted=unit_is_encrypted,
        reveal=reveal,
    )
    parallelism = spark_session.sparkContext.defaultParallelism
    if isinstance(source, ParquetTable):
        tasks = plan_tasks(source.row_groups, parallelism=parallelism)
        read = spark_session.sparkContext.parallelize(tasks, max(len(tasks), 1))
        reading = _Reading(source, names, schema)
        if partitions is None and len(tasks) == 1 and run.message_bytes(source.rows) <= _ONE_TASK_BYTES:
            return run.at_once(read, reading)
        count = partitions or run.partitions(source.rows, parallelism)
        return run.aggregates(run.directly(read, reading, count), count)
    guess = partitions or run.guessed_partitions(source, parallelism)
    if guess is not None:
        try:
            return run.aggregates(run.through_spark(source, guess, limited=partitions is None), guess)
        except Exception as error:
            failed = from_wire(str(error))
            if failed is None or _TooMuch.__name__ not in failed.rule:
                raise
    count = run.partitions(source.select(_column(unit)).count(), parallelism)
    return run.aggregates(run.through_spark(source, count, limited=False), count)


class _TooMuch(Exception):
    """A partition has so many rows that it has to be seen how many there are in all."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One aggregation.

    :ivar names: of the columns that are read
    :ivar types: of these columns, in clear
    """

    plan: ReleasePlan
    groupings: tuple[PrivateKeys | PublicKeys, ...]
    names: tuple[str, ...]
    types: Mapping[str, pa.DataType]
    unit: str
    hashed: SaltedHash
    dataset: str
    unit_is_encrypted: bool
    reveal: Reveal | None

    def partitions(self, rows: int, parallelism: int) -> int:
        """Over how many partitions the units of a table are spread, at least as many as work at once."""
        return min(max(math.ceil(self.message_bytes(rows) / _PARTITION_BYTES), parallelism), _MOST_PARTITIONS)

    def message_bytes(self, rows: int) -> int:
        """What the messages of a table of so many rows take, about."""
        return rows * (_UNIT_BYTES + _COLUMN_BYTES * (len(self.groupings) + len(self.plan.measures)))

    def guessed_partitions(self, frame: DataFrame, parallelism: int) -> int | None:
        """The same, by Spark's estimate, which saves running the query twice; None if that says little."""
        columns = [_column(name) for name in self.names]
        # Spark has no other way to ask for it. What it estimates can be compressed; of joins it estimates far too much.
        statistics = frame.select(*columns)._jdf.queryExecution().optimizedPlan().stats()
        guess = math.ceil(2 * int(str(statistics.sizeInBytes())) / _PARTITION_BYTES)
        return max(guess, parallelism) if guess <= _MOST_GUESSED * parallelism else None

    def aggregates(self, totals: RDD[tuple[int, Total]] | DataFrame, partitions: int) -> Aggregates:
        """What the driver reads, given the totals by bucket of all partitions."""
        if self._merged(partitions):
            if isinstance(totals, DataFrame):
                totals = totals.rdd.map(lambda row: (row["bucket"], (row["grouping"], row["message"])))
            # Buckets are numbered by grouping, so that what streams to the driver comes grouping by grouping.
            merge = _in_workers(partial(_merged, Merge(plan=self.plan, groupings=self.groupings)), self.dataset)
            buckets = 1 + sum(self._work(partitions).buckets)
            collected = totals.partitionBy(buckets, _itself).mapPartitions(merge).values().toLocalIterator()
        elif isinstance(totals, DataFrame):
            collected = ((row["grouping"], row["message"]) for row in totals.collect())
        else:
            collected = iter(totals.values().collect())
        return self._read(collected)

    def at_once(self, tasks: RDD[Task], reading: _Reading) -> Aggregates:
        """What the driver reads of a table that one task reads: all in that task, nothing is shuffled."""
        scatter, work, merge = self._scatter(1), self._work(1), Merge(plan=self.plan, groupings=self.groupings)

        def totals(own: Iterator[Task]) -> Iterator[Total]:
            messages = [message for task in own for _, message in scatter.messages(reading(task))]
            found = work.of(messages) if messages else ()
            for _, grouping, message in sorted(found, key=itemgetter(0)):
                for part in merge.of(grouping, [message]):
                    yield grouping, packed(part)

        collected = tasks.mapPartitions(_in_workers(totals, self.dataset))
        return self._read(iter(collected.collect()))

    def _read(self, totals: Iterator[Total]) -> Aggregates:
        return Aggregates(totals, plan=self.plan, groupings=self.groupings, place=f"{self.dataset}.{self.unit}")

    def directly(self, tasks: RDD[Task], reading: _Reading, partitions: int) -> RDD[tuple[int, Total]]:
        """The direct road: totals by bucket. No row crosses into the JVM, and no query is planned."""
        scatter = self._scatter(partitions)

        def sent(own: Iterator[Task]) -> Iterator[tuple[int, bytes]]:
            for task in own:
                for partition, message in scatter.messages(reading(task)):
                    yield partition, packed(message)

        messages = tasks.mapPartitions(_in_workers(sent, self.dataset)).partitionBy(partitions, _itself)
        return messages.mapPartitions(_in_workers(partial(_bounded, self._work(partitions)), self.dataset))

    def through_spark(self, frame: DataFrame, partitions: int, *, limited: bool) -> DataFrame:
        """The DataFrame road: totals by bucket.

        :param limited: a partition with far more rows than it should have is an error
        """
        scatter, work, names = self._scatter(partitions), self._work(partitions), list(self.names)
        limit = _SKEW * _PARTITION_BYTES if limited else None

        def sent(batches: Batches) -> Batches:
            named = (pa.RecordBatch.from_arrays(batch.columns, names=names) for batch in batches)
            for partition, message in scatter.messages(named):
                yield _row(partition=partition, message=packed(message))

        def bounded(rows: Batches) -> Batches:
            messages = (
                (partition, message.as_buffer())
                for batch in rows
                for partition, message in zip(batch["partition"].to_pylist(), batch["message"], strict=True)
            )
            for bucket, (grouping, message) in _bounded(work, messages, limit):
                yield _row(bucket=bucket, grouping=grouping, message=message)

        # Spark looks columns up by name, and does not cope with dots and quotes in them.
        columns = [F.col(_column(name)).alias(f"column{place}") for place, name in enumerate(names)]
        messages = frame.select(*columns).mapInArrow(_in_workers(sent, self.dataset), "partition int, message binary")
        return messages.repartitionById(partitions, "partition").mapInArrow(
            _in_workers(bounded, self.dataset), "bucket int, grouping int, message binary"
        )

    def _scatter(self, partitions: int) -> Scatter:
        return Scatter(
            unit=self.unit,
            groupings=self.groupings,
            measures=self.plan.measures,
            types=self.types,
            hashed=self.hashed,
            partitions=partitions,
            reveal=self.reveal,
        )

    def _work(self, partitions: int) -> PartitionTotals:
        large = self._large(partitions)
        return PartitionTotals(
            plan=self.plan,
            groupings=self.groupings,
            hashed=self.hashed,
            unit_is_encrypted=self.unit_is_encrypted,
            buckets=tuple(partitions if large or isinstance(one, PrivateKeys) else 1 for one in self.groupings),
        )

    def _large(self, partitions: int) -> bool:
        groups = sum(len(grouping.keys) for grouping in self.groupings if isinstance(grouping, PublicKeys))
        return groups * self.plan.width * partitions > _COLLECTED

    def _merged(self, partitions: int) -> bool:
        return self._large(partitions) or any(isinstance(one, PrivateKeys) for one in self.groupings)


def _row(*, message: bytes, **numbers: int) -> pa.RecordBatch:
    columns: dict[str, pa.Array] = {name: pa.array([number], pa.int32()) for name, number in numbers.items()}
    return pa.RecordBatch.from_pydict({**columns, "message": pa.array([message], pa.binary())})


class _Reading:
    """Reads the columns of a release from Parquet files. Travels to the workers."""

    def __init__(self, table: ParquetTable, columns: Sequence[str], clear: T.StructType) -> None:
        self._columns, self._file_keys = columns, table.file_keys
        # Text repeats itself; but what is decrypted has nothing to do with how it was stored.
        self._dictionaries = [
            name
            for name in columns
            if isinstance(table.schema[name].dataType, T.StringType) and table.schema[name] == clear[name]
        ]

    def __call__(self, task: Task) -> Batches:
        return read_batches(task, self._file_keys, columns=self._columns, dictionaries=self._dictionaries)


def _bounded(
    work: PartitionTotals, messages: Iterable[tuple[int, Any]], limit: int | None = None
) -> Iterator[tuple[int, Total]]:
    """The totals of the partitions whose messages are given, by bucket.

    :raises _TooMuch: the messages are larger than ``limit``
    """
    partitions: dict[int, list[pa.RecordBatch]] = {}
    size = 0
    for partition, message in messages:
        partitions.setdefault(partition, []).append(unpacked(message))
        size += len(message)
        if limit is not None and size > limit:
            raise _TooMuch
    for partition in list(partitions):
        # What is done with leaves the memory.
        for bucket, grouping, message in work.of(partitions.pop(partition)):
            yield bucket, (grouping, packed(message))


def _merged(merge: Merge, totals: Iterable[tuple[int, Total]]) -> Iterator[tuple[int, Total]]:
    """The sums of the buckets whose totals are given, in the order of buckets."""
    buckets: dict[tuple[int, int], list[pa.RecordBatch]] = {}
    for bucket, (grouping, message) in totals:
        buckets.setdefault((bucket, grouping), []).append(unpacked(message))
    for bucket, grouping in sorted(buckets):
        for message in merge.of(grouping, buckets.pop((bucket, grouping))):
            yield bucket, (grouping, packed(message))


def _in_workers(work: Callable[[Any], Iterator[Any]], place: str) -> Callable[[Any], Iterator[Any]]:
    """``work``, whose errors reach the driver.

    :param place: for errors that do not know where they happened
    """

    def guarded(given: Any) -> Iterator[Any]:
        with errors_for_the_driver(place):
            yield from work(given)

    return guarded


def _itself(number: int) -> int:
    return number


def _column(name: str) -> str:
    """A column name as it is: without quoting, a dot in it would mean a field of a struct."""
    return "`" + name.replace("`", "``") + "`"
