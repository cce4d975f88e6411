"""Characters and numerals: which characters of a text are enciphered, which pass through, and how both are told apart quickly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lepton_airflow.encryption.kernels.columns import Bytes, Index
from lepton_airflow.errors import SpecError

#: Characters as bytes (when all that matter are ASCII) or as code points.
Characters = npt.NDArray[np.unsignedinteger]
Numerals = npt.NDArray[np.unsignedinteger]

_LARGEST_RADIX = 1 << 16  # SP 800-38G


class Alphabet:
    """An ordered set of characters that stand for the numerals 0, 1, ..., and the separators that pass through.

    :param characters: 2 to 65,536 different characters; the order is part of the format
    :param separators: characters that keep their places
    :param place: the dataset and column, for errors
    :raises SpecError: too few or too many characters, or one that is named twice
    :ivar ascii: whether all characters are ASCII, so that texts can be worked on as bytes
    :ivar separator, foreign: what :meth:`numerals` gives for a separator and for any other character
    """

    def __init__(self, characters: str, *, separators: str, place: str) -> None:
        self.radix = len(characters)
        if not 2 <= self.radix <= _LARGEST_RADIX or len(set(characters + separators)) != self.radix + len(separators):
            raise SpecError(
                f"An alphabet has 2 to {_LARGEST_RADIX} characters, and no character of it or of the separators is named twice.",
                place=place,
                remedy="Correct `alphabet` or `separators`.",
            )
        if any(0xD800 <= ord(character) < 0xE000 for character in characters + separators):
            raise SpecError(
                "A surrogate is half of a character.", place=place, remedy="Correct `alphabet` or `separators`."
            )
        points = np.array([ord(character) for character in characters], np.uint32)
        passing = np.array([ord(character) for character in separators], np.uint32)
        largest = int(max(points.max(), passing.max(initial=0)))
        self.ascii = largest < 128
        kind = np.dtype(np.uint8 if self.ascii else np.uint32)
        self.separator, self.foreign = (254, 255) if self.ascii else (_LARGEST_RADIX, _LARGEST_RADIX + 1)
        self._last = 255 if self.ascii else largest + 1  # stands for all code points that are larger
        self._numerals = np.full(self._last + 1, self.foreign, kind)
        self._numerals[points] = np.arange(self.radix)
        self._numerals[passing] = self.separator
        self._characters = points.astype(kind)

    def numerals(self, text: Characters) -> Numerals:
        """The numeral of each character, :attr:`separator` or :attr:`foreign`, in the type of ``text``."""
        if not self.ascii:
            text = np.minimum(text, np.uint32(self._last))
        return self._numerals.take(text, mode="wrap")

    def characters(self, numerals: Numerals) -> Characters:
        """The character of each numeral."""
        return self._characters.take(numerals, mode="wrap")


def code_points(text: Bytes, offsets: Index) -> tuple[Characters, Index]:
    """UTF-8 and offsets in bytes, as code points and offsets in characters.

    :raises UnicodeDecodeError: ``text`` is not UTF-8
    """
    points = np.frombuffer(text.tobytes().decode("utf-8").encode("utf-32-le"), "<u4")
    begins = np.zeros(text.size + 1, np.int64)
    np.cumsum(text & 0xC0 != 0x80, out=begins[1:])
    return points, begins[offsets]


def utf8(points: Characters, offsets: Index) -> tuple[bytes, Index]:
    """Code points and offsets in characters, as UTF-8 and offsets in bytes."""
    ends = np.zeros(points.size + 1, np.int64)
    widths = np.ones(points.size, np.int64)
    for first_of_width in (0x80, 0x800, 0x10000):
        widths += points >= first_of_width
    np.cumsum(widths, out=ends[1:])
    return points.astype("<u4").tobytes().decode("utf-32-le").encode("utf-8"), ends[offsets]
