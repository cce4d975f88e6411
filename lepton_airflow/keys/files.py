"""Files with keys: written whole or not at all, readable by their owner only, refused when others have rights."""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any

from lepton_airflow.errors import ConfigurationError, KeyUnavailable, TargetExists, UnsafeFile

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def check_name(name: str, *, kind: str) -> str:
    """Return ``name`` if it can stand in a file name on any system; identities, recipients and keysets are named so.

    :raises ConfigurationError: anything else, such as a path
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            "The name is not valid.",
            place=f"{kind} {name!r}",
            remedy="Use 1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit.",
        )
    return name


def private_folder(folder: Path) -> Path:
    """Make ``folder`` and its parents; what is made gets mode 0700, what is there keeps its own."""
    if not folder.exists():
        private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def write_file(path: Path, content: bytes, *, replace: bool, mode: int = 0o600) -> None:
    """Write a file durably; at every moment ``path`` is the whole old content, the whole new one, or absent.

    :param replace: False refuses to touch a file that is there, even if another process makes it at the same moment
    :raises TargetExists: the file is there and ``replace`` is False
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)
    except FileExistsError:
        raise already_there(path) from None
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def already_there(path: Path) -> TargetExists:
    """The error for a file that would have to be overwritten."""
    return TargetExists(
        "The file is there already and holds keys, so it is not replaced.",
        place=str(path),
        remedy="Choose another name, or move the file away if nothing needs it.",
    )


def read_private_file(path: Path, *, missing: KeyUnavailable) -> bytes:
    """Read a file that only its owner may read. The mode that is checked is that of the very file that is read.

    :param missing: the error to raise when there is no such file
    :raises UnsafeFile: the group or others have any right on the file
    :raises KeyUnavailable: the file cannot be opened
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & _OTHERS:
                raise UnsafeFile(
                    f"The file holds keys, and its mode {mode:04o} gives rights to others.",
                    place=str(path),
                    remedy=f"Run `chmod 600 {path}`, and replace the key if somebody else may have read it.",
                )
            return file.read()
    except FileNotFoundError:
        raise missing from None
    except OSError as error:
        raise KeyUnavailable(
            f"The file cannot be read ({type(error).__name__}).",
            place=str(path),
            remedy="Run as the user who owns it.",
        ) from None


def dump_document(document: dict[str, Any]) -> bytes:
    """The one way in which key files are written: JSON, two spaces of indentation, a newline at the end."""
    return (json.dumps(document, indent=2, ensure_ascii=True) + "\n").encode("ascii")


def load_document(content: bytes, *, place: str, schema: str) -> dict[str, Any]:
    """Read what :func:`dump_document` wrote, byte for byte, so that no edit can hide in the form of the JSON.

    :param schema: the expected value of the field ``format``
    :raises ConfigurationError: not JSON, not of this format, or not in the form in which it is written
    """
    try:
        document = json.loads(content)
        faithful = isinstance(document, dict) and dump_document(document) == content
    except (ValueError, RecursionError):
        faithful = False
    if not faithful or document.get("format") != schema:
        raise ConfigurationError(
            f"The file is not an unchanged {schema} file.",
            place=place,
            remedy="Restore it from a copy; it is not meant to be edited by hand.",
        )
    return document  # type: ignore[no-any-return]
