"""Columns chosen by name, pattern or tag, and the rule that what is sensitive is protected.

- A **name** is a column or the path of a nested field: ``email``, ``address.street``.
- A **pattern** is a name with ``*``, ``?`` or ``[...]`` as in a shell: ``*_id`` matches ``patient_id`` and
  ``address.owner_id``. A name that a table really has is no pattern.
- ``tag:pii`` stands for the columns that carry the tag ``pii``: in their field metadata, under ``tags`` (a list, or a text with
  commas), or in their comment as ``#pii``. Tags may be patterns too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from pyspark.sql.types import ArrayType, DataType, StructField, StructType

from lepton_airflow.encryption.paths import Path, path_text, resolve, walk
from lepton_airflow.encryption.planning import protections_of
from lepton_airflow.encryption.protection import METADATA_KEY, Protection
from lepton_airflow.errors import SpecError

_TAG = "tag:"


def is_pattern(text: str) -> bool:
    """Whether ``text`` can only be understood with a schema at hand."""
    return text.startswith(_TAG) or any(character in text for character in "*?[")


def choose_protections(
    schema: StructType, protections: Mapping[str, Protection], *, sensitive: Sequence[str] = (), dataset: str
) -> dict[str, Protection]:
    """The protection of each column, by path.

    A name wins over patterns and tags. Where a struct and a field within it both match, the struct is protected as a whole.

    :param protections: by name, pattern or tag
    :param sensitive: names, patterns and tags of columns that must be protected, or be protected already
    :raises MissingColumn: a name is not in the table
    :raises SpecError: a pattern matches nothing, two give one column different protections, or a sensitive column stays in
        clear
    """
    named = {text: protection for text, protection in protections.items() if _is_name(schema, text)}
    chosen = {resolve(schema, text, dataset=dataset): protection for text, protection in named.items()}
    exact = set(chosen)
    matched: dict[Path, str] = {}
    for text, protection in protections.items():
        if text in named:
            continue
        paths = _outermost(path for path, field in walk(schema) if _matches(text, path, field))
        if not paths:
            raise _no_match(text, dataset)
        for path in paths:
            if path in exact:
                continue
            if chosen.setdefault(path, protection) != protection:
                raise SpecError(
                    f"{matched[path]!r} and {text!r} both match and ask for different protections.",
                    place=f"dataset {dataset!r}, column {path_text(path)!r}",
                    remedy="Name the column, or narrow the patterns.",
                )
            matched.setdefault(path, text)
    _require_protected(schema, chosen, sensitive, dataset=dataset)
    return {path_text(path): protection for path, protection in chosen.items()}


def choose_protected(schema: StructType, columns: Sequence[str], *, dataset: str) -> tuple[str, ...]:
    """The paths of the protected columns that names, patterns and tags choose, in the table's order.

    :raises MissingColumn: a name is not in the table
    :raises SpecError: a pattern matches no protected column
    """
    protected = protections_of(schema)
    chosen = set()
    for text in columns:
        if _is_name(schema, text):
            chosen.add(path_text(resolve(schema, text, dataset=dataset)))
            continue
        matches = {path_text(path) for path, field in walk(schema) if _matches(text, path, field)} & protected.keys()
        if not matches:
            raise _no_match(text, dataset)
        chosen |= matches
    return tuple(text for path, _ in walk(schema) if (text := path_text(path)) in chosen)


def _is_name(schema: StructType, text: str) -> bool:
    return text in schema.names or not is_pattern(text)


def _matches(text: str, path: Path, field: StructField) -> bool:
    if text.startswith(_TAG):
        return any(fnmatchcase(tag, text.removeprefix(_TAG)) for tag in _tags(field))
    return path_text(path) == text or fnmatchcase(".".join(path), text)


def _tags(field: StructField) -> set[str]:
    listed = field.metadata.get("tags", [])
    tags = re.split(r"[,\s]+", listed) if isinstance(listed, str) else map(str, listed)
    return {*tags, *re.findall(r"#([\w.:/-]+)", field.metadata.get("comment", ""))} - {""}


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Without those that lie within others; ``paths`` come outer before inner."""
    kept: list[Path] = []
    for path in paths:
        if not any(path[: len(outer)] == outer for outer in kept):
            kept.append(path)
    return kept


def _require_protected(
    schema: StructType, chosen: Mapping[Path, Protection], sensitive: Sequence[str], *, dataset: str
) -> None:
    for text in sensitive:
        if _is_name(schema, text):
            # A sensitive column that is not there is a slip of the pen, or a column that was renamed and now stands in clear.
            resolve(schema, text, dataset=dataset)
    bare = [
        path_text(path)
        for path, field in walk(schema)
        if any(_matches(text, path, field) for text in sensitive) and not _covered(path, field, schema, chosen)
    ]
    if bare:
        raise SpecError(
            f"The spec calls {', '.join(bare)} sensitive and does not protect it.",
            place=f"dataset {dataset!r}",
            remedy="Name it in `columns`, or take it out of `sensitive`.",
        )


def _covered(path: Path, field: StructField, schema: StructType, chosen: Mapping[Path, Protection]) -> bool:
    if METADATA_KEY in field.metadata or any(path[:length] in chosen for length in range(1, len(path) + 1)):
        return True
    outer = {other for other, found in walk(schema) if METADATA_KEY in found.metadata}
    if any(path[:length] in outer for length in range(1, len(path))):
        return True
    inner = _inner(field.dataType)
    return bool(inner) and all(_covered((*path, below.name), below, schema, chosen) for below in inner)


def _inner(kind: DataType) -> list[StructField]:
    while isinstance(kind, ArrayType):
        kind = kind.elementType
    return list(kind.fields) if isinstance(kind, StructType) else []


def _no_match(text: str, dataset: str) -> SpecError:
    return SpecError(
        f"{text!r} matches no column.",
        place=f"dataset {dataset!r}",
        remedy="Mend the pattern or the tag, or leave it out.",
    )
