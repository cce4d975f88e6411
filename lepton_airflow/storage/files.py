"""The files of a dataset's folder, and the index that names them: what a stored version is a copy of."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pyarrow import fs
from pydantic import TypeAdapter, ValidationError

from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.columnar.files import CannotOpen, open_place
from lepton_airflow.columnar.publish import COMMIT_FILE
from lepton_airflow.errors import EmptyTable, InvalidData, UnreadableSource


@dataclass(frozen=True)
class File:
    """A file.

    :param name: its path below the dataset's folder
    :param bytes: in the clear
    """

    name: str
    bytes: int


@dataclass(frozen=True)
class IndexedFile(File):
    """A file that is stored.

    :param object: the id of its shards
    """

    object: str


_INDEX = TypeAdapter(tuple[IndexedFile, ...])


def list_files(folder: str, *, place: str) -> tuple[File, ...]:
    """All files below a folder, by name, but hidden ones and the commit record, which is of that folder alone.

    :param folder: URI
    :param place: the dataset, for errors
    :raises UnreadableSource: there is no such folder, or no file system for it
    :raises EmptyTable: there is no file in it
    :raises InvalidData: the name of a file cannot be read
    """
    try:
        files, root = open_place(folder)
        found = files.get_file_info(fs.FileSelector(root, recursive=True))
        inside = [(posixpath.relpath(info.path, root), info) for info in found if info.is_file]
    except (CannotOpen, OSError) as error:
        raise UnreadableSource(
            f"The folder cannot be read ({type(error).__name__}).",
            place=place,
            remedy="Name a folder on a file system that pyarrow opens, readable for this user.",
        ) from None
    except UnicodeDecodeError:
        raise InvalidData(
            "The name of a file is not in UTF-8.", place=place, remedy="Rename it, and store the folder again."
        ) from None
    chosen = [File(name, info.size) for name, info in inside if not _is_left_out(name)]
    if not chosen:
        raise EmptyTable(
            "There are no files in the folder.", place=place, remedy="Check that the table before it was written."
        )
    return tuple(sorted(chosen, key=lambda file: file.name))


def _is_left_out(name: str) -> bool:
    return name == COMMIT_FILE or any(part.startswith(".") for part in name.split("/"))


def write_index(files: Sequence[IndexedFile]) -> bytes:
    """The index as canonical JSON."""
    return canonical_json([asdict(file) for file in files])


def read_index(content: bytes, *, place: str) -> tuple[IndexedFile, ...]:
    """What :func:`write_index` wrote.

    :raises InvalidData: it is something else, or names a file outside the dataset's folder
    """
    try:
        index = _INDEX.validate_python(json.loads(content))
    except (ValueError, ValidationError):
        raise _no_index(place) from None
    for file in index:
        if file.name != posixpath.normpath(file.name) or file.name.startswith(("/", "..")) or _is_left_out(file.name):
            raise _no_index(place)
    return index


def _no_index(place: str) -> InvalidData:
    return InvalidData(
        "The index of the stored files is not one that this version of the package writes.",
        place=place,
        remedy="Restore it with the version that stored it.",
    )
