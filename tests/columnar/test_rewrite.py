"""What the direct road writes: the files of successful tries and no other, in bounded memory, laid out for their bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql.types import IntegerType, LongType, StringType, StructField, StructType

from lepton_airflow.columnar import rewrite as module
from lepton_airflow.columnar.dataset import NotOnDirectRoad, open_table
from lepton_airflow.columnar.files import CannotOpen, open_place, uri_of
from lepton_airflow.columnar.rewrite import Layout, rewrite
from lepton_airflow.columnar.tasks import Task

SCHEMA = StructType([StructField("id", LongType()), StructField("name", StringType(), metadata={"comment": "who"})])


def layout(schema: StructType = SCHEMA, **changes: Any) -> Layout:
    fields = {"opaque": frozenset(), "dictionaries": frozenset(), "compression": "snappy", "version": "4.3.0"}
    return Layout(schema=schema, **(fields | changes))


@pytest.fixture
def source(spark: Any, tmp_path: Path) -> Path:
    path = tmp_path / "source"
    spark.range(1000).selectExpr("id", "concat('name ', id % 10) name").repartition(2).write.parquet(str(path))
    return path


@pytest.fixture
def same() -> Any:
    """A change that changes nothing; not at the top of this module, which Spark's workers cannot import."""

    def change(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, int]]:
        return batch, {"rows seen": batch.num_rows}

    return change


def test_the_copy_is_the_table_with_its_metadata_and_counts(
    spark: Any, source: Path, tmp_path: Path, same: Any
) -> None:
    target = tmp_path / "a copy"
    table = open_table(spark.read.parquet(str(source)))
    written = rewrite(spark, table, uri_of(f"file:{target}"), change=same, layout=layout(), place="t")
    assert (written.rows, written.counts) == (1000, {"rows seen": 1000})
    copy = spark.read.parquet(str(target))
    assert copy.schema == SCHEMA
    assert copy.exceptAll(spark.read.parquet(str(source))).count() == 0
    assert (target / "_SUCCESS").exists()
    assert not (target / "_tries").exists()


def test_files_of_tries_that_did_not_report_are_left_out(spark: Any, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"

    def leave_a_file(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, int]]:
        # What a try leaves that was killed, or that a speculative one overtook.
        pq.write_table(pa.Table.from_batches([batch]), target / "_tries" / "part-00000-lost.parquet")
        return batch, {}

    table = open_table(spark.read.parquet(str(source)))
    rewrite(spark, table, uri_of(f"file:{target}"), change=leave_a_file, layout=layout(), place="t")
    assert spark.read.parquet(str(target)).count() == 1000
    assert not [path for path in target.rglob("*") if "lost" in path.name]


def test_a_try_that_outlives_its_job_writes_nothing(source: Path, tmp_path: Path, same: Any) -> None:
    file = next(source.glob("*.parquet"))
    gone = tmp_path / "gone"
    with pytest.raises(FileNotFoundError):
        module._write_part(Task(0, ((f"file://{file}", (0,)),)), f"file://{gone}/_tries", "run", same, layout())
    assert not gone.exists()


def test_two_tries_of_a_task_write_two_files(source: Path, tmp_path: Path, same: Any) -> None:
    task = Task(0, ((f"file://{next(source.glob('*.parquet'))}", (0,)),))
    parts = {module._write_part(task, f"file://{tmp_path}", "run", same, layout()).file for _ in range(2)}
    assert len(parts) == 2


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """2 GiB of text in a file of a few MiB: encoded, it looks short."""
    long = pa.DictionaryArray.from_arrays(
        pa.array([number % 10 for number in range(200_000)], pa.int32()),
        [chr(97 + number) * 10_000 for number in range(10)],
    )
    pq.write_table(
        pa.table({"id": pa.array(range(200_000)), "name": long}), tmp_path / "wide.parquet", store_schema=False
    )
    return tmp_path / "wide.parquet"


def test_memory_is_bounded_whatever_the_rows_take(wide: Path, tmp_path: Path) -> None:
    held: list[int] = []

    def measure(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, int]]:
        held.append(pa.total_allocated_bytes())
        return batch, {}

    before = pa.total_allocated_bytes()
    task = Task(0, ((f"file://{wide}", (0,)),))
    part = module._write_part(task, f"file://{tmp_path}", "run", measure, layout())
    assert part.rows == 200_000
    assert max(held) - before < 300 << 20
    assert pq.read_metadata(tmp_path / part.file).num_row_groups > 10


def test_random_bytes_are_neither_compressed_nor_indexed_and_repeating_ones_get_a_dictionary(
    source: Path, tmp_path: Path, same: Any
) -> None:
    schema = StructType([StructField("id", LongType()), StructField("name", StringType())])
    task = Task(0, ((f"file://{next(source.glob('*.parquet'))}", (0,)),))
    chosen = layout(schema, opaque=frozenset({("id",)}), dictionaries=frozenset({("name",)}), compression="zstd")
    part = module._write_part(task, f"file://{tmp_path}", "run", same, chosen)
    number, name = (pq.read_metadata(tmp_path / part.file).row_group(0).column(index) for index in (0, 1))
    assert (number.compression, number.has_dictionary_page, number.is_stats_set) == ("UNCOMPRESSED", False, False)
    assert (name.compression, name.has_dictionary_page, name.is_stats_set) == ("ZSTD", True, True)


def test_dates_of_the_old_calendar_are_left_to_spark(spark: Any, tmp_path: Path) -> None:
    from datetime import date

    table = pa.table({"born": pa.array([date(1500, 1, 1)])})
    with pq.ParquetWriter(tmp_path / "old.parquet", table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"org.apache.spark.legacyDateTime": "", "org.apache.spark.version": "3.1.0"})
    with pytest.raises(NotOnDirectRoad, match="calendar"):
        open_table(spark.read.parquet(str(tmp_path / "old.parquet")))
    pq.write_table(table, tmp_path / "new.parquet")
    assert open_table(spark.read.parquet(str(tmp_path / "new.parquet"))).rows == 1


def test_a_file_whose_type_spark_reads_otherwise_is_left_to_spark(spark: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": pa.array([1], pa.uint64())}), tmp_path / "n.parquet")
    with pytest.raises(NotOnDirectRoad, match="uint64"):
        open_table(spark.read.parquet(str(tmp_path / "n.parquet")))
    frame = spark.read.schema(StructType([StructField("n", IntegerType())])).parquet(str(tmp_path / "n.parquet"))
    with pytest.raises(NotOnDirectRoad):
        open_table(frame)


def test_places_are_opened_by_uri_and_refused_by_name_of_their_file_system() -> None:
    assert uri_of("file:/data/a b=c%") == "file:///data/a%20b%3Dc%25"
    assert open_place(uri_of("file:/data/a b=c%"))[1] == "/data/a b=c%"
    with pytest.raises(CannotOpen, match="s3a"):
        open_place("s3a://bucket/table")
