"""Parquet datasets as the direct road sees them: files, row groups and one schema, read from footers alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from pyspark.sql import types as spark

from lepton_airflow.columnar.files import CannotOpen, open_place
from lepton_airflow.columnar.parquet_encryption import FileKeys, keyset_of, reading
from lepton_airflow.columnar.types import arrow_type, same_values

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

#: Where Spark writes the schema of a table, with exact types and field metadata, into each Parquet file.
SPARK_SCHEMA_KEY = b"org.apache.spark.sql.parquet.row.metadata"
SPARK_VERSION_KEY = b"org.apache.spark.version"
#: Marks of dates and times in the hybrid calendar of Spark 2 and Hive, which Spark recomputes as it reads.
_HYBRID_CALENDAR_KEYS = (b"org.apache.spark.legacyDateTime", b"org.apache.spark.legacyINT96")
_OLDEST_SPARK = 3
#: INT96 time stamps as Spark reads them: their range in nanoseconds would be too short.
READ_AS_SPARK: Mapping[str, str] = {"coerce_int96_timestamp_unit": "us"}
_DATED = (spark.DateType, spark.TimestampType, spark.TimestampNTZType)
_FOOTER_READERS = 16
_DICTIONARY_ENCODINGS = {"PLAIN_DICTIONARY", "RLE_DICTIONARY"}


#: The names that lead to a field, without the groups that Parquet puts around elements of arrays and maps.
FieldPath = tuple[str, ...]


class NotOnDirectRoad(Exception):
    """Internal: the direct road does not lead to this table. Its text is the reason, in a few words, free of data."""


@dataclass(frozen=True)
class RowGroup:
    """One row group.

    :ivar uri: of its file
    :ivar index: in the file
    :ivar size: uncompressed bytes, as encoded
    """

    uri: str
    index: int
    rows: int
    size: int


@dataclass(frozen=True)
class ParquetTable:
    """A table whose row groups can be read by themselves.

    :ivar schema: Spark's, with field metadata
    :ivar row_groups: in the order of Spark's files
    :ivar dictionaries: paths of the leaf columns that have a dictionary
    :ivar file_keys: what opens the files, if they are encrypted
    :ivar values: by path of a leaf column, how many values it holds, nulls among them; more than rows below arrays
    """

    schema: spark.StructType
    row_groups: tuple[RowGroup, ...]
    dictionaries: frozenset[FieldPath]
    values: Mapping[FieldPath, int]
    file_keys: FileKeys | None = None

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.row_groups)


def open_table(frame: DataFrame) -> ParquetTable:
    """The table that Spark would read, from the files that Spark would read.

    :param frame: a DataFrame as ``spark.read.parquet(path)`` gives it
    :raises NotOnDirectRoad: pyarrow cannot open the files, or would read other values than Spark
    """
    schema = frame.schema
    uris = frame.inputFiles()
    if not uris:
        return ParquetTable(schema, (), frozenset(), {})
    try:
        open_place(uris[0])
    except CannotOpen as reason:
        raise NotOnDirectRoad(str(reason)) from None
    dated = any(isinstance(kind, _DATED) for kind in _leaves(schema))
    rebased = dated and "LEGACY" in (
        frame.sparkSession.conf.get("spark.sql.parquet.datetimeRebaseModeInRead"),
        frame.sparkSession.conf.get("spark.sql.parquet.int96RebaseModeInRead"),
    )
    if rebased:
        raise NotOnDirectRoad("the session reads dates in the hybrid calendar")
    return _table(uris, schema, dated=dated)


def open_encrypted_table(folder: str, file_keys: FileKeys) -> ParquetTable | None:
    """The table of encrypted files that the direct road wrote; None if what is there is no such table.

    Spark cannot open these files, so its schema is taken from their footers, where the writer put it.

    :param folder: URI of a folder of files, or of one file
    :raises NotOnDirectRoad: some files are not encrypted, or they have different columns
    :raises KeyUnavailable: the identity cannot open the keyset that the files name
    :raises DecryptionFailed: a footer is not authentic
    """
    try:
        files, path = open_place(folder)
        found = files.get_file_info(fs.FileSelector(path, allow_not_found=True))
    except (CannotOpen, OSError):
        return None
    names = sorted(info.base_name for info in found if info.is_file and info.base_name[0] not in "._")
    if not names:
        return None
    uris = [f"{folder.rstrip('/')}/{quote(name)}" for name in names]
    keysets = {_keyset_of(files, f"{path}/{name}") for name in names}
    if keysets == {None}:
        return None
    if len(keysets) > 1:
        raise NotOnDirectRoad("the files are encrypted under several keysets, or some are not")
    opening = replace(file_keys, keyset=keysets.pop())
    footer, _ = _footer(uris[0], opening)
    text = (footer.metadata or {}).get(SPARK_SCHEMA_KEY)
    if text is None:
        raise NotOnDirectRoad("the files do not say their schema")
    return _table(uris, spark.StructType.fromJson(json.loads(text)), dated=False, file_keys=opening)


def _keyset_of(files: fs.FileSystem, path: str) -> str | None:
    with files.open_input_file(path) as file:
        return keyset_of(file)


def _table(
    uris: Sequence[str], schema: spark.StructType, *, dated: bool, file_keys: FileKeys | None = None
) -> ParquetTable:
    with ThreadPoolExecutor(_FOOTER_READERS) as readers:
        footers = list(readers.map(lambda uri: _footer(uri, file_keys), uris))
    for footer, stored in footers:
        _check_columns(stored, schema)
        _check_calendar(footer.metadata or {}, dated=dated)
    groups = [
        RowGroup(uri, index, footer.row_group(index).num_rows, footer.row_group(index).total_byte_size)
        for uri, (footer, _) in zip(uris, footers, strict=True)
        for index in range(footer.num_row_groups)
    ]
    chunks = [
        (field_path(chunk.path_in_schema), chunk)
        for footer, _ in footers
        for group in map(footer.row_group, range(footer.num_row_groups))
        for chunk in map(group.column, range(group.num_columns))
    ]
    values = Counter[FieldPath]()
    for path, chunk in chunks:
        values[path] += chunk.num_values
    return ParquetTable(
        schema=schema,
        row_groups=tuple(group for group in groups if group.rows),
        dictionaries=frozenset(path for path, chunk in chunks if _DICTIONARY_ENCODINGS & set(chunk.encodings)),
        values=values,
        file_keys=file_keys,
    )


def field_path(leaf: str) -> FieldPath:
    """The path of the field that a leaf column of a Parquet file belongs to. It is a hint: names may contain dots."""
    return tuple(
        leaf.replace(".list.element", "").replace(".key_value.key", "").replace(".key_value.value", "").split(".")
    )


def spark_metadata(schema: spark.StructType, version: str) -> dict[bytes, bytes]:
    """What a file's footer says so that Spark reads it with exactly this schema, and dates without recomputing them."""
    return {SPARK_SCHEMA_KEY: json.dumps(schema.jsonValue()).encode(), SPARK_VERSION_KEY: version.encode()}


def _footer(uri: str, file_keys: FileKeys | None) -> tuple[pq.FileMetaData, pa.Schema]:
    try:
        files, path = open_place(uri)
        with files.open_input_file(path) as file:
            opened = pq.ParquetFile(file, decryption_properties=reading(file_keys), **READ_AS_SPARK)
            return opened.metadata, opened.schema_arrow
    except (CannotOpen, OSError, pa.ArrowException):
        raise NotOnDirectRoad("pyarrow cannot read the footer of a file") from None


def _check_columns(stored: pa.Schema, schema: spark.StructType) -> None:
    if stored.names != schema.names:
        raise NotOnDirectRoad("the files' columns are not the table's (partition folders, or files that differ)")
    for field in schema.fields:
        wanted = arrow_type(field.dataType)
        if wanted is None:
            raise NotOnDirectRoad(f"the type {field.dataType.typeName()} is read by Spark only")
        kind = stored.field(field.name).type
        if not same_values(kind, wanted):
            raise NotOnDirectRoad(f"a column of Spark's type {field.dataType.typeName()} is stored as {kind}")


def _check_calendar(metadata: Mapping[bytes, bytes], *, dated: bool) -> None:
    if not dated:
        return
    version = metadata.get(SPARK_VERSION_KEY)
    old = (
        version is not None and version.partition(b".")[0].isdigit() and int(version.partition(b".")[0]) < _OLDEST_SPARK
    )
    if old or any(key in metadata for key in _HYBRID_CALENDAR_KEYS):
        raise NotOnDirectRoad("a file's dates are in the hybrid calendar")


def _leaves(kind: spark.DataType) -> list[spark.DataType]:
    if isinstance(kind, spark.StructType):
        return [leaf for field in kind.fields for leaf in _leaves(field.dataType)]
    if isinstance(kind, spark.ArrayType):
        return _leaves(kind.elementType)
    if isinstance(kind, spark.MapType):
        return _leaves(kind.keyType) + _leaves(kind.valueType)
    return [kind]
