"""Protected columns of Spark DataFrames: Arrow UDFs that apply the column ciphers where the rows are.

What travels to the workers is where the keyset is (:class:`KeysetReference`) and how a column is protected. Each Python worker
unseals the keyset with its own identity, once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import DataType, StructType

from lepton_airflow.columnar.failures import errors_for_the_driver
from lepton_airflow.encryption.columns import (
    ColumnProtector,
    OnError,
    Protectors,
    protected_schema,
    revealed_schema,
    rotated_schema,
)
from lepton_airflow.encryption.nested import Change, with_leaves
from lepton_airflow.encryption.paths import Path as FieldPath
from lepton_airflow.encryption.planning import plan_protection, protections_of, protectors_of
from lepton_airflow.encryption.protection import Protection
from lepton_airflow.keys.reference import KeysetReference

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = [
    "change_columns",
    "protect",
    "protect_columns",
    "protections_of",
    "reveal",
    "reveal_columns",
    "rotate_columns",
]


def protect(
    df: DataFrame, *, dataset: str, protections: Mapping[str, Protection], keysets: Mapping[str, KeysetReference]
) -> DataFrame:
    """Encrypt columns. Each says in its field metadata how it is protected; nulls stay null.

    :param dataset: the name to which the values are bound
    :param protections: how, by column, or by path such as ``address.street``
    :param keysets: under which keyset, by cipher
    :raises LeptonError: as :func:`lepton_airflow.encryption.planning.plan_protection`
    """
    return protect_columns(df, plan_protection(df.schema, dataset=dataset, protections=protections, keysets=keysets))


def protect_columns(df: DataFrame, protectors: Protectors) -> DataFrame:
    """Encrypt columns as planned."""
    changes = {protector.path: protector.encrypt for protector in protectors.values()}
    schema = protected_schema(df.schema, protectors)
    return change_columns(df, schema, changes, randomised=_randomised(protectors))


def reveal(
    df: DataFrame,
    *,
    columns: Sequence[str] | None = None,
    keyring: Path,
    identity_file: Path,
    dataset: str | None = None,
    on_error: OnError = "fail",
) -> DataFrame:
    """Decrypt columns back to their values and types, as their field metadata says.

    :param columns: columns or paths; all that are protected by default
    :param keyring: the folder of the file keyring
    :param identity_file: the private identity's file, on every machine that decrypts
    :param dataset: the dataset that the caller is allowed to read. Given it, a column that was encrypted for another
        dataset is refused: the metadata is not authenticated, so permission must not follow from it
    :param on_error: ``fail``, or ``null`` for values that cannot be decrypted: they are those that are null here and were not
        in ``df``
    :raises LeptonError: as :func:`lepton_airflow.encryption.planning.protectors_of`
    """
    protectors = protectors_of(
        df.schema, keyring=keyring, identity_file=identity_file, columns=columns, dataset=dataset
    )
    return reveal_columns(df, protectors, on_error=on_error)


def reveal_columns(df: DataFrame, protectors: Protectors, *, on_error: OnError = "fail") -> DataFrame:
    """Decrypt columns as planned."""

    def values(protector: ColumnProtector, array: pa.Array) -> pa.Array:
        return protector.decrypt(array, on_error=on_error)[0]

    changes = {protector.path: partial(values, protector) for protector in protectors.values()}
    return change_columns(df, revealed_schema(df.schema, protectors, on_error=on_error), changes)


def rotate_columns(df: DataFrame, protectors: Protectors) -> DataFrame:
    """Encrypt again, under the primary keys, the values of columns that are under other keys."""

    def renewed(protector: ColumnProtector, array: pa.Array) -> pa.Array:
        return protector.rotate(array)[0]

    changes = {protector.path: partial(renewed, protector) for protector in protectors.values()}
    schema = rotated_schema(df.schema, protectors)
    return change_columns(df, schema, changes, randomised=_randomised(protectors))


def change_columns(
    df: DataFrame, schema: StructType, changes: Mapping[FieldPath, Change], *, randomised: Collection[str] = ()
) -> DataFrame:
    """``df`` with what is at some paths changed, in one Arrow UDF for each top-level column that holds any.

    :param schema: of the result, with its field metadata
    :param changes: what to apply to the arrays, by path
    :param randomised: the top-level columns whose changes give another result each time
    """
    from pyspark.sql.functions import arrow_udf  # type: ignore[attr-defined]

    columns = []
    for before, after in zip(df.schema.fields, schema.fields, strict=True):
        column = df["`" + before.name.replace("`", "``") + "`"]
        below = {path[1:]: change for path, change in changes.items() if path[0] == before.name}
        if below:
            udf = arrow_udf(_changing(below, after.dataType, f"column {before.name!r}"), after.dataType)
            # Randomised: evaluated twice it gives two results, so Spark must not duplicate or reorder it.
            column = (udf.asNondeterministic() if before.name in randomised else udf)(column)
            column = column.alias(after.name, metadata=after.metadata)
        columns.append(column)
    return df.select(*columns)


def _randomised(protectors: Protectors) -> set[str]:
    """The top-level columns that hold randomised ciphertexts."""
    return {protector.path[0] for protector in protectors.values() if not protector.deterministic}


def _changing(changes: Mapping[FieldPath, Change], spark_type: DataType, place: str) -> Callable[[pa.Array], pa.Array]:
    # Spark compares the field metadata inside structs too.
    like = to_arrow_type(spark_type, timezone="UTC")

    def change_column(values: pa.Array) -> pa.Array:
        with errors_for_the_driver(place):
            return with_leaves(values, changes, like=like)

    return change_column
