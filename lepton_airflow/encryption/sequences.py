"""Byte strings put together to one that says where each begins, for whole Arrow arrays and with no Python object per value.

A sequence of c byte strings or nulls, all numbers four bytes, big-endian::

    c | length 1 | ... | length c | bytes 1 | ... | bytes c

The length of a null is ``ff ff ff ff``, and it has no bytes. Padding is simpler: the length of a value, the value, zeros.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lepton_airflow.encryption.kernels.columns import INT32_MAX, BinaryColumn, Index, windows
from lepton_airflow.encryption.protection import Padding

_NUMBER = 4
_NULL_LENGTH = -1


class MalformedBytes(Exception):
    """Bytes that no function of this module wrote. Internal: the caller knows the column and the type."""


def packed(elements: pa.Array, counts: Index) -> pa.LargeBinaryArray:
    """One sequence for each row.

    :param elements: byte strings or nulls of all rows, back to back
    :param counts: (n,) how many of them belong to each row
    :returns: n byte strings, none null
    :raises MalformedBytes: a byte string of more than 2 GiB
    """
    elements = elements.cast(pa.large_binary())
    lengths: Index = pc.fill_null(pc.binary_length(elements), _NULL_LENGTH).cast(pa.int64()).to_numpy()
    if lengths.size and int(lengths.max()) > INT32_MAX:
        raise MalformedBytes
    rows, starts = counts.size, _starts(counts)
    # What stands under a null must not be written.
    column = BinaryColumn(pc.fill_null(elements, b""))
    header = np.empty(starts[-1] + rows, ">i4")
    places = starts[:-1] + np.arange(rows)
    header[places] = counts
    header[_element_places(counts)] = lengths
    heads = _array(header.view(np.uint8), _NUMBER * (starts + np.arange(rows + 1)))
    bodies = _array(column.data, column.offsets[starts].astype(np.int64))
    return _joined(heads, bodies)


def unpacked(array: pa.Array) -> tuple[pa.LargeBinaryArray, Index]:
    """What :func:`packed` was given.

    :param array: n sequences, none null
    :raises MalformedBytes: a byte string is no sequence
    """
    column = BinaryColumn(array.cast(pa.large_binary()))
    if not column.rows:
        return pa.array([], pa.large_binary()), np.zeros(0, np.int64)
    offsets = column.offsets.astype(np.int64)
    begins, sizes = offsets[:-1], np.diff(offsets)
    if int(sizes.min()) < _NUMBER:
        raise MalformedBytes
    numbers = windows(column.data, _NUMBER)
    counts = numbers[begins].view(">u4").astype(np.int64)
    bodies = sizes - _NUMBER * (counts + 1)
    if int(bodies.min()) < 0:
        raise MalformedBytes
    starts = _starts(counts)
    places = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
    lengths = numbers[np.repeat(begins + _NUMBER, counts) + _NUMBER * places].view(">i4").astype(np.int64)
    null = lengths == _NULL_LENGTH
    lengths[null] = 0
    sums = np.concatenate([[0], np.cumsum(lengths)])
    if (lengths < 0).any() or (sums[starts[1:]] - sums[starts[:-1]] != bodies).any():
        raise MalformedBytes
    pieces = np.empty(lengths.size + column.rows, np.int64)
    wanted = _element_places(counts)
    pieces[starts[:-1] + np.arange(column.rows)] = _NUMBER * (counts + 1)
    pieces[wanted] = lengths
    return _pieces(column, pieces).take(pa.array(wanted, mask=null)), counts


def padded(array: pa.Array, padding: Padding) -> pa.LargeBinaryArray:
    """Each value with its length before it and zeros behind it, so that all have one of few lengths.

    :returns: n byte strings, null where ``array`` is null
    :raises MalformedBytes: a byte string of more than 2 GiB
    """
    array = array.cast(pa.large_binary())
    lengths: Index = pc.fill_null(pc.binary_length(array), 0).cast(pa.int64()).to_numpy()
    if lengths.size and int(lengths.max()) > INT32_MAX:
        raise MalformedBytes
    needed = lengths + _NUMBER
    steps = np.array([padding.to] if padding.buckets is None else padding.buckets, np.int64)
    size = steps[-1] * -(-needed // steps[-1])
    first = np.searchsorted(steps, needed)
    fits = first < steps.size
    size[fits] = steps[first[fits]]
    zeros = _starts(size - needed)
    heads = _array(lengths.astype(">i4").view(np.uint8), _NUMBER * np.arange(lengths.size + 1))
    return _joined(heads, array, _array(np.zeros(zeros[-1], np.uint8), zeros))


def unpadded(array: pa.Array) -> pa.LargeBinaryArray:
    """What :func:`padded` was given.

    :param array: n byte strings, none null
    :raises MalformedBytes: a byte string has no length before it, or is shorter
    """
    column = BinaryColumn(array.cast(pa.large_binary()))
    offsets = column.offsets.astype(np.int64)
    sizes = np.diff(offsets)
    if (sizes < _NUMBER).any():
        raise MalformedBytes
    if not column.rows:
        return pa.array([], pa.large_binary())
    lengths = windows(column.data, _NUMBER)[offsets[:-1]].view(">i4").astype(np.int64)
    rest = sizes - _NUMBER - lengths
    if int(lengths.min()) < 0 or int(rest.min()) < 0:
        raise MalformedBytes
    pieces = np.empty(3 * column.rows, np.int64)
    pieces[0::3], pieces[1::3], pieces[2::3] = _NUMBER, lengths, rest
    return _pieces(column, pieces).take(pa.array(np.arange(1, pieces.size, 3)))


def _starts(counts: Index) -> Index:
    """(n + 1,) where each row begins, and the end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _element_places(counts: Index) -> Index:
    """Where the elements are when each row is preceded by one thing more."""
    return np.arange(int(counts.sum())) + np.repeat(np.arange(counts.size), counts) + 1


def _pieces(column: BinaryColumn, lengths: Index) -> pa.LargeBinaryArray:
    """The bytes of a column, cut anew."""
    return _array(column.data, int(column.offsets[0]) + _starts(lengths))


def _array(data: np.ndarray[tuple[int], np.dtype[np.uint8]], offsets: Index) -> pa.LargeBinaryArray:
    buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets, np.int64)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), offsets.size - 1, buffers)


def _joined(*parts: pa.Array) -> pa.LargeBinaryArray:
    return pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.large_binary()))
