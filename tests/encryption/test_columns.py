"""Protectors of single columns: encrypt, decrypt, on_error, rotate."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql.types import StructField, StructType

from lepton_airflow.encryption.columns import ColumnProtector, bound_data
from lepton_airflow.encryption.logical_type import type_of
from lepton_airflow.encryption.planning import plan_protection
from lepton_airflow.encryption.protection import Protection
from lepton_airflow.errors import DecryptionFailed, KeyUnavailable, LeptonError, UnsupportedType

DATASET = "clinic.patients"
PLACE = f"dataset {DATASET!r}, column 'email'"
BOTH = pytest.mark.parametrize("cipher", ["AES256_GCM", "AES256_SIV"])
VALUES = ["a@example.org", None, "", "Zoë 👩‍⚕️", "b@example.org" * 60, "c@example.org"]


@pytest.fixture
def plan(keys):
    def planned(*, column="email", type="string", dataset=DATASET, **protection) -> ColumnProtector:
        schema = StructType([StructField(column, type_of(type, place="test"))])
        protections = {column: Protection(**protection)}
        (protector,) = plan_protection(
            schema, dataset=dataset, protections=protections, keysets=keys.references
        ).values()
        return protector

    return planned


def tampered(ciphertexts: pa.Array, *rows: int) -> pa.Array:
    values = ciphertexts.to_pylist()
    for row in rows:
        values[row] = values[row][:-1] + bytes([values[row][-1] ^ 1])
    return pa.array(values, ciphertexts.type)


@BOTH
@pytest.mark.parametrize("rows", [6, 900], ids=["few", "a batch"])
def test_any_shape_of_array_comes_back(plan, cipher, rows):
    protector = plan(cipher=cipher)
    array = pa.array((VALUES * rows)[:rows])
    shapes = {
        "plain": array,
        "sliced": pa.concat_arrays([pa.array(["hidden"]), array, pa.array(["hidden"])]).slice(1, rows),
        "large": array.cast(pa.large_string()),
        "view": array.cast(pa.string_view()),
        "dictionary": array.dictionary_encode(),
        "chunked": pa.chunked_array([array.slice(0, 2), array.slice(2), array.slice(0, 0)]),
        "chunked dictionary": pa.chunked_array(
            [array.slice(0, 2).dictionary_encode(), array.slice(2).dictionary_encode()]
        ),
    }
    for name, shape in shapes.items():
        encrypted = protector.encrypt(shape)
        assert encrypted.null_count == array.null_count, name
        assert protector.decrypt(encrypted)[0].to_pylist() == array.to_pylist(), name
        assert protector.decrypt(pa.chunked_array([encrypted, encrypted]))[0].to_pylist() == array.to_pylist() * 2
    assert protector.encrypt(array.slice(0, 0)).to_pylist() == []
    assert protector.decrypt(pa.array([None, None], pa.binary())) == (pa.array([None, None], pa.string()), 0)


@BOTH
def test_plain_tink_reads_a_column_and_a_protector_what_plain_tink_wrote(keys, plan, cipher):
    protector = plan(cipher=cipher)
    bound, keyset = bound_data(protector.protected), keys.keyset(cipher)
    written = protector.encrypt(pa.array(VALUES)).to_pylist()
    if cipher == "AES256_GCM":
        aead = keyset.aead()
        encrypt, decrypt = aead.encrypt, aead.decrypt
    else:
        daead = keyset.deterministic_aead()
        encrypt, decrypt = daead.encrypt_deterministically, daead.decrypt_deterministically
    read = [None if value is None else decrypt(value, bound).decode() for value in written]
    assert read == VALUES
    foreign = pa.array([None if value is None else encrypt(value.encode(), bound) for value in VALUES])
    assert protector.decrypt(foreign)[0].to_pylist() == VALUES


@BOTH
def test_a_protector_travels_without_keys_and_works_where_it_arrives(keys, plan, cipher):
    protector = plan(cipher=cipher)
    encrypted = protector.encrypt(pa.array(VALUES))
    sent = pickle.dumps(protector)
    keyset = keys.keyset(cipher)
    assert keyset.material(keyset.primary_key_id) not in sent
    assert pickle.loads(sent).decrypt(encrypted)[0].to_pylist() == VALUES


@BOTH
def test_what_cannot_be_decrypted_becomes_null_on_request_and_is_counted(keys, plan, cipher):
    protector = plan(cipher=cipher)
    encrypted = protector.encrypt(pa.array(VALUES * 50))
    elsewhere = plan(cipher=cipher, column="phone").encrypt(pa.array(["a@example.org"]))
    values = tampered(encrypted, 0, 144).to_pylist()
    values[6] = elsewhere[0].as_py()  # moved here from another column
    values[8] = b"plain text"
    values[12] = b""
    values[18] = values[18][:1] + b"\x00\x00\x00\x07" + values[18][5:]  # a key that the keyset does not hold
    bad = {0, 6, 8, 12, 18, 144}
    revealed, failed = protector.decrypt(pa.array(values), on_error="null")
    assert failed == len(bad)
    assert revealed.to_pylist() == [None if row in bad else value for row, value in enumerate(VALUES * 50)]
    with pytest.raises(DecryptionFailed) as refused:
        protector.decrypt(pa.array(values))
    assert refused.value.place == PLACE
    assert "example" not in str(refused.value)
    assert protector.decrypt(encrypted, on_error="null")[1] == 0


@BOTH
@pytest.mark.parametrize("status", ["DISABLED", "DESTROYED"])
def test_values_of_a_closed_key_fail_by_id_or_become_null_beside_those_of_others(keys, plan, cipher, status):
    old = plan(cipher=cipher)
    old_id = old.primary_key_id
    first = old.encrypt(pa.array(VALUES))
    keys.keyring.rotate("clinic", cipher=cipher, identity=keys.identity)
    protector = plan(cipher=cipher)
    mixed = pa.concat_arrays([first, protector.encrypt(pa.array(VALUES))])
    assert protector.decrypt(mixed)[0].to_pylist() == VALUES * 2
    keys.keyring.set_status("clinic", cipher=cipher, identity=keys.identity, key_id=old_id, status=status)
    with pytest.raises(KeyUnavailable, match=f"key {old_id} .* {status.lower()}") as refused:
        protector.decrypt(mixed)
    assert refused.value.place == PLACE
    revealed, failed = protector.decrypt(mixed, on_error="null")
    assert failed == 5
    assert revealed.to_pylist() == [None] * 6 + VALUES
    with pytest.raises(KeyUnavailable):
        protector.rotate(mixed)


@BOTH
def test_rotation_rewrites_the_values_of_old_keys_only(keys, plan, cipher):
    first = plan(cipher=cipher).encrypt(pa.array(VALUES))
    keys.keyring.rotate("clinic", cipher=cipher, identity=keys.identity)
    protector = plan(cipher=cipher)
    second = protector.encrypt(pa.array(VALUES))
    mixed = pa.concat_arrays([first, second, first])
    rotated, count = protector.rotate(mixed)
    assert count == 10
    assert rotated.slice(6, 6).equals(second)
    assert protector.decrypt(rotated)[0].to_pylist() == VALUES * 3
    prefix = b"\x01" + protector.primary_key_id.to_bytes(4, "big")
    assert all(value is None or value[:5] == prefix for value in rotated.to_pylist())
    assert protector.rotate(rotated) == (rotated, 0)
    renewed, count = protector.rotate(first)
    assert (count, protector.decrypt(renewed)[0].to_pylist()) == (5, VALUES)
    with pytest.raises(DecryptionFailed):
        protector.rotate(tampered(first, 0))


def test_all_tasks_of_a_job_encrypt_under_the_key_that_was_primary_when_it_was_planned(keys, plan):
    planned = plan(cipher="AES256_GCM")
    keys.keyring.rotate("clinic", cipher="AES256_GCM", identity=keys.identity)
    prefix = b"\x01" + planned.primary_key_id.to_bytes(4, "big")
    assert pickle.loads(pickle.dumps(planned)).encrypt(pa.array(["a"]))[0].as_py()[:5] == prefix


@BOTH
def test_tampering_with_any_byte_is_refused_in_a_batch(plan, cipher):
    protector = plan(cipher=cipher)
    encrypted = protector.encrypt(pa.array([f"patient-{row}@example.org" for row in range(300)])).to_pylist()
    for position in range(len(encrypted[7])):
        changed = bytearray(encrypted[7])
        changed[position] ^= 0x10
        with pytest.raises(LeptonError) as refused:
            protector.decrypt(pa.array([*encrypted[:7], bytes(changed), *encrypted[8:]]))
        assert refused.value.place == PLACE
        assert "example.org" not in str(refused.value)


def test_text_is_not_taken_for_ciphertext_nor_numbers_for_text(plan):
    with pytest.raises(UnsupportedType):
        plan(cipher="AES256_GCM").decrypt(pa.array(["text"]))
    with pytest.raises(UnsupportedType):
        plan(cipher="AES256_GCM").encrypt(pa.array([1]))


def test_a_keyset_part_that_was_replaced_is_used_from_then_on(keys, plan):
    protector = plan(cipher="AES256_SIV")
    encrypted = protector.encrypt(pa.array(VALUES))
    key_id = protector.primary_key_id
    keys.keyring.rotate("clinic", cipher="AES256_SIV", identity=keys.identity)
    assert protector.decrypt(encrypted)[0].to_pylist() == VALUES
    keys.keyring.set_status("clinic", cipher="AES256_SIV", identity=keys.identity, key_id=key_id, status="DISABLED")
    with pytest.raises(KeyUnavailable):
        protector.decrypt(encrypted)


def test_random_mixtures_of_keys_nulls_and_damage_are_told_apart(keys, plan):
    random = np.random.default_rng(7)
    values = [None if random.random() < 0.2 else f"value {row}" * int(random.integers(1, 40)) for row in range(2000)]
    rows = []
    for generation in range(3):
        if generation:
            keys.keyring.rotate("clinic", cipher="AES256_GCM", identity=keys.identity)
        protector = plan(cipher="AES256_GCM")
        rows.append(protector.encrypt(pa.array(values)).to_pylist())
    chosen = [rows[int(random.integers(3))][row] for row in range(2000)]
    damaged = {row for row in range(0, 2000, 37) if chosen[row] is not None}
    for row in damaged:
        chosen[row] = chosen[row][:9] + bytes([chosen[row][9] ^ 2]) + chosen[row][10:]
    revealed, failed = protector.decrypt(pa.array(chosen), on_error="null")
    assert failed == len(damaged)
    assert revealed.to_pylist() == [None if row in damaged else value for row, value in enumerate(values)]
