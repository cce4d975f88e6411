"""The folder of a champion, replaced as one: the model, its card, and if asked for its LiteRT form, the card as a page and a
signature.

A new champion is written into a hidden folder beside the target, made durable, and renamed into place. Replacing takes
two renames; a crash between them leaves the old champion in that hidden folder, from which the next run restores it
first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepton_airflow.errors import ModelTampered, TargetExists, UnsafeFile

if TYPE_CHECKING:
    from lepton_airflow.keys.signing_key import SigningKey
    from lepton_airflow.models.signing import ModelVerifier

MODEL_FILE = "model.keras"
INT8_FILE = "model.tflite"
CARD_FILE = "model_card.json"
PAGE_FILE = "model_card.html"
SIGNATURE_FILE = "model.sig"
CARD_FORMAT = "lepton.model-card/1"

#: Where the card has the digest of each file, as ``card[section]["sha256"]``; a model without the section has no such file.
SECTIONS: Mapping[str, str] = {MODEL_FILE: "model", INT8_FILE: "int8", PAGE_FILE: "page"}


def file_digest(file: Path) -> str:
    """``sha256:<hex>`` of a file's bytes."""
    with file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


class ModelFolder:
    """The place of one champion.

    :param path: the folder, on a local or mounted file system
    :param verifier: whose signature the model that is there must have; see
        :func:`~lepton_airflow.models.signing.verifier_of`. Without one only the hashes in the card are checked, which show
        damage and no forger
    """

    def __init__(self, path: Path, *, verifier: ModelVerifier | None = None) -> None:
        self.path = path.absolute()
        self._verifier = verifier
        self._hidden = self.path.parent / f".{self.path.name}.lepton"
        self._previous = self._hidden / "previous"

    def champion(self) -> dict[str, Any] | None:
        """The card of the model that is there, verified; None when there is none.

        :raises TargetExists: the folder holds something that is not a model of this package
        :raises ModelTampered: a file is not the one that the card describes or that was signed
        """
        self._restore()
        return self._read()

    @property
    def hidden(self) -> Path:
        """The folder beside it for work in progress."""
        return self._hidden

    def split_key(self) -> bytes:
        """32 random bytes, made once for this place, that decide which units are held out: under one key the units that judged
        a champion are never learned from by its successor. Who knows it can tell which side a person is on, so only the owner
        can read it.

        :raises UnsafeFile: others can read it
        """
        file = self._hidden / "split.key"
        with self._lock():
            if not file.exists():
                new = file.with_suffix(".new")
                new.unlink(missing_ok=True)
                descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(secrets.token_bytes(32))
                    stream.flush()
                    os.fsync(stream.fileno())
                new.rename(file)
                _make_durable(self._hidden)
        if file.stat().st_mode & 0o077:
            raise UnsafeFile(
                "Others than its owner can read which units are held out.",
                place=str(file),
                remedy=f"Run `chmod 600 {file}`.",
            )
        return file.read_bytes()

    def committed(self, *, run_key: str, spec_digest: str) -> dict[str, Any] | None:
        """The champion's card if this very run published it.

        :raises TargetExists: see :meth:`champion`
        :raises ModelTampered: see :meth:`champion`
        """
        card = self.champion()
        if card is not None and (card.get("run_key"), card.get("spec_digest")) == (run_key, spec_digest):
            return card
        return None

    def load(self) -> Any:
        """The champion as a Keras model, from the very bytes that were verified; see
        :func:`~lepton_airflow.models.loading.load_model`.

        :raises ModelTampered: see :meth:`champion`; or there is no model
        :raises TargetExists: see :meth:`champion`
        """
        from lepton_airflow.models.loading import load_model

        card = self._existing()
        return load_model(self.path / MODEL_FILE, sha256=card["model"]["sha256"])

    def int8(self) -> bytes | None:
        """The champion's LiteRT model, verified; None when it has none.

        :raises ModelTampered: see :meth:`load`
        :raises TargetExists: see :meth:`champion`
        """
        card = self._existing()
        if "int8" not in card:
            return None
        content = (self.path / INT8_FILE).read_bytes()
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != card["int8"]["sha256"]:
            raise _changed(self.path / INT8_FILE)
        return content

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

    def publish(
        self, staging: Path, card: Mapping[str, Any], *, page: str | None = None, key: SigningKey | None = None
    ) -> dict[str, Any]:
        """Add card, page and signature to the staged files and put all of them in the champion's place.

        What else is in the staging folder, such as checkpoints, is not published.

        :param card: with the digest of each model file that was attacked, where :data:`SECTIONS` says
        :param page: the card as HTML; its digest is added to the card
        :param key: signs the folder
        :returns: the card as it was published
        :raises ModelTampered: a staged file is no longer the one that was attacked; or see :meth:`champion`
        :raises TargetExists: see :meth:`champion`
        """
        card = dict(card)
        if page is not None:
            (staging / PAGE_FILE).write_text(page, encoding="utf-8")
            card["page"] = {"file": PAGE_FILE, "sha256": file_digest(staging / PAGE_FILE)}
        (staging / CARD_FILE).write_text(json.dumps(card, indent=2, sort_keys=True, allow_nan=False) + "\n")
        expected = _digests(card)
        for path in staging.iterdir():
            if path.name not in expected and path.name != CARD_FILE:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if key is not None:
            from lepton_airflow.models.signing import sign

            sign(staging, key, name=self.path.name)
        # After signing: what was signed is then what was attacked.
        for name, digest in expected.items():
            if not (staging / name).is_file() or file_digest(staging / name) != digest:
                raise ModelTampered(
                    f"The file {name} changed after it was evaluated; nothing is published.",
                    place=str(self.path),
                    remedy="Find out who writes to that folder, then run the job again.",
                )
        for path in (*staging.iterdir(), staging):
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
        return card

    def sign(self, key: SigningKey) -> None:
        """Sign the model that is there, once its files are those that its card describes.

        :raises ModelTampered: they are not, or there is no model
        :raises TargetExists: see :meth:`champion`
        """
        from lepton_airflow.models.signing import sign

        self._restore()
        with self._lock():
            unsigned = ModelFolder(self.path)
            unsigned._existing()
            sign(self.path, key, name=self.path.name)
            # What was signed must be what was checked.
            unsigned._existing()
            _make_durable(self.path / SIGNATURE_FILE)
            _make_durable(self.path)

    def _existing(self) -> dict[str, Any]:
        card = self.champion()
        if card is None:
            raise ModelTampered(
                "There is no model.", place=str(self.path), remedy="Train one, or give the folder of a champion."
            )
        return card

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        # The signature first: nothing that it does not cover is even parsed.
        signed = self._verifier.verify(self.path) if self._verifier is not None else None
        try:
            content = (self.path / CARD_FILE).read_bytes()
            card: dict[str, Any] = json.loads(content)
            if card["format"] != CARD_FORMAT:
                raise ValueError
            expected = _digests(card)
        except (OSError, ValueError, KeyError, TypeError):
            raise TargetExists(
                "The target holds something that is not a model with its card; it is left alone.",
                place=str(self.path),
                remedy="Choose another target, or move what is there out of the way.",
            ) from None
        if signed is not None and signed[CARD_FILE] != f"sha256:{hashlib.sha256(content).hexdigest()}":
            raise _changed(self.path / CARD_FILE)
        for name, digest in expected.items():
            file = self.path / name
            if file.is_symlink() or not file.is_file() or file_digest(file) != digest:
                raise _changed(file)
        strange = {path.name for path in self.path.iterdir()} - {*expected, CARD_FILE, SIGNATURE_FILE}
        if strange:
            raise TargetExists(
                "The folder holds a file that is no part of the model; it would be lost with the champion.",
                place=str(self.path / min(strange)),
                remedy="Move it out of the folder.",
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
        self._hidden.mkdir(parents=True, exist_ok=True)
        with (self._hidden / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _digests(card: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each file that the card describes."""
    found = {name: card[section]["sha256"] for name, section in SECTIONS.items() if section in card}
    if MODEL_FILE not in found or not all(isinstance(digest, str) for digest in found.values()):
        raise ValueError("the card does not describe its files")
    return found


def _changed(file: Path) -> ModelTampered:
    return ModelTampered(
        "The file is not the one that the model card describes.",
        place=str(file),
        remedy="Do not load it. Keep it for the inquiry, move it out of the way and train again.",
    )


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
