"""Fields of a table by path: ``address.street`` is the field ``street`` of the struct column ``address``.

A path goes through arrays without naming their elements: ``visits.note`` is the field ``note`` of every struct in the array
column ``visits``. A part that contains a dot or a backtick is written between backticks, a backtick inside being doubled, as
in Spark's SQL. A name that is a column's, letter by letter, means that column, whatever characters it has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from pyspark.sql import types as spark
from pyspark.sql.types import DataType, StructField, StructType

from lepton_airflow.errors import MissingColumn

Path = tuple[str, ...]

_PART = re.compile(r"`((?:[^`]|``)+)`|([^`.]+)")


def path_text(path: Path) -> str:
    """The one text for a path: a column's own name, or the parts of a nested field joined by dots."""
    if len(path) == 1:
        return path[0]
    return ".".join("`" + part.replace("`", "``") + "`" if re.search("[.`]", part) else part for part in path)


def resolve(schema: StructType, text: str, *, dataset: str) -> Path:
    """The path that ``text`` names in ``schema``.

    :raises MissingColumn: there is no such field
    """
    if text in schema.names:
        return (text,)
    path = _parsed(text)
    fields: list[StructField] = list(schema.fields)
    for depth, part in enumerate(path or (text,)):
        field = next((field for field in fields if field.name == part), None)
        if field is None:
            inside = f" in {path_text(path[:depth])!r}" if depth else ""
            raise MissingColumn(
                f"The table has no column {text!r}: there is no {part!r}{inside}."
                if depth
                else f"The table has no column {text!r}.",
                place=f"dataset {dataset!r}",
                remedy=f"{'Its fields' if depth else 'Its columns'} are {', '.join(field.name for field in fields)}."
                if fields
                else "Paths go through structs and arrays of structs; a map is protected as a whole.",
            )
        fields = _inner(field.dataType)
    return path


def walk(schema: StructType) -> Iterator[tuple[Path, StructField]]:
    """Every field that a path can name, with its path, outer before inner."""

    def below(fields: list[StructField], before: Path) -> Iterator[tuple[Path, StructField]]:
        for field in fields:
            path = (*before, field.name)
            yield path, field
            yield from below(_inner(field.dataType), path)

    return below(list(schema.fields), ())


def field_at(schema: StructType, path: Path) -> StructField:
    """The field at a path that :func:`resolve` gave."""
    fields = list(schema.fields)
    for part in path[:-1]:
        fields = _inner(next(field.dataType for field in fields if field.name == part))
    return next(field for field in fields if field.name == path[-1])


def with_fields(schema: StructType, changes: Mapping[Path, Callable[[StructField], StructField]]) -> StructType:
    """``schema`` with the fields at some paths replaced."""

    def rebuilt(fields: list[StructField], before: Path) -> list[StructField]:
        return [
            changes[path](field)
            if (path := (*before, field.name)) in changes
            else StructField(field.name, deeper(field.dataType, path), field.nullable, field.metadata)
            for field in fields
        ]

    def deeper(kind: DataType, path: Path) -> DataType:
        if isinstance(kind, spark.ArrayType):
            return spark.ArrayType(deeper(kind.elementType, path), kind.containsNull)
        if isinstance(kind, StructType) and any(changed[: len(path)] == path for changed in changes):
            return StructType(rebuilt(list(kind.fields), path))
        return kind

    return StructType(rebuilt(list(schema.fields), ()))


def _inner(kind: DataType) -> list[StructField]:
    while isinstance(kind, spark.ArrayType):
        kind = kind.elementType
    return list(kind.fields) if isinstance(kind, StructType) else []


def _parsed(text: str) -> Path:
    """The parts of ``text``; none if it is not a path."""
    parts: list[str] = []
    position = 0
    while found := _PART.match(text, position):
        parts.append(found[1].replace("``", "`") if found[1] else found[2])
        position = found.end()
        if position == len(text):
            return tuple(parts)
        if text[position] != ".":
            break
        position += 1
    return ()
