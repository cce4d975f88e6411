"""Salted hashes of units and groups, by which contribution bounding orders the groups of a unit and cuts data into partitions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Hashes = NDArray[np.uint64]

#: Values of up to so many bytes are hashed together.
_SHORT = 256
#: Rows that are hashed at a time, so that they stay in a core's cache.
_BLOCK = 1 << 15


class SaltedHash:
    """64-bit hashes of units, of keys and of pairs of them, which depend on their values and a salt.

    Integers are hashed by a salted bijection, bytes by multilinear hashing of 32-bit words (Lemire, Kaser: Strongly universal
    string hashing is fast, 2014), longer ones by keyed BLAKE2b. Pairs go through the finaliser of SplitMix64 (Steele, Lea, Flood:
    Fast splittable pseudorandom number generators, OOPSLA 2014), a bijection.

    :param bits: of a pair's hash; fewer than 64 force collisions, for tests
    """

    def __init__(self, salt: int, *, bits: int = 64) -> None:
        self._salt, self._bits = salt, bits

    def __reduce__(self) -> tuple[Callable[[int, int], SaltedHash], tuple[int, int]]:
        return _salted_hash, (self._salt, self._bits)

    @cached_property
    def words(self) -> Hashes:
        """Random words: two for integers, one for offsets, one for lengths, then two for each eight bytes of text."""
        seed = b"lepton release salt" + self._salt.to_bytes(16, "big")
        digest = hashlib.shake_256(seed).digest(8 * (4 + _SHORT // 4))
        return np.frombuffer(digest, np.uint64).copy()

    def of_integers(self, values: Integers) -> Hashes:
        """Of whole numbers below 2**63 in size; different ones have different hashes."""
        hashes: Hashes = (values.view(np.uint64) ^ self.words[0]) * (self.words[1] | np.uint64(1))
        return hashes

    def of_bytes(self, values: pa.Array) -> Hashes:
        """Of the values of a binary array; none of them is null."""
        if not len(values):
            return np.empty(0, np.uint64)
        values = values.cast(pa.large_binary())
        offsets = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1]
        data = values.buffers()[2]
        padded = np.zeros((data.size if data is not None else 0) + 8, np.uint8)
        if data is not None:
            padded[:-8] = np.frombuffer(data, np.uint8)
        # Overlapping views of eight bytes, one from each byte on.
        eights: Hashes = np.ndarray((len(padded) - 7,), np.dtype("<u8"), padded, strides=(1,))
        starts, lengths = offsets[:-1], np.diff(offsets)
        hashes = lengths.astype(np.uint64) * self.words[3]
        low = np.uint64(0xFFFFFFFF)
        active = np.flatnonzero((lengths > 0) & (lengths <= _SHORT))
        for position in range(0, _SHORT, 8):
            active = active[lengths[active] > position]
            if not len(active):
                break
            left = np.minimum(lengths[active] - position, 8).astype(np.uint64)
            word = eights[starts[active] + position] & (np.uint64(2**64 - 1) >> (np.uint64(8) * (np.uint64(8) - left)))
            first, second = self.words[4 + position // 4 : 6 + position // 4]
            hashes[active] += (word & low) * first + (word >> np.uint64(32)) * second
        hashes = _mixed(hashes)
        key = self.words[:4].tobytes()
        for index in np.flatnonzero(lengths > _SHORT).tolist():
            text = values[index].as_buffer()
            hashes[index] = int.from_bytes(hashlib.blake2b(text, digest_size=8, key=key).digest(), "little")
        return hashes

    def of_pairs(self, units: Hashes, groups: Hashes) -> Hashes:
        """Of pairs of a unit and a group, from the hashes of both."""
        pairs = np.empty(len(units), np.uint64)
        for start in range(0, len(units), _BLOCK):
            block = slice(start, start + _BLOCK)
            pairs[block] = _mixed(units[block] ^ groups[block])
        if self._bits < 64:
            pairs &= np.uint64((2**64 - 1) ^ (2 ** (64 - self._bits) - 1))
        return pairs

    def offsets(self, pairs: Hashes, counts: Integers) -> Integers:
        """For each pair a number from 0 to below its count."""
        return (_mixed(pairs ^ self.words[2]) % counts.astype(np.uint64)).astype(np.int64)

    def partitions(self, units: Hashes, count: int) -> NDArray[np.uint16]:
        """For each unit or key one of ``count`` (at most 2**16) partitions."""
        return (((units >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32)).astype(np.uint16)


def _salted_hash(salt: int, bits: int) -> SaltedHash:
    return SaltedHash(salt, bits=bits)


def _mixed(numbers: Hashes) -> Hashes:
    """The finaliser of SplitMix64."""
    mixed = numbers ^ (numbers >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
