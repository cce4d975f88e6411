from __future__ import annotations

import pytest
from pydantic import ValidationError

from lepton_airflow.encryption.protection import METADATA_KEY, ProtectedColumn, Protection
from lepton_airflow.errors import InvalidData

COLUMN = ProtectedColumn(
    cipher="AES256_SIV", keyset="clinic", dataset="clinic.patients", column="id", type="bigint", domain="patient"
)


def test_a_protection_is_randomised_unless_asked_otherwise():
    assert Protection().cipher == "AES256_GCM"


@pytest.mark.parametrize(
    "fields",
    [
        {"cipher": "AES256_GCM", "domain": "patient"},
        {"cipher": "AES256_SIV", "domain": ""},
        {"cipher": "ROT13"},
        {"cypher": "AES256_GCM"},
    ],
)
def test_a_protection_that_means_nothing_is_refused(fields):
    with pytest.raises(ValidationError):
        Protection(**fields)


def test_a_protected_column_reads_back_from_its_metadata():
    metadata = {"comment": "kept", METADATA_KEY: COLUMN.to_metadata()}
    assert ProtectedColumn.from_metadata(metadata, column="id") == COLUMN
    assert ProtectedColumn.from_metadata({"comment": "kept"}, column="id") is None


@pytest.mark.parametrize("change", [{"version": 2}, {"cipher": "AES256_CBC"}, {"padding": 16}, {"type": None}])
def test_metadata_of_another_version_is_refused_and_the_field_named(change):
    with pytest.raises(InvalidData, match=next(iter(change))):
        ProtectedColumn.from_metadata({METADATA_KEY: {**COLUMN.to_metadata(), **change}}, column="id")
