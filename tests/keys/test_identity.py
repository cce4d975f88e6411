from __future__ import annotations

import base64
import copy
import json
import pickle
from pathlib import Path
from typing import get_args

import pytest
import tink
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tink import hybrid, secret_key_access
from tink.proto import hpke_pb2, tink_pb2

from lepton_airflow.errors import ConfigurationError, KeyExposure, KeyUnavailable, TargetExists, UnsafeFile
from lepton_airflow.keys.identity import (
    Identity,
    Recipient,
    generate_identity,
    identity_file,
    recipient_file,
)
from lepton_airflow.keys.sealing import SealingAlgorithm

SECRET = bytes(range(32))


@pytest.mark.parametrize(
    ("algorithm", "size"), [("HPKE_MLKEM768_X25519", 1168), ("HPKE_X25519", 80), ("RSA_OAEP_3072_SHA256", 384)]
)
def test_only_the_recipient_opens_what_was_sealed_to_it(make_identity, algorithm, size):
    etl, other = make_identity("etl", algorithm), make_identity("other", algorithm)
    sealed = etl.recipient.seal(SECRET, b"purpose")
    assert len(sealed) == size
    assert etl.unseal(sealed, b"purpose") == SECRET
    with pytest.raises(KeyUnavailable, match="'other'"):
        other.unseal(sealed, b"purpose")


@pytest.mark.parametrize("algorithm", get_args(SealingAlgorithm))
def test_what_was_sealed_for_one_purpose_does_not_open_for_another(make_identity, algorithm):
    etl = make_identity("etl", algorithm)
    with pytest.raises(KeyUnavailable):
        etl.unseal(etl.recipient.seal(SECRET, b"purpose"), b"another purpose")


@pytest.mark.parametrize("algorithm", get_args(SealingAlgorithm))
def test_a_changed_seal_does_not_open(make_identity, algorithm):
    etl = make_identity("etl", algorithm)
    sealed = etl.recipient.seal(SECRET, b"purpose")
    for position in range(0, len(sealed), 37):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(KeyUnavailable):
            etl.unseal(bytes(changed), b"purpose")
    with pytest.raises(KeyUnavailable):
        etl.unseal(b"", b"purpose")


def test_hpke_x25519_is_the_standard_one_that_tink_opens(make_identity, tmp_path):
    etl = make_identity("etl", "HPKE_X25519")
    private = base64.b64decode(json.loads(identity_file("etl", tmp_path / "identities").read_text())["private_key"])
    params = hpke_pb2.HpkeParams(
        kem=hpke_pb2.DHKEM_X25519_HKDF_SHA256, kdf=hpke_pb2.HKDF_SHA256, aead=hpke_pb2.AES_256_GCM
    )
    public = hpke_pb2.HpkePublicKey(
        params=params, public_key=X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    )
    keyset = tink_pb2.Keyset(primary_key_id=1)
    key = keyset.key.add(key_id=1, status=tink_pb2.ENABLED, output_prefix_type=tink_pb2.RAW)
    key.key_data.type_url = "type.googleapis.com/google.crypto.tink.HpkePrivateKey"
    key.key_data.value = hpke_pb2.HpkePrivateKey(public_key=public, private_key=private).SerializeToString()
    key.key_data.key_material_type = tink_pb2.KeyData.ASYMMETRIC_PRIVATE
    hybrid.register()
    handle = tink.proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    decrypt = handle.primitive(hybrid.HybridDecrypt)
    assert decrypt.decrypt(etl.recipient.seal(SECRET, b"purpose"), b"purpose") == SECRET


def test_the_private_file_is_for_its_owner_and_the_public_one_for_all(make_identity, tmp_path):
    make_identity("etl")
    assert identity_file("etl", tmp_path / "identities").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "identities").stat().st_mode & 0o777 == 0o700
    public = recipient_file("etl", tmp_path / "recipients")
    assert public.stat().st_mode & 0o777 == 0o644
    assert "private" not in public.read_text()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_an_identity_on_which_others_have_rights_is_refused(make_identity, tmp_path, mode):
    make_identity("etl")
    file = identity_file("etl", tmp_path / "identities")
    file.chmod(mode)
    with pytest.raises(UnsafeFile, match=f"{mode:04o}") as refused:
        Identity.load(file)
    assert "chmod 600" in refused.value.remedy


def test_a_missing_identity_is_named(tmp_path):
    with pytest.raises(KeyUnavailable, match="'etl'"):
        Identity.load(identity_file("etl", tmp_path))


def test_an_identity_is_never_overwritten(make_identity, tmp_path):
    make_identity("etl")
    private = identity_file("etl", tmp_path / "identities")
    before = private.read_bytes()
    with pytest.raises(TargetExists):
        make_identity("etl")
    assert private.read_bytes() == before


def test_a_private_key_without_its_public_half_is_not_left_behind(tmp_path):
    public = recipient_file("etl", tmp_path / "recipients")
    public.parent.mkdir()
    public.write_text("in the way")
    with pytest.raises(TargetExists):
        generate_identity("etl", identities=tmp_path / "identities", recipients=tmp_path / "recipients")
    assert list((tmp_path / "identities").iterdir()) == []


@pytest.mark.parametrize("name", ["", "../etl", "a/b", ".hidden", "Etl", "etl\n", "é", "x" * 64])
def test_a_name_that_could_be_a_path_is_refused(tmp_path, name):
    with pytest.raises(ConfigurationError):
        generate_identity(name, identities=tmp_path / "identities", recipients=tmp_path / "recipients")
    assert not (tmp_path / "identities").exists()


def test_an_unknown_algorithm_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigurationError, match="HPKE_MLKEM768_X25519"):
        generate_identity("etl", algorithm="RSA_1024", identities=tmp_path / "i", recipients=tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("algorithm", get_args(SealingAlgorithm))
def test_a_recipient_file_says_what_the_identity_has(make_identity, tmp_path, algorithm):
    etl = make_identity("etl", algorithm)
    assert Recipient.load(recipient_file("etl", tmp_path / "recipients")) == etl.recipient


def test_a_recipient_whose_key_was_exchanged_is_refused(make_identity, tmp_path):
    make_identity("etl")
    make_identity("mallory")
    file = recipient_file("etl", tmp_path / "recipients")
    document = json.loads(file.read_text())
    document["public_key"] = json.loads(recipient_file("mallory", tmp_path / "recipients").read_text())["public_key"]
    file.write_text(json.dumps(document, indent=2) + "\n")
    with pytest.raises(ConfigurationError, match="fingerprint"):
        Recipient.load(file)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"format": "lepton.identity/1"}\n', b"[" * 100_000])
def test_a_damaged_identity_is_a_typed_error(tmp_path, content):
    file = tmp_path / "etl.identity.json"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigurationError):
        Identity.load(file)


def test_a_truncated_private_key_is_a_typed_error_without_key_bytes(make_identity, tmp_path):
    make_identity("etl")
    file = identity_file("etl", tmp_path / "identities")
    document = json.loads(file.read_text())
    encoded = document["private_key"]
    document["private_key"] = encoded[:64]
    file.write_text(json.dumps(document, indent=2) + "\n")
    with pytest.raises(ConfigurationError) as refused:
        Identity.load(file)
    assert encoded[:16] not in str(refused.value)
    assert refused.value.__cause__ is None


def test_an_identity_is_not_pickled_copied_or_shown(etl: Identity, tmp_path: Path):
    with pytest.raises(KeyExposure):
        pickle.dumps(etl)
    with pytest.raises(KeyExposure):
        copy.deepcopy(etl)
    document = json.loads(identity_file("etl", tmp_path / "identities").read_text())
    assert document["private_key"][:16] not in repr(etl)
    assert etl.fingerprint in repr(etl)
