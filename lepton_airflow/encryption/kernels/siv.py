"""AES-256-SIV (RFC 5297) over whole Arrow arrays, in Google Tink's wire format: deterministic, for columns that are joined on.

Each value becomes ``prefix | synthetic IV (16) | ciphertext``, the IV being S2V(associated data, value). Equal values have
equal ciphertexts under the same key and associated data, and that is all that ciphertexts tell, besides lengths.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

from lepton_airflow.encryption.kernels.aead import NOTHING, Batch, BatchAead, Places, Voids
from lepton_airflow.encryption.kernels.blocks import BLOCK, BLOCK_ITEM, AesBlocks, Layout, Words, clear_behind

_KEY_BYTES = (32, 48, 64)
_ZERO = bytes(BLOCK)


class SivKernel(BatchAead):
    """AES-256-SIV under one key, for values that share one associated datum (Tink's form of SIV).

    :param key: 64 bytes, the first half for S2V and the second for CTR; 32 and 48, which the standard allows, too
    :param prefix: what each ciphertext begins with, at most 8 bytes: Tink's ``01 | key id``
    """

    header = BLOCK
    trailer = 0
    nonce = 0
    longest = 512
    fewest = 32

    def __init__(self, key: bytes, *, prefix: bytes, associated_data: bytes) -> None:
        if len(key) not in _KEY_BYTES:
            raise ValueError("AES-SIV takes a key of 32, 48 or 64 bytes")
        super().__init__(prefix)
        self._mac, self._stream = AesBlocks(key[: len(key) // 2]), AesBlocks(key[len(key) // 2 :])
        self._associated_data = [associated_data]
        self._one_by_one = AESSIV(key)
        tweaks = _Tweaks(key[: len(key) // 2], associated_data)
        self._last, self._before_last, self._empty = tweaks.last, tweaks.before_last, tweaks.empty

    def encrypt(self, array: pa.Array) -> pa.Array:
        """Encrypt every value.

        :param array: n byte strings, strings or nulls with 32-bit or 64-bit offsets, possibly sliced
        :returns: n ciphertexts, null where ``array`` is null, with 64-bit offsets if the input has them or they need them
        :raises UnsupportedType: ``array`` is of another type
        """
        return self._encrypt(array, nonces=None)

    def _seal(self, batch: Batch) -> Batch:
        layout = batch.layout
        state = None
        for plane, blocks in batch.planes():
            if plane == 0:
                clear_behind(blocks, layout)
            state = self._chain(state, blocks, layout, plane)
        vectors = self._vectors(state, layout)
        counters = _counters(vectors)
        for plane, blocks in batch.planes():
            blocks ^= _key_stream(self._stream, counters, layout, plane)
        return Batch(layout, vectors.view(BLOCK_ITEM).reshape(-1), batch.blocks, NOTHING)

    def _open(self, batch: Batch) -> tuple[Words, npt.NDArray[np.bool_]]:
        layout = batch.layout
        vectors = batch.headers.view(np.uint64).reshape(-1, 2)
        counters, state = _counters(vectors), None
        for plane, blocks in batch.planes():
            blocks ^= _key_stream(self._stream, counters, layout, plane)
            if plane == 0:
                clear_behind(blocks, layout)
            state = self._chain(state, blocks, layout, plane)
        difference = self._vectors(state, layout)
        difference ^= vectors
        return batch.blocks, (difference[:, 0] | difference[:, 1]) == 0

    def _seal_each(self, source: memoryview, target: memoryview, places: Places) -> None:
        encrypt, context = self._one_by_one.encrypt_into, self._associated_data
        for start, length, vector in places:
            encrypt(source[start : start + length], context, target[vector : vector + BLOCK + length])

    def _open_each(self, source: memoryview, target: memoryview, places: Places) -> list[bool]:
        decrypt, context = self._one_by_one.decrypt_into, self._associated_data
        authentic = []
        for vector, length, start in places:
            try:
                decrypt(source[vector : vector + BLOCK + length], context, target[start : start + length])
            except InvalidTag:
                authentic.append(False)
            else:
                authentic.append(True)
        return authentic

    def _chain(self, state: Words | None, blocks: Words, layout: Layout, plane: int) -> Words:
        """One step of the CMAC of all values of a plane, with the associated data folded into its end.

        :param state: the chain of the values that began in a plane before, None if none did
        :param blocks: the plane, zero behind the end of a value
        :returns: the chain of all values of the plane
        """
        mixed = None
        if plane == 0:
            entries = layout.tails + np.uint8(BLOCK) * (layout.lengths[layout.first[0] :] >= BLOCK)
            mixed = self._last.take(entries).view(np.uint64).reshape(-1, 2)
        elif plane == 1:
            mixed = self._before_last.take(layout.tails[layout.first[1] - layout.first[0] :]).view(np.uint64)
            mixed = mixed.reshape(-1, 2)
        if mixed is None:
            mixed = blocks.copy()
        else:
            mixed ^= blocks
        if state is not None:
            mixed[len(mixed) - len(state) :] ^= state
        return self._mac.encrypt(mixed)

    def _vectors(self, state: Words | None, layout: Layout) -> Words:
        """(layout.count, 2) the synthetic vectors: the ends of the chains, and that of the empty value, which has no block."""
        if state is not None and len(state) == layout.count:
            return state
        vectors = np.empty((layout.count, 2), np.uint64)
        vectors[: layout.first[0]] = self._empty
        if state is not None:
            vectors[layout.first[0] :] = state
        return vectors


def _counters(vectors: Words) -> Words:
    """(count, 2) the first counter block of each value: its synthetic vector with two bits cleared."""
    counters = vectors.copy()
    counters[:, 1] &= _COUNTER_MASK  # one column: a broadcast over rows of two words would be slow
    return counters


def _key_stream(aes: AesBlocks, counters: Words, layout: Layout, plane: int) -> Words:
    """The key stream of one plane of blocks."""
    begin, longer = layout.first[plane], layout.first[plane + 1]
    blocks = counters[begin:]
    if longer < layout.count:  # the values before begin in this plane: their counter is the first
        blocks = blocks.copy()
        # The top bit of the last word is clear, so a few thousand blocks never carry into the word before.
        last = blocks[longer - begin :].view(">u4")[:, 3]
        last[:] = last + layout.block_numbers(plane)[longer - begin :]
    return aes.encrypt(blocks)


#: Clears the highest bit of the last two 32-bit words of a counter (RFC 5297, section 2.5), which are its second half.
_COUNTER_MASK = np.frombuffer(b"\x7f\xff\xff\xff" * 2, np.uint64)[0]


class _Tweaks:
    """What is added to the last two blocks of a value before they enter the CMAC: it depends on key, associated data and length.

    :ivar last: (32,) for the last block of r bytes, entry r - 1 if it is the only block and not whole, 16 + r - 1 otherwise
    :ivar before_last: (16,) for the block before a last block of r bytes, entry r - 1
    :ivar empty: the synthetic vector of the empty value
    """

    def __init__(self, key: bytes, associated_data: bytes) -> None:
        aes = AesBlocks(key)
        whole = _double(
            _encrypt(aes, _ZERO)
        )  # CMAC's first subkey (RFC 4493), for a message that ends with a whole block
        padded = _double(whole)  # and its second, for one that had to be padded
        data = _xor(_double(_cmac(key, _ZERO)), _cmac(key, associated_data))
        short = _double(data)  # folded into values that are shorter than a block, which S2V pads itself
        last, before_last = bytearray(), bytearray()
        for length in range(1, BLOCK):
            last += _xor(short, _xor(_padding(length), whole))
        last += _ZERO  # no value of one whole block is short
        for length in range(1, BLOCK):
            end = data[BLOCK - length :].ljust(BLOCK, b"\0")
            last += _xor(end, _xor(_padding(length), padded))
            before_last += data[: BLOCK - length].rjust(BLOCK, b"\0")
        last += _xor(data, whole)
        before_last += _ZERO
        self.last: Voids = np.frombuffer(bytes(last), BLOCK_ITEM)
        self.before_last: Voids = np.frombuffer(bytes(before_last), BLOCK_ITEM)
        self.empty = np.frombuffer(_encrypt(aes, _xor(short, _xor(_padding(0), whole))), np.uint64)


def _encrypt(aes: AesBlocks, block: bytes) -> bytes:
    return aes.encrypt(np.frombuffer(block, np.uint64).reshape(1, 2)).tobytes()


def _cmac(key: bytes, message: bytes) -> bytes:
    mac = CMAC(AES(key))
    mac.update(message)
    return mac.finalize()


def _double(block: bytes) -> bytes:
    """Multiply by x in GF(2^128), the first bit of the block being the highest (RFC 5297, section 2.3)."""
    doubled = int.from_bytes(block, "big") << 1
    return (doubled ^ (1 << 128 | 0x87 if doubled >> 128 else 0)).to_bytes(BLOCK, "big")


def _padding(length: int) -> bytes:
    """What padding adds behind ``length`` bytes of a block: a one bit and zeros."""
    return (bytes(length) + b"\x80").ljust(BLOCK, b"\0")


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))
