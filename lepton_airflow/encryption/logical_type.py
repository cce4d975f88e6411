"""Spark types as text and back, without a JVM: tasks of the direct road have none.

The text of an atomic type is its ``simpleString``, such as ``bigint`` or ``decimal(10,2)``; that of an array, map or struct
is its JSON form as Spark writes it, canonical (RFC 8785), which keeps nullability, names and field metadata.
"""

from __future__ import annotations

import json
import re

import rfc8785
from pyspark.sql import types as spark
from pyspark.sql.types import DataType, _parse_datatype_json_string

from lepton_airflow.errors import InvalidData

_ATOMIC: dict[str, DataType] = {
    kind.simpleString(): kind
    for kind in (
        spark.StringType(),
        spark.BinaryType(),
        spark.BooleanType(),
        spark.ByteType(),
        spark.ShortType(),
        spark.IntegerType(),
        spark.LongType(),
        spark.FloatType(),
        spark.DoubleType(),
        spark.DateType(),
        spark.TimestampType(),
        spark.TimestampNTZType(),
    )
}
_DECIMAL = re.compile(r"decimal\((\d{1,2}),(\d{1,2})\)")


def type_text(spark_type: DataType) -> str:
    """The text under which a type is recorded and bound."""
    if isinstance(spark_type, spark.ArrayType | spark.MapType | spark.StructType):
        return rfc8785.dumps(spark_type.jsonValue()).decode()
    return spark_type.simpleString()


def type_of(text: str, *, place: str) -> DataType:
    """The type that :func:`type_text` wrote.

    :raises InvalidData: ``text`` is no type
    """
    if text in _ATOMIC:
        return _ATOMIC[text]
    try:
        if text.startswith("{"):
            return _parse_datatype_json_string(text)
        if found := _DECIMAL.fullmatch(text):
            return spark.DecimalType(int(found[1]), int(found[2]))
    except (ValueError, KeyError, TypeError, json.JSONDecodeError):
        # The text comes from a table's metadata, which anyone may have edited.
        pass
    raise InvalidData(
        "The metadata of the protected column names no Spark type.",
        place=place,
        remedy="Read the table as it was written, or with the version of lepton-airflow that wrote it.",
    )
