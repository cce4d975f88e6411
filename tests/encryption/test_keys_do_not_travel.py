"""A known key is planted, and searched for in everything that Spark carries or shows."""

from __future__ import annotations

import base64
import json

import pyarrow as pa
import pytest
from pyspark import cloudpickle
from pyspark.sql.functions import arrow_udf
from pyspark.sql.types import BinaryType, StringType, StructField, StructType

from lepton_airflow.columnar.parquet_encryption import FileKeys
from lepton_airflow.columnar.rewrite import Layout
from lepton_airflow.encryption.dataframe import protect, reveal
from lepton_airflow.encryption.planning import plan_protection, protectors_of
from lepton_airflow.encryption.protection import Protection
from lepton_airflow.encryption.roads import Protect, Reveal, Rotate


def forms(secret: bytes) -> list[bytes]:
    """The secret raw, in hex, as Python shows it, and in base64 at each of the three places where it can begin."""
    found = [secret, secret.hex().encode(), secret.hex().upper().encode(), repr(secret)[2:-1].encode()]
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + secret)
        # The characters at both ends depend on the neighbours.
        found += [part := encoded[4 if shift else 0 : -4], part.replace(b"+", b"-").replace(b"/", b"_")]
    return found


def leaks(haystack: bytes, secrets: list[bytes]) -> bool:
    return any(form in haystack for secret in secrets for form in forms(secret))


def closures(frame) -> list[bytes]:
    """The pickled functions of a plan, as the JVM sends them to Python workers."""
    found = []

    def walk(plan) -> None:
        expressions = plan.expressions()
        for position in range(expressions.size()):
            search(expressions.apply(position))
        children = plan.children()
        for position in range(children.size()):
            walk(children.apply(position))

    def search(expression) -> None:
        if expression.getClass().getSimpleName() == "PythonUDF":
            found.append(
                bytes(expression.func().command().toArray(frame.sparkSession._jvm.scala.reflect.ClassTag.Byte()))
            )
        children = expression.children()
        for position in range(children.size()):
            search(children.apply(position))

    walk(frame._jdf.queryExecution().analyzed())
    return found


def everything_spark_shows(frame) -> bytes:
    session = frame.sparkSession
    execution = frame._jdf.queryExecution()
    shown = [
        execution.toString(),
        execution.logical().toJSON(),
        json.dumps(session.sparkContext.getConf().getAll()),
        json.dumps({row["key"]: row["value"] for row in session.sql("SET -v").select("key", "value").collect()}),
        frame.schema.json(),
    ]
    return "\n".join(shown).encode()


@pytest.fixture
def secrets(keys) -> list[bytes]:
    found = [json.loads(keys.identity_file.read_text())["private_key"]]
    planted = [base64.b64decode(text) for text in found]
    for cipher in ("FF1", "AES256_GCM", "AES256_SIV"):
        keyset = keys.keyset(cipher)
        planted.append(keyset.material(keyset.primary_key_id))
    return planted


def test_no_key_is_in_closures_plans_schemas_or_configuration(spark, keys, secrets):
    # Opened on the driver first, as jobs do: an open keyset must not be dragged along.
    for reference in keys.references.values():
        reference.open()
    df = spark.createDataFrame([("p1", "a@example.org", "555-01999")], "id string, email string, phone string")
    protections = {
        "email": Protection(cipher="AES256_GCM"),
        "id": Protection(cipher="AES256_SIV", domain="patient"),
        "phone": Protection(cipher="FF1"),
    }
    protected = protect(df, dataset="clinic.patients", protections=protections, keysets=keys.references)
    revealed = reveal(protected, keyring=keys.keyring.folder, identity_file=keys.identity_file)
    assert revealed.collect() == df.collect()
    sent = closures(revealed)
    assert len(sent) == 6
    for closure in sent:
        assert str(keys.keyring.folder).encode() in closure
        assert not leaks(closure, secrets)
    assert not leaks(everything_spark_shows(revealed), secrets)


def test_no_key_is_in_what_the_direct_road_sends_to_its_workers(keys, secrets):
    schema = StructType([StructField(name, StringType()) for name in ("email", "id", "phone")])
    protections = {
        "email": Protection(cipher="AES256_GCM"),
        "id": Protection(cipher="AES256_SIV", domain="patient"),
        "phone": Protection(cipher="FF1"),
    }
    protect_all = Protect(plan_protection(schema, dataset="d", protections=protections, keysets=keys.references))
    batch = pa.record_batch({"email": ["a@example.org"], "id": ["p1"], "phone": ["555-01999"]})
    file_keys = FileKeys(str(keys.keyring.folder), str(keys.identity_file), "clinic")
    file_keys.writing()
    places = {"keyring": keys.keyring.folder, "identity_file": keys.identity_file}
    for kind in (Protect, Reveal, Rotate):
        before = schema if kind is Protect else protect_all.schema(schema)
        change = protect_all if kind is Protect else kind(protectors_of(before, **places))
        # Used on the driver first: what it opened must not be dragged along.
        changed, _ = change(batch if kind is Protect else protect_all(batch)[0])
        assert changed.num_rows == 1
        layout = Layout(
            schema=change.schema(before),
            opaque=frozenset(),
            dictionaries=frozenset(),
            compression="none",
            version="4.3.0",
            file_keys=file_keys,
        )
        sent = cloudpickle.dumps((change, layout))
        assert str(keys.keyring.folder).encode() in sent
        assert not leaks(sent, secrets)
        change.kept = keys.keyset("AES256_GCM").material(keys.keyset("AES256_GCM").primary_key_id)
        assert leaks(cloudpickle.dumps((change, layout)), secrets), "the search would find it"


def test_the_search_finds_a_key_that_does_travel(spark, keys, secrets):
    key = secrets[-2]

    def leak(values: pa.Array) -> pa.Array:
        return pa.array([key] * len(values))

    frame = spark.range(1).select(arrow_udf(leak, BinaryType())("id"))
    assert any(leaks(closure, secrets) for closure in closures(frame))
    for text in (key, key.hex().encode(), base64.b64encode(key), base64.urlsafe_b64encode(b"x" + key + b"y")):
        assert leaks(b"before " + text + b" after", secrets)
