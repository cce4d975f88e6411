"""Columns are chosen by name, pattern or tag; what is called sensitive is protected or the spec is refused."""

from __future__ import annotations

import pytest
from pyspark.sql.types import ArrayType, IntegerType, StringType, StructField, StructType

from lepton_airflow.encryption.protection import METADATA_KEY, Protection
from lepton_airflow.encryption.selection import choose_protected, choose_protections, is_pattern
from lepton_airflow.errors import MissingColumn, SpecError

GCM, SIV = Protection(cipher="AES256_GCM"), Protection(cipher="AES256_SIV")
PROTECTED = {
    METADATA_KEY: {"cipher": "AES256_GCM", "keyset": "k", "dataset": "d", "column": "c", "type": "string", "version": 1}
}
SCHEMA = StructType(
    [
        StructField("patient_id", IntegerType()),
        StructField("email", StringType(), metadata={"tags": ["pii", "contact"]}),
        StructField("phone", StringType(), metadata={"comment": "at home #pii"}),
        StructField(
            "address", StructType([StructField("street", StringType()), StructField("owner_id", StringType())])
        ),
        StructField("visits", ArrayType(StructType([StructField("note", StringType())]))),
        StructField("done", StringType(), metadata=PROTECTED),
        StructField("odd[1]*", StringType()),
    ]
)


def chosen(protections: dict[str, Protection], *sensitive: str) -> dict[str, Protection]:
    return choose_protections(SCHEMA, protections, sensitive=sensitive, dataset="d")


def test_patterns_and_tags_choose_columns_and_nested_fields() -> None:
    assert chosen({"*_id": SIV}) == {"patient_id": SIV, "address.owner_id": SIV}
    assert chosen({"tag:pii": GCM}) == {"email": GCM, "phone": GCM}
    assert chosen({"tag:con*": GCM}) == {"email": GCM}
    assert chosen({"address*": GCM}) == {"address": GCM}, "the whole and not also its parts"


def test_a_name_wins_over_patterns_and_a_name_with_odd_characters_is_a_name() -> None:
    assert chosen({"*_id": GCM, "patient_id": SIV}) == {"patient_id": SIV, "address.owner_id": GCM}
    assert chosen({"odd[1]*": GCM}) == {"odd[1]*": GCM}
    assert is_pattern("odd[1]*")
    assert not is_pattern("address.street")


def test_patterns_that_disagree_or_match_nothing_are_refused() -> None:
    with pytest.raises(SpecError, match="patient_id"):
        chosen({"*_id": GCM, "patient*": SIV})
    with pytest.raises(SpecError, match="nothing\\*"):
        chosen({"nothing*": GCM})
    with pytest.raises(SpecError, match="tag:none"):
        chosen({"tag:none": GCM})
    with pytest.raises(MissingColumn, match="emial"):
        chosen({"emial": GCM})


@pytest.mark.parametrize("sensitive", ["email", "*mail", "tag:pii", "address.*", "visits.note"])
def test_a_sensitive_column_in_clear_is_an_error(sensitive: str) -> None:
    with pytest.raises(SpecError, match="sensitive"):
        chosen({"patient_id": SIV}, sensitive)


def test_sensitive_columns_may_be_protected_as_a_whole_or_in_all_parts_or_already() -> None:
    assert chosen({"visits": GCM}, "visits.note")
    assert chosen({"address.street": GCM, "address.owner_id": SIV}, "address", "address.*")
    assert chosen({"email": GCM}, "done", "nobody*")
    with pytest.raises(SpecError, match="address"):
        chosen({"address.street": GCM}, "address")
    with pytest.raises(MissingColumn, match="emial"):
        chosen({"email": GCM}, "emial")


def test_protected_columns_are_chosen_in_the_order_of_the_table() -> None:
    assert choose_protected(SCHEMA, ["*"], dataset="d") == ("done",)
    assert choose_protected(SCHEMA, ["done", "patient_id"], dataset="d") == ("patient_id", "done")
    with pytest.raises(SpecError, match="email"):
        choose_protected(SCHEMA, ["email*"], dataset="d")
