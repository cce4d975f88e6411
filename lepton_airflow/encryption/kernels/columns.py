"""Arrow arrays of byte strings, seen as NumPy buffers: offsets, data and validity, with no Python object per value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lepton_airflow.errors import UnsupportedType

Bytes = npt.NDArray[np.uint8]
Index = npt.NDArray[np.int64]

#: Rows that are worked on at a time: many, so that NumPy's cost per call vanishes; fewer if the values are so long that the
#: working set would not stay in a core's second-level cache. Multiples of 8, so that spans start at whole validity bytes.
SPAN_ROWS = 10_240
_FEWEST_SPAN_ROWS = 1_024
_SPAN_BYTES = 640 * 1024

#: Spare bytes behind the data of an output under construction: blocks are written whole, also the last one.
SLACK = 16

#: The largest offset of an array with 32-bit offsets.
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Span:
    """Some consecutive rows of a column, without those that are null.

    :ivar first: the first row, ``stop``: the row after the last
    :ivar present: positions of the m values within the span, None when no row is null
    :ivar starts: (m,) first byte of each value in the column's data
    :ivar lengths: (m,) bytes of each value
    """

    first: int
    stop: int
    present: Index | None
    starts: Index
    lengths: Index

    def rows(self, values: Index) -> Index:
        """The row numbers of the values at the positions ``values``."""
        return self.first + (values if self.present is None else self.present[values])

    def only(self, values: Index) -> Span:
        """The span with just the values at the positions ``values``, ascending."""
        present = values if self.present is None else self.present[values]
        return Span(self.first, self.stop, present, self.starts[values], self.lengths[values])


class BinaryColumn:
    """n byte strings or nulls of an Arrow array.

    :param array: binary, large_binary, string or large_string, possibly sliced
    :raises UnsupportedType: another type
    """

    def __init__(self, array: pa.Array) -> None:
        kind = array.type
        self.large = pa.types.is_large_binary(kind) or pa.types.is_large_string(kind)
        if not (self.large or pa.types.is_binary(kind) or pa.types.is_string(kind)):
            raise UnsupportedType(
                f"An array of {kind} has no offsets and data.",
                place="encryption kernel",
                remedy="Convert it to binary or large_binary first.",
            )
        self.rows = len(array)
        self._array = array
        _, offsets, data = array.buffers()
        width = np.dtype(np.int64 if self.large else np.int32)
        if self.rows == 0 or offsets is None:
            self.offsets: npt.NDArray[np.signedinteger] = np.zeros(1, width)
        else:
            self.offsets = np.frombuffer(offsets, width, count=self.rows + 1, offset=array.offset * width.itemsize)
        self.data: Bytes = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)

    @property
    def size(self) -> int:
        """Bytes from the first row's beginning to the last row's end, with those hidden under nulls."""
        return int(self.offsets[-1]) - int(self.offsets[0])

    @cached_property
    def has_nulls(self) -> bool:
        return bool(self._array.null_count)

    def spans(self) -> Iterator[Span]:
        """The column in spans of nearly equal numbers of rows, at most :data:`SPAN_ROWS`."""
        for first, stop in self.bounds():
            offsets = self.offsets[first : stop + 1].astype(np.int64)
            starts = offsets[:-1]
            lengths = offsets[1:] - starts
            if self.has_nulls:
                present = np.flatnonzero(self._valid(first, stop))
                yield Span(first, stop, present, starts[present], lengths[present])
            else:
                yield Span(first, stop, None, starts, lengths)

    def bounds(self) -> Iterator[tuple[int, int]]:
        """First row of each span and the row after its last."""
        if not self.rows:
            return
        pieces = max(-(-self.rows // SPAN_ROWS), min(-(-self.rows // _FEWEST_SPAN_ROWS), self.size // _SPAN_BYTES))
        step = -(-self.rows // (8 * pieces)) * 8
        for first in range(0, self.rows, step):
            yield first, min(first + step, self.rows)

    def validity(self) -> pa.Buffer | None:
        """The validity bits from this array's first row on, None when no row is null."""
        if not self.has_nulls:
            return None
        bits = self._array.buffers()[0]
        if self._array.offset % 8 == 0:
            return bits.slice(self._array.offset // 8)
        packed = np.empty(-(-self.rows // 8), np.uint8)
        for first, stop in self.bounds():
            packed[first // 8 : -(-stop // 8)] = np.packbits(self._valid(first, stop), bitorder="little")
        return pa.py_buffer(packed)

    def _valid(self, first: int, stop: int) -> Bytes:
        """One byte for each row, 0 where it is null."""
        start = self._array.offset + first
        end = self._array.offset + stop
        bits = np.frombuffer(self._array.buffers()[0], np.uint8)[start // 8 : -(-end // 8)]
        return np.unpackbits(bits, bitorder="little")[start % 8 : start % 8 + stop - first]


class BinaryOutput:
    """The array that is made of a column: the same rows and nulls, each value longer or shorter by a number of bytes.

    :param change: bytes that each value gains (negative: loses). Of a value with fewer bytes than it has to lose nothing is
        kept, which the caller reports.
    :ivar data: (size + SLACK,) the bytes to fill in
    """

    def __init__(self, column: BinaryColumn, *, change: int) -> None:
        self._column = column
        # Bytes hidden under nulls are counted here and not below: an upper bound is enough to choose the width.
        self._large = column.large or column.size + max(change, 0) * column.rows > INT32_MAX
        self.offsets = np.empty(column.rows + 1, np.int64 if self._large else np.int32)
        self.offsets[0] = end = 0
        for start, stop in column.bounds():
            offsets = column.offsets[start : stop + 1].astype(np.int64)
            lengths = offsets[1:] - offsets[:-1]
            lengths += change
            if change < 0:
                np.maximum(lengths, 0, out=lengths)
            if column.has_nulls:
                lengths *= column._valid(start, stop)
            np.cumsum(lengths, out=lengths)
            lengths += end
            self.offsets[start + 1 : stop + 1] = lengths
            end = int(lengths[-1])
        self._size = end
        self._buffer = pa.allocate_buffer(end + SLACK)
        self.data: Bytes = np.frombuffer(self._buffer, np.uint8)

    def starts(self, span: Span) -> Index:
        """(m,) where the values of ``span`` go."""
        starts: Index = self.offsets[span.first : span.stop].astype(np.int64)
        return starts if span.present is None else starts[span.present]

    def finish(self) -> pa.Array:
        """The array: large_binary if the input has 64-bit offsets or the output needs them, binary otherwise."""
        return pa.Array.from_buffers(
            pa.large_binary() if self._large else pa.binary(),
            self._column.rows,
            [self._column.validity(), pa.py_buffer(self.offsets), self._buffer.slice(0, self._size)],
        )


@lru_cache(maxsize=1024)
def item_of(width: int) -> np.dtype[np.void]:
    """The NumPy type of an item of ``width`` bytes."""
    return np.dtype((np.void, width))


def windows(data: Bytes, width: int) -> npt.NDArray[np.void]:
    """A view whose entry i is the ``width`` bytes of ``data`` that start at byte i.

    Indexing it with an array of addresses gathers or scatters pieces of bytes at a few nanoseconds each.
    """
    return np.ndarray((max(data.size - width + 1, 0),), item_of(width), buffer=data, strides=(1,))
