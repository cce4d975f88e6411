"""Canonical JSON: RFC 8785's example, one form for each value, and no other bytes accepted."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_airflow.audit.canonical import canonical_json, digest, parse_canonical
from lepton_airflow.errors import InvalidData

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def test_the_example_of_the_rfc() -> None:
    value = json.loads(
        r"""{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
             "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/", "literals": [null, true, false]}"""
    )
    assert canonical_json(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        r""""string":"€$\u000f\nA'B\"\\\\\"/"}"""
    )


@given(VALUES)
def test_a_value_comes_back_equal_from_its_canonical_bytes(value: Any) -> None:
    assert parse_canonical(canonical_json(value)) == value


@pytest.mark.parametrize("number", [1e20, -1e20, 2.0**53, 2.0**63, 123456789012345678.0])
def test_doubles_that_are_written_without_a_point_come_back(number: float) -> None:
    assert parse_canonical(canonical_json({"n": number})) == {"n": number}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a": 1}',
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a":1.0}',
        b'{"a":1e3}',
        b'{"a":-0}',
        b'{"a":NaN}',
        b'{"a":9007199254740993}',
        b'{"a":"\\u0041"}',
        b'{"a":"\xff"}',
        b'"\\ud800"',
        b'{"a":1}\n',
        b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_bytes_that_are_not_canonical_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidData, match="not canonical JSON"):
        parse_canonical(data)


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, "\ud800", {1: 2}, {"a": object()}, {"a": b"bytes"}])
def test_a_value_without_a_canonical_form_is_refused_without_quoting_it(value: Any) -> None:
    with pytest.raises(InvalidData) as caught:
        canonical_json({"secret": [value]})
    assert str(2**53) not in str(caught.value)
    assert "bytes'" not in str(caught.value)


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({}) == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


_texts = st.text(max_size=8) | st.sampled_from(
    ["1.5", ",1e5", "[12345678901234567", "\x7f", "\x00", '"', "\\", "ß", "😀", "﷐"]
)
_numbers = st.integers(-(2**54), 2**54) | st.floats() | st.sampled_from([1e20, 1e21, 0.5, 2**53, 2**53 - 1, -0.0])
_any_json = st.recursive(
    st.none() | st.booleans() | _texts | _numbers,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(_texts | st.integers(0, 3) | st.none(), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(_any_json)
def test_the_fast_form_is_the_reference_librarys(value: Any) -> None:
    import rfc8785

    try:
        expected = rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError):
        with pytest.raises(InvalidData):
            canonical_json(value)
    else:
        assert canonical_json(value) == expected
