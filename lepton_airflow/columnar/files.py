"""Places of files as Hadoop and Spark write them, opened by pyarrow."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

import pyarrow as pa
from pyarrow import fs


class CannotOpen(Exception):
    """Internal: pyarrow has no file system for a place, or cannot reach it here. Its text is the reason."""


def uri_of(path: str) -> str:
    """The URI of a qualified Hadoop path, which is written without escapes: ``file:/data/a b`` is ``file:///data/a%20b``."""
    scheme, _, rest = path.partition(":")
    if rest.startswith("//"):
        authority, slash, below = rest[2:].partition("/")
        return f"{scheme}://{authority}{slash}{quote(below)}"
    return f"{scheme}://{quote(rest)}"


def open_place(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of ``uri`` and the path in it.

    :param uri: escaped, as :func:`uri_of` and Spark's ``DataFrame.inputFiles`` give it
    :raises CannotOpen: no such file system here
    """
    try:
        files, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError, ImportError):
        # The text would list every folder in which a library was looked for.
        raise CannotOpen(f"pyarrow opens no {urlsplit(uri).scheme or 'such'} file system here") from None
    return files, path
