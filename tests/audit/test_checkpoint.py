"""Signed notes: the published example of Go's note package, round trips, and everything that must be refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

import lepton_airflow
from lepton_airflow.audit.checkpoint import Checkpoint, Signer, Verifier, generate_signer
from lepton_airflow.errors import (
    AuditTampered,
    ConfigurationError,
    KeyUnavailable,
    TargetExists,
    UnsafeFile,
)

# From the documentation of golang.org/x/mod/sumdb/note.
PUBLIC = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PRIVATE = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
NOTE = (
    TEXT
    + "\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
CHECKPOINT = Checkpoint("test-log", 17, bytes(range(32)))


def load(path: Path, text: str) -> Signer:
    path.write_text(text)
    path.chmod(0o600)
    return Signer.load(path)


def test_the_published_note_verifies_and_is_signed_alike(tmp_path: Path) -> None:
    assert Verifier.parse(PUBLIC, place="test").signed_text(NOTE) == TEXT
    signer = load(tmp_path / "key", PRIVATE)
    assert signer.verifier.text == PUBLIC
    assert signer.sign(TEXT) == NOTE


def test_a_checkpoint_has_the_published_form(signer: Signer) -> None:
    note = CHECKPOINT.sign(signer)
    assert note.startswith("test-log\n17\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n— test-log ")
    assert Checkpoint.verify(note, signer.verifier) == CHECKPOINT


def test_other_signatures_on_a_note_are_ignored(signer: Signer, tmp_path: Path) -> None:
    witness = load(tmp_path / "witness", PRIVATE)
    note = CHECKPOINT.sign(signer)
    cosigned = note + witness.sign(CHECKPOINT.text).rpartition("\n\n")[2]
    assert Checkpoint.verify(cosigned, signer.verifier) == CHECKPOINT


def test_generated_keys_can_be_loaded_and_only_the_owner_can_read_the_private_one(tmp_path: Path) -> None:
    text = generate_signer(tmp_path / "key", name="a-log")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "key.pub").write_text(text)
    verifier = Verifier.load(tmp_path / "key.pub")
    note = Checkpoint("a-log", 0, bytes(32)).sign(Signer.load(tmp_path / "key"))
    assert Checkpoint.verify(note, verifier).tree_size == 0


def test_a_private_key_is_never_overwritten(tmp_path: Path) -> None:
    generate_signer(tmp_path / "key", name="a-log")
    before = (tmp_path / "key").read_text()
    with pytest.raises(TargetExists):
        generate_signer(tmp_path / "key", name="a-log")
    assert (tmp_path / "key").read_text() == before


def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    generate_signer(tmp_path / "key", name="a-log")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(UnsafeFile):
        Signer.load(tmp_path / "key")


def test_a_signer_is_never_pickled(signer: Signer) -> None:
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(signer)


@pytest.mark.parametrize("position", range(len(CHECKPOINT.text.encode()) + 20))
def test_no_changed_byte_of_a_note_passes(signer: Signer, position: int) -> None:
    data = bytearray(CHECKPOINT.sign(signer).encode())
    data[position] ^= 1
    with pytest.raises(AuditTampered):
        Checkpoint.verify(bytes(data).decode(errors="replace"), signer.verifier)


@pytest.mark.parametrize(
    "text",
    [
        "test-log\n17\n",
        "test-log\n017\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        "test-log\n-1\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        "test-log\n17\nAAEC\n",
        "other-log\n17\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        "no checkpoint at all\n",
    ],
)
def test_a_signed_text_that_is_no_checkpoint_of_this_log_is_refused(signer: Signer, text: str) -> None:
    with pytest.raises(AuditTampered):
        Checkpoint.verify(signer.sign(text), signer.verifier)


def test_another_key_of_the_same_name_does_not_sign_for_this_log(signer: Signer, tmp_path: Path) -> None:
    generate_signer(tmp_path / "other", name=signer.name)
    with pytest.raises(AuditTampered, match="no valid signature"):
        Checkpoint.verify(CHECKPOINT.sign(Signer.load(tmp_path / "other")), signer.verifier)


@pytest.mark.parametrize(
    "text", ["", "nonsense", "é+é+é", PRIVATE, PUBLIC.replace("c74f20a3", "c74f20a4"), PUBLIC.replace("ARpc", "AApc")]
)
def test_what_is_no_public_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key.pub").write_text(text)
    with pytest.raises(ConfigurationError, match="not an Ed25519 verifier key"):
        Verifier.load(tmp_path / "key.pub")


@pytest.mark.parametrize("text", ["", "PRIVATE+KEY+", PUBLIC, PRIVATE.replace("c74f20a3", "c74f20a4")])
def test_what_is_no_private_key_is_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path / "key", text)
    assert "AYEKFALV" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    for load_key in (Signer.load, Verifier.load):
        with pytest.raises(KeyUnavailable) as caught:
            load_key(tmp_path / "none")
        assert str(tmp_path / "none") in str(caught.value)


@pytest.mark.parametrize("name", ["", "two words", "a+b", "line\nbreak"])
def test_a_name_that_a_note_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError):
        generate_signer(tmp_path / "key", name=name)
    assert not (tmp_path / "key").exists()


def test_only_what_makes_seals_or_archives_takes_the_sealers_private_key() -> None:
    """Writers lack it: no job, guard or spark program asks where it is."""
    package = Path(lepton_airflow.__path__[0])
    files = [*package.rglob("*.py"), *(package.parent / "spark_jobs").rglob("*.py")]
    takers = {file.relative_to(package.parent).as_posix() for file in files if "checkpoint_signer" in file.read_text()}
    made_or_used = {"cli/home.py", "cli/audit.py", "cli/audit_archive.py", "operators/audit.py"}
    assert takers == {f"lepton_airflow/{file}" for file in {*made_or_used, "settings.py"}}
