"""GHASH (NIST SP 800-38D, section 6.4) of many short messages under one hash key.

Multiplying by a fixed power of the hash key H is linear over GF(2), so a product is the sum of 16 table entries, one for each
byte of the other factor. With one set of tables for each power, the hash of a message is a sum of products of its **ciphertext**
blocks: every table is indexed by public bytes, and no secret decides which memory is touched.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lepton_airflow.encryption.kernels.blocks import BLOCK, BLOCK_ITEM, Layout, Words

Table = npt.NDArray[np.void]

#: x^128 = x^7 + x^2 + x + 1, in GCM's reflected bit order.
_REDUCTION = 0xE1 << 120
_ONE = 1 << 127

#: A table look-up over this many values that are known to be zero costs less than another NumPy call.
_WORTH_A_CALL = 1_500


def multiply(left: int, right: int) -> int:
    """Product of two elements of GF(2^128) in GCM's representation: the first bit of a block is the highest of an integer."""
    product = 0
    for bit in range(127, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = right >> 1 ^ _REDUCTION if right & 1 else right >> 1
    return product


class Ghash:
    """GHASH under one hash key, for messages that share their associated data.

    :param hash_key: H, 16 bytes
    :param longest: the longest message in bytes, a multiple of 16
    """

    def __init__(self, hash_key: bytes, *, associated_data: bytes, longest: int) -> None:
        self._powers = [_ONE]
        while len(self._powers) < longest // BLOCK + 2:
            self._powers.append(multiply(self._powers[-1], int.from_bytes(hash_key, "big")))
        self._tables: dict[int, list[Table]] = {}
        # What the associated data and the lengths add to the hash depends on the message's length only.
        known = 0
        for start in range(0, len(associated_data), BLOCK):
            block = associated_data[start : start + BLOCK].ljust(BLOCK, b"\0")
            known = multiply(known ^ int.from_bytes(block, "big"), self._powers[1])
        lengths = np.empty((longest + 1, 2), ">u8")
        lengths[:, 0] = 8 * len(associated_data)
        lengths[:, 1] = 8 * np.arange(longest + 1)
        constants = np.zeros((longest + 1, 2), np.uint64)
        self._add_products(constants, lengths.view(np.uint64), exponent=1, rows=[[(0, longest + 1)]] * BLOCK)
        for blocks in range(longest // BLOCK + 1):
            first = max(0, BLOCK * (blocks - 1) + 1)
            value = multiply(known, self._powers[blocks + 1]).to_bytes(BLOCK, "big")
            constants[first : BLOCK * blocks + 1] ^= np.frombuffer(value, np.uint64)
        self._constants: Table = constants.view(BLOCK_ITEM).reshape(-1)

    def begin(self, layout: Layout) -> Words:
        """(layout.count, 2) what associated data and lengths contribute to the hash of each message."""
        return self._constants.take(layout.lengths).view(np.uint64).reshape(-1, 2)

    def add(self, sums: Words, ciphertext: Words, *, layout: Layout, plane: int) -> None:
        """Add one plane of blocks to the hashes.

        :param sums: (layout.count, 2) the hash of each message so far, changed in place
        :param ciphertext: the blocks of the plane, zero behind the end of a message
        """
        begin = layout.first[plane]
        rows = _rows_of_last_blocks(layout) if plane == 0 else [[(0, layout.count - begin)]] * BLOCK
        self._add_products(sums[begin:], ciphertext, exponent=plane + 2, rows=rows)

    def _add_products(self, sums: Words, factors: Words, *, exponent: int, rows: list[list[tuple[int, int]]]) -> None:
        """Add factors times H^exponent to ``sums``, both (k, 2).

        :param rows: for each position of a byte in a block, the ranges of rows in which that byte is not always zero
        """
        columns = factors.view(np.uint8).reshape(-1, BLOCK)
        found = np.empty(len(sums), BLOCK_ITEM)
        words = found.view(np.uint64).reshape(-1, 2)
        for position, table in enumerate(self._products(exponent)):
            for begin, end in rows[position]:
                # A byte is always a valid index: "wrap" only spares NumPy the copy that "raise" makes.
                table.take(columns[begin:end, position], out=found[: end - begin], mode="wrap")
                target = sums[begin:end]
                np.bitwise_xor(target, words[: end - begin], out=target)

    def _products(self, exponent: int) -> list[Table]:
        """For each position of a byte in a block, the products of its 256 values with H^exponent."""
        if exponent not in self._tables:
            shifted, basis = self._powers[exponent], []
            for _ in range(8 * BLOCK):
                basis.append(shifted.to_bytes(BLOCK, "big"))
                shifted = shifted >> 1 ^ _REDUCTION if shifted & 1 else shifted >> 1
            bits = np.frombuffer(b"".join(basis), np.uint64).reshape(BLOCK, 8, 2)
            products = np.zeros((BLOCK, 256, 2), np.uint64)
            for bit in range(8):  # of a byte's value: the lowest is the last of the byte's eight coefficients
                products[:, 1 << bit : 2 << bit] = products[:, : 1 << bit] ^ bits[:, 7 - bit, None]
            self._tables[exponent] = [table.view(BLOCK_ITEM).reshape(-1) for table in products]
        return self._tables[exponent]


def _rows_of_last_blocks(layout: Layout) -> list[list[tuple[int, int]]]:
    """For each position p in a block: where in plane 0 the blocks of more than p bytes are, few and long ranges preferred."""
    begins = np.searchsorted(layout.lengths, np.arange(BLOCK * layout.planes), side="right").reshape(-1, BLOCK).tolist()
    base = layout.first[0]
    found: list[list[tuple[int, int]]] = []
    for position in range(BLOCK):
        ranges: list[tuple[int, int]] = []
        for plane, end in enumerate(layout.first[1:]):
            begin = begins[plane][position]
            if begin == end:
                continue
            if ranges and begin - base - ranges[-1][1] < _WORTH_A_CALL:
                begin = ranges.pop()[0] + base
            ranges.append((begin - base, end - base))
        found.append(ranges)
    return found
