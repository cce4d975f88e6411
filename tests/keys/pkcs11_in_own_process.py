"""Private keys in a real token, SoftHSM2: made there, used there, never seen outside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lepton_airflow.cli import app
from lepton_airflow.errors import (
    ConfigurationError,
    KeyServiceUnavailable,
    KeyUnavailable,
    TargetExists,
    UnsafeFile,
)
from lepton_airflow.keys.identity import Identity, Recipient, identity_file, recipient_file, token_identity
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.keys.pkcs11 import PIN_VARIABLE, KeyLocation, NewKey, TokenKey
from lepton_airflow.keys.reference import KeysetReference
from lepton_airflow.keys.sealing import seal
from lepton_airflow.settings import load_settings

# SoftHSM reads its configuration once in a process.
SECRET = bytes(range(32))
PIN = "4711-0815"


@dataclass(frozen=True)
class Token:
    module: str
    label: str
    folder: Path


@pytest.fixture(scope="session")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    """A fresh SoftHSM2 token."""
    modules = [*Path("/usr/lib").glob("*/softhsm/libsofthsm2.so"), *Path("/usr/lib").glob("softhsm/libsofthsm2.so")]
    program = shutil.which("softhsm2-util")
    if not modules or program is None:
        pytest.fail("SoftHSM2 is not installed: run docker/setup/system.sh softhsm")
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    arguments = ["--init-token", "--free", "--label", "lepton", "--pin", PIN, "--so-pin", "officer-pin"]
    subprocess.run([program, *arguments], check=True, capture_output=True)
    return Token(str(modules[0]), "lepton", folder)


@pytest.fixture
def pin(tmp_path: Path) -> Path:
    file = tmp_path / "pin"
    file.write_text(f"{PIN}\n")
    file.chmod(0o600)
    return file


@pytest.fixture
def where(token: Token, pin: Path) -> NewKey:
    return NewKey(module=token.module, token=token.label, pin_file=str(pin))


@pytest.fixture
def hsm(where: NewKey, tmp_path: Path) -> Identity:
    token_identity("hsm", location=where, identities=tmp_path / "identities", recipients=tmp_path / "recipients")
    return Identity.load(identity_file("hsm", tmp_path / "identities"))


def test_the_token_opens_what_was_sealed_to_its_key(hsm, tmp_path):
    recipient = Recipient.load(recipient_file("hsm", tmp_path / "recipients"))
    assert recipient == hsm.recipient
    sealed = recipient.seal(SECRET, b"purpose")
    assert len(sealed) == 384
    assert hsm.unseal(sealed, b"purpose") == SECRET


def test_the_hash_is_the_best_that_the_token_has(hsm, tmp_path):
    # SoftHSM 2.6 refuses OAEP with SHA-256. A token that has it gets it: when Debian's does, this line says so.
    assert hsm.algorithm == "RSA_OAEP_3072_SHA1"
    location = KeyLocation(**json.loads(identity_file("hsm", tmp_path / "identities").read_text())["key"])
    better = TokenKey("RSA_OAEP_3072_SHA256", location, place="identity 'hsm'")
    sealed = seal("RSA_OAEP_3072_SHA256", hsm.recipient.public_key, SECRET, info=b"", place="identity 'hsm'")
    with pytest.raises(ValueError):
        better.unseal(sealed, b"")


def test_a_keyset_sealed_to_the_token_opens_through_a_reference(hsm, make_identity, tmp_path):
    keyring = FileKeyring(tmp_path / "keyring")
    keyring.create("clinic", cipher="AES256_GCM", recipients=[hsm.recipient])
    reference = KeysetReference(
        keyring=str(keyring.folder),
        name="clinic",
        cipher="AES256_GCM",
        identity_file=str(identity_file("hsm", tmp_path / "identities")),
    )
    sealed = reference.open().aead().encrypt(b"value", b"")
    # The holder of the token can grant it to somebody else, and rotate.
    analyst = make_identity("analyst")
    keyring.grant("clinic", cipher="AES256_GCM", identity=hsm, recipient=analyst.recipient)
    keyring.rotate("clinic", cipher="AES256_GCM", identity=hsm)
    assert keyring.open("clinic", cipher="AES256_GCM", identity=analyst).aead().decrypt(sealed, b"") == b"value"


def test_the_command_makes_an_identity_in_the_token_and_uses_it(where, tmp_path):
    runner = CliRunner()
    home = str(tmp_path / "home")

    def lepton(*arguments: str) -> str:
        result = runner.invoke(app, [*arguments, "--home", home])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    lepton("init", "--identity", "etl", "--keyset", "clinic")
    options = ("--pkcs11-module", where.module, "--token", where.token, "--pin-file", where.pin_file)
    assert "RSA_OAEP_3072_SHA1" in lepton("keys", "identity", "hsm", *options)
    lepton("keys", "grant", "clinic", "--recipient", "hsm")
    settings = load_settings(home, {"identity": "hsm"})
    assert Identity.load(settings.identity_file).name == "hsm"
    keyset = FileKeyring(settings.keyring).open(
        "clinic", cipher="AES256_GCM", identity=Identity.load(settings.identity_file)
    )
    assert keyset.primary_key_id


def test_another_purpose_another_key_and_a_changed_seal_do_not_open(hsm, where, tmp_path):
    token_identity("other", location=where, identities=tmp_path / "identities", recipients=tmp_path / "recipients")
    other = Identity.load(identity_file("other", tmp_path / "identities"))
    sealed = hsm.recipient.seal(SECRET, b"purpose")
    assert other.unseal(other.recipient.seal(SECRET, b"purpose"), b"purpose") == SECRET
    for identity, seal_, info in (
        (hsm, sealed, b"another purpose"),
        (other, sealed, b"purpose"),
        (hsm, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"purpose"),
        (hsm, sealed[:100], b"purpose"),
        (hsm, b"", b"purpose"),
    ):
        with pytest.raises(KeyUnavailable, match="does not open"):
            identity.unseal(seal_, info)


def test_the_private_key_does_not_leave_the_token(hsm, token, where, tmp_path):
    import pkcs11
    from pkcs11 import Attribute, ObjectClass

    document = json.loads(identity_file("hsm", tmp_path / "identities").read_text())
    assert "private_key" not in document
    assert PIN not in json.dumps(document)
    with pkcs11.lib(token.module).get_token(token_label=token.label).open(user_pin=PIN) as session:
        key = session.get_key(object_class=ObjectClass.PRIVATE_KEY, id=bytes.fromhex(document["key"]["key_id"]))
        assert key[Attribute.SENSITIVE]
        assert not key[Attribute.EXTRACTABLE]
        assert key[Attribute.NEVER_EXTRACTABLE]
        with pytest.raises(pkcs11.exceptions.PKCS11Error):
            key[Attribute.PRIVATE_EXPONENT]


def test_a_wrong_pin_is_named_and_not_shown(hsm, pin):
    sealed = hsm.recipient.seal(SECRET, b"purpose")
    pin.write_text("guess-1234")
    with pytest.raises(KeyUnavailable, match="refuses the PIN") as refused:
        hsm.unseal(sealed, b"purpose")
    assert "guess-1234" not in str(refused.value)
    assert str(pin) in refused.value.remedy
    pin.write_text(PIN)
    assert hsm.unseal(sealed, b"purpose") == SECRET


def test_the_file_with_the_pin_is_private_and_must_be_there(hsm, pin):
    sealed = hsm.recipient.seal(SECRET, b"purpose")
    pin.chmod(0o640)
    with pytest.raises(UnsafeFile):
        hsm.unseal(sealed, b"purpose")
    pin.unlink()
    with pytest.raises(KeyUnavailable, match=str(pin)):
        hsm.unseal(sealed, b"purpose")


def test_the_pin_can_come_from_the_environment(token, tmp_path, monkeypatch):
    where = NewKey(module=token.module, token=token.label)
    folders = {"identities": tmp_path / "identities", "recipients": tmp_path / "recipients"}
    monkeypatch.delenv(PIN_VARIABLE, raising=False)
    with pytest.raises(KeyUnavailable, match=PIN_VARIABLE):
        token_identity("hsm", location=where, **folders)
    monkeypatch.setenv(PIN_VARIABLE, PIN)
    recipient = token_identity("hsm", location=where, **folders)
    hsm = Identity.load(identity_file("hsm", folders["identities"]))
    assert hsm.unseal(recipient.seal(SECRET, b""), b"") == SECRET


def test_what_is_missing_is_named(hsm, token, pin, tmp_path):
    sealed = hsm.recipient.seal(SECRET, b"purpose")
    file = identity_file("hsm", tmp_path / "identities")
    document = json.loads(file.read_text())
    for field, value, text in (
        ("token", "elsewhere", "no such token"),
        ("key_id", "00" * 16, "does not hold the identity's key"),
        ("module", "/nowhere/lib.so", "/nowhere/lib.so"),
    ):
        changed = {**document, "key": {**document["key"], field: value}}
        file.write_text(json.dumps(changed, indent=2) + "\n")
        with pytest.raises(KeyUnavailable, match=text) as caught:
            Identity.load(file).unseal(sealed, b"purpose")
        assert not isinstance(caught.value, KeyServiceUnavailable)
        assert caught.value.remedy
    for broken in ({"key": {"module": token.module}}, {"provider": "punched cards"}, {"algorithm": "HPKE_X25519"}):
        file.write_text(json.dumps({**document, **broken}, indent=2) + "\n")
        with pytest.raises(ConfigurationError):
            Identity.load(file)


def test_no_key_is_made_in_the_token_for_a_name_that_is_taken(hsm, where, token, tmp_path):
    import pkcs11

    def keys() -> int:
        with pkcs11.lib(token.module).get_token(token_label=token.label).open(user_pin=PIN) as session:
            return len(list(session.get_objects({pkcs11.Attribute.LABEL: "hsm"})))

    before = keys()
    with pytest.raises(TargetExists):
        token_identity("hsm", location=where, identities=tmp_path / "identities", recipients=tmp_path / "recipients")
    assert keys() == before
