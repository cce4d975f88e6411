"""Values of many lengths as AES blocks in a few dense arrays.

The values of a span are sorted by length and cut into 16-byte blocks. Blocks are numbered from a value's **end**: plane 0 holds
the last block of every value, whole or not, plane 1 the block before it, and so on. In each plane the values that are long
enough are the last ones, so a plane is dense, every block but those of plane 0 is whole, and both GHASH (whose power of H counts
from the end) and a CBC-MAC (which only has to begin later for shorter values) treat all values of a plane alike.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from lepton_airflow.encryption.kernels.columns import Bytes, Index, item_of, windows

Words = npt.NDArray[np.uint64]
Item = TypeVar("Item", bound=np.generic)

BLOCK = 16
#: One block as one NumPy item: what is gathered, scattered and looked up.
BLOCK_ITEM = item_of(BLOCK)

_WHOLE = (np.arange(BLOCK)[None, :] <= np.arange(BLOCK)[:, None]).astype(np.uint8) * 0xFF
#: Entry r keeps the first r + 1 bytes of a block.
_KEEP = _WHOLE.view(BLOCK_ITEM).reshape(-1)


class AesBlocks:
    """AES on many independent blocks (the raw permutation, FIPS 197), the building block of the kernels' modes.

    May be shared between threads: each has its own context, which keeps no state between calls.
    """

    def __init__(self, key: bytes) -> None:
        # The block permutation itself: GCM, CMAC, CTR and FF1 are built from it here.
        self._cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305
        self._of_thread = threading.local()

    def encrypt(self, blocks: Words) -> Words:
        """Encrypt (k, 2) words, k blocks, into a new array of the same shape."""
        encryptor = getattr(self._of_thread, "encryptor", None)
        if encryptor is None:
            encryptor = self._of_thread.encryptor = self._cipher.encryptor()
        out = np.empty(blocks.nbytes + BLOCK, np.uint8)  # update_into asks for one block of spare room
        encryptor.update_into(blocks.view(np.uint8).reshape(-1).data, out.data)
        return out[: blocks.nbytes].view(np.uint64).reshape(-1, 2)


class Layout:
    """Which values of a span are worked on together, in which order, and where their blocks are.

    :param lengths: (m,) bytes of each value
    :param longest: values with more bytes are left out, a multiple of 16
    :param fewest: a plane with fewer values is not worth its cost; the values that reach into it are left out
    :ivar total: m; ``count``: values in the batch
    :ivar lengths: (count,) their lengths, ascending
    :ivar tails: for each value in plane 0, the bytes of its last block, less one
    :ivar planes: number of planes
    :ivar first: (planes + 1) first[e] is the first value with a block in plane e: those before have at most 16 e bytes
    :ivar start: (planes + 1) where each plane begins among all blocks
    """

    def __init__(self, lengths: Index, *, longest: int, fewest: int) -> None:
        shortest, most = (int(lengths.min()), int(lengths.max())) if lengths.size else (0, 0)
        self._order: Index | None = None
        if shortest != most:
            keys = lengths.astype(np.uint8) if most < 256 else np.minimum(lengths, 0xFFFF).astype(np.uint16)
            self._order = np.argsort(keys, kind="stable")  # a radix sort for these widths
            lengths = lengths[self._order]
        edges = np.arange(0, min(longest, most) + BLOCK, BLOCK)
        at_most = np.searchsorted(lengths, edges, side="right").tolist()
        usable = at_most[-1]
        planes = sum(usable - reached >= fewest for reached in at_most[:-1])
        if at_most[planes] < fewest:
            planes, at_most = 0, [0]
        self.planes: int = planes
        self.first: list[int] = at_most[: planes + 1]
        self.count = self.first[-1]
        self.start = [0]
        for reached in self.first[:-1]:
            self.start.append(self.start[-1] + self.count - reached)
        self.total = len(lengths)
        self.lengths = lengths[: self.count]
        before_end = self.lengths - 1
        self._last_block = before_end >> 4
        self.tails = (before_end[self.first[0] :] & 15).astype(np.uint8)

    @property
    def blocks(self) -> int:
        """Number of blocks of all values."""
        return self.start[-1]

    def ordered(self, values: npt.NDArray[Item]) -> npt.NDArray[Item]:
        """The entries of ``values``, one for each value of the span, in ascending order of length: first the batch."""
        return values if self._order is None else values[self._order]

    def positions(self, places: Index) -> Index:
        """Which values of the span stand at these places of that order."""
        return places if self._order is None else self._order[places]

    def plane(self, number: int) -> slice:
        return slice(self.start[number], self.start[number + 1])

    def block_numbers(self, plane: int) -> Index:
        """For each value in the plane: the number of the block from the value's beginning."""
        return self._last_block[self.first[plane] :] - plane

    def sizes(self) -> Iterator[tuple[int, slice, list[slice]]]:
        """For each number of blocks that values have: it, those values, and where their blocks are, the first block first."""
        for plane, (begin, end) in enumerate(pairwise(self.first)):
            if begin < end:
                starts = [self.start[p] + begin - self.first[p] for p in range(plane, -1, -1)]
                yield plane + 1, slice(begin, end), [slice(start, start + end - begin) for start in starts]


def clear_behind(last: Words, layout: Layout) -> None:
    """Set the bytes behind the end of each value to zero, in the blocks of plane 0."""
    last &= _KEEP.take(layout.tails, mode="wrap").view(np.uint64).reshape(-1, 2)


def gather(data: Bytes, starts: Index, layout: Layout) -> Words:
    """Copy the blocks of values into (layout.blocks, 2) words.

    :param starts: (layout.count,) first byte of each value
    :returns: behind the end of a value, what follows it in ``data``, or zeros
    """
    blocks = np.empty(layout.blocks, BLOCK_ITEM)
    for size, values, places in layout.sizes():
        pieces = _read(data, starts[values], BLOCK * size).view(BLOCK_ITEM).reshape(-1, size)
        for number, place in enumerate(places):
            blocks[place] = pieces[:, number]
    return blocks.view(np.uint64).reshape(-1, 2)


def scatter(data: Bytes, starts: Index, layout: Layout, blocks: Words) -> None:
    """Copy all blocks of values to where the values begin: up to 15 bytes too many for each value.

    No whole block of one value may be where another's bytes behind its end go: NumPy promises no order of assignment.
    """
    items = blocks.view(BLOCK_ITEM).reshape(-1)
    for _, values, places in layout.sizes():
        _write(data, starts[values], [items[place] for place in places])


def scatter_exactly(data: Bytes, starts: Index, layout: Layout, blocks: Words) -> None:
    """Copy exactly the bytes of values that lie back to back, in any order."""
    items = blocks.view(BLOCK_ITEM).reshape(-1)
    if not layout.planes:
        return
    # The last blocks of values of more than 16 bytes: each may spill over the first 15 bytes that follow it ...
    long = slice(layout.first[1], layout.count)
    addresses = starts[long] + BLOCK * layout.block_numbers(0)[long.start - layout.first[0] :]
    _write(data, addresses, [items[layout.start[1] - len(addresses) : layout.start[1]]])
    # ... which are mended by the whole blocks before the last, ...
    for size, values, places in layout.sizes():
        if size > 1:
            _write(data, starts[values], [items[place] for place in places[:-1]])
    # ... and by the values of at most 16 bytes, written with their exact lengths.
    begin = layout.first[0]
    edges = np.searchsorted(layout.lengths[begin : layout.first[1]], np.arange(1, BLOCK + 2)).tolist()
    for length, (first, end) in enumerate(pairwise(edges), start=1):
        if first < end:
            exact = item_of(length)
            pieces = np.ndarray((end - first,), exact, buffer=blocks[first:end].data, strides=(BLOCK,))
            windows(data, length)[starts[begin + first : begin + end]] = pieces


def _read(data: Bytes, addresses: Index, width: int) -> npt.NDArray[np.void]:
    """``width`` bytes from each address. What lies behind the end of ``data`` reads as zero; only for few addresses it does."""
    readable = data.size - width
    if readable < 0:
        return _read(np.concatenate([data, np.zeros(width, np.uint8)]), addresses, width)
    if int(addresses.max()) <= readable:
        found: npt.NDArray[np.void] = windows(data, width)[addresses]
        return found
    late = np.flatnonzero(addresses > readable)
    found = windows(data, width)[np.minimum(addresses, readable)]
    ends = b"".join(data[address:].tobytes().ljust(width, b"\0") for address in addresses[late])
    found[late] = np.frombuffer(ends, found.dtype)
    return found


def _write(data: Bytes, addresses: Index, columns: list[npt.NDArray[np.void]]) -> None:
    """Copy to each address one block of each column, one behind the other."""
    rows = columns[0]
    if len(columns) > 1:
        rows = np.empty((len(addresses), len(columns)), BLOCK_ITEM)
        for number, column in enumerate(columns):
            rows[:, number] = column
    width = BLOCK * len(columns)
    windows(data, width)[addresses] = rows.view(item_of(width)).reshape(-1)
