"""Which Parquet columns the direct road reads exactly as Spark does, and in which Arrow types."""

from __future__ import annotations

import pyarrow as pa
from pyspark.sql import types as spark

_LEAVES: dict[type[spark.DataType], pa.DataType] = {
    spark.BooleanType: pa.bool_(),
    spark.ByteType: pa.int8(),
    spark.ShortType: pa.int16(),
    spark.IntegerType: pa.int32(),
    spark.LongType: pa.int64(),
    spark.FloatType: pa.float32(),
    spark.DoubleType: pa.float64(),
    spark.StringType: pa.string(),
    spark.CharType: pa.string(),
    spark.VarcharType: pa.string(),
    spark.BinaryType: pa.binary(),
    spark.DateType: pa.date32(),
    spark.TimestampType: pa.timestamp("us", tz="UTC"),
    spark.TimestampNTZType: pa.timestamp("us"),
}


def arrow_type(spark_type: spark.DataType) -> pa.DataType | None:
    """The Arrow type of a column; None for types that are not read on the direct road (intervals, variants, user types).

    As in every file source of Spark, all that is nested may be null.
    """
    if isinstance(spark_type, spark.DecimalType):
        return pa.decimal128(spark_type.precision, spark_type.scale)
    if isinstance(spark_type, spark.ArrayType):
        element = arrow_type(spark_type.elementType)
        return None if element is None else pa.list_(pa.field("element", element))
    if isinstance(spark_type, spark.MapType):
        key, value = arrow_type(spark_type.keyType), arrow_type(spark_type.valueType)
        return None if key is None or value is None else pa.map_(key, value)
    if isinstance(spark_type, spark.StructType):
        children = [(field.name, arrow_type(field.dataType)) for field in spark_type.fields]
        if any(child is None for _, child in children):
            return None
        return pa.struct([pa.field(name, child) for name, child in children])
    return _LEAVES.get(type(spark_type))


def arrow_schema(schema: spark.StructType) -> pa.Schema:
    """The Arrow schema of a table all of whose types are read on the direct road.

    :raises KeyError: one is not; :func:`arrow_type` tells
    """
    fields = []
    for field in schema.fields:
        kind = arrow_type(field.dataType)
        if kind is None:
            raise KeyError(field.name)
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def same_values(stored: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether an array of type ``stored``, cast to ``wanted``, has the values that Spark reads.

    What may differ is how text and bytes are laid out, the unit of a time stamp if it is not finer than Spark's, the missing
    zone of an instant (INT96), and which nested values may be null.
    """
    types = pa.types
    if stored == wanted:
        return True
    if types.is_dictionary(stored):
        return same_values(stored.value_type, wanted)
    if types.is_string(wanted):
        return bool(types.is_large_string(stored) or types.is_string_view(stored))
    if types.is_binary(wanted):
        return bool(types.is_large_binary(stored) or types.is_binary_view(stored) or types.is_fixed_size_binary(stored))
    if types.is_timestamp(wanted) and types.is_timestamp(stored):
        return stored.unit in ("us", "ms", "s") and (wanted.tz is not None or stored.tz is None)
    if types.is_map(wanted):
        return bool(
            types.is_map(stored)
            and same_values(stored.key_type, wanted.key_type)
            and same_values(stored.item_type, wanted.item_type)
        )
    if types.is_list(wanted):
        return bool(
            (types.is_list(stored) or types.is_large_list(stored)) and same_values(stored.value_type, wanted.value_type)
        )
    if types.is_struct(wanted):
        return bool(
            types.is_struct(stored)
            and [field.name for field in stored] == [field.name for field in wanted]
            and all(same_values(one.type, other.type) for one, other in zip(stored, wanted, strict=True))
        )
    return False
