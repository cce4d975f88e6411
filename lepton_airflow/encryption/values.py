"""The byte form of each value: what is encrypted, in any language the same.

======================  ==================================================================================
Spark type              bytes
======================  ==================================================================================
string                  UTF-8
binary                  as it is
tinyint ... bigint      two's complement, big-endian, 1, 2, 4 or 8 bytes
float, double           IEEE 754, big-endian, 4 or 8 bytes; -0.0 and the bits of a NaN are kept
decimal(p,s)            the unscaled value as two's complement, big-endian, 16 bytes
boolean                 one byte, 00 or 01
date                    days since 1970-01-01 as an int
timestamp               microseconds since 1970-01-01T00:00:00Z as a bigint
timestamp_ntz           microseconds since 1970-01-01T00:00:00 on its own clock, as a bigint
array                   the sequence (:mod:`lepton_airflow.encryption.sequences`) of its elements
struct                  the sequence of its fields, in the order of the type
map                     the sequence of its entries in their order, each the sequence of key and value
======================  ==================================================================================

With padding, that form is preceded by its length (4 bytes, big-endian) and followed by zeros. Nulls stay nulls; those inside
an array, map or struct are in the sequence. Two maps with the same entries in another order have other bytes. Since the bytes
are exact, deterministic encryption tells 0.0 from -0.0, which Spark's ``=`` does not.

Arrays may be sliced, chunked, dictionary-encoded or of the large and view variants; results are plain arrays, with 64-bit
offsets if the input has them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import types as spark
from pyspark.sql.pandas.types import to_arrow_type

from lepton_airflow.encryption.nested import lengths_of
from lepton_airflow.encryption.protection import Padding
from lepton_airflow.encryption.sequences import MalformedBytes, packed, padded, unpacked, unpadded
from lepton_airflow.errors import InvalidData, UnsupportedType

_INT32_MAX = 2**31 - 1

#: Spark types of a fixed width, the Arrow types that carry them, and the number of bytes of a value.
_FIXED: dict[type[spark.DataType], tuple[pa.DataType, int]] = {
    spark.BooleanType: (pa.bool_(), 1),
    spark.ByteType: (pa.int8(), 1),
    spark.ShortType: (pa.int16(), 2),
    spark.IntegerType: (pa.int32(), 4),
    spark.LongType: (pa.int64(), 8),
    spark.FloatType: (pa.float32(), 4),
    spark.DoubleType: (pa.float64(), 8),
    spark.DateType: (pa.date32(), 4),
    spark.TimestampType: (pa.timestamp("us", tz="UTC"), 8),
    spark.TimestampNTZType: (pa.timestamp("us"), 8),
}


_CONTAINERS = (spark.ArrayType, spark.MapType, spark.StructType)


def to_bytes(
    array: pa.Array | pa.ChunkedArray,
    spark_type: spark.DataType,
    *,
    place: str = "value",
    padding: Padding | None = None,
) -> pa.BinaryArray | pa.LargeBinaryArray:
    """Encode every value of ``array``.

    :param array: n values, in any Arrow type that holds values of ``spark_type`` without loss
    :param padding: how to hide the lengths of the values, if at all
    :param place: the dataset and column, for errors
    :returns: n values, null where ``array`` is null
    :raises UnsupportedType: no encoding for ``spark_type``, or ``array`` is of another kind
    :raises InvalidData: a value does not fit ``spark_type``
    """
    check_supported(spark_type, place=place)
    try:
        encoded = _encoded(_plain(array), spark_type, place=place)
        return encoded if padding is None else _narrow(padded(encoded, padding), like=encoded)
    except MalformedBytes:
        raise InvalidData(
            "A value takes more than 2 GiB.", place=place, remedy="Leave the column out, or make its values smaller."
        ) from None


def _encoded(array: pa.Array, spark_type: spark.DataType, *, place: str) -> pa.BinaryArray | pa.LargeBinaryArray:
    if isinstance(spark_type, spark.StringType | spark.BinaryType):
        return _variable_to_bytes(array, spark_type, place=place)
    if isinstance(spark_type, _CONTAINERS):
        present = array.drop_null() if array.null_count else array
        return _narrow(_among_nulls(_container_to_bytes(present, spark_type, place=place), array))
    arrow_type, width = _fixed_type(spark_type)
    array = _cast_fixed(array, arrow_type, place=place)
    count = len(array)
    if pa.types.is_boolean(arrow_type):
        array = array.cast(pa.uint8())
    values = np.frombuffer(array.buffers()[1] or b"", np.uint8)[array.offset * width : (array.offset + count) * width]
    data = np.ascontiguousarray(values.reshape(count, width)[:, ::-1])
    large = data.nbytes > _INT32_MAX
    offsets = np.arange(0, data.nbytes + 1, width, dtype=np.int64 if large else np.int32)
    return pa.Array.from_buffers(
        pa.large_binary() if large else pa.binary(),
        count,
        [_validity(array), pa.py_buffer(offsets), pa.py_buffer(data)],
        array.null_count,
    )


def from_bytes(
    array: pa.BinaryArray | pa.LargeBinaryArray,
    spark_type: spark.DataType,
    *,
    place: str = "value",
    padding: Padding | None = None,
) -> pa.Array:
    """Decode what :func:`to_bytes` encoded.

    :param array: n byte strings
    :param padding: as it was given to :func:`to_bytes`
    :param place: the dataset and column, for errors
    :returns: n values in the Arrow type that Spark uses for ``spark_type``; timestamps in UTC
    :raises UnsupportedType: no encoding for ``spark_type``
    :raises InvalidData: bytes that do not encode a value of ``spark_type``
    """
    check_supported(spark_type, place=place)
    try:
        if padding is not None:
            present = array.drop_null() if array.null_count else array
            array = _narrow(_among_nulls(unpadded(present), array), like=array)
        return _decoded(array, spark_type)
    except MalformedBytes:
        raise InvalidData(
            f"The decrypted bytes are no value of type {spark_type.simpleString()}.",
            place=place,
            remedy="Whoever encrypted them used another encoding; decrypt them with the program that wrote them.",
        ) from None


def _decoded(array: pa.BinaryArray | pa.LargeBinaryArray, spark_type: spark.DataType) -> pa.Array:
    if isinstance(spark_type, spark.BinaryType):
        return array
    if isinstance(spark_type, spark.StringType):
        try:
            return array.cast(pa.large_string() if pa.types.is_large_binary(array.type) else pa.string())
        except pa.ArrowInvalid:
            raise MalformedBytes from None
    if isinstance(spark_type, _CONTAINERS):
        present = array.drop_null() if array.null_count else array
        return _among_nulls(_container_from_bytes(present, spark_type), array)
    arrow_type, width = _fixed_type(spark_type)
    validity, nulls, count = _validity(array), array.null_count, len(array)
    if not pc.all(pc.equal(pc.binary_length(array), width), min_count=0).as_py():
        raise MalformedBytes
    if nulls:
        array = pc.fill_null(array, pa.scalar(bytes(width), array.type))
    offset_type = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    buffers = array.buffers()
    first = int(np.frombuffer(buffers[1], offset_type)[array.offset]) if count else 0
    values = np.frombuffer(buffers[2] or b"", np.uint8)[first : first + count * width].reshape(count, width)
    if isinstance(spark_type, spark.BooleanType):
        if count and values.max() > 1:
            raise MalformedBytes
        data = np.packbits(values.ravel(), bitorder="little")
    else:
        data = np.ascontiguousarray(values[:, ::-1])
    decoded = pa.Array.from_buffers(arrow_type, count, [validity, pa.py_buffer(data)], nulls)
    if isinstance(spark_type, spark.DecimalType):
        try:
            decoded.validate(full=True)
        except pa.ArrowInvalid:
            raise MalformedBytes from None
    return decoded


def check_supported(spark_type: spark.DataType, *, place: str) -> None:
    """Refuse a type that has no byte form.

    :raises UnsupportedType: naming the type and those that are supported
    """
    for inner in _inner_types(spark_type):
        check_supported(inner, place=place)
    collated = (
        isinstance(spark_type, spark.StringType) and not spark_type.isUTF8BinaryCollation()
    )  # not in Spark's Arrow
    if collated or type(spark_type) not in (
        spark.StringType,
        spark.BinaryType,
        spark.DecimalType,
        *_CONTAINERS,
        *_FIXED,
    ):
        raise UnsupportedType(
            f"The type {spark_type.simpleString()} cannot be encrypted.",
            place=place,
            remedy="Supported are string, binary, integers, float, double, decimal, boolean, date, timestamps, "
            "and arrays, maps and structs of them; cast the column to one of them.",
        )


def arrow_type_of(spark_type: spark.DataType) -> pa.DataType:
    """The Arrow type of what :func:`from_bytes` gives: the one that Spark uses, timestamps in UTC.

    :param spark_type: one that :func:`check_supported` accepts
    """
    return to_arrow_type(spark_type, timezone="UTC")


def _fixed_type(spark_type: spark.DataType) -> tuple[pa.DataType, int]:
    if isinstance(spark_type, spark.DecimalType):
        return pa.decimal128(spark_type.precision, spark_type.scale), 16
    return _FIXED[type(spark_type)]


def _inner_types(spark_type: spark.DataType) -> list[spark.DataType]:
    if isinstance(spark_type, spark.ArrayType):
        return [spark_type.elementType]
    if isinstance(spark_type, spark.MapType):
        return [spark_type.keyType, spark_type.valueType]
    return [field.dataType for field in spark_type.fields] if isinstance(spark_type, spark.StructType) else []


def _entries(spark_type: spark.MapType) -> spark.StructType:
    key = spark.StructField("key", spark_type.keyType, nullable=False)
    return spark.StructType([key, spark.StructField("value", spark_type.valueType)])


def _container_to_bytes(array: pa.Array, spark_type: spark.DataType, *, place: str) -> pa.LargeBinaryArray:
    """The sequences of n arrays, maps or structs, none null."""
    kind = array.type
    if isinstance(spark_type, spark.StructType):
        if not pa.types.is_struct(kind) or [field.name for field in kind] != spark_type.names:
            raise _wrong_kind(kind, place)
        count, rows = len(spark_type.fields), len(array)
        fields = [
            _encoded(_plain(child), field.dataType, place=place).cast(pa.large_binary())
            for child, field in zip(array.flatten(), spark_type.fields, strict=True)
        ]
        by_field = pa.concat_arrays(fields) if fields else pa.array([], pa.large_binary())
        by_row = np.arange(count * rows).reshape(count, rows).T.ravel()
        return packed(by_field.take(pa.array(by_row)), np.full(rows, count, np.int64))
    elements: spark.DataType
    if isinstance(spark_type, spark.MapType):
        fits, elements = pa.types.is_map(kind), _entries(spark_type)
    else:
        fits = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        elements = _inner_types(spark_type)[0]
    if not fits:
        raise _wrong_kind(kind, place)
    if isinstance(spark_type, spark.MapType):
        # Arrow lets the writer choose the names of an entry's fields.
        array = array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
    return packed(_encoded(_plain(array.flatten()), elements, place=place), lengths_of(array))


def _container_from_bytes(array: pa.Array, spark_type: spark.DataType) -> pa.Array:
    """The arrays, maps or structs of n sequences, none null."""
    elements, counts = unpacked(array)
    kind = arrow_type_of(spark_type)
    if isinstance(spark_type, spark.StructType):
        count = len(spark_type.fields)
        if (counts != count).any():
            raise MalformedBytes
        children = [
            _decoded(elements.take(pa.array(np.arange(place, len(elements), count))), field.dataType).cast(inner.type)
            for place, (field, inner) in enumerate(zip(spark_type.fields, kind, strict=True))
        ]
        if not children:
            return pa.array([{}] * len(array), kind)
        return pa.StructArray.from_arrays(children, fields=list(kind))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    if isinstance(spark_type, spark.MapType):
        entries = _decoded(elements, _entries(spark_type))
        if entries.null_count or entries.field(0).null_count:
            raise MalformedBytes
        return pa.MapArray.from_arrays(offsets, entries.field(0), entries.field(1), type=kind)
    values = _decoded(elements, _inner_types(spark_type)[0]).cast(kind.value_type)
    return pa.ListArray.from_arrays(offsets, values, type=kind)


def _among_nulls(values: pa.Array, like: pa.Array) -> pa.Array:
    """``values``, which are those of ``like`` that are not null, with the nulls back in their places."""
    if not like.null_count:
        return values
    valid = like.is_valid().to_numpy(zero_copy_only=False)
    return values.take(pa.array(np.cumsum(valid) - 1, mask=~valid))


def _narrow(array: pa.LargeBinaryArray, *, like: pa.Array | None = None) -> pa.BinaryArray | pa.LargeBinaryArray:
    """With 32-bit offsets if they suffice, unless ``like`` has wider ones."""
    wide = array.nbytes > _INT32_MAX or (like is not None and pa.types.is_large_binary(like.type))
    return array if wide else array.cast(pa.binary())


def _plain(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array without dictionary, of chunks that together may need 64-bit offsets."""
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if isinstance(array, pa.ChunkedArray):
        if array.nbytes > _INT32_MAX and pa.types.is_string(array.type):
            array = array.cast(pa.large_string())
        elif array.nbytes > _INT32_MAX and pa.types.is_binary(array.type):
            array = array.cast(pa.large_binary())
        array = array.combine_chunks()
    return array


def _variable_to_bytes(
    array: pa.Array, spark_type: spark.DataType, *, place: str
) -> pa.BinaryArray | pa.LargeBinaryArray:
    text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type)
    data = (
        pa.types.is_binary(array.type)
        or pa.types.is_large_binary(array.type)
        or pa.types.is_fixed_size_binary(array.type)
        or pa.types.is_binary_view(array.type)
    )
    if not (text if isinstance(spark_type, spark.StringType) else data):
        raise _wrong_kind(array.type, place)
    small = pa.types.is_string(array.type) or pa.types.is_binary(array.type)
    return array.cast(pa.binary() if small else pa.large_binary())


def _cast_fixed(array: pa.Array, arrow_type: pa.DataType, *, place: str) -> pa.Array:
    """Cast within the kind only: an integer to another width, a timestamp to microseconds, never text to a number."""
    given = array.type
    same_kind = (
        given == arrow_type
        or (pa.types.is_integer(given) and pa.types.is_integer(arrow_type))
        or (pa.types.is_decimal(given) and pa.types.is_decimal(arrow_type))
        or (pa.types.is_date(given) and pa.types.is_date(arrow_type))
    )
    if pa.types.is_timestamp(given) and pa.types.is_timestamp(arrow_type):
        # Arrow keeps instants in UTC whatever the zone, and readers of Parquet may leave the zone of an instant out.
        # Only an instant must not pass for a reading of a clock.
        same_kind = arrow_type.tz is not None or given.tz is None
        arrow_type = pa.timestamp("us", tz=given.tz)
    if not same_kind:
        raise _wrong_kind(given, place)
    try:
        return array.cast(arrow_type)
    except pa.ArrowInvalid:
        # Arrow's message has the value in it.
        raise InvalidData(
            f"A value of type {given} does not fit {arrow_type}.",
            place=place,
            remedy="Cast the column to the wider type before encrypting it.",
        ) from None


def _validity(array: pa.Array) -> Any:
    """The validity bitmap of a possibly sliced array, from its first value on; None when there are no nulls."""
    if not array.null_count:
        return None
    valid = array.is_valid()
    return valid.buffers()[1] if valid.offset == 0 else pa.concat_arrays([valid]).buffers()[1]


def _wrong_kind(given: pa.DataType, place: str) -> UnsupportedType:
    return UnsupportedType(
        f"The values arrive as {given}, which is not of the column's type.",
        place=place,
        remedy="Cast the column to the type that it should have.",
    )
