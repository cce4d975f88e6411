"""Checkpoints of a training, from which a killed run goes on as if it had not been killed.

They hold the weights of a model of protected data, in the clear, as the published model will. So they lie in a hidden folder of
mode 0700 beside the place where the model will be published, in files of mode 0600, and go when the run has ended. Where the
model itself must not lie in the clear, neither may they: give no checkpoints then.

A file is replaced as a whole. Its SHA-256 finds damage; it does not stop somebody who may write into the folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import lepton_airflow
from lepton_airflow.errors import ModelTampered, UnsafeFile

_FORMAT = "lepton.checkpoint/1"
_HEADER = "header"

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """
    :param facts: what is no array, as JSON
    """

    arrays: Arrays
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, one for each model that it trains.

    :param folder: hidden, on a local or mounted file system; a folder for this run is made in it
    :param run_key: of the run
    :param spec_digest: of its spec; checkpoints of another spec are not used
    :param interval: seconds between two checkpoints of a model
    :raises UnsafeFile: the run's folder can be read by others
    """

    def __init__(self, folder: Path, *, run_key: str, spec_digest: str, interval: float) -> None:
        self._folder = folder / f"checkpoints-{hashlib.sha256(run_key.encode()).hexdigest()[:16]}"
        self._belongs = {
            "format": _FORMAT,
            "run_key": run_key,
            "spec_digest": spec_digest,
            # Other versions number their weights or draw their random numbers otherwise.
            "versions": {
                "lepton-airflow": lepton_airflow.__version__,
                **{name: version(name) for name in ("tensorflow", "keras", "numpy")},
            },
        }
        self._interval = interval
        self._saved: dict[str, float] = {}

    def remembered(self, draw: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the first try of this run drew, such as its seeds, so that later tries draw nothing else.

        :param draw: gives what is to be remembered, if nothing is yet
        """
        found = self.load("run", binding="")
        if found is not None:
            return found.facts
        facts = draw()
        self.save("run", binding="", checkpoint=Checkpoint(arrays={}, facts=facts))
        return facts

    def due(self, name: str) -> bool:
        """Whether the interval has passed since a model's last checkpoint, or since this was first asked."""
        now = time.monotonic()
        return now - self._saved.setdefault(name, now) >= self._interval

    def load(self, name: str, *, binding: str) -> Checkpoint | None:
        """The last checkpoint of a model; None when there is none that belongs to this run, spec, binding and software.

        :param binding: whatever else it depends on, such as the digest of the examples
        :raises ModelTampered: it is damaged
        """
        file = self._file(name)
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        digest, _, body = content.partition(b"\n")
        if digest != _digest(body):
            raise ModelTampered(
                "The checkpoint is not as it was written.",
                place=str(file),
                remedy="Find out why, remove the file and run the job again; that training then starts anew.",
            )
        with np.load(io.BytesIO(body), allow_pickle=False) as stored:
            arrays: Arrays = {key: stored[key] for key in stored.files}
        header = json.loads(arrays.pop(_HEADER).tobytes())
        if header["belongs"] != self._belongs_to(name, binding):
            return None
        return Checkpoint(arrays=arrays, facts=header["facts"])

    def save(self, name: str, *, binding: str, checkpoint: Checkpoint) -> None:
        """Replace a model's last checkpoint, durably."""
        header = {"belongs": self._belongs_to(name, binding), "facts": checkpoint.facts}
        stream = io.BytesIO()
        arrays: Mapping[str, Any] = {
            **checkpoint.arrays,
            _HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8),
        }
        np.savez(stream, allow_pickle=False, **arrays)
        body = stream.getvalue()
        self._make_folder()
        file = self._file(name)
        new = file.with_suffix(".new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            target.write(_digest(body) + b"\n" + body)
            target.flush()
            os.fsync(target.fileno())
        new.replace(file)
        _make_durable(self._folder)
        self._saved[name] = time.monotonic()

    def clear(self) -> None:
        """Remove all checkpoints of this run; to be called when it has ended, whatever the gate said."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _belongs_to(self, name: str, binding: str) -> dict[str, Any]:
        return {**self._belongs, "name": name, "binding": binding}

    def _file(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.checkpoint"

    def _make_folder(self) -> None:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(self._folder.stat().st_mode) & 0o077:
            raise UnsafeFile(
                "Checkpoints would be written into a folder that others can read.",
                place=str(self._folder),
                remedy="Remove the folder, and run the job again.",
            )


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _make_durable(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
