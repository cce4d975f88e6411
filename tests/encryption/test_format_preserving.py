from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest
from pydantic import ValidationError
from pyspark.sql.types import LongType, StringType, StructField, StructType

from lepton_airflow.encryption.columns import (
    ColumnProtector,
    bound_data,
    protected_arrow,
    protected_schema,
    rotated_schema,
)
from lepton_airflow.encryption.kernels.ff1 import Ff1Kernel
from lepton_airflow.encryption.planning import plan_protection, protectors_of
from lepton_airflow.encryption.protection import Protection
from lepton_airflow.errors import ConfigurationError, InvalidData, KeyUnavailable, UnsupportedType
from lepton_airflow.keys.keyset import Keyset

SCHEMA = StructType([StructField("card", StringType()), StructField("phone", StringType())])
CARDS = ["4111-1111-1111-1111", None, "5500 0000 0000 0004", "340000000000009", "000000"]


@pytest.fixture
def plan(keys):
    def planned(column="card", dataset="clinic", **protection) -> ColumnProtector:
        protections = {column: Protection(cipher="FF1", **protection)}
        return plan_protection(SCHEMA, dataset=dataset, protections=protections, keysets=keys.references)[column]

    return planned


def test_length_alphabet_and_separators_stay_and_the_value_comes_back(plan):
    protector = plan()
    for array in (pa.array(CARDS), pa.array(CARDS, pa.large_string()), pa.array([None, *CARDS]).slice(1)):
        encrypted = protector.encrypt(array)
        assert encrypted.type == array.type
        for before, after in zip(CARDS, encrypted.to_pylist(), strict=True):
            assert (before is None) == (after is None)
            if before is not None:
                assert before != after
                assert [c if c in " -" else "9" for c in before] == [c if c in " -" else "9" for c in after]
                assert all(c.isdecimal() or c in " -" for c in after)
        assert protector.decrypt(encrypted) == (array, 0)


def test_the_tweak_is_the_digest_of_the_associated_data(keys, plan):
    protector = plan()
    keyset = keys.keyset("FF1")
    tweak = hashlib.sha256(bound_data(protector.protected)).digest()
    kernel = Ff1Kernel(keyset.material(keyset.primary_key_id), tweak=tweak, separators=" -")
    assert protector.encrypt(pa.array(CARDS)) == kernel.encrypt(pa.array(CARDS))


def test_columns_differ_unless_they_share_a_domain(plan):
    array = pa.array(["4111111111111111"])
    assert plan("card").encrypt(array) != plan("phone").encrypt(array)
    assert plan("card").encrypt(array) != plan("card", dataset="other").encrypt(array)
    assert plan("card", domain="card").encrypt(array) == plan("phone", domain="card").encrypt(array)


def test_a_chosen_alphabet_is_kept(plan):
    protector = plan(alphabet="0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", separators=" ")
    array = pa.array(["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819"])
    encrypted = protector.encrypt(array)
    assert encrypted != array
    assert all(set(value) <= set("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ ") for value in encrypted.to_pylist())
    assert protector.decrypt(encrypted)[0] == array


def test_metadata_says_all_that_is_needed_and_the_column_stays_a_string(keys, plan):
    schema = protected_schema(SCHEMA, {"card": plan()})
    assert schema["card"].dataType == StringType()
    key_id = keys.keyset("FF1").primary_key_id
    assert schema["card"].metadata["lepton"] == {
        "version": 1,
        "cipher": "FF1",
        "keyset": "clinic",
        "dataset": "clinic",
        "column": "card",
        "type": "string",
        "alphabet": "0123456789",
        "separators": " ()+-./",
        "key_id": key_id,
    }
    arrow = pa.schema([("card", pa.string()), ("phone", pa.large_string())])
    assert protected_arrow(arrow, {"card": plan(), "phone": plan("phone")}) == arrow


def test_rotation_rewrites_every_value_and_the_key_id_of_the_column(keys, plan):
    protector = plan()
    encrypted = protector.encrypt(pa.array(CARDS))
    schema = protected_schema(SCHEMA, {"card": protector})
    keys.keyring.rotate("clinic", cipher="FF1", identity=keys.identity)

    def found(schema: StructType) -> dict[str, ColumnProtector]:
        return protectors_of(schema, keyring=keys.keyring.folder, identity_file=keys.identity_file)

    old = found(schema)
    rotated, count = old["card"].rotate(encrypted)
    assert count == 4
    assert rotated != encrypted
    new = found(rotated_schema(schema, old))
    assert new["card"].protected.key_id == keys.keyset("FF1").primary_key_id != protector.protected.key_id
    assert new["card"].decrypt(rotated) == (pa.array(CARDS), 0)
    assert new["card"].rotate(rotated) == (rotated, 0)


def test_values_that_cannot_be_enciphered_are_refused_without_being_quoted(plan):
    for value in ("12345", "4111x1111", "", "12-34-5"):
        with pytest.raises(InvalidData) as refused:
            plan().encrypt(pa.array(["4111111111111111", value]))
        assert refused.value.place == "dataset 'clinic', column 'card'"
        assert value not in str(refused.value) or not value


def test_what_cannot_be_deciphered_becomes_null_on_request_and_is_counted(plan):
    protector = plan()
    encrypted = [*protector.encrypt(pa.array(CARDS)).to_pylist(), "12345", "letters!", "", "1" * 5000, "٣٣٣٣٣٣٣٣"]
    with pytest.raises(InvalidData):
        protector.decrypt(pa.array(encrypted))
    revealed, failed = protector.decrypt(pa.array(encrypted), on_error="null")
    assert (revealed.to_pylist(), failed) == ([*CARDS, *[None] * 5], 5)


def test_special_characters_of_patterns_are_characters_like_others(plan):
    alphabet = "^]\\-[.*$aé"
    protector = plan(alphabet=alphabet, separators="|/")
    array = pa.array(["^]\\-[.*$aé|^^", "/" + alphabet])
    encrypted = protector.encrypt(array).to_pylist()
    revealed, failed = protector.decrypt(pa.array([*encrypted, "b" * 12]), on_error="null")
    assert (revealed.to_pylist(), failed) == ([*array.to_pylist(), None], 1)


def test_a_closed_key_is_refused_by_its_id(keys, plan):
    protector = plan()
    encrypted = protector.encrypt(pa.array(CARDS))
    keys.keyring.rotate("clinic", cipher="FF1", identity=keys.identity)
    key_id = protector.protected.key_id
    keys.keyring.set_status("clinic", cipher="FF1", identity=keys.identity, key_id=key_id, status="DISABLED")
    with pytest.raises(KeyUnavailable, match=f"key {key_id} .* disabled"):
        protector.decrypt(encrypted)
    assert protector.decrypt(encrypted, on_error="null") == (pa.nulls(5, pa.string()), 4)


def test_numbers_are_refused_before_any_row_is_read(keys):
    schema = StructType([StructField("card", LongType())])
    with pytest.raises(UnsupportedType, match="bigint"):
        plan_protection(
            schema, dataset="clinic", protections={"card": Protection(cipher="FF1")}, keysets=keys.references
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"cipher": "FF1", "alphabet": "0012345"},
        {"cipher": "FF1", "alphabet": "0123456789-", "separators": "-"},
        {"cipher": "FF1", "alphabet": "0"},
        {"cipher": "FF1", "padding": {"to": 16}},
        {"cipher": "AES256_GCM", "alphabet": "digits"},
        {"cipher": "AES256_SIV", "separators": "-"},
    ],
)
def test_protections_that_mean_nothing_are_refused(fields):
    with pytest.raises(ValidationError):
        Protection(**fields)


def test_ff1_keys_are_sealed_and_rotated_like_others_and_not_written_for_tink(keys):
    from tink import secret_key_access

    keyset = keys.keyset("FF1")
    assert len(keyset.material(keyset.primary_key_id)) == 32
    again = Keyset.from_proto(keyset.to_proto(secret_key_access.TOKEN), name="clinic", cipher="FF1")
    assert again.material(keyset.primary_key_id) == keyset.material(keyset.primary_key_id)
    for use in (keyset.aead, keyset.deterministic_aead, lambda: keyset.to_tink_json(secret_key_access.TOKEN)):
        with pytest.raises(ConfigurationError, match="Tink has no FF1"):
            use()
    with pytest.raises(ConfigurationError):
        Keyset.from_proto(keyset.to_proto(secret_key_access.TOKEN), name="clinic", cipher="AES256_GCM")
