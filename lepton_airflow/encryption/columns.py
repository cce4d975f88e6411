"""Protected columns of Arrow tables: one entry for the DataFrame road (Arrow UDFs) and the direct road (record batches).

A job plans on the driver, where :mod:`lepton_airflow.encryption.planning` gives the protectors by path, and works in tasks,
to which the protectors travel; a task holds no key until it opens the keyset with its own identity.
:func:`protected_schema`, :func:`revealed_schema` and :func:`rotated_schema` give Spark's schema of the result, the ``..._arrow``
functions Arrow's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import pyarrow as pa
from pyspark.sql import types as spark
from pyspark.sql.types import StructField, StructType

from lepton_airflow.encryption.associated_data import associated_data
from lepton_airflow.encryption.ciphers import ColumnCipher
from lepton_airflow.encryption.format_preserving import FormatPreservingCipher
from lepton_airflow.encryption.logical_type import type_of
from lepton_airflow.encryption.nested import Change, type_with_leaves, with_leaves
from lepton_airflow.encryption.paths import Path, path_text, walk, with_fields
from lepton_airflow.encryption.protection import METADATA_KEY, ProtectedColumn
from lepton_airflow.encryption.values import arrow_type_of, from_bytes, to_bytes
from lepton_airflow.errors import InvalidData
from lepton_airflow.keys.keyset import Keyset
from lepton_airflow.keys.reference import KeysetReference

OnError = Literal["fail", "null"]

#: Where Spark keeps the declared type of char and varchar columns, which are strings to it; and where we keep it meanwhile.
_CHAR_VARCHAR_KEY = "__CHAR_VARCHAR_TYPE_STRING"
_KEPT_CHAR_VARCHAR_KEY = "lepton.char_varchar"


class ColumnProtector:
    """Encrypts, decrypts and rotates one column of Arrow tables.

    Holds no key: it can be pickled, and opens the keyset where it is used, once in a process.

    :param protected: how the column is protected, as its field metadata says or will say
    :param keyset: where its keyset is
    :param primary_key_id: the key that encrypts, if it is not the one that is primary when the keyset is opened: so that all
        tasks of a job use the same
    """

    def __init__(
        self, protected: ProtectedColumn, keyset: KeysetReference, *, primary_key_id: int | None = None
    ) -> None:
        self.protected = protected
        self.keyset = keyset
        self.primary_key_id = primary_key_id
        self._opened: tuple[Keyset, ColumnCipher | FormatPreservingCipher] | None = None

    @property
    def path(self) -> Path:
        """The parts of the column's path."""
        return self.protected.path or (self.protected.column,)

    @property
    def place(self) -> str:
        """The dataset and column, for errors."""
        return place_of(self.protected.dataset, self.protected.column)

    @property
    def spark_type(self) -> spark.DataType:
        """The type of the values.

        :raises InvalidData: the metadata names no type
        """
        return type_of(self.protected.type, place=self.place)

    @property
    def protected_type(self) -> spark.DataType:
        """The type of the column while it is protected: FF1 keeps it, the others make it binary."""
        return self.spark_type if self.protected.cipher == "FF1" else spark.BinaryType()

    @property
    def deterministic(self) -> bool:
        """Whether equal values have equal ciphertexts."""
        return self.protected.cipher != "AES256_GCM"

    def protected_arrow_type(self, plain: pa.DataType) -> pa.DataType:
        """The Arrow type of the ciphertexts of values that are in an array of the type ``plain``."""
        large = pa.types.is_large_string(plain) or pa.types.is_large_binary(plain)
        if self.protected.cipher == "FF1":
            return pa.large_string() if large else pa.string()
        return pa.large_binary() if large else pa.binary()

    def pinned(self) -> ColumnProtector:
        """This protector with today's primary key for all tasks. Opens the keyset.

        :raises KeyUnavailable: no such keyset or identity, or the keyset is not sealed to it
        """
        return ColumnProtector(self.protected, self.keyset, primary_key_id=self.keyset.open().primary_key_id)

    def rotated(self) -> ProtectedColumn:
        """How the column is protected after :meth:`rotate`: as before, and for FF1 under the primary key.

        :raises ValueError: this protector is for FF1 and not :meth:`pinned`
        """
        if self.protected.cipher != "FF1":
            return self.protected
        if self.primary_key_id is None:
            raise ValueError("all tasks of a rotation use one key: pin the protector")
        return self.protected.model_copy(update={"key_id": self.primary_key_id})

    def encrypt(self, array: pa.Array | pa.ChunkedArray) -> pa.Array:
        """Encrypt every value.

        :param array: n values of :attr:`spark_type`, in any Arrow type that holds them without loss
        :returns: n ciphertexts, null where ``array`` is null
        :raises UnsupportedType: ``array`` is of another kind
        :raises InvalidData: a value does not fit the type, or the format that FF1 is to keep
        """
        cipher = self._cipher()
        if isinstance(cipher, FormatPreservingCipher):
            return cipher.encrypt(self._ciphertexts(array))
        return cipher.encrypt(to_bytes(array, self.spark_type, place=self.place, padding=self.protected.padding))

    def decrypt(self, array: pa.Array | pa.ChunkedArray, *, on_error: OnError = "fail") -> tuple[pa.Array, int]:
        """Decrypt every value.

        Bytes that are authentic and yet encode no value of the type fail always: that is the writer's error.

        :param array: n ciphertexts
        :param on_error: ``fail``, or ``null`` for values that were changed or moved or whose key is disabled, destroyed or
            unknown
        :returns: n values, in the Arrow type that Spark uses for :attr:`spark_type`, and how many ciphertexts became null
        :raises DecryptionFailed, KeyUnavailable: naming dataset, column and key id; none of the values leaves
        """
        cipher, ciphertexts, failed = self._cipher(), self._ciphertexts(array), 0
        if on_error == "fail":
            plaintexts = cipher.decrypt(ciphertexts)
        else:
            plaintexts, failed = cipher.decrypt_or_null(ciphertexts)
        if isinstance(cipher, FormatPreservingCipher):
            return plaintexts, failed
        values = from_bytes(plaintexts, self.spark_type, place=self.place, padding=self.protected.padding)
        return values, failed

    def rotate(self, array: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, int]:
        """Encrypt again, under the primary key, the values that are under another; the rest stays byte for byte.

        :returns: n ciphertexts, and how many of them are new
        :raises DecryptionFailed, KeyUnavailable: an old value cannot be decrypted
        """
        return self._cipher().rotate(self._ciphertexts(array))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _ciphertexts(self, array: pa.Array | pa.ChunkedArray) -> pa.Array:
        if self.protected.cipher == "FF1":
            text = to_bytes(array, spark.StringType(), place=self.place)
            return from_bytes(text, spark.StringType(), place=self.place)
        return to_bytes(array, spark.BinaryType(), place=self.place)

    def _cipher(self) -> ColumnCipher | FormatPreservingCipher:
        """The cipher, kept as long as the keyset's file is the same."""
        keyset = self.keyset.open()
        if self._opened is None or self._opened[0] is not keyset:
            cipher = self._cipher_of(keyset)
            self._opened = keyset, cipher
        return self._opened[1]

    def _cipher_of(self, keyset: Keyset) -> ColumnCipher | FormatPreservingCipher:
        protected, bound = self.protected, bound_data(self.protected)
        if protected.key_id is None or protected.alphabet is None or protected.separators is None:
            return ColumnCipher(keyset, bound, place=self.place, primary_key_id=self.primary_key_id)
        return FormatPreservingCipher(
            keyset,
            bound,
            characters=protected.alphabet,
            separators=protected.separators,
            key_id=protected.key_id,
            place=self.place,
            primary_key_id=self.primary_key_id,
        )


#: Protectors by the text of their path.
Protectors = Mapping[str, ColumnProtector]


def bound_data(protected: ProtectedColumn) -> bytes:
    """The associated data of a column's values."""
    return associated_data(
        protected.dataset,
        protected.column,
        protected.type,
        protected.domain,
        path=protected.path,
        padding=protected.padding.to_metadata() if protected.padding else None,
    )


def place_of(dataset: str, column: str) -> str:
    """How errors name a column."""
    return f"dataset {dataset!r}, column {column!r}"


def protected_schema(schema: StructType, protectors: Protectors) -> StructType:
    """Spark's schema of the protected table: each protected field says in its metadata how."""

    def protect(protector: ColumnProtector, field: StructField) -> StructField:
        metadata = {**field.metadata, METADATA_KEY: protector.protected.to_metadata()}
        return StructField(field.name, protector.protected_type, field.nullable, metadata)

    # Spark would take a protected column back to the length of the declared type when it is written to a table.
    return _with_moved_key(_changed(schema, protectors, protect), protectors, _CHAR_VARCHAR_KEY, _KEPT_CHAR_VARCHAR_KEY)


def revealed_schema(schema: StructType, protectors: Protectors, *, on_error: OnError = "fail") -> StructType:
    """Spark's schema of the table after decryption: exact types, other metadata as it was."""

    def reveal(protector: ColumnProtector, field: StructField) -> StructField:
        metadata = {key: value for key, value in field.metadata.items() if key != METADATA_KEY}
        return StructField(field.name, protector.spark_type, field.nullable or on_error == "null", metadata)

    revealed = _changed(schema, protectors, reveal)
    still = {path_text(path[:1]) for path, field in walk(revealed) if METADATA_KEY in field.metadata}
    whole = {text: protector for text, protector in protectors.items() if protector.path[0] not in still}
    return _with_moved_key(revealed, whole, _KEPT_CHAR_VARCHAR_KEY, _CHAR_VARCHAR_KEY)


def rotated_schema(schema: StructType, protectors: Protectors) -> StructType:
    """Spark's schema of the table after rotation."""

    def rotate(protector: ColumnProtector, field: StructField) -> StructField:
        metadata = {**field.metadata, METADATA_KEY: protector.rotated().to_metadata()}
        return StructField(field.name, field.dataType, field.nullable, metadata)

    return _changed(schema, protectors, rotate)


def protected_arrow(schema: pa.Schema, protectors: Protectors) -> pa.Schema:
    """Arrow's schema of what :func:`protect_batch` gives for batches of ``schema``."""
    return _changed_arrow(schema, protectors, lambda protector, kind: protector.protected_arrow_type(kind))


def revealed_arrow(schema: pa.Schema, protectors: Protectors) -> pa.Schema:
    """Arrow's schema of what :func:`reveal_batch` gives for batches of ``schema``."""
    return _changed_arrow(schema, protectors, lambda protector, _: arrow_type_of(protector.spark_type))


def protect_batch(batch: pa.RecordBatch, protectors: Protectors) -> pa.RecordBatch:
    """Encrypt columns of a batch. The other columns are passed on, not copied."""
    changes: dict[str, Change] = {text: protector.encrypt for text, protector in protectors.items()}
    return _changed_batch(batch, changes, protectors, schema=protected_arrow(batch.schema, protectors))


def reveal_batch(
    batch: pa.RecordBatch, protectors: Protectors, *, on_error: OnError = "fail"
) -> tuple[pa.RecordBatch, dict[str, int]]:
    """Decrypt columns of a batch.

    :returns: the batch, and by path how many ciphertexts became null
    """
    failed = dict.fromkeys(protectors, 0)

    def reveal(text: str, array: pa.Array) -> pa.Array:
        values, failed[text] = protectors[text].decrypt(array, on_error=on_error)
        return values

    changes: dict[str, Change] = {text: partial(reveal, text) for text in protectors}
    schema = revealed_arrow(batch.schema, protectors)
    return _changed_batch(batch, changes, protectors, schema=schema), failed


def rotate_batch(batch: pa.RecordBatch, protectors: Protectors) -> tuple[pa.RecordBatch, dict[str, int]]:
    """Encrypt again the values of a batch that are not under the primary key.

    :returns: the batch, and by path how many values were encrypted again
    """
    renewed = dict.fromkeys(protectors, 0)

    def rotate(text: str, array: pa.Array) -> pa.Array:
        values, renewed[text] = protectors[text].rotate(array)
        return values

    changes: dict[str, Change] = {text: partial(rotate, text) for text in protectors}
    return _changed_batch(batch, changes, protectors, schema=batch.schema), renewed


def with_columns(array: pa.Array, column: str, changes: Mapping[Path, Change]) -> pa.Array:
    """A top-level column with what is at some full paths changed."""
    below = {path[1:]: change for path, change in changes.items() if path[0] == column}
    return with_leaves(array, below) if below else array


def _changed_batch(
    batch: pa.RecordBatch, changes: Mapping[str, Change], protectors: Protectors, *, schema: pa.Schema
) -> pa.RecordBatch:
    by_path = {protectors[text].path: change for text, change in changes.items()}
    arrays = [
        _of_type(with_columns(array, field.name, by_path), field)
        for array, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _of_type(array: pa.Array, field: pa.Field) -> pa.Array:
    if array.type.equals(field.type):
        return array
    try:
        return array.cast(field.type)
    except pa.ArrowInvalid:
        raise InvalidData(
            f"A batch of {len(array)} rows takes more than 2 GiB.",
            place=f"column {field.name!r}",
            remedy="Work on fewer rows at a time.",
        ) from None


def _changed_arrow(
    schema: pa.Schema, protectors: Protectors, change: Callable[[ColumnProtector, pa.DataType], pa.DataType]
) -> pa.Schema:
    fields = []
    for field in schema:
        below = {
            protector.path[1:]: partial(change, protector)
            for protector in protectors.values()
            if protector.path[0] == field.name
        }
        fields.append(field.with_type(type_with_leaves(field.type, below)) if below else field)
    return pa.schema(fields, metadata=schema.metadata)


def _changed(
    schema: StructType, protectors: Protectors, change: Callable[[ColumnProtector, StructField], StructField]
) -> StructType:
    return with_fields(schema, {protector.path: partial(change, protector) for protector in protectors.values()})


def _with_moved_key(schema: StructType, protectors: Protectors, old: str, new: str) -> StructType:
    """The metadata under ``old`` of the top-level fields that hold protected ones, put under ``new``."""
    holders = {protector.path[0] for protector in protectors.values()}
    fields = []
    for field in schema.fields:
        metadata = field.metadata
        if field.name in holders and old in metadata:
            metadata = {new if key == old else key: value for key, value in metadata.items()}
        fields.append(StructField(field.name, field.dataType, field.nullable, metadata))
    return StructType(fields)
