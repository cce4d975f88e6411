"""Column ciphers: whole Arrow arrays in, whole Arrow arrays out, each value in Google Tink's wire format.

- AES-256-GCM: ``01 | key id (4, big-endian) | nonce (12) | ciphertext | tag (16)``; SP 800-38D, nonces random.
- AES-256-SIV: ``01 | key id (4, big-endian) | synthetic IV (16) | ciphertext``; RFC 5297 with one associated datum.

Any Tink library with the same keyset and associated data reads and writes the same bytes. The work is done by the batch
kernels; what is here is the choice of the key for each value, and the errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lepton_airflow.encryption.kernels.columns import INT32_MAX, BinaryColumn, Index, windows
from lepton_airflow.encryption.kernels.failures import NotAuthentic
from lepton_airflow.encryption.kernels.gcm import GcmKernel
from lepton_airflow.encryption.kernels.siv import SivKernel
from lepton_airflow.errors import ConfigurationError, DecryptionFailed, KeyUnavailable, LeptonError
from lepton_airflow.keys.cipher import Cipher
from lepton_airflow.keys.keyset import Keyset

TINK_PREFIX_BYTES = 5
_TINK_START = 1

_KERNELS: dict[Cipher, type[GcmKernel] | type[SivKernel]] = {"AES256_GCM": GcmKernel, "AES256_SIV": SivKernel}

#: What stands in place of a key id for a null and for a value that is not in the wire format.
_NULL, _MALFORMED = -1, -2


class ColumnCipher:
    """Encrypts and decrypts the values of one column under one keyset. Holds key schedules: it is not pickled.

    :param keyset: for AES256_GCM or AES256_SIV
    :param associated_data: the column's, see :func:`lepton_airflow.encryption.associated_data.associated_data`
    :param place: the dataset and column, for errors
    :param primary_key_id: the key that encrypts, if it is not the keyset's primary
    :raises ConfigurationError: a keyset of another cipher
    """

    def __init__(
        self, keyset: Keyset, associated_data: bytes, *, place: str, primary_key_id: int | None = None
    ) -> None:
        if keyset.cipher not in _KERNELS:
            raise ConfigurationError(
                f"The keyset is for {keyset.cipher}, whose values have no key id.",
                place=place,
                remedy=f"Open the keyset's part for {' or '.join(_KERNELS)}.",
            )
        self._keyset = keyset
        self._associated_data = associated_data
        self._place = place
        self._primary_key_id = keyset.primary_key_id if primary_key_id is None else primary_key_id
        self._kernels: dict[int, GcmKernel | SivKernel] = {}
        self._several_keys = False

    def encrypt(self, array: pa.Array) -> pa.Array:
        """Encrypt every value under the primary key.

        :param array: n byte strings or strings, possibly sliced
        :returns: n ciphertexts, binary, null where ``array`` is null; with 64-bit offsets if the input has them or they
            are needed
        """
        return self._kernel(self._primary_key_id).encrypt(array)

    def decrypt(self, array: pa.Array) -> pa.Array:
        """Decrypt every value under the key that it names. No value leaves unless all are authentic.

        :param array: n ciphertexts, possibly sliced, of any number of keys
        :returns: n byte strings, null where ``array`` is null
        :raises DecryptionFailed: a value is not in the wire format, names no key of the keyset, was changed, or belongs
            to another column or dataset
        :raises KeyUnavailable: a value's key is disabled or destroyed
        """
        plaintexts = self._decrypt_of_one_key(array)
        if plaintexts is not None:
            return plaintexts
        key_ids = self._key_ids(array)
        return _assembled(
            [(rows, self._decrypt_under(key_id, values)) for key_id, rows, values in _by_key(array, key_ids)],
            like=array,
        )

    def decrypt_or_null(self, array: pa.Array) -> tuple[pa.Array, int]:
        """Decrypt every value that can be decrypted; the others become null.

        :returns: n byte strings, and how many of the ciphertexts became null
        """
        plaintexts = self._decrypt_of_one_key(array)
        if plaintexts is not None:
            return plaintexts, 0
        parts, failed = [], 0
        for key_id, rows, values in _by_key(array, self._key_ids(array)):
            try:
                kernel = self._kernel(key_id)
            except LeptonError:
                failed += len(values) - values.null_count
                continue
            try:
                plaintexts = kernel.decrypt(values)
            except NotAuthentic as refused:
                failed += len(refused.rows)
                authentic = np.ones(len(values), bool)
                authentic[list(refused.rows)] = False
                plaintexts = kernel.decrypt(pc.if_else(pa.array(authentic), values, pa.scalar(None, values.type)))
            parts.append((rows, plaintexts))
        return _assembled(parts, like=array), failed

    def rotate(self, array: pa.Array) -> tuple[pa.Array, int]:
        """Encrypt again, under the primary key, what is encrypted under another; the rest stays as it is, unread.

        :returns: n ciphertexts, and how many of them are new
        :raises DecryptionFailed, KeyUnavailable: as :meth:`decrypt`, for a value that is not under the primary key
        """
        key_ids = self._key_ids(array)
        old = (key_ids != _NULL) & (key_ids != self._primary_key_id)
        rows = np.flatnonzero(old)
        if not rows.size:
            return array, 0
        if rows.size == len(array) - array.null_count:
            return self.encrypt(self.decrypt(array)), int(rows.size)
        renewed = self.encrypt(self.decrypt(array.take(pa.array(rows))))
        kept = np.flatnonzero(~old)
        return _assembled([(rows, renewed), (kept, array.take(pa.array(kept)))], like=array), int(rows.size)

    def _decrypt_of_one_key(self, array: pa.Array) -> pa.Array | None:
        """The values of an array whose ciphertexts are all authentic and of one key, as most are; None for any other array.

        Reading every key id first would take a quarter of the time of short values' decryption, and the kernel compares them
        anyway.
        """
        first = pc.index(array.is_valid(), True).as_py()
        if self._several_keys or first < 0:
            return None
        prefix = array[first].as_buffer()[:TINK_PREFIX_BYTES].to_pybytes()
        key_id = int.from_bytes(prefix[1:], "big")
        if prefix[:1] != bytes([_TINK_START]) or self._keyset.keys.get(key_id) != "ENABLED":
            return None
        try:
            return self._kernel(key_id).decrypt(array)
        except NotAuthentic:
            # Several keys are likely in the batches to come as well: they are not tried as one first.
            self._several_keys = True
            return None

    def _decrypt_under(self, key_id: int, values: pa.Array) -> pa.Array:
        try:
            return self._kernel(key_id).decrypt(values)
        except NotAuthentic as refused:
            raise DecryptionFailed(
                f"A value is not authentic under key {key_id} of keyset {self._keyset.name!r} for this dataset, column "
                f"and type ({len(refused.rows)} of {len(values)} in this batch).",
                place=self._place,
                remedy="It was changed, or comes from another column or table: restore the column from a copy.",
            ) from None

    def _key_ids(self, array: pa.Array) -> Index:
        """(n,) the key id that each ciphertext names, or ``_NULL`` or ``_MALFORMED``."""
        column = BinaryColumn(array)
        overhead = self._overhead
        key_ids = np.full(column.rows, _NULL, np.int64)
        eight = windows(column.data, 8)
        for span in column.spans():
            found = np.full(span.lengths.size, _MALFORMED, np.int64)
            framed = np.flatnonzero(span.lengths >= overhead)
            prefixes = eight[span.starts[framed]].view(">u8") >> np.uint64(8 * (8 - TINK_PREFIX_BYTES))
            named = (prefixes & np.uint64(0xFFFFFFFF)).astype(np.int64)
            found[framed] = np.where(prefixes >> np.uint64(32) == _TINK_START, named, _MALFORMED)
            rows = slice(span.first, span.stop) if span.present is None else span.first + span.present
            key_ids[rows] = found
        return key_ids

    @property
    def _overhead(self) -> int:
        kernel = _KERNELS[self._keyset.cipher]
        return TINK_PREFIX_BYTES + kernel.header + kernel.trailer

    def _kernel(self, key_id: int) -> GcmKernel | SivKernel:
        known = self._kernels.get(key_id)
        if known is not None:
            return known
        keyset = self._keyset
        if key_id == _MALFORMED:
            raise DecryptionFailed(
                f"A value is not an {keyset.cipher} ciphertext in Tink's format.",
                place=self._place,
                remedy="Decrypt the column as it was written by encrypt_columns, or restore it from a copy.",
            )
        require_enabled(keyset, key_id, place=self._place)
        kernel = _KERNELS[keyset.cipher](
            keyset.material(key_id), prefix=tink_prefix(key_id), associated_data=self._associated_data
        )
        self._kernels[key_id] = kernel
        return kernel


def require_enabled(keyset: Keyset, key_id: int, *, place: str) -> None:
    """Refuse a key that cannot be used.

    :raises DecryptionFailed: the keyset does not hold it
    :raises KeyUnavailable: it is disabled or destroyed
    """
    status = keyset.keys.get(key_id)
    if status is None:
        raise DecryptionFailed(
            f"A value names key {key_id}, which keyset {keyset.name!r} ({keyset.cipher}) does not hold."
            if keyset.cipher != "FF1"
            else f"The column names key {key_id}, which keyset {keyset.name!r} (FF1) does not hold.",
            place=place,
            remedy="It was changed, or encrypted under another keyset: restore the column, or name that keyset.",
        )
    if status != "ENABLED":
        raise KeyUnavailable(
            f"A value is encrypted under key {key_id} of keyset {keyset.name!r}, which is {status.lower()}.",
            place=place,
            remedy="What only a destroyed key opens is lost for good."
            if status == "DESTROYED"
            else f"Run `lepton keys enable {keyset.name} --key-id {key_id}` if it may be read again.",
        )


def tink_prefix(key_id: int) -> bytes:
    """Tink's output prefix: ``01`` and the key id, 4 bytes, big-endian."""
    return bytes([_TINK_START]) + key_id.to_bytes(4, "big")


def _by_key(array: pa.Array, key_ids: Index) -> Iterator[tuple[int, Index | None, pa.Array]]:
    """The ciphertexts of each key: its id, their rows (None for all, nulls among them) and themselves."""
    distinct = np.unique(key_ids[key_ids != _NULL]).tolist()
    for key_id in distinct:
        if len(distinct) == 1:
            yield key_id, None, array
        else:
            rows = np.flatnonzero(key_ids == key_id)
            yield key_id, rows, array.take(pa.array(rows))


def _assembled(parts: Sequence[tuple[npt.NDArray[np.int64] | None, pa.Array]], *, like: pa.Array) -> pa.Array:
    """One array from the values of each part and their rows; rows of no part are null."""
    if not parts:
        return pa.nulls(len(like), pa.large_binary() if pa.types.is_large_binary(like.type) else pa.binary())
    if parts[0][0] is None:
        return parts[0][1]
    arrays = [values for _, values in parts]
    large = any(pa.types.is_large_binary(values.type) for values in arrays)
    if large or sum(values.nbytes for values in arrays) > INT32_MAX:
        arrays = [values.cast(pa.large_binary()) for values in arrays]
    order = np.concatenate([rows for rows, _ in parts if rows is not None])
    sources = np.full(len(like), -1, np.int64)
    sources[order] = np.arange(order.size)
    return pa.concat_arrays(arrays).take(pa.array(sources, mask=sources < 0))
