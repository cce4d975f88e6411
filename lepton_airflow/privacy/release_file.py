"""The release file: JSON, complete or not there."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lepton_airflow.errors import TargetExists

Mode = Literal["errorifexists", "overwrite"]
#: Levels of the file that have a line for each item: the document, its groupings, their fields, and the cells.
_DEPTH = 4
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def check_release_file(file: Path, *, mode: Mode, run_key: str, spec_digest: str) -> None:
    """Refuse early, before budget is spent, what :func:`write_release_file` would refuse at the end.

    :raises TargetExists: the file is there, of another release, and the mode is ``errorifexists``
    """
    if mode == "errorifexists" and file.exists() and _release_of(file) != (run_key, spec_digest):
        raise TargetExists(
            "The file exists and mode is errorifexists.",
            place=str(file),
            remedy="Choose another target (for instance with the run's id in it), or set mode: overwrite.",
        )


def write_release_file(file: Path, document: Mapping[str, Any], *, mode: Mode) -> str:
    """Write ``document`` beside ``file``, make it durable, then rename it; readers see the old file or the new one, whole.

    :returns: ``sha256:<hex>`` of the file
    :raises TargetExists: see :func:`check_release_file`
    """
    content = _text(document, depth=_DEPTH).encode() + b"\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    staging = file.with_name(f".{file.name}.{secrets.token_hex(8)}.staging")
    try:
        with staging.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            # A link refuses a name that is taken, which a rename would silently replace.
            os.link(staging, file)
        except FileExistsError:
            check_release_file(file, mode=mode, run_key=document["run_key"], spec_digest=document["spec_digest"])
            staging.replace(file)
    finally:
        staging.unlink(missing_ok=True)
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _text(value: Any, *, depth: int, indent: str = "") -> str:
    """JSON with a line for each item of the outermost ``depth`` levels. What is deeper C writes, ten times as fast."""
    if depth == 0 or not isinstance(value, dict | list | tuple) or not value:
        return _ENCODER.encode(value)
    inner = f"{indent} "
    if isinstance(value, dict):
        items = [
            f"{inner}{_ENCODER.encode(name)}: {_text(item, depth=depth - 1, indent=inner)}"
            for name, item in value.items()
        ]
    else:
        items = [f"{inner}{_text(item, depth=depth - 1, indent=inner)}" for item in value]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return ",\n".join([f"{first}\n{items[0]}", *items[1:]]) + f"\n{indent}{last}"


def _release_of(file: Path) -> tuple[str, str] | None:
    """The run key and spec digest of a release file; None when it is something else."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return document["run_key"], document["spec_digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
