"""Record batches with protected columns, as the direct road has them: flat, nested, and their schemas."""

from __future__ import annotations

import pickle

import pyarrow as pa
import pytest
from pyspark.sql.types import ArrayType, BinaryType, IntegerType, LongType, StringType, StructField, StructType

from lepton_airflow.encryption.associated_data import associated_data
from lepton_airflow.encryption.columns import (
    protect_batch,
    protected_arrow,
    protected_schema,
    reveal_batch,
    revealed_arrow,
    revealed_schema,
    rotate_batch,
    rotated_schema,
)
from lepton_airflow.encryption.paths import field_at
from lepton_airflow.encryption.planning import plan_protection, protections_of, protectors_of
from lepton_airflow.encryption.protection import METADATA_KEY, Padding, Protection
from lepton_airflow.encryption.values import arrow_type_of
from lepton_airflow.errors import DecryptionFailed, InvalidData, MissingColumn, SpecError, UnsupportedType

GCM, SIV, FF1 = Protection(), Protection(cipher="AES256_SIV"), Protection(cipher="FF1")
ADDRESS = StructType([StructField("street", StringType()), StructField("zip", StringType(), nullable=False)])
VISIT = StructType(
    [StructField("note", StringType()), StructField("cost", IntegerType()), StructField("home", ADDRESS)]
)
SCHEMA = StructType(
    [
        StructField("id", LongType(), nullable=False, metadata={"comment": "key"}),
        StructField("card", StringType(), metadata={"__CHAR_VARCHAR_TYPE_STRING": "varchar(20)"}),
        StructField("address", ADDRESS),
        StructField("visits", ArrayType(VISIT)),
        StructField("tags", ArrayType(StringType())),
        StructField("plain", StringType()),
    ]
)
HOME = {"street": "Elm 1", "zip": "12345"}
ROWS = [
    {
        "id": 1,
        "card": "4111-1111-1111-1111",
        "address": HOME,
        "visits": [{"note": "feeling well", "cost": 5, "home": HOME}, None, {"note": None, "cost": None, "home": None}],
        "tags": ["a", None],
        "plain": "x",
    },
    {"id": 2, "card": None, "address": None, "visits": None, "tags": None, "plain": None},
    {
        "id": 3,
        "card": "340000000000009",
        "address": {"street": None, "zip": ""},
        "visits": [],
        "tags": [],
        "plain": "y",
    },
]
PROTECTIONS = {
    "id": SIV,
    "card": FF1,
    "address.street": GCM,
    "address.zip": SIV,
    "visits.note": Protection(padding=Padding(to=32)),
    "visits.cost": SIV,
    "visits.home.zip": GCM,
    "tags": GCM,
}


@pytest.fixture
def plan(keys):
    def planned(protections=PROTECTIONS, schema=SCHEMA, dataset="clinic"):
        return plan_protection(schema, dataset=dataset, protections=protections, keysets=keys.references)

    return planned


@pytest.fixture
def find(keys):
    def found(schema, **options):
        return protectors_of(schema, keyring=keys.keyring.folder, identity_file=keys.identity_file, **options)

    return found


@pytest.fixture
def batch() -> pa.RecordBatch:
    arrow = arrow_type_of(SCHEMA)
    return pa.RecordBatch.from_pylist(ROWS, schema=pa.schema(list(arrow), metadata={"kept": "yes"}))


def test_a_batch_comes_back_with_every_nested_value_and_type(plan, find, batch):
    protectors = pickle.loads(pickle.dumps(plan()))
    protected = protect_batch(batch, protectors)
    protected.validate(full=True)
    assert protected.schema.equals(protected_arrow(batch.schema, protectors))
    assert protected.schema.metadata == {b"kept": b"yes"}
    schema = protected_schema(SCHEMA, protectors)
    for path in (("id",), ("address", "street"), ("address", "zip"), ("visits", "note"), ("visits", "cost"), ("tags",)):
        assert field_at(schema, path).dataType == BinaryType()
    assert "feeling well" not in repr(protected.to_pylist())
    assert protected.column("plain") == batch.column("plain")
    found = find(schema)
    assert found.keys() == protections_of(schema).keys() == PROTECTIONS.keys()
    revealed, failed = reveal_batch(protected, found)
    revealed.validate(full=True)
    assert revealed.schema.equals(revealed_arrow(protected.schema, found))
    assert revealed.to_pylist() == ROWS
    assert failed == dict.fromkeys(PROTECTIONS, 0)
    assert revealed_schema(schema, found) == SCHEMA
    assert [field.metadata for field in revealed_schema(schema, found)] == [field.metadata for field in SCHEMA]


def test_slices_and_hidden_values_of_nested_arrays_come_back(plan, find, batch):
    protectors = plan()
    for start in range(4):
        part = batch.slice(start)
        revealed, _ = reveal_batch(protect_batch(part, protectors), protectors)
        assert revealed.to_pylist() == ROWS[start:]
        revealed, _ = reveal_batch(protect_batch(batch, protectors).slice(start), protectors)
        assert revealed.to_pylist() == ROWS[start:]
    street = pa.array(["hidden", "seen"])
    address = pa.StructArray.from_arrays([street], names=["street"], mask=pa.array([True, False]))
    only = StructType([StructField("address", StructType([StructField("street", StringType())]))])
    protectors = plan({"address.street": SIV}, only)
    (protected,) = protect_batch(pa.record_batch([address], names=["address"]), protectors).columns
    assert protected.field(0).null_count == 1
    assert b"hidden" not in protected.field(0).buffers()[2].to_pybytes()


def test_large_types_stay_large(plan):
    schema = StructType([StructField("a", StringType()), StructField("l", ArrayType(ADDRESS))])
    protectors = plan({"a": GCM, "l.street": GCM}, schema)
    address = pa.struct([("street", pa.large_string()), ("zip", pa.string())])
    batch = pa.RecordBatch.from_pylist(
        [{"a": "x", "l": [HOME]}, {"a": None, "l": None}],
        schema=pa.schema([("a", pa.large_string()), ("l", pa.large_list(address))]),
    )
    protected = protect_batch(batch, protectors)
    assert protected.schema.field("a").type == pa.large_binary()
    assert protected.schema.field("l").type.value_type.field("street").type == pa.large_binary()
    assert reveal_batch(protected, protectors)[0].to_pylist() == batch.to_pylist()


def test_parts_of_a_batch_are_revealed_alone_and_failures_counted_by_path(plan, find, batch):
    protectors = plan()
    schema = protected_schema(SCHEMA, protectors)
    protected = protect_batch(batch, protectors)
    some = find(schema, columns=["visits.note", "address.street"], dataset="clinic")
    revealed, _ = reveal_batch(protected, some)
    assert revealed.to_pylist()[0]["address"]["street"] == "Elm 1"
    assert isinstance(revealed.to_pylist()[0]["address"]["zip"], bytes)
    left = revealed_schema(schema, some)
    assert protections_of(left).keys() == PROTECTIONS.keys() - {"visits.note", "address.street"}
    rows = protected.to_pylist()
    rows[0]["visits"][0]["note"] = b"damaged"
    damaged = pa.RecordBatch.from_pylist(rows, schema=protected.schema)
    with pytest.raises(DecryptionFailed, match=r"'visits\.note'"):
        reveal_batch(damaged, some)
    revealed, failed = reveal_batch(damaged, some, on_error="null")
    assert failed == {"visits.note": 1, "address.street": 0}
    assert revealed.to_pylist()[0]["visits"][0]["note"] is None


def test_rotation_counts_by_path_and_keeps_the_rest(keys, plan, find, batch):
    protectors = plan()
    schema = protected_schema(SCHEMA, protectors)
    protected = protect_batch(batch, protectors)
    for cipher in ("AES256_GCM", "FF1"):
        keys.keyring.rotate("clinic", cipher=cipher, identity=keys.identity)
    found = find(schema)
    rotated, counts = rotate_batch(protected, found)
    assert rotated.schema == protected.schema
    assert counts == {
        **dict.fromkeys(PROTECTIONS, 0),
        **dict.fromkeys(("card", "tags"), 2),
        **dict.fromkeys(("address.street", "visits.note", "visits.home.zip"), 1),
    }
    assert rotated.column("id") == protected.column("id")
    after = find(rotated_schema(schema, found))
    assert reveal_batch(rotated, after)[0].to_pylist() == ROWS
    assert sum(rotate_batch(rotated, after)[1].values()) == 0


def test_a_nested_value_is_bound_to_its_path(keys, plan):
    inside = StructField("a", StructType([StructField("b", StringType())]))
    beside = StructField("a.b", StringType())
    nested, flat = (plan({"a.b": GCM}, StructType([field]))["a.b"] for field in (inside, beside))
    with pytest.raises(DecryptionFailed):
        flat.decrypt(nested.encrypt(pa.array(["x"])))
    bound = associated_data("clinic", "a.b", "string", path=["a", "b"])
    assert bound == b'{"dataset":"clinic","format":"lepton.associated-data/1","path":["a","b"],"type":"string"}'
    keyset = keys.keyset("AES256_GCM")
    assert keyset.aead().decrypt(nested.encrypt(pa.array(["x"]))[0].as_py(), bound) == b"x"
    with pytest.raises(SpecError, match="of that very name"):
        plan({"a.`b`": GCM}, StructType([inside, beside]))


def test_metadata_without_the_padding_does_not_open_padded_values(plan, find):
    protectors = plan({"plain": Protection(padding=Padding(buckets=(16, 64)))})
    encrypted = protectors["plain"].encrypt(pa.array(["x", "y" * 20]))
    assert [len(value) for value in encrypted.to_pylist()] == [16 + 33, 64 + 33]
    schema = protected_schema(SCHEMA, protectors)
    assert schema["plain"].metadata[METADATA_KEY]["padding"] == {"buckets": [16, 64]}
    del schema["plain"].metadata[METADATA_KEY]["padding"]
    with pytest.raises(DecryptionFailed):
        find(schema)["plain"].decrypt(encrypted)


def test_the_declared_length_of_a_column_does_not_meet_its_ciphertext(plan):
    protectors = plan({"card": GCM})
    schema = protected_schema(SCHEMA, protectors)
    assert "__CHAR_VARCHAR_TYPE_STRING" not in schema["card"].metadata
    assert revealed_schema(schema, protectors)["card"].metadata == SCHEMA["card"].metadata


def test_what_cannot_be_planned_is_said_with_its_path(plan, find):
    for protections, error, text in (
        ({"address.zipp": GCM}, MissingColumn, "street, zip"),
        ({"address": GCM, "address.zip": GCM}, SpecError, "within 'address'"),
        ({"address.zip": GCM, "`address`.zip": GCM}, SpecError, "twice"),
        ({"visits.cost": FF1}, UnsupportedType, r"visits\.cost"),
    ):
        with pytest.raises(error, match=text):
            plan(protections)
    protected = protected_schema(SCHEMA, plan({"address.zip": GCM}))
    for column in ("address", "address.zip"):
        with pytest.raises(SpecError, match="already"):
            plan({column: GCM}, protected)
    with pytest.raises(SpecError, match="not protected"):
        find(protected, columns=["address"])
    renamed = StructType([StructField("home", protected["address"].dataType)])
    with pytest.raises(InvalidData, match=r"under the name 'address\.zip'"):
        find(renamed)
    with pytest.raises(InvalidData, match="for the dataset 'clinic'"):
        find(protected, dataset="other")


@pytest.mark.parametrize("edit", [{"type": "{}"}, {"type": "tex"}, {"type": '{"type":"array"}'}, {"path": ["a", "b"]}])
def test_edited_metadata_is_refused_by_name(plan, find, edit):
    schema = protected_schema(SCHEMA, plan({"plain": GCM}))
    schema["plain"].metadata[METADATA_KEY].update(edit)
    with pytest.raises(InvalidData, match="plain"):
        find(schema)
