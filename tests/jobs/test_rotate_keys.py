"""The rotate job: old keys are needed no more, what was fresh stays byte for byte, and the values are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.encryption.dataframe import reveal
from lepton_airflow.errors import DecryptionFailed, SpecError, TargetExists
from lepton_airflow.jobs.runner import run_job
from lepton_airflow.keys.cipher import Cipher
from lepton_airflow.keys.identity import Identity
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.settings import Settings

ROADS = ["direct", "dataframe"]
CIPHERS: tuple[Cipher, ...] = ("AES256_GCM", "AES256_SIV")
COLUMNS: dict[str, Any] = {
    "name": {"cipher": "AES256_GCM"},
    "patient_id": {"cipher": "AES256_SIV", "domain": "patient"},
    "visits.note": {"cipher": "AES256_GCM"},
}


def encrypt(spark: Any, home: Settings, path: Path, first: int) -> None:
    raw = path.parent / f"raw-{path.name}"
    spark.range(first, first + 50).selectExpr(
        "id",
        "if(id % 10 = 0, null, concat('name ', id)) name",
        "cast(id % 7 as int) patient_id",
        "array(named_struct('note', concat('note ', id)), named_struct('note', 'second')) visits",
    ).write.parquet(str(raw))
    fields = {
        "source": {"name": "clinic.raw", "path": str(raw)},
        "target": {"name": "clinic.visits", "path": str(path)},
        "keyset": "clinic",
        "columns": COLUMNS,
        "purpose": "test",
    }
    run_job("encrypt_columns", fields, settings=home, run_key=path.name)


@pytest.fixture
def table(spark: Any, home: Settings, tmp_path: Path) -> Path:
    """A table of 100 rows: 50 under the first keys of keyset ``clinic``, 50 under its second ones, which are primary."""
    encrypt(spark, home, tmp_path / "old", 0)
    identity = Identity.load(home.identity_file)
    for cipher in CIPHERS:
        FileKeyring(home.keyring).rotate("clinic", cipher=cipher, identity=identity)
    encrypt(spark, home, tmp_path / "new", 50)
    (tmp_path / "table").mkdir()
    for part in ("old", "new"):
        for file in (tmp_path / part).glob("*.parquet"):
            file.rename(tmp_path / "table" / f"{part}-{file.name}")
    return tmp_path / "table"


def spec(table: Path, **changes: Any) -> dict[str, Any]:
    place = {"name": "clinic.visits", "path": str(table)}
    return {"source": place, "target": {**place, "mode": "overwrite"}, "purpose": "test"} | changes


def rows(frame: Any) -> list[str]:
    return sorted(map(repr, frame.collect()))


@pytest.mark.parametrize("road", ROADS)
def test_old_values_are_encrypted_again_and_the_others_stay(
    road: str, spark: Any, home: Settings, table: Path, tmp_path: Path
) -> None:
    before = {row.id: row for row in spark.read.parquet(str(table)).collect()}
    clear = rows(reveal(spark.read.parquet(str(table)), keyring=home.keyring, identity_file=home.identity_file))
    summary = run_job("rotate_keys", spec(table, road=road), settings=home, run_key="r")
    assert summary == {
        "rows": 100,
        "columns": ["name", "patient_id", "visits.note"],
        "target": str(table),
        "road": road,
        "rotated": {"name": 45, "patient_id": 50, "visits.note": 100},
        "replayed": False,
    }
    rotated = spark.read.parquet(str(table))
    keyring, identity = FileKeyring(home.keyring), Identity.load(home.identity_file)
    primary = {cipher: keyring.open("clinic", cipher=cipher, identity=identity).primary_key_id for cipher in CIPHERS}
    for row in rotated.collect():
        assert row.name is None or int.from_bytes(row.name[1:5], "big") == primary["AES256_GCM"]
        assert int.from_bytes(row.patient_id[1:5], "big") == primary["AES256_SIV"]
        assert (row == before[row.id]) == (row.id >= 50)
    # What the old keys protected is now protected by the new ones alone.
    for cipher in CIPHERS:
        keys = keyring.open("clinic", cipher=cipher, identity=identity).keys
        (old,) = keys.keys() - {primary[cipher]}
        keyring.set_status("clinic", cipher=cipher, identity=identity, key_id=old, status="DESTROYED")
    assert rows(reveal(rotated, keyring=home.keyring, identity_file=home.identity_file)) == clear
    assert not list(tmp_path.glob(".table*"))
    again = run_job("rotate_keys", spec(table, road=road), settings=home, run_key="r")
    assert again == summary | {"replayed": True}
    nothing = run_job("rotate_keys", spec(table, road=road), settings=home, run_key="next")
    assert set(nothing["rotated"].values()) == {0}


def test_both_roads_give_the_same_table(spark: Any, home: Settings, table: Path, tmp_path: Path) -> None:
    for road in ROADS:
        target = {"name": "clinic.visits", "path": str(tmp_path / road)}
        run_job("rotate_keys", spec(table, road=road, target=target), settings=home, run_key=road)
    direct, dataframe = (spark.read.parquet(str(tmp_path / road)) for road in ROADS)
    assert direct.schema == dataframe.schema
    assert rows(direct.select("id", "patient_id")) == rows(dataframe.select("id", "patient_id"))
    revealed = [reveal(frame, keyring=home.keyring, identity_file=home.identity_file) for frame in (direct, dataframe)]
    assert rows(revealed[0]) == rows(revealed[1])


def test_chosen_columns_are_rotated_and_the_others_stay(spark: Any, home: Settings, table: Path) -> None:
    before = rows(spark.read.parquet(str(table)).select("id", "name", "visits"))
    summary = run_job("rotate_keys", spec(table, columns=["patient_id"]), settings=home, run_key="r")
    assert summary["rotated"] == {"patient_id": 50}
    assert rows(spark.read.parquet(str(table)).select("id", "name", "visits")) == before


def test_the_table_is_replaced_only_when_asked_and_keeps_its_name(home: Settings, table: Path) -> None:
    place = {"name": "clinic.visits", "path": str(table)}
    with pytest.raises(TargetExists):
        run_job("rotate_keys", spec(table, target=place), settings=home, run_key="r")
    with pytest.raises(SpecError, match="same name"):
        run_job("rotate_keys", spec(table, target={**place, "name": "other"}), settings=home, run_key="r")


@pytest.mark.parametrize("road", ROADS)
def test_a_changed_value_stops_the_rotation_and_the_table_stays(
    road: str, spark: Any, home: Settings, table: Path
) -> None:
    from pyspark.sql import functions as F

    frame = spark.read.parquet(str(table))
    broken = table.parent / "broken"
    changed = F.when(F.col("id") == 7, F.concat("name", F.lit(b"!"))).otherwise(F.col("name"))
    name = changed.alias("name", metadata=frame.schema["name"].metadata)
    frame.select("id", name, "patient_id", "visits").write.parquet(str(broken))
    with pytest.raises(DecryptionFailed, match="name"):
        run_job("rotate_keys", spec(broken, road=road), settings=home, run_key="r")
    assert spark.read.parquet(str(broken)).count() == 100


def test_the_values_are_counted_for_the_new_key_before_they_are_encrypted(home: Settings, table: Path) -> None:
    from lepton_airflow.audit.database import connect
    from lepton_airflow.keys.usage import usage

    def counted() -> list[int]:
        engine = connect(home)
        try:
            return sorted(usage(engine, "clinic").values())
        finally:
            engine.dispose()

    # 50 names and 100 notes in each of the two encrypted halves.
    assert counted() == [150, 150]
    run_job("rotate_keys", spec(table), settings=home, run_key="r")
    assert counted() == [150, 150 + 300]
