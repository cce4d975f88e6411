"""Examples of a protected table reach the driver as a stream, by both roads the same, and bad ones are refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lepton_airflow.access.engine import load_policy
from lepton_airflow.access.guard import Guard
from lepton_airflow.errors import EmptyTable, InvalidData, LeptonError, MissingColumn, SpecError, UnsupportedType
from lepton_airflow.jobs.examples import NewerThan, ReadExamples, read_examples
from lepton_airflow.jobs.failure import as_typed_error
from lepton_airflow.jobs.runner import Job, audit_log_of, run_job
from lepton_airflow.jobs.spec import TableReference
from lepton_airflow.models.plan import ImageColumn
from lepton_airflow.settings import Settings

ROWS = 300
IMAGE = ImageColumn(column="picture", shape=(2, 2, 1), high=255)
_numbers = itertools.count()


def table() -> pa.Table:
    """300 rows of 100 patients, each with its own measurements, and a picture."""
    draw = np.random.default_rng(1)
    return pa.table(
        {
            "radius": draw.normal(size=ROWS),
            "visits": pa.array(draw.integers(0, 9, ROWS), pa.int16()),
            "picture": [row.tolist() for row in draw.integers(0, 255, (ROWS, 4)).astype(np.float64)],
            "diagnosis": np.where(np.arange(ROWS) % 2 == 0, "benign", "malignant"),
            "patient": [f"patient {row % 100}" for row in range(ROWS)],
            "day": pa.array(np.arange(ROWS) // 30, pa.int32()),
        }
    )


Protect = Callable[..., str]


@pytest.fixture
def protect(home: Settings, spark: Any, tmp_path: Path) -> Protect:
    """Encrypts a table and returns its path."""

    def make(plain: pa.Table, **options: Any) -> str:
        number = next(_numbers)
        raw, target = tmp_path / f"raw {number}", tmp_path / f"protected {number}"
        raw.mkdir()
        pq.write_table(plain, raw / "rows.parquet", row_group_size=70)
        spec = {
            "source": {"name": "clinic.raw", "path": str(raw)},
            "target": {"name": "clinic.visits", "path": str(target)},
            "keyset": "clinic",
            "columns": {
                **{name: {"cipher": "AES256_GCM"} for name in ("radius", "visits", "picture", "diagnosis")},
                "patient": {"cipher": "AES256_SIV"},
            },
            "purpose": "test",
            **options,
        }
        run_job("encrypt_columns", spec, settings=home, run_key=f"protect {number}")
        return str(target)

    return make


@pytest.fixture
def job(home: Settings) -> Iterator[Job]:
    with audit_log_of(home, "read", None) as (engine, principal, audit):
        guard = Guard(log=audit, policy=load_policy(home), principal=principal, spec_digest="sha256:0")
        yield Job(
            name="test",
            settings=home,
            engine=engine,
            guard=guard,
            run_key="read",
            spec_digest="sha256:0",
            principal=principal,
            log=audit,
        )


def read(job: Job, path: str, **changes: Any) -> ReadExamples:
    arguments: dict[str, Any] = {
        "source": TableReference(name="clinic.visits", path=path),
        "features": ("radius", "visits"),
        "label": "diagnosis",
        "classes": ("benign", "malignant"),
        "privacy_unit": "patient",
        "purpose": "test",
    }
    if "image" in changes:
        del arguments["features"]
    try:
        return read_examples(job, **(arguments | changes))
    except Exception as error:
        raise as_typed_error(error, place="test") from None


def rows_of(found: ReadExamples) -> list[tuple[float, ...]]:
    examples = found.examples
    return sorted(map(tuple, np.column_stack([examples.labels, examples.features]).tolist()))


def test_both_roads_give_what_was_protected(protect: Protect, job: Job) -> None:
    plain = table()
    path = protect(plain)
    columns = (np.arange(ROWS) % 2, plain["radius"].to_numpy().astype(np.float32), plain["visits"].to_numpy())
    for road in ("direct", "dataframe"):
        found = read(job, path, road=road)
        assert found.rows == ROWS
        assert found.examples.unit_count == 100
        assert rows_of(found) == sorted(map(tuple, np.column_stack(columns).tolist()))
    direct, through_spark = (read(job, path, image=IMAGE, road=road) for road in ("direct", "dataframe"))
    assert direct.examples.features.shape == (ROWS, 4)
    assert direct.examples.digest() == through_spark.examples.digest()
    assert {row[1:] for row in rows_of(direct)} == set(map(tuple, plain["picture"].to_pylist()))


def test_files_that_are_encrypted_as_a_whole_are_read_too(protect: Protect, job: Job) -> None:
    plain = table()
    whole = read(job, protect(plain, parquet_encryption=True))
    assert rows_of(whole) == rows_of(read(job, protect(plain)))
    with pytest.raises(SpecError, match="encrypted as a whole"):
        read(job, protect(plain, parquet_encryption=True), newer_than=NewerThan(column="day", value="3"))


def test_only_rows_that_are_newer_are_read(protect: Protect, job: Job) -> None:
    path = protect(table())
    assert read(job, path, newer_than=NewerThan(column="day", value="7")).rows == 60
    with pytest.raises(EmptyTable):
        read(job, path, newer_than=NewerThan(column="day", value="99"))
    with pytest.raises(SpecError, match=r"clinic\.visits\.day: .* no int"):
        read(job, path, newer_than=NewerThan(column="day", value="yesterday"))
    with pytest.raises(SpecError, match=r"clinic\.visits\.patient: .*encrypted"):
        read(job, path, newer_than=NewerThan(column="patient", value="a"))
    with pytest.raises(MissingColumn, match="date"):
        read(job, path, newer_than=NewerThan(column="date", value="2026-11-01"))


def changed(name: str, values: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    plain = table()
    values = values + plain[name].to_pylist()[len(values) :]
    return plain.set_column(plain.column_names.index(name), name, pa.array(values, kind))


BAD: list[tuple[str, list[Any], type[LeptonError], str]] = [
    ("radius", [float("nan"), float("inf")], InvalidData, "clinic.visits.radius: 2 values are NaN"),
    ("radius", [None], InvalidData, "clinic.visits.radius: 1 values are null"),
    ("diagnosis", ["unclear", "unclear"], InvalidData, "clinic.visits.diagnosis: 2 labels are none of the 2"),
    ("diagnosis", ["benign"] * ROWS, InvalidData, "same class"),
    ("picture", [[1.0, 2.0]], InvalidData, "clinic.visits.picture: 1 images do not have 4 numbers"),
    ("patient", [None], InvalidData, "clinic.visits.patient: 1 values are null"),
]


@pytest.mark.parametrize(("column", "values", "error", "names"), BAD)
def test_bad_values_are_one_typed_error(
    column: str, values: list[Any], error: type[LeptonError], names: str, spark: Any, job: Job, tmp_path: Path
) -> None:
    changes = {"image": IMAGE} if column == "picture" else {}
    pq.write_table(changed(column, values), tmp_path / "rows.parquet")
    with pytest.raises(error, match=names):
        read(job, str(tmp_path / "rows.parquet"), **changes)


def test_columns_of_the_wrong_kind_are_refused_by_name(spark: Any, job: Job, tmp_path: Path) -> None:
    path = str(tmp_path / "rows.parquet")
    pq.write_table(table(), path)
    with pytest.raises(UnsupportedType, match=r"clinic\.visits\.picture"):
        read(job, path, features=("radius", "picture"))
    with pytest.raises(UnsupportedType, match=r"clinic\.visits\.radius: An image is"):
        read(job, path, image=IMAGE.model_copy(update={"column": "radius"}))
    with pytest.raises(MissingColumn, match="radios"):
        read(job, path, features=("radios",))


@pytest.mark.parametrize("road", ["direct", "dataframe"])
def test_a_changed_ciphertext_is_found_on_the_executor_and_told_by_name(
    road: str, protect: Protect, job: Job, spark: Any, tmp_path: Path
) -> None:
    from pyspark.sql import functions as F

    frame = spark.read.parquet(protect(table()))
    last = F.substring("radius", -1, 1)
    other = F.when(last == F.unhex(F.lit("00")), F.unhex(F.lit("01"))).otherwise(F.unhex(F.lit("00")))
    tampered = F.concat(F.expr("substring(radius, 1, length(radius) - 1)"), other)
    path = str(tmp_path / "tampered")
    metadata = frame.schema["radius"].metadata
    frame.withColumn("radius", tampered.alias("radius", metadata=metadata)).write.parquet(path)
    with pytest.raises(LeptonError, match="radius") as caught:
        read(job, path, road=road)
    assert caught.value.code == "DecryptionFailed"
