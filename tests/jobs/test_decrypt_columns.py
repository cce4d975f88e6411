"""The decrypt job: exact values back, for those who may, with every failure counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.errors import AccessDenied, DecryptionFailed, KeyUnavailable, MissingColumn, SpecError
from lepton_airflow.jobs.runner import run_job
from lepton_airflow.settings import Settings

ROADS = ["direct", "dataframe"]
COLUMNS: dict[str, Any] = {
    "name": {"cipher": "AES256_GCM"},
    "patient_id": {"cipher": "AES256_SIV", "domain": "patient"},
    "address.street": {"cipher": "AES256_GCM"},
    "visits.note": {"cipher": "AES256_GCM"},
}


@pytest.fixture
def protected(spark: Any, home: Settings, tmp_path: Path) -> Path:
    """A protected table of 100 rows; beside it ``raw``, in clear."""
    spark.range(100).selectExpr(
        "id",
        "if(id % 10 = 0, null, concat('name ', id)) name",
        "cast(id % 7 as int) patient_id",
        "named_struct('street', concat('street ', id), 'city', 'x') address",
        "array(named_struct('note', concat('note ', id)), named_struct('note', 'second')) visits",
    ).repartition(2).write.parquet(str(tmp_path / "raw"))
    fields = {
        "source": {"name": "clinic.raw", "path": str(tmp_path / "raw")},
        "target": {"name": "clinic.visits", "path": str(tmp_path / "protected")},
        "keyset": "clinic",
        "columns": COLUMNS,
        "purpose": "test",
    }
    run_job("encrypt_columns", fields, settings=home, run_key="e")
    return tmp_path / "protected"


def spec(path: Path, target: str, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "source": {"name": "clinic.visits", "path": str(path)},
        "target": {"name": "clinic.clear", "path": str(path.parent / target)},
        "columns": ["*"],
        "purpose": "test",
    }
    return fields | changes


def rows(frame: Any) -> list[str]:
    return sorted(map(repr, frame.collect()))


@pytest.mark.parametrize("road", ROADS)
def test_all_columns_come_back_exactly(road: str, spark: Any, home: Settings, protected: Path) -> None:
    summary = run_job("decrypt_columns", spec(protected, road, road=road), settings=home, run_key="d")
    assert summary == {
        "rows": 100,
        "columns": ["name", "patient_id", "address.street", "visits.note"],
        "target": str(protected.parent / road),
        "road": road,
        "failed": dict.fromkeys(sorted(COLUMNS), 0),
        "replayed": False,
    }
    clear, original = spark.read.parquet(summary["target"]), spark.read.parquet(str(protected.parent / "raw"))
    assert clear.schema == original.schema
    assert rows(clear) == rows(original)
    assert run_job("decrypt_columns", spec(protected, road, road=road), settings=home, run_key="d")["replayed"]


@pytest.mark.parametrize("road", ROADS)
def test_chosen_columns_come_back_and_the_others_stay_protected(
    road: str, spark: Any, home: Settings, protected: Path
) -> None:
    fields = spec(protected, road, road=road, columns=["patient_id", "*.street"])
    assert run_job("decrypt_columns", fields, settings=home, run_key="d")["columns"] == ["patient_id", "address.street"]
    clear = spark.read.parquet(str(protected.parent / road))
    assert clear.schema["patient_id"].dataType.simpleString() == "int"
    assert clear.schema["name"] == spark.read.parquet(str(protected)).schema["name"]
    assert clear.where("address.street = 'street 5'").count() == 1


@pytest.mark.parametrize("road", ROADS)
def test_what_cannot_be_decrypted_fails_the_job_or_becomes_null_and_is_counted(
    road: str, spark: Any, home: Settings, protected: Path, events: Any
) -> None:
    from pyspark.sql import functions as F

    table = spark.read.parquet(str(protected))
    changed = {
        "name": F.when(F.col("id").isin(1, 2, 3), F.concat("name", F.lit(b"!"))).otherwise(F.col("name")),
        "visits": F.when(F.col("id") == 4, F.expr("transform(visits, v -> named_struct('note', X'0102'))")).otherwise(
            F.col("visits")
        ),
    }
    broken = protected.parent / "broken"
    table.select(
        *[
            changed[field.name].alias(field.name, metadata=field.metadata) if field.name in changed else field.name
            for field in table.schema
        ]
    ).to(table.schema).write.parquet(str(broken))
    with pytest.raises(DecryptionFailed, match=r"clinic\.visits.*(name|note)") as caught:
        run_job("decrypt_columns", spec(broken, road, road=road), settings=home, run_key="f")
    assert "name 1" not in str(caught.value)
    assert not (broken.parent / road).exists()

    fields = spec(broken, road, road=road, on_error="null")
    summary = run_job("decrypt_columns", fields, settings=home, run_key="n")
    assert summary["failed"] == {"name": 3, "patient_id": 0, "address.street": 0, "visits.note": 2}
    assert events(home)[-1]["counts"] == {"rows": 100, "failed": 5}
    clear = spark.read.parquet(summary["target"])
    assert {row.id for row in clear.where("name is null").collect()} == {0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3}


def test_it_needs_the_permission_to_decrypt_the_columns_for_the_purpose(
    home: Settings, protected: Path, events: Any
) -> None:
    grants = home.policy.read_text()
    home.policy.write_text(grants.replace('columns: ["*"]', 'columns: ["patient_*"]'))
    with pytest.raises(AccessDenied, match="decrypt"):
        run_job("decrypt_columns", spec(protected, "out"), settings=home, run_key="d")
    denied = events(home)[-1]
    assert (denied["phase"], denied["action"], denied["dataset"]) == ("denied", "decrypt", "clinic.visits")
    assert denied["columns"] == ["name", "patient_id", "address.street", "visits.note"]
    with pytest.raises(AccessDenied, match="curiosity"):
        run_job("decrypt_columns", spec(protected, "out", purpose="curiosity"), settings=home, run_key="d")
    summary = run_job("decrypt_columns", spec(protected, "out", columns=["patient_id"]), settings=home, run_key="d")
    assert summary["columns"] == ["patient_id"]


@pytest.mark.parametrize("written", ["name", "`name`", "na[m]e", "*", "address.street", "`address`.street"])
def test_a_denial_holds_however_the_column_is_written(
    written: str, home: Settings, protected: Path, events: Any
) -> None:
    rule = 'role: "*", actions: [decrypt], datasets: ["*"], columns: [name, address.street], purposes: ["*"]'
    home.policy.write_text(f"{home.policy.read_text()}denials:\n  - {{id: not-these, {rule}}}\n")
    with pytest.raises(AccessDenied, match="not-these"):
        run_job("decrypt_columns", spec(protected, "out", columns=[written]), settings=home, run_key="d")
    assert events(home)[-1]["phase"] == "denied"
    assert run_job("decrypt_columns", spec(protected, "out", columns=["`patient_id`"]), settings=home, run_key="d")[
        "columns"
    ] == ["patient_id"]


def test_permission_for_another_name_of_the_table_is_no_permission(home: Settings, protected: Path) -> None:
    from lepton_airflow.errors import InvalidData

    fields = spec(protected, "out", source={"name": "clinic.mine", "path": str(protected)})
    with pytest.raises(InvalidData, match=r"clinic\.visits"):
        run_job("decrypt_columns", fields, settings=home, run_key="d")


def test_bad_input_is_named(home: Settings, protected: Path) -> None:
    for columns, error, text in (
        (["emial"], MissingColumn, "emial"),
        (["id"], SpecError, "id"),
        (["nothing*"], SpecError, "nothing"),
        ([], SpecError, "columns"),
    ):
        with pytest.raises(error, match=text):
            run_job("decrypt_columns", spec(protected, "out", columns=columns), settings=home, run_key="d")


def test_an_identity_without_the_keys_is_refused(home: Settings, protected: Path) -> None:
    from lepton_airflow.keys.identity import generate_identity

    generate_identity("stranger", identities=home.identities, recipients=home.recipients)
    home.policy.write_text(home.policy.read_text().replace("[tester]", "[tester, stranger]"))
    stranger = home.model_copy(update={"identity": "stranger"})
    with pytest.raises(KeyUnavailable, match="stranger"):
        run_job("decrypt_columns", spec(protected, "out"), settings=stranger, run_key="d")
