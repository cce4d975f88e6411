"""The column cipher of FF1 (NIST SP 800-38G): texts of an alphabet become other texts of it, length and separators kept.

Not authenticated: a changed or moved value, edited metadata or another key give another text and no error. And a value has no
room for a key id, so all values of a column are under one key, which the column's metadata names; rotation rewrites them all.

The tweak is the SHA-256 (32 bytes) of the column's associated data, so equal values of two columns differ unless the columns
share a domain.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.compute as pc

from lepton_airflow.encryption.ciphers import require_enabled
from lepton_airflow.encryption.kernels.ff1 import LONGEST, Ff1Kernel
from lepton_airflow.errors import ConfigurationError, InvalidData, LeptonError
from lepton_airflow.keys.keyset import Keyset


class FormatPreservingCipher:
    """Enciphers and deciphers the values of one column under one key. Holds key schedules: it is not pickled.

    :param keyset: for FF1
    :param associated_data: the column's, see :func:`lepton_airflow.encryption.associated_data.associated_data`
    :param characters: the alphabet, in the order of its numerals
    :param separators: characters that keep their places
    :param key_id: the key under which the column is or will be
    :param place: the dataset and column, for errors
    :param primary_key_id: the key under which :meth:`rotate` puts it, if it is not the keyset's primary
    :raises ConfigurationError: a keyset of another cipher
    """

    def __init__(
        self,
        keyset: Keyset,
        associated_data: bytes,
        *,
        characters: str,
        separators: str,
        key_id: int,
        place: str,
        primary_key_id: int | None = None,
    ) -> None:
        if keyset.cipher != "FF1":
            raise ConfigurationError(
                f"The keyset is for {keyset.cipher}, not for FF1.", place=place, remedy="Open the keyset's FF1 part."
            )
        self._keyset = keyset
        self._tweak = hashlib.sha256(associated_data).digest()
        self._characters = characters
        self._separators = separators
        self._key_id = key_id
        self._primary_key_id = keyset.primary_key_id if primary_key_id is None else primary_key_id
        self._place = place
        self._kernels: dict[int, Ff1Kernel] = {}

    def encrypt(self, array: pa.Array) -> pa.Array:
        """Encipher every value.

        :param array: n strings or nulls
        :returns: n strings of the same lengths, null where ``array`` is null
        :raises InvalidData: a value has too few or too many characters of the alphabet, or one that is not in it
        """
        return self._kernel(self._key_id).encrypt(array)

    def decrypt(self, array: pa.Array) -> pa.Array:
        """Decipher every value.

        :raises InvalidData: a value cannot be a result of :meth:`encrypt`
        :raises KeyUnavailable: the key is disabled or destroyed
        """
        return self._kernel(self._key_id).decrypt(array)

    def decrypt_or_null(self, array: pa.Array) -> tuple[pa.Array, int]:
        """Decipher every value that can be a result of :meth:`encrypt`; the others become null.

        :returns: n strings, and how many became null
        """
        try:
            kernel = self._kernel(self._key_id)
        except LeptonError:
            return pa.nulls(len(array), array.type), len(array) - array.null_count
        try:
            return kernel.decrypt(array), 0
        except InvalidData:
            fits = pc.fill_null(self._fits(array, shortest=kernel.shortest), True)
        kept = pc.if_else(fits, array, pa.scalar(None, array.type))
        return kernel.decrypt(kept), kept.null_count - array.null_count

    def rotate(self, array: pa.Array) -> tuple[pa.Array, int]:
        """Encipher again, under the primary key, every value, unless the column is under it already.

        :returns: n strings, and how many of them are new
        """
        if self._key_id == self._primary_key_id:
            return array, 0
        renewed = self._kernel(self._primary_key_id).encrypt(self.decrypt(array))
        return renewed, len(array) - array.null_count

    def _fits(self, array: pa.Array, *, shortest: int) -> pa.BooleanArray:
        """Which values are made of alphabet and separators, with enough of the alphabet; null for null."""
        alphabet, separators = _character_class(self._characters), _character_class(self._separators)
        made = pc.match_substring_regex(array, f"^[{alphabet}{separators}]*$")
        length = pc.utf8_length(pc.replace_substring_regex(array, f"[^{alphabet}]", ""))
        enough = pc.and_(pc.greater_equal(length, shortest), pc.less_equal(length, LONGEST))
        return pc.and_(made, enough)

    def _kernel(self, key_id: int) -> Ff1Kernel:
        kernel = self._kernels.get(key_id)
        if kernel is None:
            require_enabled(self._keyset, key_id, place=self._place)
            kernel = self._kernels[key_id] = Ff1Kernel(
                self._keyset.material(key_id),
                tweak=self._tweak,
                alphabet=self._characters,
                separators=self._separators,
                place=self._place,
            )
        return kernel


def _character_class(characters: str) -> str:
    """The inside of a character class of RE2."""
    return "".join(f"\\x{{{ord(character):x}}}" for character in characters)
