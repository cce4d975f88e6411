"""Parquet to Parquet inside Spark tasks: pyarrow reads, changes and writes batches, and no row crosses into the JVM."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import types as spark

from lepton_airflow.columnar.batches import read_batches
from lepton_airflow.columnar.dataset import FieldPath, ParquetTable, field_path, spark_metadata
from lepton_airflow.columnar.failures import errors_for_the_driver
from lepton_airflow.columnar.files import open_place
from lepton_airflow.columnar.parquet_encryption import FileKeys
from lepton_airflow.columnar.tasks import Task, plan_tasks
from lepton_airflow.columnar.types import arrow_schema

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: Changes a batch of the source and counts what it did, by names of its own. Travels to the workers, so it holds no secret.
Change = Callable[[pa.RecordBatch], tuple[pa.RecordBatch, Mapping[str, int]]]

#: Tries write here, inside the folder of the dataset under construction; the driver takes out what successful ones wrote.
_TRIES = "_tries"

# What bounds a worker's memory beside the batches that are read: encoded bytes that are gathered for a row group.
_ROW_GROUP_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How files are written.

    :ivar schema: Spark's schema of the result, with field metadata
    :ivar opaque: paths of columns whose bytes look random: they are neither compressed nor indexed, and get no dictionary
    :ivar dictionaries: paths of columns that get a dictionary
    :ivar compression: a codec of Parquet, or ``none``
    :ivar file_keys: what encrypts the files as a whole, if anything does
    :ivar version: of Spark, which a file's footer names
    """

    schema: spark.StructType
    opaque: frozenset[FieldPath]
    dictionaries: frozenset[FieldPath]
    compression: str
    version: str
    file_keys: FileKeys | None = None


@dataclass(frozen=True)
class Rewritten:
    """What was written: rows, and the sums of what :data:`Change` counted."""

    rows: int
    counts: Mapping[str, int] = field(default_factory=dict)


def rewrite(
    spark_session: SparkSession, table: ParquetTable, folder: str, *, change: Change, layout: Layout, place: str
) -> Rewritten:
    """Write every row of ``table``, changed, into a new folder of Parquet files, in the order of the table.

    Each try of a task writes a file of its own, outside the dataset; only files of tries whose result reached the driver are
    moved into it, so a retried, a speculative or a lost try adds no row and removes none.

    :param folder: URI of the new dataset, on the file system of its parent; its parent exists
    :param place: the dataset, for errors
    :raises Exception: as Spark wraps it, with a :class:`LeptonError` on the wire inside
    """
    context = spark_session.sparkContext
    files, path = open_place(folder)
    files.create_dir(f"{path}/{_TRIES}", recursive=True)
    tasks = plan_tasks(table.row_groups, parallelism=context.defaultParallelism)
    if not tasks:
        return Rewritten(0)
    run = uuid.uuid4().hex
    table_keys = table.file_keys

    def work(task: Task) -> _Part:
        with errors_for_the_driver(place):
            return _write_part(task, f"{folder}/{_TRIES}", run, change, layout, table_keys)

    parts = context.parallelize(tasks, len(tasks)).map(work).collect()
    for part in parts:
        files.move(f"{path}/{_TRIES}/{part.file}", f"{path}/{part.file}")
    files.delete_dir(f"{path}/{_TRIES}")
    with files.open_output_stream(f"{path}/_SUCCESS"):
        pass
    counts: dict[str, int] = {}
    for part in parts:
        for name, count in part.counts.items():
            counts[name] = counts.get(name, 0) + count
    return Rewritten(sum(part.rows for part in parts), counts)


@dataclass(frozen=True)
class _Part:
    file: str
    rows: int
    counts: Mapping[str, int]


def _write_part(
    task: Task, folder: str, run: str, change: Change, layout: Layout, table_keys: FileKeys | None = None
) -> _Part:
    file = f"part-{task.number:05d}-{run}-{uuid.uuid4().hex[:8]}.parquet"
    files, path = open_place(f"{folder}/{file}")
    schema = arrow_schema(layout.schema)
    rows, counts = 0, dict[str, int]()
    # A folder that is gone says that the job is over: nothing may be made anew there.
    with (
        files.open_output_stream(path) as stream,
        pq.ParquetWriter(stream, schema, **_writer_options(layout, schema)) as writer,
    ):
        writer.add_key_value_metadata(spark_metadata(layout.schema, layout.version))
        gathered, size = list[pa.RecordBatch](), 0
        for batch in read_batches(task, table_keys):
            changed, counted = change(batch)
            gathered.append(_cast(changed, schema))
            size += changed.nbytes
            rows += batch.num_rows
            for name, count in counted.items():
                counts[name] = counts.get(name, 0) + count
            if size >= _ROW_GROUP_BYTES:
                _write_row_group(writer, gathered, schema)
                gathered, size = [], 0
        _write_row_group(writer, gathered, schema)
    return _Part(file, rows, counts)


def _write_row_group(writer: pq.ParquetWriter, batches: list[pa.RecordBatch], schema: pa.Schema) -> None:
    if batches:
        table = pa.Table.from_batches(batches, schema)
        writer.write_table(table, row_group_size=table.num_rows)


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [
        column if column.type == wanted.type else column.cast(wanted.type)
        for column, wanted in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _writer_options(layout: Layout, schema: pa.Schema) -> dict[str, Any]:
    leaves = leaf_columns(schema)
    plain = {leaf: path for leaf, path in leaves.items() if path not in layout.opaque}
    return {
        "compression": {leaf: layout.compression if leaf in plain else "none" for leaf in leaves},
        "use_dictionary": [leaf for leaf, path in plain.items() if path in layout.dictionaries],
        "write_statistics": list(plain),
        "encryption_properties": None if layout.file_keys is None else layout.file_keys.writing(),
        # Spark's schema says it all, and exactly.
        "store_schema": False,
    }


def leaf_columns(schema: pa.Schema) -> dict[str, FieldPath]:
    """The leaf columns of a Parquet file with this schema: their names there, and the fields' paths."""
    sink = pa.BufferOutputStream()
    pq.write_metadata(schema, sink, store_schema=False)
    stored = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    names = [stored.column(index).path for index in range(len(stored.names))]
    return {name: field_path(name) for name in names}
