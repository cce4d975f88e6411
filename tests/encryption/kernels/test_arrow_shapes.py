"""Arrow arrays of every shape: sliced, with nulls, empty, wide, long; and how much memory they take."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lepton_airflow.encryption.kernels.columns import SPAN_ROWS
from lepton_airflow.errors import UnsupportedType

Make = Callable[..., list[bytes | None]]

_MIB = 1 << 20


def _check(cipher: Any, array: pa.Array) -> pa.Array:
    encrypted = cipher.encrypt(array)
    encrypted.validate(full=True)
    assert len(encrypted) == len(array)
    for value, ciphertext in zip(array.to_pylist(), encrypted.to_pylist(), strict=True):
        if value is None:
            assert ciphertext is None
        else:
            assert cipher.decrypt_one(ciphertext) == (value.encode() if isinstance(value, str) else value)
    decrypted = cipher.kernel.decrypt(encrypted)
    decrypted.validate(full=True)
    assert decrypted.equals(array.cast(decrypted.type))
    return encrypted


@pytest.mark.parametrize("skip", [0, 1, 7, 8, 9, 64, 333])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string(), pa.large_string()])
def test_slices_with_nulls(cipher: Any, make_values: Make, kind: pa.DataType, skip: int) -> None:
    values = [v.hex() if v else v for v in make_values(seed=skip, count=700, shortest=0, longest=20, nulls=0.2)]
    array = pa.array([v and v.encode() for v in values], pa.binary()).cast(kind)
    encrypted = _check(cipher, array.slice(skip, 300))
    wide = pa.types.is_large_binary(kind) or pa.types.is_large_string(kind)
    assert encrypted.type == (pa.large_binary() if wide else pa.binary())


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_string()])
def test_arrays_without_values(cipher: Any, kind: pa.DataType) -> None:
    for array in (
        pa.array([], kind),
        pa.array([None] * 300, kind),
        pa.array([b""] * 300, kind),
        pa.array([b"x"] * 5, kind).slice(5),
    ):
        _check(cipher, array)


def test_a_slice_of_a_ciphertext_array_decrypts(cipher: Any, make_values: Make) -> None:
    values = make_values(seed=1, count=900, shortest=5, longest=60, nulls=0.1)
    encrypted = cipher.encrypt(pa.array(values, pa.binary()))
    assert cipher.kernel.decrypt(encrypted.slice(123, 456)).to_pylist() == values[123 : 123 + 456]


@pytest.mark.parametrize("last", range(34))
def test_nothing_is_read_behind_the_end_of_a_buffer(cipher: Any, make_values: Make, last: int) -> None:
    values = [*make_values(seed=last, count=200, shortest=17, longest=30), b"z" * last, *(b"y" * n for n in range(4))]
    data = b"".join(v for v in values if v)
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    # A buffer over bytes is exactly as long as they are; Arrow's own allocations are padded.
    array = pa.Array.from_buffers(pa.binary(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    assert array.to_pylist() == values
    _check(cipher, array)


def test_a_buffer_shorter_than_a_block(cipher: Any) -> None:
    offsets = np.zeros(201, np.int32)
    offsets[101:] = 3
    array = pa.Array.from_buffers(pa.binary(), 200, [None, pa.py_buffer(offsets), pa.py_buffer(b"abc")])
    _check(cipher, array)


def test_values_of_many_lengths_share_an_array(cipher: Any, make_values: Make) -> None:
    values = make_values(seed=3, count=3000, shortest=0, longest=700, nulls=0.05)
    values[500] = bytes(3 * _MIB)
    values[2999] = b"\xff" * 70_000
    _check(cipher, pa.array(values, pa.binary()))


def test_arrays_longer_than_a_span(cipher: Any, make_values: Make) -> None:
    values = make_values(seed=4, count=2 * SPAN_ROWS + 77, shortest=1, longest=21, nulls=0.01)
    array = pa.array(values, pa.binary())
    encrypted = cipher.encrypt(array)
    encrypted.validate(full=True)
    assert cipher.kernel.decrypt(encrypted).equals(array)
    for row in (0, SPAN_ROWS - 1, SPAN_ROWS, 2 * SPAN_ROWS, 2 * SPAN_ROWS + 76):
        if values[row] is not None:
            assert cipher.decrypt_one(encrypted[row].as_py()) == values[row]


def test_the_longest_values(cipher: Any) -> None:
    value = bytes(range(256)) * (16 * _MIB // 256)
    encrypted = cipher.encrypt(pa.array([b"before", value, None, b"after"], pa.binary()))
    assert cipher.decrypt_one(encrypted[1].as_py()) == value
    assert cipher.kernel.decrypt(encrypted).to_pylist() == [b"before", value, None, b"after"]


def test_bytes_hidden_under_nulls_do_not_reach_the_output(cipher: Any) -> None:
    hidden = b"hidden-under-a-null"
    values = [b"a" * 19, hidden] * 150
    offsets = pa.py_buffer(np.arange(0, 19 * 301, 19, np.int32))
    validity = pa.py_buffer(np.packbits([1, 0] * 150, bitorder="little"))
    array = pa.Array.from_buffers(pa.binary(), 300, [validity, offsets, pa.py_buffer(b"".join(values))])
    encrypted = _check(cipher, array)
    assert encrypted.buffers()[2].size == 150 * (19 + cipher.kernel.overhead)
    assert hidden not in encrypted.buffers()[2].to_pybytes()


def test_the_output_has_wide_offsets_when_it_may_need_them(cipher: Any) -> None:
    # 2 GiB of untouched, hence free, memory under a null make the bound on the output's size exceed 32 bits.
    size = 2**31 - 40
    data = np.zeros(size, np.uint8)
    offsets = pa.py_buffer(np.array([0, 20, size - 20, size], np.int32))
    array = pa.Array.from_buffers(pa.binary(), 3, [pa.py_buffer(b"\x05"), offsets, pa.py_buffer(data)])
    encrypted = cipher.encrypt(array)
    assert encrypted.type == pa.large_binary()
    assert cipher.kernel.decrypt(encrypted).to_pylist() == [bytes(20), None, bytes(20)]


@pytest.mark.parametrize("array", [pa.array([1]), pa.array([b"a"], pa.binary_view()), pa.array([b"ab"], pa.binary(2))])
def test_other_types_are_refused(cipher: Any, array: pa.Array) -> None:
    with pytest.raises(UnsupportedType, match=r"offsets|int64|binary"):
        cipher.encrypt(array)
    with pytest.raises(UnsupportedType):
        cipher.kernel.decrypt(array)


def test_scratch_memory_does_not_grow_with_the_batch(cipher: Any) -> None:
    rows, width = 400_000, 100
    offsets = pa.py_buffer(np.arange(0, width * (rows + 1), width, np.int32))
    array = pa.Array.from_buffers(pa.binary(), rows, [None, offsets, pa.py_buffer(np.zeros(rows * width, np.uint8))])
    tracemalloc.start()  # sees NumPy's memory, not the output's data, which Arrow allocates
    encrypted = cipher.encrypt(array)
    cipher.kernel.decrypt(encrypted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - 4 * rows < 48 * _MIB


def test_threads_may_share_a_kernel(cipher: Any, make_values: Make) -> None:
    arrays = [pa.array(make_values(seed=s, count=2000, shortest=s, longest=40 + s), pa.binary()) for s in range(16)]
    with ThreadPoolExecutor(8) as threads:
        encrypted = list(threads.map(cipher.encrypt, arrays))
        decrypted = list(threads.map(cipher.kernel.decrypt, encrypted))
    assert all(left.equals(right) for left, right in zip(arrays, decrypted, strict=True))
