"""Which columns of a table to protect, decrypt or rotate, and how: decided on the driver, before any row is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from pyspark.sql.types import StringType, StructField, StructType

from lepton_airflow.encryption.columns import ColumnProtector, place_of
from lepton_airflow.encryption.logical_type import type_text
from lepton_airflow.encryption.paths import Path, field_at, path_text, resolve, walk
from lepton_airflow.encryption.protection import METADATA_KEY, ProtectedColumn, Protection
from lepton_airflow.encryption.values import check_supported
from lepton_airflow.errors import InvalidData, SpecError, UnsupportedType
from lepton_airflow.keys.reference import KeysetReference


def plan_protection(
    schema: StructType, *, dataset: str, protections: Mapping[str, Protection], keysets: Mapping[str, KeysetReference]
) -> dict[str, ColumnProtector]:
    """The protectors for what a spec asks. Opens the keysets, so that a missing key is reported before any work.

    :param schema: of the table in the clear
    :param dataset: the name to which the values are bound
    :param protections: how, by column or path
    :param keysets: under which keyset, by cipher
    :raises MissingColumn: a column is not in ``schema``
    :raises UnsupportedType: a column's type has no byte form
    :raises SpecError: a column is protected already, lies within another one that is named, or there is no keyset for its cipher
    :raises KeyUnavailable: a keyset cannot be opened
    """
    paths = {text: resolve(schema, text, dataset=dataset) for text in protections}
    planned = {}
    for text, path in paths.items():
        field, column = field_at(schema, path), path_text(path)
        place, protection = place_of(dataset, column), protections[text]
        check_supported(field.dataType, place=place)
        _require_apart(path, [other for name, other in paths.items() if name != text], place=place)
        _require_unprotected(schema, path, place=place)
        if len(path) > 1 and column in schema.names:
            raise SpecError(
                "There is a column of that very name beside the nested field.",
                place=place,
                remedy="Rename one of them, so that each can be found again.",
            )
        if protection.cipher not in keysets:
            raise SpecError(
                f"There is no keyset for {protection.cipher}.",
                place=place,
                remedy=f"Create one with `lepton keys create <name> --cipher {protection.cipher}`.",
            )
        keyset = keysets[protection.cipher]
        primary_key_id = keyset.open().primary_key_id
        of_ff1: dict[str, Any] = {}
        if protection.cipher == "FF1":
            _require_text(field, place=place)
            of_ff1 = {
                "alphabet": protection.characters,
                "separators": protection.passing,
                "key_id": primary_key_id,
            }
        protected = ProtectedColumn(
            cipher=protection.cipher,
            keyset=keyset.name,
            dataset=dataset,
            column=column,
            path=path if len(path) > 1 else None,
            type=type_text(field.dataType),
            domain=protection.domain,
            padding=protection.padding,
            **of_ff1,
        )
        planned[column] = ColumnProtector(protected, keyset, primary_key_id=primary_key_id)
    return planned


def protections_of(schema: StructType) -> dict[str, ProtectedColumn]:
    """How each protected column or nested field of a schema is protected, by the text of its path.

    :raises InvalidData: one is protected in a way that this version does not know
    """
    found = {}
    for path, field in walk(schema):
        text = path_text(path)
        protected = ProtectedColumn.from_metadata(field.metadata, column=text)
        if protected is not None:
            found[text] = protected
    return found


def protectors_of(
    schema: StructType,
    *,
    keyring: FilePath,
    identity_file: FilePath,
    columns: Sequence[str] | None = None,
    dataset: str | None = None,
) -> dict[str, ColumnProtector]:
    """The protectors of a protected table, to decrypt or rotate it. Opens the keysets.

    :param schema: with the field metadata of the protected table
    :param keyring: the folder of the file keyring
    :param identity_file: the private identity's file, on every machine that decrypts
    :param columns: columns or paths; all that are protected by default
    :param dataset: the dataset that the caller is allowed to read. Given it, a column that was encrypted for another
        dataset is refused: the metadata is not authenticated, so permission must not follow from it
    :raises MissingColumn: a column is not in ``schema``
    :raises SpecError: a column is not protected
    :raises InvalidData: a column was renamed, or encrypted for another dataset, or is no longer of the protected type
    :raises KeyUnavailable: a keyset cannot be opened
    """
    protected_columns = protections_of(schema)
    found = {}
    for named in protected_columns if columns is None else columns:
        path = resolve(schema, named, dataset=dataset or "table")
        text, field = path_text(path), field_at(schema, path)
        protected = _revealable(protected_columns.get(text), text=text, dataset=dataset)
        keyset = KeysetReference(
            keyring=str(keyring), name=protected.keyset, cipher=protected.cipher, identity_file=str(identity_file)
        )
        protector = ColumnProtector(protected, keyset)
        check_supported(protector.spark_type, place=protector.place)
        if field.dataType != protector.protected_type:
            raise InvalidData(
                f"The protected column is {field.dataType.simpleString()} and not "
                f"{protector.protected_type.simpleString()}.",
                place=protector.place,
                remedy="Decrypt the column as it was written, before casting it.",
            )
        found[text] = protector.pinned()
    return found


def _require_apart(path: Path, others: Sequence[Path], *, place: str) -> None:
    """Refuse two protections of which one lies within the other."""
    for other in others:
        if path[: len(other)] == other:
            raise SpecError(
                f"The column lies within {path_text(other)!r}, which is protected too."
                if path != other
                else "The column is named twice.",
                place=place,
                remedy="Protect the whole or its parts.",
            )


def _require_text(field: StructField, *, place: str) -> None:
    if not isinstance(field.dataType, StringType):
        raise UnsupportedType(
            f"FF1 keeps the format of text, and the column is {field.dataType.simpleString()}.",
            place=place,
            remedy="Cast the column to string first, or protect it with AES256_GCM or AES256_SIV.",
        )


def _require_unprotected(schema: StructType, path: Path, *, place: str) -> None:
    """Refuse to protect what is protected, or holds or lies in what is."""
    for other, field in walk(schema):
        if METADATA_KEY in field.metadata and (other[: len(path)] == path or path[: len(other)] == other):
            raise SpecError(
                "The column is protected already.", place=place, remedy="Leave it out, or decrypt the table first."
            )


def _revealable(protected: ProtectedColumn | None, *, text: str, dataset: str | None) -> ProtectedColumn:
    place = place_of(dataset or (protected.dataset if protected else "table"), text)
    if protected is None:
        raise SpecError(
            "The column is not protected, or its protection was lost on the way.",
            place=place,
            remedy="Read the table from a format that keeps field metadata, such as Parquet, or leave the column out.",
        )
    if protected.column != text or path_text(protected.path or (protected.column,)) != text:
        raise InvalidData(
            f"The column was encrypted under the name {protected.column!r}, and its values are bound to that name.",
            place=place,
            remedy=f"Rename it back to {protected.column!r}, and again after decrypting.",
        )
    if dataset is not None and protected.dataset != dataset:
        raise InvalidData(
            f"The column was encrypted for the dataset {protected.dataset!r}.",
            place=place,
            remedy="Ask for that dataset, which needs its own permission.",
        )
    return protected
