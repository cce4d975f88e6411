from __future__ import annotations

import base64
import json
import threading
from typing import get_args

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tink import secret_key_access

from lepton_airflow.errors import ConfigurationError, KeyUnavailable, LeptonError, TargetExists, UnsafeFile
from lepton_airflow.keys import keyring as keyring_module
from lepton_airflow.keys.identity import Identity
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.keys.keyset import Keyset
from lepton_airflow.keys.sealing import SealingAlgorithm

GCM = "AES256_GCM"


def primary_material(keyring: FileKeyring, identity: Identity, name: str = "clinic") -> bytes:
    keyset = keyring.open(name, cipher=GCM, identity=identity)
    return keyset.material(keyset.primary_key_id)


def test_a_sealed_keyset_opens_for_each_recipient_and_for_nobody_else(make_identity, tmp_path):
    holders = [make_identity(f"holder-{number}", each) for number, each in enumerate(get_args(SealingAlgorithm))]
    stranger = make_identity("stranger")
    keyring = FileKeyring(tmp_path / "keyring")
    keyring.create("clinic", cipher=GCM, recipients=[holder.recipient for holder in holders])
    assert len({primary_material(keyring, holder) for holder in holders}) == 1
    with pytest.raises(KeyUnavailable, match="not sealed to the identity 'stranger'") as refused:
        keyring.open("clinic", cipher=GCM, identity=stranger)
    assert "lepton keys grant clinic --recipient stranger" in refused.value.remedy


def test_an_identity_of_the_same_name_with_another_key_does_not_open_it(keyring, make_identity, tmp_path):
    for file in [*(tmp_path / "identities").iterdir(), *(tmp_path / "recipients").iterdir()]:
        file.unlink()
    with pytest.raises(KeyUnavailable):
        keyring.open("clinic", cipher=GCM, identity=make_identity("etl"))


def test_the_file_is_private_and_holds_no_key_in_clear(keyring, etl):
    file = keyring.path("clinic", GCM)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir() if path.name != ".lock"] == [f"{GCM}.json"]
    content, material = file.read_bytes(), primary_material(keyring, etl)
    decoded = b"".join(base64.b64decode(text) for text in (json.loads(content)["encrypted_keyset"],))
    for form in (material, material.hex().encode(), base64.b64encode(material).rstrip(b"=")):
        assert form not in content
        assert form not in decoded


def test_a_change_of_any_byte_of_the_file_is_refused(make_identity, tmp_path):
    # With the algorithm of the smallest file, so that every byte has its turn.
    etl = make_identity("etl", "HPKE_X25519")
    keyring = FileKeyring(tmp_path / "keyring")
    keyring.create("clinic", cipher=GCM, recipients=[etl.recipient])
    file = keyring.path("clinic", GCM)
    content = file.read_bytes()
    assert keyring.open("clinic", cipher=GCM, identity=etl)
    for position in range(len(content)):
        for flip in (0x01, 0x20):
            changed = bytearray(content)
            changed[position] ^= flip
            file.write_bytes(bytes(changed))
            with pytest.raises(LeptonError):
                keyring.open("clinic", cipher=GCM, identity=etl)
    for changed_content in (content[:-1], content + b"\n", content.replace(b"  ", b"\t", 1), b""):
        file.write_bytes(changed_content)
        with pytest.raises(ConfigurationError):
            keyring.open("clinic", cipher=GCM, identity=etl)


def test_only_one_base64_text_stands_for_the_encrypted_bytes():
    assert keyring_module._from_base64("QQ==") == b"A"
    for text in ("QR==", "QQ=", "QQ", "Q Q==", "QQ==\n"):
        with pytest.raises(ValueError):
            keyring_module._from_base64(text)


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: document["keyset_info"]["keys"][0].update(status="DISABLED"),
        lambda document: document["keyset_info"].update(primary_key_id=2**70),
        lambda document: document["recipients"][0].update(name="somebody"),
        lambda document: document["recipients"].append(document["recipients"][0]),
        lambda document: document["recipients"][0].update(sealed_key=5),
        lambda document: document.update(recipients=None),
        lambda document: document.update(note="more"),
        lambda document: document.update(encrypted_keyset=""),
        lambda document: document.pop("encrypted_keyset"),
        lambda document: document.pop("keyset_info"),
        lambda document: document.update(cipher="AES256_SIV"),
        lambda document: document.update(name="\ud800"),
    ],
)
def test_a_careful_edit_of_the_public_part_is_refused(keyring, etl, edit):
    file = keyring.path("clinic", GCM)
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document, indent=2) + "\n")
    with pytest.raises(ConfigurationError):
        keyring.open("clinic", cipher=GCM, identity=etl)


def test_a_keyset_put_in_place_of_another_is_refused(keyring, etl):
    keyring.create("other", cipher=GCM, recipients=[etl.recipient])
    keyring.path("clinic", GCM).write_bytes(keyring.path("other", GCM).read_bytes())
    with pytest.raises(ConfigurationError):
        keyring.open("clinic", cipher=GCM, identity=etl)
    # The same with the name edited to fit: the seal and the associated data hold the name.
    document = json.loads(keyring.path("other", GCM).read_text())
    document["name"] = "clinic"
    keyring.path("clinic", GCM).write_text(json.dumps(document, indent=2) + "\n")
    with pytest.raises(KeyUnavailable):
        keyring.open("clinic", cipher=GCM, identity=etl)


@pytest.mark.parametrize("mode", [0o644, 0o660])
def test_a_keyset_file_on_which_others_have_rights_is_refused(keyring, etl, mode):
    keyring.path("clinic", GCM).chmod(mode)
    with pytest.raises(UnsafeFile):
        keyring.open("clinic", cipher=GCM, identity=etl)


def test_a_missing_keyset_is_named(keyring, etl):
    with pytest.raises(KeyUnavailable, match="'lab'"):
        keyring.open("lab", cipher=GCM, identity=etl)
    with pytest.raises(KeyUnavailable, match="AES256_SIV"):
        keyring.open("clinic", cipher="AES256_SIV", identity=etl)
    with pytest.raises(KeyUnavailable):
        keyring.rotate("lab", cipher=GCM, identity=etl)
    with pytest.raises(KeyUnavailable):
        keyring.describe("lab")
    assert not (keyring.folder / "lab").exists()


def test_a_name_that_is_a_path_is_refused(keyring, etl):
    for name in ("../clinic", "clinic/..", "", "."):
        with pytest.raises(ConfigurationError):
            keyring.open(name, cipher=GCM, identity=etl)
    with pytest.raises(ConfigurationError):
        keyring.open("clinic", cipher="../AES256_GCM", identity=etl)


def test_a_keyset_is_never_overwritten_by_another(keyring, etl):
    before = primary_material(keyring, etl)
    with pytest.raises(TargetExists):
        keyring.create("clinic", cipher=GCM, recipients=[etl.recipient])
    assert primary_material(keyring, etl) == before


def test_a_keyset_without_recipients_would_be_lost_and_is_refused(keyring, etl):
    for recipients in ([], [etl.recipient, etl.recipient]):
        with pytest.raises(ConfigurationError):
            keyring.create("lab", cipher=GCM, recipients=recipients)
    assert len(keyring.list()) == 1


def test_an_imported_keyset_is_stored_as_it_is(keyring, etl):
    keyset = Keyset.generate("lab", cipher="AES256_SIV")
    keyring.create("lab", cipher="AES256_SIV", recipients=[etl.recipient], keyset=keyset)
    opened = keyring.open("lab", cipher="AES256_SIV", identity=etl)
    assert opened.to_tink_json(secret_key_access.TOKEN) == keyset.to_tink_json(secret_key_access.TOKEN)
    with pytest.raises(ConfigurationError):
        keyring.create("ward", cipher="AES256_SIV", recipients=[etl.recipient], keyset=keyset)


def test_a_rotation_adds_a_primary_key_and_keeps_the_others(keyring, etl):
    (before,) = keyring.describe("clinic")
    key_id = keyring.rotate("clinic", cipher=GCM, identity=etl)
    (after,) = keyring.describe("clinic")
    assert after.primary_key_id == key_id != before.primary_key_id
    assert after.keys == {before.primary_key_id: "ENABLED", key_id: "ENABLED"}
    assert after.recipients == before.recipients == {"etl": etl.fingerprint}
    assert dict(keyring.open("clinic", cipher=GCM, identity=etl).keys) == after.keys


def test_who_is_granted_a_keyset_opens_it_and_who_is_revoked_does_not(keyring, etl, make_identity):
    analyst = make_identity("analyst")
    first = primary_material(keyring, etl)
    keyring.grant("clinic", cipher=GCM, identity=etl, recipient=analyst.recipient)
    assert primary_material(keyring, analyst) == first
    keyring.revoke("clinic", cipher=GCM, identity=etl, recipient="analyst")
    with pytest.raises(KeyUnavailable):
        keyring.open("clinic", cipher=GCM, identity=analyst)
    assert primary_material(keyring, etl) != first


def test_a_key_encryption_key_that_a_revoked_recipient_kept_opens_nothing_newer(keyring, etl, make_identity):
    analyst = make_identity("analyst")
    keyring.grant("clinic", cipher=GCM, identity=etl, recipient=analyst.recipient)
    document = json.loads(keyring.path("clinic", GCM).read_text())
    sealed = next(known["sealed_key"] for known in document["recipients"] if known["name"] == "analyst")
    info = keyring_module._sealing_info("clinic", GCM, analyst.fingerprint)
    kept = AESGCM(analyst.unseal(base64.b64decode(sealed), info))

    def opens(document: dict) -> bool:
        encrypted = base64.b64decode(document["encrypted_keyset"])
        try:
            return bool(kept.decrypt(encrypted[:12], encrypted[12:], keyring_module._associated_data(document)))
        except Exception:
            return False

    assert opens(document)
    keyring.revoke("clinic", cipher=GCM, identity=etl, recipient="analyst")
    assert not opens(json.loads(keyring.path("clinic", GCM).read_text()))


def test_only_a_holder_changes_a_keyset(keyring, make_identity):
    stranger = make_identity("stranger")
    before = keyring.path("clinic", GCM).read_bytes()
    (described,) = keyring.describe("clinic")
    for change in (
        lambda: keyring.rotate("clinic", cipher=GCM, identity=stranger),
        lambda: keyring.grant("clinic", cipher=GCM, identity=stranger, recipient=stranger.recipient),
        lambda: keyring.revoke("clinic", cipher=GCM, identity=stranger, recipient="etl"),
        lambda: keyring.set_status(
            "clinic", cipher=GCM, identity=stranger, key_id=described.primary_key_id, status="DISABLED"
        ),
    ):
        with pytest.raises(KeyUnavailable):
            change()
    assert keyring.path("clinic", GCM).read_bytes() == before


def test_the_last_recipient_cannot_be_revoked(keyring, etl):
    with pytest.raises(KeyUnavailable, match="only recipient"):
        keyring.revoke("clinic", cipher=GCM, identity=etl, recipient="etl")
    with pytest.raises(KeyUnavailable, match="not sealed to it"):
        keyring.revoke("clinic", cipher=GCM, identity=etl, recipient="nobody")
    assert primary_material(keyring, etl)


def test_a_destroyed_key_is_gone_from_the_file(keyring, etl):
    old = keyring.open("clinic", cipher=GCM, identity=etl)
    keyring.rotate("clinic", cipher=GCM, identity=etl)
    keyring.set_status("clinic", cipher=GCM, identity=etl, key_id=old.primary_key_id, status="DESTROYED")
    opened = keyring.open("clinic", cipher=GCM, identity=etl)
    assert opened.keys[old.primary_key_id] == "DESTROYED"
    assert old.material(old.primary_key_id) not in opened.to_proto(secret_key_access.TOKEN)


def test_changes_at_the_same_time_are_all_kept(keyring, etl):
    threads = [
        threading.Thread(target=keyring.rotate, args=["clinic"], kwargs={"cipher": GCM, "identity": etl})
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keyring.open("clinic", cipher=GCM, identity=etl).keys) == 9


def test_a_write_that_fails_leaves_the_old_keyset(keyring, etl, monkeypatch):
    before = keyring.path("clinic", GCM).read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("lepton_airflow.keys.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        keyring.rotate("clinic", cipher=GCM, identity=etl)
    monkeypatch.undo()
    assert keyring.path("clinic", GCM).read_bytes() == before
    assert sorted(path.name for path in keyring.path("clinic", GCM).parent.iterdir()) == [".lock", f"{GCM}.json"]


def test_who_reads_during_a_change_reads_the_whole_old_file(keyring, etl):
    with keyring.path("clinic", GCM).open("rb") as reader:
        before = keyring.path("clinic", GCM).read_bytes()
        keyring.rotate("clinic", cipher=GCM, identity=etl)
        assert reader.read() == before
    assert keyring.path("clinic", GCM).read_bytes() != before


def test_the_list_shows_every_keyset_and_passes_other_files_over(keyring, etl):
    keyring.create("lab", cipher="AES256_SIV", recipients=[etl.recipient])
    (keyring.folder / ".git").mkdir()
    (keyring.folder / "README").write_text("keys")
    assert [(each.name, each.cipher) for each in keyring.list()] == [("clinic", GCM), ("lab", "AES256_SIV")]
    assert FileKeyring(keyring.folder / "nowhere").list() == ()
