"""Arrays, maps and structs as a whole, and padding: their byte forms, and that every value comes back."""

from __future__ import annotations

import datetime as dt
import struct
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import types as spark

from lepton_airflow.encryption.protection import Padding
from lepton_airflow.encryption.values import arrow_type_of, from_bytes, to_bytes
from lepton_airflow.errors import InvalidData, UnsupportedType

NULL = b"\xff\xff\xff\xff"


def sequence(*elements: bytes | None) -> bytes:
    """The documented form, written as simply as can be."""
    lengths = b"".join(NULL if element is None else struct.pack(">i", len(element)) for element in elements)
    return struct.pack(">i", len(elements)) + lengths + b"".join(element or b"" for element in elements)


def struct_type(**fields: spark.DataType) -> spark.StructType:
    return spark.StructType([spark.StructField(name, kind) for name, kind in fields.items()])


TEXTS = spark.ArrayType(spark.StringType())
CASES = [
    (TEXTS, [["Zoë", None, ""], [], None, ["x"] * 300], sequence("Zoë".encode(), None, b"")),
    (spark.ArrayType(spark.ShortType()), [[1, None, -1], [2]], sequence(b"\x00\x01", None, b"\xff\xff")),
    (
        spark.ArrayType(TEXTS),
        [[["a", None], None, []], [], None],
        sequence(sequence(b"a", None), None, sequence()),
    ),
    (
        struct_type(a=spark.StringType(), b=spark.DoubleType(), c=spark.BooleanType()),
        [{"a": "x", "b": None, "c": True}, None, {"a": None, "b": -0.0, "c": False}],
        sequence(b"x", None, b"\x01"),
    ),
    (
        spark.MapType(spark.StringType(), spark.IntegerType()),
        [[("b", 1), ("a", None)], [], None, [("", 7)]],
        sequence(sequence(b"b", b"\x00\x00\x00\x01"), sequence(b"a", None)),
    ),
    (
        spark.ArrayType(struct_type(when=spark.DateType(), what=spark.MapType(spark.LongType(), TEXTS))),
        [[{"when": dt.date(1970, 1, 2), "what": [(1, ["p", None])]}, None], [], None],
        sequence(sequence(b"\x00\x00\x00\x01", sequence(sequence(bytes(7) + b"\x01", sequence(b"p", None)))), None),
    ),
    (
        struct_type(
            t=spark.TimestampType(), n=spark.TimestampNTZType(), d=spark.DecimalType(20, 3), b=spark.BinaryType()
        ),
        [
            {
                "t": dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
                "n": dt.datetime(1, 1, 1),
                "d": Decimal("-1.500"),
                "b": b"\x00",
            }
        ],
        None,
    ),
]
IDS = [case[0].simpleString()[:40] for case in CASES]


@pytest.mark.parametrize(("kind", "values", "first"), CASES, ids=IDS)
class TestEveryShape:
    def test_has_the_documented_bytes(self, kind, values, first):
        array = pa.array(values, arrow_type_of(kind))
        if first is not None:
            assert to_bytes(array, kind)[0].as_py() == first

    def test_comes_back_exactly_from_any_slice(self, kind, values, first):
        array = pa.array([*values, None, *values], arrow_type_of(kind))
        for start in range(len(array) + 1):
            part = array.slice(start, 4)
            revealed = from_bytes(to_bytes(part, kind), kind)
            revealed.validate(full=True)
            assert revealed.type.equals(arrow_type_of(kind), check_metadata=True)
            assert revealed.to_pylist() == part.to_pylist()
        chunked = pa.chunked_array([array.slice(1), array.slice(0, 1)])
        assert from_bytes(to_bytes(chunked, kind), kind).to_pylist() == chunked.to_pylist()

    def test_shorter_or_longer_bytes_are_refused(self, kind, values, first):
        good = to_bytes(pa.array(values[:1], arrow_type_of(kind)), kind)[0].as_py()
        for bad in (b"", good[:3], good[:-1], good + b"\x00", NULL + good, b"\x7f" + good[1:]):
            with pytest.raises(InvalidData, match="column 'x'"):
                from_bytes(pa.array([good, bad]), kind, place="column 'x'")


def test_what_is_hidden_under_a_null_does_not_enter_the_bytes():
    kind = struct_type(a=spark.StringType())
    child = pa.array(["secret", "seen"])
    array = pa.StructArray.from_arrays([child], names=["a"], mask=pa.array([True, False]))
    assert to_bytes(array, kind).to_pylist() == [None, sequence(b"seen")]
    values = pa.array(["secret", "seen"])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), values, mask=pa.array([True, False]))
    assert to_bytes(lists, TEXTS).to_pylist() == [None, sequence(b"seen")]
    numbers = pa.Array.from_buffers(pa.int16(), 2, [pa.py_buffer(b"\x02"), pa.py_buffer(b"\x07\x00\x01\x00")])
    lists = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), numbers)
    assert to_bytes(lists, spark.ArrayType(spark.ShortType())).to_pylist() == [sequence(None, b"\x00\x01")]


def test_the_bits_of_floats_inside_are_kept():
    kind = spark.ArrayType(spark.FloatType())
    values = np.array([0x7FC00001, 0x80000000, 0xFF800000], np.uint32).view(np.float32)
    array = pa.ListArray.from_arrays(pa.array([0, 3], pa.int32()), pa.array(values))
    back = from_bytes(to_bytes(array, kind), kind).flatten().to_numpy()
    assert np.array_equal(back.view(np.uint32), values.view(np.uint32))


def test_large_lists_and_nulls_of_maps_are_read():
    array = pa.array([["a"], None], pa.large_list(pa.large_string()))
    assert from_bytes(to_bytes(array, TEXTS), TEXTS).to_pylist() == [["a"], None]
    assert to_bytes(pa.array([None, None], arrow_type_of(TEXTS)), TEXTS).to_pylist() == [None, None]


def test_arrays_of_another_shape_are_refused():
    for array in (
        pa.array(["a"]),
        pa.array([{"a": "x"}]),
        pa.array([[1]]),
        pa.array([[(1, 2)]], pa.map_(pa.int8(), pa.int8())),
    ):
        with pytest.raises(UnsupportedType):
            to_bytes(array, TEXTS)
    with pytest.raises(UnsupportedType, match="interval"):
        to_bytes(pa.array([[1]]), spark.ArrayType(spark.DayTimeIntervalType()))


nested = st.lists(
    st.none() | st.lists(st.none() | st.tuples(st.text(max_size=3), st.none() | st.integers(-9, 9)), max_size=4)
)


@settings(max_examples=80, deadline=None)
@given(nested, st.integers(0, 3))
def test_any_nested_values_come_back(values, start):
    kind = spark.ArrayType(struct_type(t=spark.StringType(), n=spark.IntegerType()))
    rows = [None if row is None else [item and {"t": item[0], "n": item[1]} for item in row] for row in values]
    array = pa.array(rows, arrow_type_of(kind)).slice(start)
    encoded = to_bytes(array, kind)
    assert from_bytes(encoded, kind).to_pylist() == array.to_pylist()
    expected = [
        None
        if row is None
        else sequence(
            *(
                None
                if item is None
                else sequence(item["t"].encode(), None if item["n"] is None else struct.pack(">i", item["n"]))
                for item in row
            )
        )
        for row in rows[start:]
    ]
    assert encoded.to_pylist() == expected


@pytest.mark.parametrize(
    ("padding", "sizes"),
    [
        (Padding(to=16), {0: 16, 12: 16, 13: 32, 28: 32, 29: 48, 100: 112}),
        (Padding(buckets=(8, 64, 100)), {0: 8, 4: 8, 5: 64, 60: 64, 61: 100, 96: 100, 97: 200, 196: 200, 197: 300}),
    ],
)
def test_padding_leaves_few_lengths_and_comes_off_again(padding, sizes):
    values = ["x" * length for length in sizes]
    array = pa.array([None, *values, None]).slice(1)
    encoded = to_bytes(array, spark.StringType(), padding=padding)
    assert [len(value) for value in encoded.to_pylist() if value is not None] == list(sizes.values())
    assert encoded[2].as_py().startswith(struct.pack(">i", len(values[2])) + b"x" * len(values[2]))
    assert set(encoded[0].as_py()) <= {0}
    assert from_bytes(encoded, spark.StringType(), padding=padding).to_pylist() == array.to_pylist()
    large = to_bytes(array.cast(pa.large_string()), spark.StringType(), padding=padding)
    assert large.type == pa.large_binary()
    assert from_bytes(large, spark.StringType(), padding=padding).type == pa.large_string()
    empty = to_bytes(array.slice(0, 0), spark.StringType(), padding=padding)
    assert len(from_bytes(empty, spark.StringType(), padding=padding)) == 0


def test_bytes_without_padding_are_not_taken_for_padded():
    for value in (b"", b"abc", b"\x00\x00\x00\x05abcd", b"\xff\xff\xff\xff----"):
        with pytest.raises(InvalidData):
            from_bytes(pa.array([value]), spark.BinaryType(), padding=Padding(to=16))
