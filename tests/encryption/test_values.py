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

from lepton_airflow.encryption.values import from_bytes, to_bytes
from lepton_airflow.errors import InvalidData, UnsupportedType

UTC = dt.UTC
TEXT = ["", "a", "Zoë", "日本語", "👩‍⚕️", "e\u0301", "\x00", "a" * 100_000]

#: Spark type, Arrow type, values, and the documented bytes of the first value.
CASES = [
    (spark.StringType(), pa.string(), ["Zoë", *TEXT], b"Zo\xc3\xab"),
    (spark.BinaryType(), pa.binary(), [b"\x00\xff", b"", bytes(range(256))], b"\x00\xff"),
    (spark.ByteType(), pa.int8(), [-2, -128, 127, 0], b"\xfe"),
    (spark.ShortType(), pa.int16(), [-2, -(2**15), 2**15 - 1, 0], b"\xff\xfe"),
    (spark.IntegerType(), pa.int32(), [258, -(2**31), 2**31 - 1, 0, -1], b"\x00\x00\x01\x02"),
    (spark.LongType(), pa.int64(), [258, -(2**63), 2**63 - 1, 0, -1], b"\x00\x00\x00\x00\x00\x00\x01\x02"),
    (spark.FloatType(), pa.float32(), [-0.0, 0.0, 3.4028234663852886e38, 1e-45, float("inf")], b"\x80\x00\x00\x00"),
    (spark.DoubleType(), pa.float64(), [1.5, -0.0, 1.7976931348623157e308, 5e-324, -np.inf], struct.pack(">d", 1.5)),
    (
        spark.DecimalType(38, 10),
        pa.decimal128(38, 10),
        [Decimal("-0.0000000258"), Decimal("9" * 28 + ".9999999999"), Decimal("-" + "9" * 28), Decimal("0E-10")],
        (-258).to_bytes(16, "big", signed=True),
    ),
    (spark.BooleanType(), pa.bool_(), [True, False, True, True], b"\x01"),
    (
        spark.DateType(),
        pa.date32(),
        [dt.date(1970, 1, 3), dt.date(1, 1, 1), dt.date(9999, 12, 31)],
        b"\x00\x00\x00\x02",
    ),
    (
        spark.TimestampType(),
        pa.timestamp("us", tz="UTC"),
        [dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), dt.datetime(1, 1, 1, tzinfo=UTC)],
        (1_000_000).to_bytes(8, "big"),
    ),
    (
        spark.TimestampNTZType(),
        pa.timestamp("us"),
        [dt.datetime(1969, 12, 31, 23, 59, 59, 999999), dt.datetime(9999, 12, 31, 23, 59, 59, 999999)],
        b"\xff" * 8,
    ),
]
IDS = [case[0].simpleString() for case in CASES]


def assert_same(actual: pa.Array, expected: pa.Array) -> None:
    """The same type, the same nulls and the same bits: equal would take 0.0 for -0.0."""
    actual.validate(full=True)
    assert actual.type == expected.type
    assert actual.is_valid().equals(expected.is_valid())
    if pa.types.is_floating(expected.type):
        actual, expected = (
            array.fill_null(0).to_numpy().view(f"u{array.type.bit_width // 8}") for array in (actual, expected)
        )
        assert np.array_equal(actual, expected)
    else:
        assert actual.equals(expected)


@pytest.mark.parametrize(("spark_type", "arrow_type", "values", "first"), CASES, ids=IDS)
class TestEveryType:
    def test_has_the_documented_bytes(self, spark_type, arrow_type, values, first):
        assert to_bytes(pa.array(values[:1], arrow_type), spark_type).to_pylist() == [first]

    def test_comes_back_exactly_with_nulls_in_their_places(self, spark_type, arrow_type, values, first):
        array = pa.array([None, *values, None, *values], arrow_type)
        assert_same(from_bytes(to_bytes(array, spark_type), spark_type), array)

    def test_comes_back_exactly_from_any_slice(self, spark_type, arrow_type, values, first):
        array = pa.array([values[0], None, *values, *values, None, values[-1]] * 3, arrow_type)
        for start, length in [(0, 1), (1, 1), (1, 5), (3, 8), (7, 9), (len(array) - 1, 1), (len(array), 0)]:
            part = array.slice(start, length)
            encoded = to_bytes(part, spark_type)
            assert_same(from_bytes(encoded, spark_type), part)
            padded = pa.concat_arrays([pa.array([b"x", None, b"yy"], encoded.type), encoded])
            assert_same(from_bytes(padded.slice(3), spark_type), part)

    def test_comes_back_from_empty_and_from_only_nulls(self, spark_type, arrow_type, values, first):
        for array in (pa.array([], arrow_type), pa.array([None] * 9, arrow_type)):
            encoded = to_bytes(array, spark_type)
            assert (len(encoded), encoded.null_count) == (len(array), array.null_count)
            assert_same(from_bytes(encoded, spark_type), array)

    def test_is_taken_chunked_and_dictionary_encoded(self, spark_type, arrow_type, values, first):
        array = pa.array([*values, None, *values], arrow_type)
        chunked = pa.chunked_array([array.slice(0, 2), array.slice(2, 0), array.slice(2)])
        assert_same(from_bytes(to_bytes(chunked, spark_type), spark_type), array)
        empty = to_bytes(pa.chunked_array([], arrow_type), spark_type)
        assert len(empty) == 0
        if not pa.types.is_boolean(arrow_type):
            for encoded in (array.dictionary_encode(), pa.chunked_array([array.dictionary_encode()] * 1)):
                assert_same(from_bytes(to_bytes(encoded, spark_type), spark_type), array)

    def test_refuses_bytes_of_a_wrong_length_without_quoting_them(self, spark_type, arrow_type, values, first):
        if isinstance(spark_type, spark.BinaryType):
            return
        wrong = b"\xffsecret" * 3 + (b"" if isinstance(spark_type, spark.StringType) else b"1")
        with pytest.raises(InvalidData, match="clinic") as refused:
            from_bytes(pa.array([first, wrong]), spark_type, place="dataset 'clinic'")
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_every_arrow_form_of_text_gives_the_same_bytes(kind):
    array = pa.array([*TEXT, None], kind)
    encoded = to_bytes(array, spark.StringType())
    assert encoded.to_pylist() == [text.encode() for text in TEXT] + [None]
    assert pa.types.is_large_binary(encoded.type) == (kind != pa.string())


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(3), pa.binary_view()])
def test_every_arrow_form_of_binary_gives_the_same_bytes(kind):
    assert to_bytes(pa.array([b"abc", None, b"\x00\x01\x02"], kind), spark.BinaryType()).to_pylist() == [
        b"abc",
        None,
        b"\x00\x01\x02",
    ]


def test_large_arrays_stay_large():
    array = pa.array(["a", None], pa.large_string())
    assert_same(from_bytes(to_bytes(array, spark.StringType()), spark.StringType()), array)
    numbers = to_bytes(pa.array([1, None], pa.int32()), spark.IntegerType()).cast(pa.large_binary())
    assert from_bytes(numbers, spark.IntegerType()).to_pylist() == [1, None]


def test_the_bits_of_a_nan_are_kept():
    bits = np.array([0x7FF8000000000000, 0x7FF8000000000001, 0xFFF0000000000123, 0x8000000000000000], np.uint64)
    array = pa.array(bits.view(np.float64))
    assert_same(from_bytes(to_bytes(array, spark.DoubleType()), spark.DoubleType()), array)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_an_instant_is_the_same_in_every_unit_and_zone(unit, zone):
    array = pa.array([1_710_000_000], pa.timestamp("s")).cast(pa.timestamp(unit))
    instant = pa.Array.from_buffers(pa.timestamp(unit, tz=zone), 1, array.buffers())
    assert to_bytes(instant, spark.TimestampType()).to_pylist() == [(1_710_000_000 * 10**6).to_bytes(8, "big")]


@pytest.mark.parametrize(
    ("array", "spark_type", "shown"),
    [
        (pa.array([300]), spark.ByteType(), "300"),
        (pa.array([1234567], pa.timestamp("ns")), spark.TimestampNTZType(), "1234567"),
        (pa.array([2**62], pa.timestamp("s")), spark.TimestampType(), str(2**62)),
        (pa.array([Decimal("1.23")]), spark.DecimalType(10, 1), "1.23"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_and_not_rounded_or_quoted(array, spark_type, shown):
    with pytest.raises(InvalidData) as refused:
        to_bytes(array, spark_type)
    assert shown not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    ("array", "spark_type"),
    [
        (pa.array(["1"]), spark.IntegerType()),
        (pa.array([1]), spark.StringType()),
        (pa.array([b"1"]), spark.StringType()),
        (pa.array(["1"]), spark.BinaryType()),
        (pa.array([1]), spark.DoubleType()),
        (pa.array([1.0]), spark.FloatType()),
        (pa.array([1]), spark.TimestampType()),
        (pa.array([1], pa.timestamp("us", tz="UTC")), spark.TimestampNTZType()),
    ],
)
def test_values_of_another_kind_are_refused(array, spark_type):
    with pytest.raises(UnsupportedType):
        to_bytes(array, spark_type)


@pytest.mark.parametrize(
    "spark_type",
    [
        spark.VariantType(),
        spark.DayTimeIntervalType(),
        spark.NullType(),
        spark.StringType("UNICODE_CI"),
    ],
)
def test_a_type_without_byte_form_is_refused_by_name(spark_type):
    with pytest.raises(UnsupportedType, match="email") as refused:
        to_bytes(pa.array([None]), spark_type, place="column 'email'")
    assert spark_type.simpleString() in str(refused.value)


def test_a_foreign_boolean_or_decimal_out_of_range_is_refused():
    with pytest.raises(InvalidData):
        from_bytes(pa.array([b"\x01", b"\x02"]), spark.BooleanType())
    with pytest.raises(InvalidData):
        from_bytes(pa.array([(10**5).to_bytes(16, "big")]), spark.DecimalType(5, 2))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)), st.integers(0, 5))
def test_any_integers_come_back_from_any_offset(values, start):
    array = pa.array(values, pa.int64()).slice(start)
    encoded = to_bytes(array, spark.LongType())
    expected = [None if value is None else value.to_bytes(8, "big", signed=True) for value in values[start:]]
    assert encoded.to_pylist() == expected
    assert_same(from_bytes(encoded, spark.LongType()), array)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | st.text()), st.integers(0, 5))
def test_any_text_comes_back_from_any_offset(values, start):
    array = pa.array(values, pa.string()).slice(start)
    assert_same(from_bytes(to_bytes(array, spark.StringType()), spark.StringType()), array)
