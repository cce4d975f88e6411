"""The folder of a champion: ``model.keras`` and ``model_card.json``, replaced as one.

A new champion is written into a hidden folder beside the target, made durable, and renamed into place. Replacing takes
two renames; a crash between them leaves the old champion in that hidden folder, from which the next run restores it
first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lepton_airflow.errors import ModelTampered, TargetExists

MODEL_FILE = "model.keras"
CARD_FILE = "model_card.json"
CARD_FORMAT = "lepton.model-card/1"


def file_digest(file: Path) -> str:
    """``sha256:<hex>`` of a file's bytes."""
    with file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


class ModelFolder:
    """The place of one champion.

    :param path: the folder, on a local or mounted file system
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._hidden = self.path.parent / f".{self.path.name}.lepton"
        self._previous = self._hidden / "previous"

    def champion(self) -> dict[str, Any] | None:
        """The card of the model that is there; None when there is none.

        :raises TargetExists: the folder holds something that is not a model of this package
        :raises ModelTampered: the model file is not the one that the card describes
        """
        self._restore()
        return self._read()

    def committed(self, *, run_key: str, spec_digest: str) -> dict[str, Any] | None:
        """The champion's card if this very run published it.

        :raises TargetExists: see :meth:`champion`
        :raises ModelTampered: see :meth:`champion`
        """
        card = self.champion()
        if card is not None and (card.get("run_key"), card.get("spec_digest")) == (run_key, spec_digest):
            return card
        return None

    @contextmanager
    def staging(self, run_key: str) -> Iterator[Path]:
        """An empty hidden folder for the new champion; what was not published is gone afterwards."""
        # Named after the run: its rerun clears what a killed try left, and nobody else's work in progress.
        folder = self._hidden / f"staging-{hashlib.sha256(run_key.encode()).hexdigest()[:16]}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staging: Path, card: Mapping[str, Any]) -> None:
        """Add the card to the staged model and put both in the champion's place.

        :raises ModelTampered: the staged file is no longer the one that was attacked; or see :meth:`champion`
        :raises TargetExists: see :meth:`champion`
        """
        if file_digest(staging / MODEL_FILE) != card["model"]["sha256"]:
            raise ModelTampered(
                "The model file changed after it was evaluated; it is not published.",
                place=str(self.path),
                remedy="Find out who writes to that folder, then run the job again.",
            )
        (staging / CARD_FILE).write_text(json.dumps(card, indent=2, sort_keys=True, allow_nan=False) + "\n")
        for path in (staging / MODEL_FILE, staging / CARD_FILE, staging):
            _make_durable(path)
        self._restore()
        with self._lock():
            if self._read() is not None:
                shutil.rmtree(self._previous, ignore_errors=True)
                self.path.rename(self._previous)
            staging.rename(self.path)
            _make_durable(self.path.parent)
            _make_durable(self._hidden)
            shutil.rmtree(self._previous, ignore_errors=True)

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            card: dict[str, Any] = json.loads((self.path / CARD_FILE).read_text())
            if card["format"] != CARD_FORMAT:
                raise ValueError
            expected = card["model"]["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            raise TargetExists(
                "The target holds something that is not a model with its card; it is left alone.",
                place=str(self.path),
                remedy="Choose another target, or move what is there out of the way.",
            ) from None
        file = self.path / MODEL_FILE
        if not file.is_file() or file_digest(file) != expected:
            raise ModelTampered(
                "The model file is not the one that its card describes.",
                place=str(file),
                remedy="Do not load it. Keep it for the inquiry, move it out of the way and train again.",
            )
        return card

    def _restore(self) -> None:
        """Bring back a champion that a crash left between the two renames."""
        if not self._previous.exists():
            return
        with self._lock():
            if self._previous.exists() and not self.path.exists():
                self._previous.rename(self.path)
                _make_durable(self.path.parent)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One publisher at a time; the lock goes with the process that holds it."""
        with (self._hidden / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
