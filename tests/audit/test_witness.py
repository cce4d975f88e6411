"""Witnesses: cosignatures byte for byte as published, and no signature for a log that was taken back, cut or forked."""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from lepton_airflow.audit import witness as module
from lepton_airflow.audit.checkpoint import Checkpoint, Signer, Verifier, generate_signer
from lepton_airflow.audit.cosignature import Witness, WitnessVerifier, generate_witness
from lepton_airflow.audit.database import checkpoint_table, leaf_table
from lepton_airflow.audit.event import Actor, Event
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.quorum import Quorum
from lepton_airflow.audit.ranges import export_range, verify_range
from lepton_airflow.audit.sealer import seal
from lepton_airflow.audit.signed_note import split_note
from lepton_airflow.audit.verify import VerificationReport, verify
from lepton_airflow.audit.witness import cosign
from lepton_airflow.errors import (
    AuditTampered,
    ConfigurationError,
    LeptonError,
    TargetExists,
    UnreadableSource,
    UnsafeFile,
)
from lepton_airflow.settings import Settings, load_settings

fork = multiprocessing.get_context("fork")

# A checkpoint of the certificate transparency log "Arche" as the witness "remora" publicly cosigned it in 2026, and its key.
PUBLISHED_KEY = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"
PUBLISHED = (
    "arche2025h1.staging.ct.transparency.dev\n1432088532\nU7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=\n\n"
    "— arche2025h1.staging.ct.transparency.dev ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3NygNI75MdhL1bfTW9g8Ei59RA23o"
    "HP7Ry1k3ZFWwQ=\n"
    "— remora.n621.de 2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sXTynk5XeU/zZ0WBxtqB0DrAWf"
    "Bw==\n"
)
PUBLISHED_LOG_KEY = "arche2025h1.staging.ct.transparency.dev+ba2f06c0+AU0vHmlGCS/PdN8b2OaGmKprLI8HKM+dJ472xgFYh15f"
# The example of c2sp.org/tlog-cosignature; it has no key, but a time that its text names.
SPECIFICATION_LINE = (
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZ"
    "qhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)


def test_a_published_cosignature_verifies() -> None:
    witness = WitnessVerifier.parse(PUBLISHED_KEY, place="test")
    assert witness.text == PUBLISHED_KEY
    assert witness.time_of(PUBLISHED, place="test") == 0x6A122120
    assert Verifier.parse(PUBLISHED_LOG_KEY, place="test").signed_text(PUBLISHED) is not None


@pytest.mark.parametrize("part", ["14320", "U7WM79", "AABqEiEg", "PlfF3V0"], ids=["size", "root", "time", "signature"])
def test_a_published_cosignature_covers_the_checkpoint_and_its_time(part: str) -> None:
    other = part[:-1] + ("1" if part[-1] != "1" else "2")
    with pytest.raises(AuditTampered, match=r"cosignature by remora\.n621\.de is not valid"):
        WitnessVerifier.parse(PUBLISHED_KEY, place="test").time_of(PUBLISHED.replace(part, other), place="test")


def test_the_specifications_example_is_read_as_it_says() -> None:
    [(name, data)] = (split_note(f"text\n\n{SPECIFICATION_LINE}") or ("", []))[1]
    assert (name, len(data), struct.unpack(">Q", data[4:12])[0]) == ("witness.example.com/w1", 76, 1679315147)


def independently_verified(note: str, public: str) -> int:
    """The time of a cosignature, read and verified after c2sp.org/tlog-cosignature without a line of the package."""
    name, key_id, data = public.split("+", 2)
    key = base64.b64decode(data)
    assert key[0] == 4
    assert hashlib.sha256(name.encode() + b"\n" + key).digest()[:4].hex() == key_id
    body, _, lines = note.partition("\n\n")
    for line in lines.splitlines():
        dash, signer, encoded = line.split(" ")
        signature = base64.b64decode(encoded)
        if (dash, signer, signature[:4].hex()) == ("\u2014", name, key_id):
            (moment,) = struct.unpack(">Q", signature[4:12])
            message = b"cosignature/v1\n" + b"time %d\n" % moment + body.encode() + b"\n"
            Ed25519PublicKey.from_public_bytes(key[1:]).verify(signature[12:], message)
            return moment
    raise AssertionError("no cosignature by this key")


class Watched:
    """A log with one export, and a witness with a memory and a place of its own."""

    def __init__(self, engine: sql.Engine, signer: Signer, folder: Path) -> None:
        self.engine, self.signer, self.folder = engine, signer, folder
        self.export, self.place, self.state = folder / "export", folder / "witnessed", folder / "memory.json"
        self.public = generate_witness(folder / "w1.key", name="witness.example/w1")
        self.witness = Witness.load(folder / "w1.key")

    def seal(self) -> Checkpoint:
        return seal(self.engine, signer=self.signer, exports=[self.export])

    def cosign(self, *, begin: bool = False, witness: Witness | None = None, state: Path | None = None) -> Checkpoint:
        return cosign(
            self.export,
            log=self.signer.verifier,
            witness=witness or self.witness,
            state=state or self.state,
            to=self.place,
            begin=begin,
        )

    def quorum(self, needed: int = 1, *others: Witness) -> Quorum:
        witnesses = [self.witness.verifier, *(other.verifier for other in others)]
        return Quorum(witnesses=witnesses, needed=needed, places=[self.place])

    def verify(self, quorum: Quorum | None = None) -> VerificationReport:
        return verify(self.engine, verifier=self.signer.verifier, exports=[self.export], quorum=quorum)

    def found(self, quorum: Quorum) -> list[tuple[str, str]]:
        return [(finding.kind, finding.position) for finding in self.verify(quorum).findings]


@pytest.fixture
def log(sqlite_engine: sql.Engine, signer: Signer, tmp_path: Path, write: Any) -> Watched:
    log = Watched(sqlite_engine, signer, tmp_path)
    write(sqlite_engine, 9)
    log.seal()
    log.cosign(begin=True)
    return log


def another(folder: Path, name: str) -> Witness:
    generate_witness(folder / f"{name}.key", name=f"witness.example/{name}")
    return Witness.load(folder / f"{name}.key")


def test_what_the_witness_writes_verifies_independently(log: Watched) -> None:
    [file] = (log.place / "cosigned").iterdir()
    assert file.name == f"{10:020}-{log.witness.verifier.key_id.hex()}"
    moment = independently_verified(file.read_text(), log.public)
    assert abs(moment - time.time()) < 60
    assert Checkpoint.verify(file.read_text(), log.signer.verifier).tree_size == 10
    assert json.loads(log.state.read_text())["size"] == 10


def test_it_cosigns_what_extends_its_memory_and_the_same_again(log: Watched) -> None:
    for count in (1, 300, 255, 3):
        writer = AuditLog(log.engine, actor=Actor(principal="tester", host="here"), run_key="many")
        writer.append_all([Event(action="encrypt", phase="note")] * count)
        writer.close()
        size = log.seal().tree_size
        assert log.cosign().tree_size == size == log.cosign().tree_size
        assert log.found(log.quorum()) == []
    assert len(list((log.place / "cosigned").iterdir())) == 5


def test_a_quorum_is_counted_over_different_witnesses(log: Watched, write: Any, tmp_path: Path) -> None:
    second, third = another(tmp_path, "w2"), another(tmp_path, "w3")
    assert log.verify(log.quorum(0, second)).ok
    report = log.verify(log.quorum(2, second, third))
    assert [(finding.kind, finding.position) for finding in report.findings] == [("witness", "checkpoint 10")]
    assert "by witness.example/w1 (1 of 3 witnesses, of which 2 are needed" in report.findings[0].text
    assert "not by witness.example/w2, witness.example/w3" in report.findings[0].text
    log.cosign(witness=second, state=tmp_path / "second.json", begin=True)
    report = log.verify(log.quorum(2, second, third))
    assert report.ok
    assert any("2 of 3 witnesses" in note for note in report.notes)
    write(log.engine, 1)
    log.seal()
    assert log.found(log.quorum()) == [("witness", "checkpoint 12")], "the latest checkpoint is not cosigned yet"
    assert log.verify(log.quorum(0)).ok


def restore(log: Watched, saved: Path) -> None:
    """Take the database and the export back to an earlier copy, as their owner could."""
    log.engine.dispose()
    shutil.rmtree(log.export)
    shutil.copytree(saved / "export", log.export)
    for name in ("audit.db", "audit.db-wal", "audit.db-shm"):
        (log.folder / name).unlink(missing_ok=True)
    shutil.copy(saved / "audit.db", log.folder / "audit.db")


def save(log: Watched, saved: Path) -> None:
    log.engine.dispose()  # with its last connection SQLite moves everything into the one file
    saved.mkdir()
    shutil.copytree(log.export, saved / "export")
    shutil.copy(log.folder / "audit.db", saved / "audit.db")


def test_a_log_that_was_taken_back_with_every_export_shows_only_by_its_witness(
    log: Watched, write: Any, tmp_path: Path
) -> None:
    save(log, tmp_path / "saved")
    write(log.engine, 4)
    log.seal()
    log.cosign()
    restore(log, tmp_path / "saved")
    assert log.verify().ok, "without a witness this cannot be seen"
    assert log.found(log.quorum()) == [("checkpoint", "checkpoint 15"), ("truncated", "leaves 10 to 14")]
    with pytest.raises(AuditTampered, match="seen 15: the log was taken back"):
        log.cosign()
    with pytest.raises(AuditTampered, match="15 events; the database has 10"):
        seal(log.engine, signer=log.signer, exports=[log.export], quorum=log.quorum())
    write(log.engine, 4)  # another history of the same length, signed with the right key
    log.seal()
    with pytest.raises(AuditTampered, match="does not extend"):
        log.cosign()
    assert ("fork", "checkpoint 15") in log.found(log.quorum())
    write(log.engine, 30)
    log.seal()
    with pytest.raises(AuditTampered, match="does not extend"):
        log.cosign()
    assert json.loads(log.state.read_text())["size"] == 15


def test_a_rewritten_log_is_not_cosigned(log: Watched, write: Any) -> None:
    """Everything is written and signed anew, leaf hashes in the export included."""
    shutil.rmtree(log.export)
    with log.engine.begin() as connection:
        connection.execute(leaf_table.delete())
        connection.execute(checkpoint_table.delete())
    write(log.engine, 25)
    log.seal()
    assert log.verify().ok
    with pytest.raises(AuditTampered, match="does not extend"):
        log.cosign()


def test_leaf_hashes_that_are_missing_or_wrong_are_not_cosigned(log: Watched, write: Any) -> None:
    write(log.engine, 4)
    log.seal()
    [tile] = (log.export / "tile/0/000.p").glob("15")
    good = tile.read_bytes()
    tile.write_bytes(good[: 12 * 32] + bytes(32) + good[13 * 32 :])
    with pytest.raises(AuditTampered, match="does not extend"):
        log.cosign()
    tile.write_bytes(good[:64])
    with pytest.raises(UnreadableSource, match="missing"):
        log.cosign()
    tile.unlink()
    with pytest.raises(UnreadableSource, match="missing"):
        log.cosign()
    tile.write_bytes(good)
    assert log.cosign().tree_size == 15


def test_a_checkpoint_that_the_log_did_not_sign_is_not_cosigned(log: Watched, tmp_path: Path) -> None:
    file = log.export / "checkpoint"
    text = file.read_text()
    forged = Checkpoint("test-log", 10, bytes(32)).sign(Signer("test-log", Ed25519PrivateKey.generate()))
    for wrong in (forged, text.replace("10\n", "11\n"), "nothing"):
        file.write_text(wrong)
        with pytest.raises(AuditTampered):
            log.cosign()
    file.unlink()
    with pytest.raises(UnreadableSource):
        log.cosign()


@pytest.mark.parametrize("how", ["missing", "other log", "not JSON", "other root", "other schema"])
def test_a_memory_that_is_missing_or_not_its_own_is_not_gone_over(log: Watched, tmp_path: Path, how: str) -> None:
    fields = json.loads(log.state.read_text())
    match how:
        case "missing":
            log.state.unlink()
        case "other log":
            log.state.write_text(json.dumps(fields | {"log": PUBLISHED_LOG_KEY}))
        case "not JSON":
            log.state.write_text("{")
        case "other root":
            log.state.write_text(json.dumps(fields | {"root": "00" * 32}))
        case _:
            log.state.write_text(json.dumps(fields | {"schema": "other/1"}))
    shutil.rmtree(log.place)
    with pytest.raises(ConfigurationError, match="memory"):
        log.cosign()
    assert not log.place.exists()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_witness_that_is_killed_around_its_memory_goes_on(log: Watched, write: Any, when: str) -> None:
    write(log.engine, 4)
    log.seal()
    log.engine.dispose()
    real = module._write_state

    def die(path: Path, seen: module.Seen) -> None:
        if when == "after":
            real(path, seen)
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        module._write_state = die
        log.cosign()

    process = fork.Process(target=work, daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert log.found(log.quorum()) == [("witness", "checkpoint 15")], "nothing is signed before it is remembered"
    assert log.cosign().tree_size == 15
    assert log.found(log.quorum()) == []


def test_several_processes_of_one_witness_never_go_back(log: Watched, write: Any) -> None:
    failures: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(5):
                log.cosign()
        except LeptonError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        write(log.engine, 2)
        log.seal()
    for thread in threads:
        thread.join()
    assert failures == []
    log.cosign()
    assert json.loads(log.state.read_text())["size"] == 22
    assert log.found(log.quorum()) == []


def test_a_changed_byte_of_a_cosigned_checkpoint_is_found_or_changes_nothing(log: Watched) -> None:
    source = random.Random(3)
    [file] = (log.place / "cosigned").iterdir()
    good = file.read_bytes()
    for _ in range(60):
        damaged = bytearray(good)
        damaged[source.randrange(len(good))] ^= source.randrange(1, 256)
        file.write_bytes(damaged)
        assert log.found(log.quorum()) != []


def test_a_time_in_the_future_and_one_of_zero_do_not_count(log: Watched) -> None:
    [file] = (log.place / "cosigned").iterdir()
    note = (log.export / "checkpoint").read_text()
    for moment in (int(time.time()) + 3600, 0, 2**63):
        file.write_text(log.witness.cosign(note, time=moment))
        assert ("witness", str(file)) in log.found(log.quorum(0))
        assert ("witness", "checkpoint 10") in log.found(log.quorum(1))


def test_cosignatures_go_with_an_export(log: Watched, tmp_path: Path) -> None:
    folder = tmp_path / "range"
    export_range(log.engine, folder, verifier=log.signer.verifier, first=2, cosigned=log.quorum().cosigned())
    assert independently_verified((folder / "checkpoint").read_text(), log.public)
    report = verify_range(folder, verifier=log.signer.verifier, quorum=log.quorum())
    assert report.ok
    assert any("cosigned by witness.example/w1" in note for note in report.notes)
    damaged = (folder / "checkpoint").read_text().rstrip("\n").rpartition(" ")
    data = bytearray(base64.b64decode(damaged[2]))
    data[-1] ^= 1
    (folder / "checkpoint").write_text(f"{damaged[0]} {base64.b64encode(data).decode()}\n")
    found = verify_range(folder, verifier=log.signer.verifier, quorum=log.quorum()).findings
    assert [finding.kind for finding in found] == ["witness"]


def test_a_sealers_key_is_no_witnesss_and_the_other_way_round(log: Watched, tmp_path: Path) -> None:
    generate_signer(tmp_path / "sealer.key", name="a-log")
    with pytest.raises(ConfigurationError):
        Witness.load(tmp_path / "sealer.key")
    with pytest.raises(ConfigurationError):
        Signer.load(log.folder / "w1.key")
    with pytest.raises(ConfigurationError, match=r"not an Ed25519 verifier key.*signature type 4"):
        WitnessVerifier.parse(log.signer.verifier.text, place="test")
    with pytest.raises(ConfigurationError):
        Verifier.parse(log.public, place="test")


def test_a_witnesss_key_is_kept_private(log: Watched) -> None:
    key = log.folder / "w1.key"
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(TargetExists):
        generate_witness(key, name="other")
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(log.witness)
    key.chmod(0o644)
    with pytest.raises(UnsafeFile):
        Witness.load(key)


def test_witnesses_in_the_settings_are_checked(log: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = WitnessVerifier("other", log.witness.verifier.public_bytes).text
    assert Quorum.of(Settings(home=tmp_path, witnesses=(log.public,), witness_quorum=1)).places == (
        tmp_path / "checkpoints",
    )
    assert Quorum.of(Settings(home=tmp_path, witness_places=("elsewhere",))).places == ()
    for witnesses, quorum, match in (
        ((log.public, renamed), 1, "one key"),
        ((log.public,), 2, "2 witnesses are needed, 1 are known"),
        (("nonsense",), 0, "not an Ed25519 verifier key"),
    ):
        with pytest.raises(ConfigurationError, match=match):
            Quorum.of(Settings(home=tmp_path, witnesses=witnesses, witness_quorum=quorum))
    (tmp_path / "lepton.yaml").write_text(f"witnesses: ['{log.public}']\nwitness_places: [witnessed]\n")
    monkeypatch.setenv("LEPTON_WITNESS_QUORUM", "1")
    quorum = Quorum.of(load_settings(tmp_path))
    assert (quorum.needed, quorum.places) == (1, (tmp_path / "witnessed",))
    assert log.verify(quorum).ok
