from __future__ import annotations

import pickle

import pytest

from lepton_airflow.errors import KeyUnavailable, UnsafeFile
from lepton_airflow.keys.identity import identity_file
from lepton_airflow.keys.reference import KeysetReference


@pytest.fixture
def reference(keyring, etl, tmp_path) -> KeysetReference:
    return KeysetReference(
        keyring=str(keyring.folder),
        name="clinic",
        cipher="AES256_GCM",
        identity_file=str(identity_file("etl", tmp_path / "identities")),
    )


def test_a_reference_travels_and_opens_once_in_a_process(reference):
    arrived = pickle.loads(pickle.dumps(reference))
    assert arrived == reference
    assert arrived.open() is reference.open()


def test_a_pickled_reference_holds_no_key_even_after_it_was_opened(reference):
    keyset = reference.open()
    assert keyset.material(keyset.primary_key_id) not in pickle.dumps(reference)


def test_a_rotation_is_seen_by_a_process_that_had_opened_the_keyset(reference, keyring, etl):
    before = reference.open().primary_key_id
    after = keyring.rotate("clinic", cipher="AES256_GCM", identity=etl)
    assert reference.open().primary_key_id == after != before


def test_a_revoked_or_exposed_or_removed_identity_stops_opening(reference, keyring, etl, make_identity, tmp_path):
    reference.open()
    identity = identity_file("etl", tmp_path / "identities")
    identity.chmod(0o644)
    with pytest.raises(UnsafeFile):
        reference.open()
    identity.chmod(0o600)
    other = make_identity("other")
    keyring.grant("clinic", cipher="AES256_GCM", identity=etl, recipient=other.recipient)
    keyring.revoke("clinic", cipher="AES256_GCM", identity=other, recipient="etl")
    with pytest.raises(KeyUnavailable):
        reference.open()
    identity.unlink()
    with pytest.raises(KeyUnavailable, match="'etl'"):
        reference.open()
