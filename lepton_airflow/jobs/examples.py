"""Reads the examples of a protected table into the driver's memory, for the jobs that train or attack a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lepton_airflow.errors import InvalidData, MissingColumn, SpecError
from lepton_airflow.jobs.privacy_unit import check_unit
from lepton_airflow.jobs.roads import Road, Source, table_to_read
from lepton_airflow.jobs.spec import SpecModel, TableReference

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

    from lepton_airflow.columnar.dataset import ParquetTable
    from lepton_airflow.encryption.protection import ProtectedColumn
    from lepton_airflow.jobs.runner import Job
    from lepton_airflow.models.examples import Examples
    from lepton_airflow.models.plan import ImageColumn


class NewerThan(SpecModel):
    """Rows whose ``column``, in the clear, is greater than ``value``: what came in after a day, or after a number.

    :param value: as Spark casts it to the column's type, such as ``2026-11-01``
    """

    column: str
    value: str


@dataclass(frozen=True, kw_only=True)
class ReadExamples:
    """What was read.

    :param rows: of the table, before repeated ones were dropped
    """

    examples: Examples
    rows: int


def read_examples(
    job: Job,
    *,
    source: TableReference,
    features: Sequence[str] = (),
    image: ImageColumn | None = None,
    label: str,
    classes: Sequence[str | int | bool],
    privacy_unit: str,
    purpose: str,
    road: Road = "auto",
    newer_than: NewerThan | None = None,
    one_class_is_enough: bool = False,
) -> ReadExamples:
    """The examples of a table, features and label in the clear, the unit as it is stored.

    Encrypted columns are decrypted on the executors, inside a guarded operation of their own; they come to the driver as a
    stream of Arrow batches, and nothing is written on the way. Call it before TensorFlow is loaded: its BoringSSL and the OpenSSL
    of a PKCS #11 token's library share symbol names, and the token's library crashes if it comes second.

    :param features: columns of numbers
    :param image: the column of images, instead of ``features``
    :param label: the column of the class
    :param privacy_unit: the column that identifies the person; in the clear or deterministically encrypted
    :param newer_than: leave the other rows out
    :param one_class_is_enough: for examples that are not trained on
    :raises MissingColumn: a column is not there
    :raises SpecError: the unit is encrypted so that equal units cannot be seen to be equal; or ``newer_than`` names an
        encrypted column
    :raises UnsupportedType: see :meth:`lepton_airflow.models.examples.ExampleReader.add`
    :raises InvalidData: the unit is encrypted under several keys; or see
        :meth:`lepton_airflow.models.examples.ExampleReader.finish`
    :raises EmptyTable: there are no rows
    :raises AccessDenied: the policy does not let this identity decrypt
    """
    from lepton_airflow.encryption.planning import protections_of, protectors_of
    from lepton_airflow.encryption.roads import Reveal
    from lepton_airflow.encryption.streaming import stream
    from lepton_airflow.models.examples import ExampleReader

    inputs = tuple(features) if image is None else (image.column,)
    columns = (*inputs, label, privacy_unit)
    opened = Source(job, source, columns=columns)
    _require_columns(opened, columns, dataset=source.name)
    protected = protections_of(opened.schema)
    check_unit(privacy_unit, protected, dataset=source.name, others=(*inputs, label))
    encrypted = [name for name in (*inputs, label) if name in protected]
    reader = ExampleReader(
        dataset=source.name, features=features, image=image, label=label, classes=classes, unit=privacy_unit
    )
    with ExitStack() as operations:
        reveal = None
        if encrypted:
            decryption = operations.enter_context(
                job.guard.operation(action="decrypt", dataset=source.name, columns=encrypted, purpose=purpose)
            )
            protectors = protectors_of(
                opened.schema,
                keyring=job.settings.keyring,
                identity_file=job.settings.identity_file,
                columns=encrypted,
                dataset=source.name,
            )
            reveal = Reveal(protectors)
        table: ParquetTable | DataFrame | None = table_to_read(opened, road)[0] or opened.frame
        if newer_than is not None:
            table = _newer(opened, newer_than, protected, dataset=source.name)
        assert table is not None  # noqa: S101 - what Spark does not open, the direct road does
        batches = stream(job.spark, table, columns=columns, reveal=reveal, dataset=source.name)
        if privacy_unit in protected:
            batches = _under_one_key(batches, privacy_unit, place=f"{source.name}.{privacy_unit}")
        for batch in batches:
            reader.add(batch)
        if encrypted:
            decryption.record(counts={"rows": reader.rows})
    return ReadExamples(examples=reader.finish(one_class_is_enough=one_class_is_enough), rows=reader.rows)


def _require_columns(source: Source, columns: Sequence[str], *, dataset: str) -> None:
    missing = [name for name in columns if name not in source.schema.names]
    if missing:
        raise MissingColumn(
            f"There is no column {', '.join(missing)}.",
            place=dataset,
            remedy=f"Columns there: {', '.join(source.schema.names)}.",
        )


def _newer(
    source: Source, newer_than: NewerThan, protected: Mapping[str, ProtectedColumn], *, dataset: str
) -> DataFrame:
    from pyspark.sql import functions as F

    place = f"{dataset}.{newer_than.column}"
    _require_columns(source, [newer_than.column], dataset=dataset)
    if newer_than.column in protected:
        raise SpecError(
            "The column is encrypted, so nobody can tell what is newer.", place=place, remedy="Name another."
        )
    if source.frame is None:
        raise SpecError(
            "The files are encrypted as a whole, and rows are chosen by Spark only.",
            place=place,
            remedy="Leave newer_than out, and give the path of the new files.",
        )
    kind = source.schema[newer_than.column].dataType
    least = F.lit(newer_than.value).try_cast(kind)
    (value,) = source.frame.sparkSession.range(1).select(least).collect()[0]
    if value is None:
        raise SpecError(
            f"The value of newer_than is no {kind.simpleString()}.", place=place, remedy="Write it as Spark casts it."
        )
    return source.frame.where(source.frame["`" + newer_than.column.replace("`", "``") + "`"] > least)


def _under_one_key(batches: Iterator[pa.RecordBatch], unit: str, *, place: str) -> Iterator[pa.RecordBatch]:
    """The batches, as long as all units are encrypted under one key.

    Deterministic ciphertexts of one unit are equal under one key only; after a rotation it would count as two units.

    :raises InvalidData: there are values under several keys
    """
    import pyarrow.compute as pc

    keys: set[bytes] = set()
    for batch in batches:
        # Tink's prefix: one byte of version, four of key id.
        keys.update(pc.unique(pc.binary_slice(batch[unit].drop_null(), 1, 5)).to_pylist())
        yield batch
    if len(keys) > 1:
        raise InvalidData(
            f"The privacy unit is encrypted under {len(keys)} keys, so the same unit can look like two.",
            place=place,
            remedy="Encrypt the table again under one key.",
        )
