"""What a spec asks for a column, and what a protected column says of itself."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lepton_airflow.errors import InvalidData
from lepton_airflow.keys.cipher import Cipher

#: The key under which a protected column carries its :class:`ProtectedColumn` in Spark's field metadata.
METADATA_KEY = "lepton"


#: The separators of FF1 unless others are named: what stands between digits in telephone, card and insurance numbers.
SEPARATORS = " +-./()"
_DIGITS = "0123456789"
_LARGEST_PADDING = 1 << 20


class Padding(BaseModel):
    """Hide how long values are: each is lengthened before encryption, so that only a few lengths are left to see.

    :param to: bytes: each value is lengthened to a multiple of it
    :param buckets: bytes, ascending: each value is lengthened to the first bucket that holds it, and one that is longer than
        all to a multiple of the last. A value takes four bytes more than its own
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    to: int | None = Field(default=None, ge=2, le=_LARGEST_PADDING)
    buckets: tuple[Annotated[int, Field(ge=4, le=_LARGEST_PADDING)], ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.to is None) == (self.buckets is None):
            raise ValueError("padding is either `to` a multiple or into `buckets`")
        if self.buckets is not None and any(size >= larger for size, larger in pairwise(self.buckets)):
            raise ValueError("buckets ascend")
        return self

    def to_metadata(self) -> dict[str, Any]:
        """As it stands in field metadata and in associated data."""
        return self.model_dump(mode="json", exclude_none=True)


class Protection(BaseModel):
    """How to protect one column.

    :param cipher: ``AES256_GCM`` is randomised: equal values look different. ``AES256_SIV`` is deterministic: equal
        values look equal, which joins and counts need and which shows how often a value occurs. ``FF1`` keeps the format: a
        text of digits becomes another text of as many digits. It is deterministic too, and **not authenticated**: nobody can
        tell a changed value, and a wrong key gives wrong values and no error. Only for what must keep its format
    :param domain: for the deterministic ciphers: columns that name the same domain, have the same type and are encrypted
        under the same keyset can be joined with each other. Without it a column is joined with itself only
    :param alphabet: for ``FF1``: ``digits``, or the characters themselves, which values are made of
    :param separators: for ``FF1``: the characters that stay as they are; by default :data:`SEPARATORS`, without those of the
        alphabet. Any other character is an error
    :param padding: hides the lengths of values; not for ``FF1``, which shows them by its nature
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cipher: Cipher = "AES256_GCM"
    domain: str | None = Field(default=None, min_length=1)
    alphabet: str = Field(default="digits", min_length=2)
    separators: str | None = None
    padding: Padding | None = None

    @property
    def characters(self) -> str:
        """The alphabet's characters, in the order of their numerals."""
        return _DIGITS if self.alphabet == "digits" else self.alphabet

    @property
    def passing(self) -> str:
        """The separators, in the order of their code points."""
        chosen = set(SEPARATORS) - set(self.characters) if self.separators is None else set(self.separators)
        return "".join(sorted(chosen))

    @model_validator(mode="after")
    def _parts_fit_the_cipher(self) -> Self:
        if self.domain is not None and self.cipher == "AES256_GCM":
            raise ValueError("a domain is for AES256_SIV and FF1: randomised values cannot be joined")
        if self.cipher == "FF1":
            if self.padding is not None:
                raise ValueError("padding is not for FF1, which keeps lengths")
            if len(set(self.characters)) != len(self.characters) or set(self.characters) & set(self.passing):
                raise ValueError("a character of the alphabet is named twice, or is a separator too")
        elif self.model_fields_set & {"alphabet", "separators"}:
            raise ValueError("alphabet and separators are for FF1")
        return self


class ProtectedColumn(BaseModel):
    """What is needed to decrypt a column, besides the keys. Public: it travels in the table's schema, unauthenticated.

    For the authenticated ciphers what it says cannot mislead a reader into a wrong value: dataset, column, type, domain and
    padding are bound into each ciphertext, and another keyset has other keys. ``FF1`` has no such protection.

    :param dataset: the dataset for which the column was encrypted
    :param column: the name it had then; for a nested field its path, such as ``address.street``
    :param path: the parts of the path of a nested field
    :param type: its Spark type, as :func:`lepton_airflow.encryption.logical_type.type_text` writes it
    :param alphabet: for FF1, the characters in the order of their numerals; ``separators`` those that stay
    :param key_id: for FF1, the key, which its values cannot name
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    cipher: Cipher
    keyset: str
    dataset: str
    column: str
    path: tuple[str, ...] | None = Field(default=None, min_length=2)
    type: str
    domain: str | None = None
    padding: Padding | None = None
    alphabet: str | None = None
    separators: str | None = None
    key_id: int | None = None

    @model_validator(mode="after")
    def _parts_fit_the_cipher(self) -> Self:
        of_ff1 = (self.alphabet, self.separators, self.key_id)
        if (None in of_ff1) if self.cipher == "FF1" else any(part is not None for part in of_ff1):
            raise ValueError("alphabet, separators and key_id are said for FF1 only, and all of them")
        return self

    def to_metadata(self) -> dict[str, Any]:
        """The value to store in field metadata under :data:`METADATA_KEY`."""
        return self.model_dump(mode="json", exclude_none=True)

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any], *, column: str) -> ProtectedColumn | None:
        """Read a field's metadata; None when the field is not protected.

        :raises InvalidData: it is protected in a way that this version does not know
        """
        if METADATA_KEY not in metadata:
            return None
        try:
            return cls.model_validate(metadata[METADATA_KEY])
        except ValidationError as error:
            fields = ", ".join(".".join(str(part) for part in problem["loc"]) for problem in error.errors())
            raise InvalidData(
                f"The metadata of the protected column cannot be read ({fields}).",
                place=f"column {column!r}",
                remedy="Read the table as it was written, or with the version of lepton-airflow that wrote it.",
            ) from None
