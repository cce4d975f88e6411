"""Columns of a protected table, decrypted on the executors, as a stream of Arrow batches to the driver.

Like any work of a job on a table this has two roads: on the direct one Spark tasks read row groups through pyarrow, on the
DataFrame road Spark reads and hands over Arrow batches. Either way a task decrypts a batch in its own memory and sends it as one
Arrow IPC message; the driver takes one partition after the other, while the next one is made. What Spark writes to local disks
on the way is encrypted (``spark.io.encryption.enabled``, which every session of a job sets).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lepton_airflow.columnar.batches import read_batches
from lepton_airflow.columnar.dataset import ParquetTable
from lepton_airflow.columnar.failures import errors_for_the_driver
from lepton_airflow.columnar.tasks import Task, plan_tasks
from lepton_airflow.encryption.roads import Reveal

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Batches = Iterator[pa.RecordBatch]

#: Encoded bytes of a task: the driver holds about two tasks at a time.
_TASK_BYTES = 32 << 20


def stream(
    session: SparkSession,
    source: DataFrame | ParquetTable,
    *,
    columns: Sequence[str],
    reveal: Reveal | None,
    dataset: str,
) -> Batches:
    """The rows of a table, as they come.

    :param source: for the direct road a Parquet table, else a DataFrame
    :param columns: their names, in the order that the batches have
    :param reveal: decrypts those that are to be in clear
    :param dataset: its name, for errors
    :raises Exception: as Spark wraps it, with a :class:`LeptonError` on the wire inside
    """
    names = list(columns)

    def sent(batches: Batches) -> Iterator[bytes]:
        with errors_for_the_driver(dataset):
            for batch in batches:
                clear = batch if reveal is None else reveal(batch)[0]
                yield _message(clear)

    if isinstance(source, ParquetTable):
        size = sum(group.size for group in source.row_groups)
        tasks = plan_tasks(source.row_groups, parallelism=max(size // _TASK_BYTES, 1))
        if not tasks:
            return
        read = _reading(source, names)
        messages = session.sparkContext.parallelize(tasks, len(tasks)).flatMap(lambda task: sent(read(task)))
        arrived: Iterator[Any] = messages.toLocalIterator(prefetchPartitions=True)
    else:
        # Spark looks columns up by name, and does not cope with dots and quotes in them.
        chosen = [F.col(_quoted(name)).alias(f"column{place}") for place, name in enumerate(names)]
        rows = source.select(*chosen).mapInArrow(_renamed(sent, names), "message binary")
        arrived = (row[0] for row in rows.toLocalIterator(prefetchPartitions=True))
    for message in arrived:
        with pa.ipc.open_stream(message) as reader:
            yield from reader


def _reading(table: ParquetTable, names: Sequence[str]) -> Callable[[Task], Batches]:
    # A table knows all its row groups; only what opens them travels to the workers.
    file_keys = table.file_keys

    def read(task: Task) -> Batches:
        for batch in read_batches(task, file_keys, columns=names):
            yield batch.select(list(names))

    return read


def _renamed(sent: Callable[[Batches], Iterator[bytes]], names: Sequence[str]) -> Callable[[Batches], Batches]:
    def messages(batches: Batches) -> Batches:
        named = (pa.RecordBatch.from_arrays(batch.columns, names=list(names)) for batch in batches)
        for message in sent(named):
            yield pa.RecordBatch.from_pydict({"message": pa.array([message], pa.binary())})

    return messages


def _message(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    message: bytes = sink.getvalue().to_pybytes()
    return message


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
