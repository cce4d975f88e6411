from __future__ import annotations

import os

import pyarrow as pa
import pytest
import tink
from hypothesis import given, settings
from hypothesis import strategies as st
from tink.proto import aes_gcm_pb2, tink_pb2

from lepton_airflow.encryption.associated_data import associated_data
from lepton_airflow.encryption.ciphers import ColumnCipher
from lepton_airflow.errors import DecryptionFailed, KeyUnavailable, LeptonError
from lepton_airflow.keys.keyset import Keyset

PLACE = "dataset 'clinic.patients', column 'email'"
ASSOCIATED = associated_data("clinic.patients", "email", "string")
VALUES = [b"", b"a", b"patient@example.org", b"x" * 15, b"x" * 16, b"x" * 17, "Zoë 👩‍⚕️".encode(), bytes(70_000)]
BOTH = pytest.mark.parametrize("cipher", ["AES256_GCM", "AES256_SIV"])
OVERHEAD = {"AES256_GCM": 33, "AES256_SIV": 21}


def column_cipher(keyset: Keyset, bound: bytes = ASSOCIATED) -> ColumnCipher:
    return ColumnCipher(keyset, bound, place=PLACE)


def tink_encrypt(keyset: Keyset, value: bytes, bound: bytes = ASSOCIATED) -> bytes:
    if keyset.cipher == "AES256_GCM":
        return keyset.aead().encrypt(value, bound)
    return keyset.deterministic_aead().encrypt_deterministically(value, bound)


def tink_decrypt(keyset: Keyset, ciphertext: bytes, bound: bytes = ASSOCIATED) -> bytes:
    if keyset.cipher == "AES256_GCM":
        return keyset.aead().decrypt(ciphertext, bound)
    return keyset.deterministic_aead().decrypt_deterministically(ciphertext, bound)


@BOTH
def test_plain_tink_reads_what_a_column_cipher_wrote(cipher):
    keyset = Keyset.generate("clinic", cipher=cipher)
    encrypted = column_cipher(keyset).encrypt(pa.array(VALUES)).to_pylist()
    assert [tink_decrypt(keyset, ciphertext) for ciphertext in encrypted] == VALUES


@BOTH
def test_a_column_cipher_reads_what_plain_tink_wrote(cipher):
    keyset = Keyset.generate("clinic", cipher=cipher)
    encrypted = pa.array([tink_encrypt(keyset, value) for value in VALUES])
    assert column_cipher(keyset).decrypt(encrypted).to_pylist() == VALUES


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.none() | st.binary(max_size=200), max_size=20),
    st.sampled_from([1, 1, 40]),
    st.integers(0, 3),
    st.sampled_from(sorted(OVERHEAD)),
)
def test_any_values_come_back_from_any_slice_and_agree_with_tink(values, copies, start, cipher):
    # Few values are encrypted one by one, many as a batch.
    keyset = Keyset.generate("clinic", cipher=cipher)
    array = pa.array(values * copies, pa.binary()).slice(start)
    encrypted = column_cipher(keyset).encrypt(array)
    assert encrypted.is_valid().equals(array.is_valid())
    shifted = pa.concat_arrays([pa.array([b"garbage"]), encrypted]).slice(1)
    assert column_cipher(keyset).decrypt(shifted).equals(array)
    for value, ciphertext in zip(array.to_pylist(), encrypted.to_pylist(), strict=True):
        assert value is None or tink_decrypt(keyset, ciphertext) == value
    foreign = [value if value is None else tink_encrypt(keyset, value) for value in array.to_pylist()]
    assert column_cipher(keyset).decrypt(pa.array(foreign, pa.binary())).equals(array)


def test_gcm_wire_format_is_prefix_nonce_ciphertext_tag():
    # Test case 16 of McGrew and Viega, "The Galois/Counter Mode of Operation", which NIST took over.
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    nonce = bytes.fromhex("cafebabefacedbaddecaf888")
    bound = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    plaintext = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    ciphertext = bytes.fromhex(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
    )
    tag = bytes.fromhex("76fc6ece0f4e1768cddf8853bb2d551b")
    keyset = gcm_keyset(key, key_id=0xA1B2C3D4)
    value = bytes.fromhex("01a1b2c3d4") + nonce + ciphertext + tag
    assert column_cipher(keyset, bound).decrypt(pa.array([value])).to_pylist() == [plaintext]


def gcm_keyset(key: bytes, *, key_id: int) -> Keyset:
    proto = tink_pb2.Keyset(primary_key_id=key_id)
    entry = proto.key.add(key_id=key_id, status=tink_pb2.ENABLED, output_prefix_type=tink_pb2.TINK)
    entry.key_data.type_url = "type.googleapis.com/google.crypto.tink.AesGcmKey"
    entry.key_data.value = aes_gcm_pb2.AesGcmKey(key_value=key).SerializeToString()
    entry.key_data.key_material_type = tink_pb2.KeyData.SYMMETRIC
    return Keyset.from_proto(proto.SerializeToString(), name="clinic", cipher="AES256_GCM")


@BOTH
def test_every_value_starts_with_version_and_key_id_and_has_a_fixed_overhead(cipher):
    keyset = Keyset.generate("clinic", cipher=cipher)
    for value, ciphertext in zip(VALUES, column_cipher(keyset).encrypt(pa.array(VALUES)).to_pylist(), strict=True):
        assert ciphertext[:5] == b"\x01" + keyset.primary_key_id.to_bytes(4, "big")
        assert len(ciphertext) == len(value) + OVERHEAD[cipher]


def test_gcm_hides_equality_and_never_uses_a_nonce_twice():
    encrypted = column_cipher(Keyset.generate("clinic", cipher="AES256_GCM")).encrypt(pa.array([b"same"] * 5000))
    assert len({ciphertext[5:17] for ciphertext in encrypted.to_pylist()}) == 5000
    assert len({ciphertext[17:] for ciphertext in encrypted.to_pylist()}) == 5000


def test_siv_shows_equality_within_a_domain_only():
    keyset = Keyset.generate("clinic", cipher="AES256_SIV")

    def encrypt(bound: bytes) -> bytes:
        return column_cipher(keyset, bound).encrypt(pa.array([b"same", b"same"])).to_pylist()

    visits = encrypt(associated_data("clinic.visits", "patient", "string", "patient"))
    patients = encrypt(associated_data("clinic.patients", "id", "string", "patient"))
    assert visits == patients
    assert visits[0] == visits[1]
    assert encrypt(associated_data("clinic.patients", "id", "string"))[0] != patients[0]


@BOTH
def test_tampering_with_any_byte_is_refused_and_the_value_not_quoted(cipher):
    keyset = Keyset.generate("clinic", cipher=cipher)
    (ciphertext,) = column_cipher(keyset).encrypt(pa.array([b"patient@example.org"])).to_pylist()
    for position in range(len(ciphertext)):
        for bit in range(8):
            changed = bytearray(ciphertext)
            changed[position] ^= 1 << bit
            with pytest.raises(DecryptionFailed) as refused:
                column_cipher(keyset).decrypt(pa.array([bytes(changed)]))
            assert refused.value.place == PLACE
            assert "patient@" not in str(refused.value)
            if position >= 5:
                assert f"key {keyset.primary_key_id} " in str(refused.value)
    for length in range(len(ciphertext)):
        with pytest.raises(DecryptionFailed):
            column_cipher(keyset).decrypt(pa.array([ciphertext[:length]]))


@BOTH
def test_a_value_moved_to_another_place_is_refused(cipher):
    keyset = Keyset.generate("clinic", cipher=cipher)
    encrypted = column_cipher(keyset).encrypt(pa.array([b"value"]))
    for bound in (
        associated_data("clinic.patients", "phone", "string"),
        associated_data("clinic.visits", "email", "string"),
        associated_data("clinic.patients", "email", "binary"),
        associated_data("clinic.patients", "email", "string", "email"),
    ):
        with pytest.raises(DecryptionFailed, match="another column or table"):
            column_cipher(keyset, bound).decrypt(encrypted)


@BOTH
def test_one_bad_value_keeps_the_whole_batch_back(cipher):
    keyset = Keyset.generate("clinic", cipher=cipher)
    good = column_cipher(keyset).encrypt(pa.array([b"value"] * 100)).to_pylist()
    for position in (0, 50, 99):
        batch = list(good)
        batch[position] = batch[position][:-1] + bytes([batch[position][-1] ^ 1])
        with pytest.raises(DecryptionFailed):
            column_cipher(keyset).decrypt(pa.array(batch))


@BOTH
@pytest.mark.parametrize("status", ["DISABLED", "DESTROYED"])
def test_a_value_under_a_disabled_or_destroyed_key_is_refused_by_its_id(cipher, status):
    keyset = Keyset.generate("clinic", cipher=cipher)
    encrypted = column_cipher(keyset).encrypt(pa.array([b"value"]))
    closed = keyset.with_new_primary().with_status(keyset.primary_key_id, status)
    with pytest.raises(KeyUnavailable, match=f"key {keyset.primary_key_id} .* {status.lower()}") as refused:
        column_cipher(closed).decrypt(encrypted)
    assert refused.value.place == PLACE


@BOTH
def test_values_of_several_keys_are_read_in_one_batch(cipher):
    first = Keyset.generate("clinic", cipher=cipher)
    second = first.with_new_primary()
    old = column_cipher(first).encrypt(pa.array([b"old", None]))
    new = column_cipher(second).encrypt(pa.array([b"new", None]))
    mixed = pa.concat_arrays([old, new, old])
    assert column_cipher(second).decrypt(mixed).to_pylist() == [b"old", None, b"new", None, b"old", None]
    with pytest.raises(DecryptionFailed, match=f"key {second.primary_key_id}, which keyset 'clinic'"):
        column_cipher(first).decrypt(mixed)


@BOTH
def test_nulls_stay_null_and_empty_arrays_empty(cipher):
    keyset = Keyset.generate("clinic", cipher=cipher)
    for array in (pa.array([], pa.binary()), pa.array([None] * 3, pa.binary()), pa.array([None, b""], pa.binary())):
        encrypted = column_cipher(keyset).encrypt(array)
        assert encrypted.null_count == array.null_count
        assert column_cipher(keyset).decrypt(encrypted).equals(array)


@BOTH
def test_large_arrays_stay_large(cipher):
    keyset = Keyset.generate("clinic", cipher=cipher)
    array = pa.array([b"value", None], pa.large_binary())
    encrypted = column_cipher(keyset).encrypt(array)
    assert encrypted.type == pa.large_binary()
    assert column_cipher(keyset).decrypt(encrypted).equals(array)


@BOTH
def test_a_value_of_16_mib_comes_back(cipher):
    keyset = Keyset.generate("clinic", cipher=cipher)
    array = pa.array([os.urandom(16 * 2**20)])
    assert column_cipher(keyset).decrypt(column_cipher(keyset).encrypt(array)).equals(array)


def test_a_keyset_of_another_cipher_reads_nothing():
    gcm, siv = (Keyset.generate("clinic", cipher=cipher) for cipher in ("AES256_GCM", "AES256_SIV"))
    with pytest.raises(LeptonError):
        column_cipher(siv).decrypt(column_cipher(gcm).encrypt(pa.array([b"value"])))
    with pytest.raises(tink.TinkError):
        tink_decrypt(siv, tink_encrypt(gcm, b"value"))
