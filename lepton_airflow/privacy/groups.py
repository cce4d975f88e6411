"""Declared group keys: public by declaration, so that which groups appear in a release says nothing about the data."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lepton_airflow.errors import SpecError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import DataType

#: A declared key has one of these for every column it is grouped by; dates are written as ISO 8601 text.
KeyValue = str | int | bool | None
#: Integers of JSON (RFC 8785), which specs are digested as.
MAX_KEY_INTEGER = 2**53 - 1


def key_column(position: int) -> str:
    """The aggregation plan's name for the group column at ``position``."""
    return f"key{position}"


def key_frame(
    frame: DataFrame, *, group_by: Sequence[str], groups: Sequence[Sequence[KeyValue]], dataset: str
) -> DataFrame:
    """The declared keys as a small DataFrame ``key0, key1, ..., group``, in the types of the columns that they stand for.

    ``group`` is the position among the declared groups, from 0.

    :raises SpecError: a key is of another type than its column, or two keys are equal in that type: a row would then count twice
    """
    from pyspark.sql import types as T

    kinds = [frame.schema[name].dataType for name in group_by]
    seen: set[tuple[Any, ...]] = set()
    rows = []
    for index, key in enumerate(groups):
        values = []
        for name, kind, value in zip(group_by, kinds, key, strict=True):
            try:
                values.append(_in_type(value, kind))
            except ValueError:
                raise SpecError(
                    f"Group {index + 1} has a key of type {type(value).__name__}, the column is {kind.simpleString()}.",
                    place=f"{dataset}.{name}",
                    remedy="Write each key in the column's type; dates as YYYY-MM-DD.",
                ) from None
        if tuple(values) in seen:
            raise SpecError(
                f"Group {index + 1} is declared twice.", place=f"{dataset}: groups", remedy="Declare every group once."
            )
        seen.add(tuple(values))
        rows.append((*values, index))
    fields = [T.StructField(key_column(i), kind, nullable=True) for i, kind in enumerate(kinds)]
    return frame.sparkSession.createDataFrame(
        rows, T.StructType([*fields, T.StructField("group", T.IntegerType(), False)])
    )


def _in_type(value: KeyValue, kind: DataType) -> str | int | bool | datetime.date | None:
    """The Python value that Spark takes for a key of a column of type ``kind``.

    :raises ValueError: it is none
    """
    from pyspark.sql import types as T

    bits: dict[type[DataType], int] = {T.ByteType: 8, T.ShortType: 16, T.IntegerType: 32, T.LongType: 64}
    if value is None:
        return None
    if isinstance(kind, T.StringType) and isinstance(value, str):
        return value
    if isinstance(kind, T.BooleanType) and isinstance(value, bool):
        return value
    if type(kind) in bits and isinstance(value, int) and not isinstance(value, bool):
        limit = 1 << (bits[type(kind)] - 1)
        if -limit <= value < limit:
            return value
    if isinstance(kind, T.DateType) and isinstance(value, str):
        return datetime.date.fromisoformat(value)
    raise ValueError
