"""FF1 format-preserving encryption (NIST SP 800-38G) over whole Arrow arrays of text.

A value keeps its length, its alphabet and its separators: ``4111-1111-1111-1111`` becomes another such number. Equal values have
equal ciphertexts, nothing tells whether a ciphertext was changed, and a value of few characters can be guessed: where the
format does not matter, AES-256-GCM or AES-256-SIV is the better choice. Domains of fewer than 1,000,000 strings are refused,
as SP 800-38G, revision 1, demands.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lepton_airflow.encryption.kernels.alphabet import Alphabet, Characters, Numerals, code_points, utf8
from lepton_airflow.encryption.kernels.columns import INT32_MAX, BinaryColumn, Bytes, Index, item_of, windows
from lepton_airflow.encryption.kernels.feistel import Feistel
from lepton_airflow.errors import InvalidData, UnsupportedType

DIGITS = "0123456789"

#: Strings that a value must be one of.
SMALLEST_DOMAIN = 1_000_000
#: Characters of an alphabet in one value: the cost of a long value grows with the square of its length.
LONGEST = 4_096

_KEY_BYTES = (16, 24, 32)


class Ff1Kernel:
    """FF1 under one key, for values that share alphabet and tweak. May be shared between threads.

    :param key: 32 bytes; 16 and 24, which the standard allows, too
    :param tweak: public bytes that make equal values differ between columns or tables
    :param alphabet: the characters that are enciphered, in the order of their numerals
    :param separators: characters that keep their places; any other character is an error
    :param place: the dataset and column, for errors
    :raises SpecError: the alphabet is not one
    :ivar shortest: characters of the alphabet that a value has at least
    """

    def __init__(
        self,
        key: bytes,
        *,
        tweak: bytes = b"",
        alphabet: str = DIGITS,
        separators: str = "",
        place: str = "format-preserving encryption",
    ) -> None:
        if len(key) not in _KEY_BYTES:
            raise ValueError("AES takes a key of 16, 24 or 32 bytes")
        self._alphabet = Alphabet(alphabet, separators=separators, place=place)
        self._feistel = Feistel(key, radix=self._alphabet.radix, tweak=tweak)
        self._place = place
        self.shortest = next(n for n in range(2, 21) if self._alphabet.radix**n >= SMALLEST_DOMAIN)

    def encrypt(self, array: pa.Array) -> pa.Array:
        """Encipher every value.

        :param array: n strings or nulls with 32-bit or 64-bit offsets, possibly sliced
        :returns: n strings, null where ``array`` is null
        :raises InvalidData: a value has too few or too many characters of the alphabet, or one that is not in it
        :raises UnsupportedType: ``array`` is of another type
        """
        return self._apply(array, decrypt=False)

    def decrypt(self, array: pa.Array) -> pa.Array:
        """Decipher every value: the inverse of :meth:`encrypt`. FF1 cannot tell a changed value or a wrong key.

        :raises InvalidData: a value cannot be a result of :meth:`encrypt`
        :raises UnsupportedType: ``array`` is of another type
        """
        return self._apply(array, decrypt=True)

    def _apply(self, array: pa.Array, *, decrypt: bool) -> pa.Array:
        if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
            raise UnsupportedType(
                f"Format-preserving encryption takes text, not {array.type}.",
                place=self._place,
                remedy="Choose AES256_GCM or AES256_SIV for this column, or convert it to string first.",
            )
        column = BinaryColumn(array)
        if column.has_nulls and sum(int(span.lengths.sum()) for span in column.spans()) != column.size:
            # Text is hidden under nulls, which must not reach the output. Taking every row leaves it behind.
            column = BinaryColumn(array.take(pa.array(np.arange(len(array)))))
        offsets = np.zeros(column.rows + 1, np.int64)
        room = pa.allocate_buffer(column.size) if self._alphabet.ascii else None
        sink = pa.BufferOutputStream() if room is None else pa.FixedSizeBufferWriter(room)
        for span in column.spans():
            text = column.data[column.offsets[span.first] : column.offsets[span.stop]]
            bounds = column.offsets[span.first : span.stop + 1].astype(np.int64) - int(column.offsets[span.first])
            if self._alphabet.ascii:
                written: Bytes | bytes = self._apply_to_text(text, bounds, span.present, decrypt=decrypt)
            else:
                points, bounds = code_points(text, bounds)
                written, bounds = utf8(self._apply_to_text(points, bounds, span.present, decrypt=decrypt), bounds)
            sink.write(written)
            np.add(bounds, offsets[span.first], out=offsets[span.first : span.stop + 1])
        data = sink.getvalue() if room is None else room
        large = column.large or int(offsets[-1]) > INT32_MAX  # other characters may take more bytes
        offsets = offsets if large else offsets.astype(np.int32)
        kind = pa.large_string() if large else pa.string()
        return pa.Array.from_buffers(kind, column.rows, [column.validity(), pa.py_buffer(offsets), data])

    def _apply_to_text(self, text: Characters, bounds: Index, present: Index | None, *, decrypt: bool) -> Characters:
        """Encipher or decipher the characters of the alphabet in some values.

        :param text: the characters of the values, back to back
        :param bounds: (rows + 1) where each value begins and ends; a null is empty
        :param present: the rows that are not null, None for all
        :returns: as many characters
        """
        alphabet = self._alphabet
        numerals = alphabet.numerals(text)
        largest = int(numerals.max(initial=0))
        if largest == alphabet.foreign:
            rows = np.searchsorted(bounds, np.flatnonzero(numerals == alphabet.foreign), side="right")
            self._refuse(len(np.unique(rows)), "with a character that is neither in the alphabet nor a separator")
        if largest != alphabet.separator:
            return alphabet.characters(self._apply_to_numerals(numerals, bounds, present, decrypt=decrypt))
        enciphered = numerals != alphabet.separator
        before = np.zeros(text.size + 1, np.int64)
        np.cumsum(enciphered, out=before[1:])
        result = text.copy()
        result[enciphered] = alphabet.characters(
            self._apply_to_numerals(numerals[enciphered], before[bounds], present, decrypt=decrypt)
        )
        return result

    def _apply_to_numerals(
        self, numerals: Numerals, bounds: Index, present: Index | None, *, decrypt: bool
    ) -> Numerals:
        """The same for the numerals of the values, without separators."""
        starts, lengths = bounds[:-1], np.diff(bounds)
        if present is not None:
            starts, lengths = starts[present], lengths[present]
        if not lengths.size:
            return numerals
        if int(lengths.min()) < self.shortest:
            self._refuse(
                int((lengths < self.shortest).sum()),
                f"of fewer than {self.shortest} characters of the alphabet (a domain below {SMALLEST_DOMAIN:,})",
            )
        if int(lengths.max()) > LONGEST:
            self._refuse(int((lengths > LONGEST).sum()), f"of more than {LONGEST:,} characters of the alphabet")
        if lengths.min() == lengths.max():
            return self._feistel.apply(numerals.reshape(lengths.size, -1), decrypt=decrypt).reshape(-1)
        result = np.empty_like(numerals)
        source, target, width = numerals.view(np.uint8), result.view(np.uint8), numerals.itemsize
        order = np.argsort(lengths.astype(np.uint16), kind="stable")  # a radix sort
        found, edges = np.unique(lengths[order], return_index=True)
        for length, rows in zip(found.tolist(), np.split(order, edges[1:]), strict=True):
            addresses = starts[rows] * width
            strings = windows(source, length * width)[addresses].view(numerals.dtype).reshape(-1, length)
            changed = self._feistel.apply(strings, decrypt=decrypt)
            windows(target, length * width)[addresses] = changed.view(item_of(length * width)).reshape(-1)
        return result

    def _refuse(self, count: int, what: str) -> None:
        raise InvalidData(
            f"There are values ({count} in this batch) {what}; FF1 does not encrypt such.",
            place=self._place,
            remedy="Clean the column, choose a larger alphabet or other separators, or protect it with AES256_GCM or AES256_SIV.",
        )
