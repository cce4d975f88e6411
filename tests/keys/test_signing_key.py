"""A signing key opens for its recipients alone, and its private half never stands anywhere in clear."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from lepton_airflow.errors import ConfigurationError, KeyExposure, KeyUnavailable, TargetExists, UnsafeFile
from lepton_airflow.keys.identity import Identity, Recipient, generate_identity, identity_file
from lepton_airflow.keys.signing_key import (
    SigningKey,
    generate_signing_key,
    load_public_key,
    private_file,
    public_file,
)


@pytest.fixture
def keyring(tmp_path: Path) -> Path:
    return tmp_path / "keyring"


def made(name: str, tmp_path: Path) -> tuple[Recipient, Identity]:
    folders = {"identities": tmp_path / "identities", "recipients": tmp_path / "recipients"}
    recipient = generate_identity(name, **folders)
    return recipient, Identity.load(identity_file(name, folders["identities"]))


@pytest.fixture
def trainer(tmp_path: Path) -> tuple[Recipient, Identity]:
    return made("trainer", tmp_path)


def test_every_recipient_signs_and_the_public_half_verifies(
    keyring: Path, trainer: tuple[Recipient, Identity], tmp_path: Path
) -> None:
    other = made("other", tmp_path)
    public = generate_signing_key("models", keyring=keyring, recipients=[trainer[0], other[0]])
    for _, identity in (trainer, other):
        key = SigningKey.open("models", keyring=keyring, identity=identity)
        assert key.public_key == public.read_bytes()
        signature = key.private_key.sign(b"a model", ec.ECDSA(hashes.SHA256()))
        load_public_key(public).verify(signature, b"a model", ec.ECDSA(hashes.SHA256()))


def test_nobody_else_opens_it(keyring: Path, trainer: tuple[Recipient, Identity], tmp_path: Path) -> None:
    generate_signing_key("models", keyring=keyring, recipients=[trainer[0]])
    _, stranger = made("stranger", tmp_path)
    with pytest.raises(KeyUnavailable, match="not sealed to the identity 'stranger'"):
        SigningKey.open("models", keyring=keyring, identity=stranger)
    with pytest.raises(KeyUnavailable, match="no signing key 'other'"):
        SigningKey.open("other", keyring=keyring, identity=trainer[1])


def test_the_private_half_is_on_no_disk(keyring: Path, trainer: tuple[Recipient, Identity], tmp_path: Path) -> None:
    generate_signing_key("models", keyring=keyring, recipients=[trainer[0]])
    key = SigningKey.open("models", keyring=keyring, identity=trainer[1])
    scalar = key.private_key.private_numbers().private_value.to_bytes(32, "big")
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    # Base64 of the scalar inside something longer begins at one of three offsets.
    shifted = [base64.b64encode(bytes(shift) + scalar)[4:-4] for shift in range(3)]
    for form in (scalar, scalar.hex().encode(), scalar.hex().upper().encode(), *shifted):
        assert form not in content
    assert stat.S_IMODE(private_file("models", keyring).stat().st_mode) == 0o600


def test_it_is_neither_pickled_nor_copied_nor_printed(keyring: Path, trainer: tuple[Recipient, Identity]) -> None:
    generate_signing_key("models", keyring=keyring, recipients=[trainer[0]])
    key = SigningKey.open("models", keyring=keyring, identity=trainer[1])
    for expose in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(KeyExposure):
            expose(key)
    assert str(key.private_key.private_numbers().private_value) not in repr(key)
    assert repr(key) == "SigningKey(name='models', algorithm='ECDSA_P256_SHA256')"


@pytest.mark.parametrize("field", ["public_key", "name", "sealed_key", "recipients", "format"])
def test_a_changed_file_does_not_open(keyring: Path, trainer: tuple[Recipient, Identity], field: str) -> None:
    for name in ("models", "others"):
        generate_signing_key(name, keyring=keyring, recipients=[trainer[0]])
    path, other = private_file("models", keyring), private_file("others", keyring)
    document, another = json.loads(path.read_text()), json.loads(other.read_text())
    if field == "sealed_key":
        document["recipients"][0][field] = another["recipients"][0][field]
    else:
        document[field] = another[field] if field != "format" else "lepton.signing-key/2"
    path.write_text(json.dumps(document, indent=2) + "\n")
    with pytest.raises((KeyUnavailable, ConfigurationError)):
        SigningKey.open("models", keyring=keyring, identity=trainer[1])


def test_a_file_that_others_may_read_is_refused(keyring: Path, trainer: tuple[Recipient, Identity]) -> None:
    generate_signing_key("models", keyring=keyring, recipients=[trainer[0]])
    private_file("models", keyring).chmod(0o640)
    with pytest.raises(UnsafeFile):
        SigningKey.open("models", keyring=keyring, identity=trainer[1])


def test_a_key_is_never_overwritten(keyring: Path, trainer: tuple[Recipient, Identity]) -> None:
    generate_signing_key("models", keyring=keyring, recipients=[trainer[0]])
    before = private_file("models", keyring).read_bytes()
    with pytest.raises(TargetExists):
        generate_signing_key("models", keyring=keyring, recipients=[trainer[0]])
    assert private_file("models", keyring).read_bytes() == before
    with pytest.raises(ConfigurationError, match="at least one recipient"):
        generate_signing_key("others", keyring=keyring, recipients=[])


def test_another_kind_of_key_verifies_nothing(tmp_path: Path, keyring: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    with pytest.raises(KeyUnavailable):
        load_public_key(public_file("models", keyring))
    other = tmp_path / "other.pub"
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())):
        pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        for content in (pem, b"not a key"):
            other.write_bytes(content)
            with pytest.raises(ConfigurationError, match="P-256"):
                load_public_key(other)
