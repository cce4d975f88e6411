from __future__ import annotations

import pytest
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    IntegerType,
    MapType,
    StringType,
    StructField,
    StructType,
)

from lepton_airflow.encryption.paths import field_at, path_text, resolve, walk, with_fields
from lepton_airflow.errors import MissingColumn

TEXT = StringType()
STREET = StructType([StructField("name", TEXT), StructField("no.", IntegerType())])
SCHEMA = StructType(
    [
        StructField("address", StructType([StructField("street", STREET), StructField("city", TEXT)])),
        StructField(
            "visits", ArrayType(ArrayType(StructType([StructField("note", TEXT), StructField("tick`", TEXT)])))
        ),
        StructField("contacts", MapType(TEXT, STREET)),
        StructField("address.city", TEXT),
    ]
)


@pytest.mark.parametrize(
    ("text", "path", "canonical"),
    [
        ("address", ("address",), "address"),
        ("address.street.name", ("address", "street", "name"), "address.street.name"),
        ("`address`.`street`.`no.`", ("address", "street", "no."), "address.street.`no.`"),
        ("visits.note", ("visits", "note"), "visits.note"),
        ("visits.`tick```", ("visits", "tick`"), "visits.`tick```"),
        ("address.city", ("address.city",), "address.city"),
        ("address.`city`", ("address", "city"), "address.city"),
    ],
)
def test_a_path_names_a_field(text, path, canonical):
    assert resolve(SCHEMA, text, dataset="clinic") == path
    assert path_text(path) == canonical
    assert field_at(SCHEMA, path).name == path[-1]


@pytest.mark.parametrize(
    "text",
    ["adress", "address.zip", "address.street.no.", "contacts.name", "address..street", "`address", "address.", ""],
)
def test_a_path_that_names_nothing_says_what_there_is(text):
    with pytest.raises(MissingColumn) as missing:
        resolve(SCHEMA, text, dataset="clinic")
    assert "dataset 'clinic'" in missing.value.place


def test_walking_meets_every_field_that_a_path_can_name():
    found = [path_text(path) for path, _ in walk(SCHEMA)]
    assert found == [
        *("address", "address.street", "address.street.name", "address.street.`no.`", "address.city"),
        *("visits", "visits.note", "visits.`tick```", "contacts", "address.city"),
    ]


def test_replacing_fields_leaves_the_others_as_they_were():
    def to_binary(field: StructField) -> StructField:
        return StructField(field.name, BinaryType(), field.nullable, {"changed": True})

    changed = with_fields(SCHEMA, {("visits", "note"): to_binary, ("address", "street", "name"): to_binary})
    assert field_at(changed, ("visits", "note")) == StructField("note", BinaryType(), metadata={"changed": True})
    assert field_at(changed, ("visits", "note")).metadata == {"changed": True}
    assert field_at(changed, ("address", "street", "name")).dataType == BinaryType()
    assert field_at(changed, ("address", "city")) == field_at(SCHEMA, ("address", "city"))
    assert changed["contacts"] == SCHEMA["contacts"]
    assert with_fields(SCHEMA, {}) == SCHEMA
