"""A signed folder verifies here and by the library's own command; no file of it can change, go or be added unseen."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lepton_airflow.errors import KeyUnavailable, ModelTampered, TargetExists
from lepton_airflow.keys.identity import Identity, Recipient, recipient_file
from lepton_airflow.keys.signing_key import SigningKey, generate_signing_key, public_file
from lepton_airflow.models.artefact import (
    CARD_FILE,
    CARD_FORMAT,
    INT8_FILE,
    MODEL_FILE,
    PAGE_FILE,
    SIGNATURE_FILE,
    ModelFolder,
    file_digest,
)
from lepton_airflow.models.signing import ModelVerifier, sign, signing_key_of, verifier_of
from lepton_airflow.settings import Settings

FILES = {MODEL_FILE, INT8_FILE, CARD_FILE, PAGE_FILE}


@pytest.fixture
def signing(home: Settings) -> Settings:
    """A deployment that signs its models."""
    for name in ("models", "others"):
        tester = Recipient.load(recipient_file("tester", home.recipients))
        generate_signing_key(name, keyring=home.keyring, recipients=[tester])
    return home.model_copy(update={"model_signing_key": "models"})


def publish(folder: ModelFolder, key: SigningKey | None, *, run_key: str = "run 1") -> None:
    with folder.staging(run_key) as staging:
        (staging / MODEL_FILE).write_bytes(b"weights of " + run_key.encode())
        (staging / INT8_FILE).write_bytes(b"small weights")
        (staging / "checkpoint").write_bytes(b"not for publishing")
        card = {
            "format": CARD_FORMAT,
            "run_key": run_key,
            "spec_digest": "sha256:1",
            "model": {"sha256": file_digest(staging / MODEL_FILE)},
            "int8": {"sha256": file_digest(staging / INT8_FILE)},
        }
        folder.publish(staging, card, page="<html>the card</html>", key=key)


@pytest.fixture
def folder(signing: Settings, tmp_path: Path) -> ModelFolder:
    """A signed champion, in a place that demands the signature."""
    folder = ModelFolder(tmp_path / "models" / "diagnosis", verifier=verifier_of(signing))
    publish(folder, signing_key_of(signing))
    return folder


def test_a_signed_champion_verifies_with_all_its_files(folder: ModelFolder, signing: Settings) -> None:
    assert {path.name for path in folder.path.iterdir()} == {*FILES, SIGNATURE_FILE}
    verifier = verifier_of(signing)
    assert verifier is not None
    assert verifier.verify(folder.path) == {name: file_digest(folder.path / name) for name in FILES}
    card = folder.champion()
    assert card is not None
    assert card["page"]["sha256"] == file_digest(folder.path / PAGE_FILE)
    assert folder.int8() == b"small weights"
    bundle = json.loads((folder.path / SIGNATURE_FILE).read_text())
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"


@pytest.mark.parametrize("change", [None, MODEL_FILE])
def test_the_library_of_model_signing_comes_to_the_same_answer(
    folder: ModelFolder, signing: Settings, change: str | None
) -> None:
    from model_signing import verifying

    if change is not None:
        (folder.path / change).write_bytes(b"other weights")
    signature, public = folder.path / SIGNATURE_FILE, public_file("models", signing.keyring)
    options = ["--signature", signature, "--public_key", public]
    program = [sys.executable, "-m", "model_signing", "verify", "key", folder.path, *options]
    finished = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (finished.returncode == 0) == (change is None), finished.stdout + finished.stderr
    config = verifying.Config().use_elliptic_key_verifier(public_key=public)
    if change is None:
        config.verify(folder.path, signature)
    else:
        with pytest.raises(ValueError, match="mismatch"):
            config.verify(folder.path, signature)


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def link(path: Path) -> None:
    content = path.with_name("..elsewhere").resolve()
    path.rename(content)
    path.symlink_to(content)


TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"{name} changed": (lambda f, name=name: change(f / name), name) for name in sorted(FILES)},
    **{f"{name} removed": (lambda f, name=name: (f / name).unlink(), name) for name in sorted(FILES)},
    "signature removed": (lambda f: (f / SIGNATURE_FILE).unlink(), SIGNATURE_FILE),
    "signature emptied": (lambda f: (f / SIGNATURE_FILE).write_text("{}"), SIGNATURE_FILE),
    "signature of a changed statement": (lambda f: change(f / SIGNATURE_FILE), SIGNATURE_FILE),
    "a file added": (lambda f: (f / "hook.py").write_text("import os"), "hook.py"),
    "a hidden file added": (lambda f: (f / ".gitattributes").write_text("x"), ".gitattributes"),
    "a file added in a folder": (lambda f: ((f / ".git").mkdir(), (f / ".git" / "config").write_text("x")), "config"),
    "a link instead of a file": (lambda f: link(f / MODEL_FILE), MODEL_FILE),
}


@pytest.mark.parametrize("case", TAMPERINGS)
def test_tampering_is_found_and_the_file_named(folder: ModelFolder, case: str) -> None:
    tamper, named = TAMPERINGS[case]
    tamper(folder.path)
    for read in (folder.champion, folder.load, folder.int8):
        with pytest.raises(ModelTampered) as caught:
            read()
        assert named in caught.value.place


def test_a_forger_who_updates_the_hashes_in_the_card_is_found(folder: ModelFolder) -> None:
    (folder.path / MODEL_FILE).write_bytes(b"a trojan")
    card = json.loads((folder.path / CARD_FILE).read_text())
    card["model"]["sha256"] = file_digest(folder.path / MODEL_FILE)
    (folder.path / CARD_FILE).write_text(json.dumps(card))
    assert ModelFolder(folder.path).champion() == card, "hashes alone do not show it"
    with pytest.raises(ModelTampered):
        folder.champion()


def test_the_signature_of_another_key_or_folder_does_not_count(folder: ModelFolder, signing: Settings) -> None:
    identity = Identity.load(signing.identity_file)
    sign(folder.path, SigningKey.open("others", keyring=signing.keyring, identity=identity), name="diagnosis")
    with pytest.raises(ModelTampered, match="not one of the key"):
        folder.champion()
    other = ModelFolder(folder.path.parent / "other", verifier=verifier_of(signing))
    publish(other, signing_key_of(signing), run_key="run 2")
    (folder.path / SIGNATURE_FILE).write_bytes((other.path / SIGNATURE_FILE).read_bytes())
    with pytest.raises(ModelTampered, match="not the one that was signed"):
        folder.champion()


def test_where_a_signature_is_required_an_unsigned_model_neither_counts_nor_is_replaced(
    signing: Settings, tmp_path: Path
) -> None:
    plain = ModelFolder(tmp_path / "models" / "diagnosis")
    publish(plain, None)
    strict = ModelFolder(plain.path, verifier=verifier_of(signing))
    with pytest.raises(ModelTampered, match="no signature"):
        strict.champion()
    key = signing_key_of(signing)
    assert key is not None
    with pytest.raises(ModelTampered, match="no signature"):
        publish(strict, key, run_key="run 2")
    assert (plain.path / MODEL_FILE).read_bytes() == b"weights of run 1"
    plain.sign(key)
    publish(strict, key, run_key="run 2")
    assert (plain.path / MODEL_FILE).read_bytes() == b"weights of run 2"


def test_what_is_tampered_with_is_not_signed_afterwards(folder: ModelFolder, signing: Settings) -> None:
    change(folder.path / INT8_FILE)
    key = signing_key_of(signing)
    assert key is not None
    with pytest.raises(ModelTampered, match="model card describes"):
        folder.sign(key)


def test_a_configured_key_that_is_missing_is_an_error_and_no_permission(signing: Settings) -> None:
    public_file("models", signing.keyring).unlink()
    with pytest.raises(KeyUnavailable):
        verifier_of(signing)
    with pytest.raises(KeyUnavailable):
        verifier_of(signing.model_copy(update={"model_verifier": signing.home / "nowhere.pub"}))
    unsigned = signing.model_copy(update={"model_signing_key": ""})
    assert (signing_key_of(unsigned), verifier_of(unsigned)) == (None, None)


def test_a_public_key_of_ones_own_wins_over_the_keyrings(folder: ModelFolder, signing: Settings) -> None:
    copy = signing.home / "models.pub"
    copy.write_bytes(public_file("models", signing.keyring).read_bytes())
    own = signing.model_copy(update={"model_verifier": copy})
    # Who can write to the keyring puts another key pair in the place of ours.
    public_file("models", signing.keyring).write_bytes(public_file("others", signing.keyring).read_bytes())
    verifier = verifier_of(own)
    assert isinstance(verifier, ModelVerifier)
    verifier.verify(folder.path)


def test_a_file_of_somebody_else_in_an_unsigned_folder_is_not_lost(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "diagnosis")
    publish(folder, None)
    (folder.path / "notes.txt").write_text("mine")
    with pytest.raises(TargetExists, match=r"notes\.txt"):
        publish(folder, None, run_key="run 2")
    assert (folder.path / "notes.txt").read_text() == "mine"
