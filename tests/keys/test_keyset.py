from __future__ import annotations

import base64
import copy
import json
import pickle

import cloudpickle
import pytest
import tink
from tink import aead, daead, json_proto_keyset_format, secret_key_access

from lepton_airflow.errors import ConfigurationError, KeyExposure, KeyUnavailable
from lepton_airflow.keys.keyset import Keyset

TOKEN = secret_key_access.TOKEN


@pytest.fixture
def keyset() -> Keyset:
    return Keyset.generate("clinic", cipher="AES256_GCM")


@pytest.mark.parametrize(("cipher", "size"), [("AES256_GCM", 32), ("AES256_SIV", 64)])
def test_a_new_keyset_has_one_enabled_primary_key_of_full_length(cipher, size):
    keyset = Keyset.generate("clinic", cipher=cipher)
    assert dict(keyset.keys) == {keyset.primary_key_id: "ENABLED"}
    assert len(keyset.material(keyset.primary_key_id)) == size


def test_the_export_is_a_keyset_that_tink_reads(keyset):
    handle = json_proto_keyset_format.parse(keyset.to_tink_json(TOKEN), TOKEN)
    ciphertext = handle.primitive(aead.Aead).encrypt(b"value", b"associated")
    assert keyset.aead().decrypt(ciphertext, b"associated") == b"value"


@pytest.mark.parametrize(
    ("cipher", "template"),
    [
        ("AES256_GCM", aead.aead_key_templates.AES256_GCM),
        ("AES256_SIV", daead.deterministic_aead_key_templates.AES256_SIV),
    ],
)
def test_a_keyset_that_tink_made_is_imported(cipher, template):
    text = json_proto_keyset_format.serialize(tink.new_keyset_handle(template), TOKEN)
    keyset = Keyset.from_tink_json(text, TOKEN, name="imported", cipher=cipher)
    assert json.loads(keyset.to_tink_json(TOKEN)) == json.loads(text)


@pytest.mark.parametrize(
    "template",
    [
        aead.aead_key_templates.AES128_GCM,
        aead.aead_key_templates.AES256_GCM_RAW,
        aead.aead_key_templates.XCHACHA20_POLY1305,
        daead.deterministic_aead_key_templates.AES256_SIV,
    ],
)
def test_a_keyset_of_another_kind_is_not_imported(template):
    text = json_proto_keyset_format.serialize(tink.new_keyset_handle(template), TOKEN)
    with pytest.raises(ConfigurationError):
        Keyset.from_tink_json(text, TOKEN, name="imported", cipher="AES256_GCM")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"primaryKeyId": 1, "key": []}'])
def test_text_that_is_no_keyset_is_a_typed_error(text):
    with pytest.raises(ConfigurationError):
        Keyset.from_tink_json(text, TOKEN, name="imported", cipher="AES256_GCM")


def test_keys_in_clear_need_the_secret_access_token(keyset):
    for write in (keyset.to_tink_json, keyset.to_proto):
        with pytest.raises(KeyExposure):
            write(tink.PUBLIC_KEY_ACCESS_TOKEN)
        with pytest.raises(KeyExposure):
            write(None)


def test_a_keyset_is_not_pickled_copied_or_shown(keyset):
    for leak in (pickle.dumps, cloudpickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(KeyExposure):
            leak(keyset)
    material = keyset.material(keyset.primary_key_id)
    for shown in (repr(keyset), str(keyset)):
        for form in (material.hex(), base64.b64encode(material).decode(), repr(material)[2:-1]):
            assert form not in shown


def test_after_rotation_the_new_key_encrypts_and_the_old_ones_decrypt(keyset):
    old = keyset.aead().encrypt(b"value", b"associated")
    rotated = keyset.with_new_primary()
    assert rotated.primary_key_id != keyset.primary_key_id
    assert rotated.aead().decrypt(old, b"associated") == b"value"
    new = rotated.aead().encrypt(b"value", b"associated")
    assert new[1:5] == rotated.primary_key_id.to_bytes(4, "big")
    with pytest.raises(tink.TinkError):
        keyset.aead().decrypt(new, b"associated")


@pytest.mark.parametrize("status", ["DISABLED", "DESTROYED"])
def test_a_disabled_or_destroyed_key_decrypts_nothing(keyset, status):
    ciphertext = keyset.aead().encrypt(b"value", b"associated")
    closed = keyset.with_new_primary().with_status(keyset.primary_key_id, status)
    assert closed.keys[keyset.primary_key_id] == status
    with pytest.raises(KeyUnavailable, match=status.lower()):
        closed.material(keyset.primary_key_id)
    with pytest.raises(tink.TinkError):
        closed.aead().decrypt(ciphertext, b"associated")


def test_a_disabled_key_can_be_enabled_and_a_destroyed_one_is_gone(keyset):
    old = keyset.primary_key_id
    rotated = keyset.with_new_primary()
    again = rotated.with_status(old, "DISABLED").with_status(old, "ENABLED")
    assert again.material(old) == keyset.material(old)
    destroyed = rotated.with_status(old, "DESTROYED")
    assert keyset.material(old) not in destroyed.to_proto(TOKEN)
    assert str(old) not in destroyed.to_tink_json(TOKEN)
    for status in ("ENABLED", "DISABLED", "DESTROYED"):
        with pytest.raises(KeyUnavailable, match="destroyed"):
            destroyed.with_status(old, status)


@pytest.mark.parametrize("status", ["DISABLED", "DESTROYED"])
def test_the_primary_key_stays_enabled(keyset, status):
    with pytest.raises(KeyUnavailable, match="primary"):
        keyset.with_status(keyset.primary_key_id, status)


def test_a_key_of_another_keyset_is_not_found(keyset):
    with pytest.raises(KeyUnavailable, match="not in the keyset"):
        keyset.material(keyset.primary_key_id ^ 1)
    with pytest.raises(KeyUnavailable, match="not in the keyset"):
        keyset.with_status(keyset.primary_key_id ^ 1, "DISABLED")


def test_a_keyset_gives_only_the_primitive_of_its_cipher(keyset):
    with pytest.raises(ConfigurationError):
        keyset.deterministic_aead()
    with pytest.raises(ConfigurationError):
        Keyset.generate("clinic", cipher="AES256_SIV").aead()
    with pytest.raises(ConfigurationError):
        Keyset.generate("clinic", cipher="ROT13")
