"""AES-256-GCM (NIST SP 800-38D) over whole Arrow arrays, in Google Tink's wire format.

Each value becomes ``prefix | nonce (12) | ciphertext | tag (16)``. The nonces are random: at most 2^32 values may be encrypted
under one key (SP 800-38D, section 8.3), which whoever hands out the key counts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lepton_airflow.encryption.kernels.aead import Batch, BatchAead, Places, Voids
from lepton_airflow.encryption.kernels.blocks import BLOCK, BLOCK_ITEM, AesBlocks, Layout, Words, clear_behind
from lepton_airflow.encryption.kernels.ghash import Ghash

_KEY_BYTES = 32
_NONCE_BYTES = 12


class GcmKernel(BatchAead):
    """AES-256-GCM under one key, for values that share their associated data.

    :param key: 32 bytes
    :param prefix: what each ciphertext begins with, at most 8 bytes: Tink's ``01 | key id``
    """

    header = _NONCE_BYTES
    trailer = BLOCK
    nonce = _NONCE_BYTES
    longest = 192
    fewest = 96

    def __init__(self, key: bytes, *, prefix: bytes, associated_data: bytes) -> None:
        if len(key) != _KEY_BYTES:
            raise ValueError(f"AES-256-GCM takes a key of {_KEY_BYTES} bytes")
        super().__init__(prefix)
        self._aes = AesBlocks(key)
        self._associated_data = associated_data
        self._one_by_one = AESGCM(key)
        hash_key = self._aes.encrypt(np.zeros((1, 2), np.uint64)).tobytes()
        self._ghash = Ghash(hash_key, associated_data=associated_data, longest=self.longest)

    def encrypt(self, array: pa.Array, *, nonces: bytes | None = None) -> pa.Array:
        """Encrypt every value.

        :param array: n byte strings, strings or nulls with 32-bit or 64-bit offsets, possibly sliced
        :param nonces: n nonces of 12 bytes, one for each row, null or not. For known answers only: a nonce that is used
            twice under one key reveals both values and lets anyone forge others. By default they are drawn from the
            operating system.
        :returns: n ciphertexts, null where ``array`` is null, with 64-bit offsets if the input has or they need them
        :raises UnsupportedType: ``array`` is of another type
        """
        return self._encrypt(array, nonces=nonces)

    def _seal(self, batch: Batch) -> Batch:
        aes, counters = self._aes, _counters(batch.headers)
        tags = aes.encrypt(counters)
        tags ^= self._ghash.begin(batch.layout)
        for plane, blocks in batch.planes():
            blocks ^= _key_stream(aes, counters, batch.layout, plane)
            if plane == 0:
                clear_behind(blocks, batch.layout)
            self._ghash.add(tags, blocks, layout=batch.layout, plane=plane)
        return Batch(batch.layout, batch.headers, batch.blocks, tags.view(BLOCK_ITEM).reshape(-1))

    def _open(self, batch: Batch) -> tuple[Words, npt.NDArray[np.bool_]]:
        aes, counters = self._aes, _counters(batch.headers)
        difference = aes.encrypt(counters)
        difference ^= self._ghash.begin(batch.layout)
        difference ^= batch.trailers.view(np.uint64).reshape(-1, 2)
        for plane, blocks in batch.planes():
            if plane == 0:
                clear_behind(blocks, batch.layout)
            self._ghash.add(difference, blocks, layout=batch.layout, plane=plane)
            blocks ^= _key_stream(aes, counters, batch.layout, plane)
        return batch.blocks, (difference[:, 0] | difference[:, 1]) == 0

    def _seal_each(self, source: memoryview, target: memoryview, places: Places) -> None:
        encrypt, context = self._one_by_one.encrypt_into, self._associated_data
        for start, length, nonce in places:
            body = nonce + _NONCE_BYTES
            encrypt(target[nonce:body], source[start : start + length], context, target[body : body + length + BLOCK])

    def _open_each(self, source: memoryview, target: memoryview, places: Places) -> list[bool]:
        decrypt, context = self._one_by_one.decrypt_into, self._associated_data
        authentic = []
        for nonce, length, start in places:
            body = nonce + _NONCE_BYTES
            try:
                decrypt(
                    source[nonce:body], source[body : body + length + BLOCK], context, target[start : start + length]
                )
            except InvalidTag:
                authentic.append(False)
            else:
                authentic.append(True)
        return authentic


def _counters(nonces: Voids) -> Words:
    """(count, 2) the first counter block of each value, whose encryption masks the tag."""
    counters = np.empty((len(nonces), 2), np.uint64)
    words, nonce_words = counters.view(np.uint32), nonces.view(np.uint32).reshape(-1, 3)
    for word in range(3):
        words[:, word] = nonce_words[:, word]
    counters.view(">u4")[:, 3] = 1
    return counters


def _key_stream(aes: AesBlocks, counters: Words, layout: Layout, plane: int) -> Words:
    """The key stream of one plane of blocks."""
    blocks = counters[layout.first[plane] :].copy()
    blocks.view(">u4")[:, 3] = layout.block_numbers(plane) + 2
    return aes.encrypt(blocks)
