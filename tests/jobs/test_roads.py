"""Both roads give the same tables, and the direct one is taken exactly where it leads."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.encryption.dataframe import protections_of, reveal
from lepton_airflow.errors import DecryptionFailed, EmptyTable, SpecError
from lepton_airflow.jobs.roads import most_tries
from lepton_airflow.jobs.runner import run_job
from lepton_airflow.settings import Settings

ALL_TYPES = """
    select id, id % 2 = 0 flag, cast(id % 100 as tinyint) tiny, cast(id as smallint) small, cast(-id as int) whole,
      cast(id / 3 as float) ratio, if(id % 7 = 0, double('NaN'), -id / 7.0D) charge, cast(id / 4 as decimal(9,2)) price,
      cast(id * 1000000007 as decimal(38,10)) huge, if(id % 5 = 0, null, concat('Ünïcødé ', id)) name,
      cast(cast(id as string) as binary) data, date_add(date'1899-12-31', cast(id as int)) born,
      timestamp_micros(id * 1234567891) seen, cast(timestamp_micros(id * 987654321) as timestamp_ntz) local,
      if(id % 11 = 0, null, named_struct('street', concat('Street ', id % 9), 'geo', named_struct('lat', id / 9.0D,
        'names', array('a', null)))) address,
      if(id % 3 = 0, array(), array(named_struct('note', concat('note ', id), 'at', timestamp_micros(id)), null)) visits,
      map('x', id / 2.0D, 'y', null) scores, concat('odd ', id) `odd name.x`
    from range(ROWS)
"""
PROTECTIONS: dict[str, Any] = {
    "name": {"cipher": "AES256_GCM"},
    "charge": {"cipher": "AES256_GCM"},
    "price": {"cipher": "AES256_SIV"},
    "seen": {"cipher": "AES256_GCM"},
    "whole": {"cipher": "AES256_SIV", "domain": "patient"},
    "address.street": {"cipher": "AES256_GCM"},
    "visits.note": {"cipher": "AES256_GCM"},
    "scores": {"cipher": "AES256_GCM"},
    "odd name.x": {"cipher": "AES256_GCM"},
}


@pytest.fixture
def source(spark: Any, tmp_path: Path) -> str:
    path = str(tmp_path / "raw table")
    spark.sql(ALL_TYPES.replace("ROWS", "500")).repartition(3).write.parquet(path)
    return path


def spec(path: str, target: Path, road: str, **changes: Any) -> dict[str, Any]:
    fields = {
        "source": {"name": "clinic.visits_raw", "path": path},
        "target": {"name": "clinic.visits", "path": str(target)},
        "keyset": "clinic",
        "columns": PROTECTIONS,
        "road": road,
        "purpose": "test",
    }
    return fields | changes


def rows(frame: Any) -> list[str]:
    return sorted(map(repr, frame.collect()))


def test_encrypting_gives_the_same_table_on_both_roads(spark: Any, home: Settings, source: str, tmp_path: Path) -> None:
    summaries = {
        road: run_job("encrypt_columns", spec(source, tmp_path / road, road), settings=home, run_key=road)
        for road in ("direct", "dataframe")
    }
    assert [summaries[road]["road"] for road in ("direct", "dataframe")] == ["direct", "dataframe"]
    assert summaries["direct"]["rows"] == summaries["dataframe"]["rows"] == 500
    direct, dataframe = (spark.read.parquet(str(tmp_path / road)) for road in ("direct", "dataframe"))
    assert direct.schema == dataframe.schema
    assert protections_of(direct.schema).keys() == PROTECTIONS.keys()
    clear = [name for name in direct.columns if name not in PROTECTIONS and name not in ("address", "visits")]
    assert rows(direct.select(*clear)) == rows(dataframe.select(*clear))
    # Deterministic ciphertexts are the same bytes.
    assert rows(direct.select("id", "price", "whole")) == rows(dataframe.select("id", "price", "whole"))
    original = spark.read.parquet(source)
    for frame in (direct, dataframe):
        revealed = reveal(frame, keyring=home.keyring, identity_file=home.identity_file)
        assert revealed.schema == original.schema
        assert rows(revealed) == rows(original)


def test_format_preserving_columns_are_the_same_on_both_roads_and_each_reads_and_rotates_the_other_s(
    spark: Any, home: Settings, tmp_path: Path
) -> None:
    from lepton_airflow.keys.identity import Identity
    from lepton_airflow.keys.keyring import FileKeyring

    raw = str(tmp_path / "raw")
    spark.range(300).selectExpr(
        "id",
        "if(id % 10 = 0, null, concat('+49 30 ', lpad(id * 7919, 8 + cast(id % 5 as int), '0'))) phone",
        "translate(lpad(conv(id * 104729, 10, 16), 9, '0'), '0123456789', 'GHIJKLMNOP') code",
        "named_struct('card', lpad(id, 16, '4')) payment",
    ).repartition(3).write.parquet(raw)
    columns = {
        "phone": {"cipher": "FF1"},
        "code": {"cipher": "FF1", "alphabet": "ABCDEFGHIJKLMNOP", "domain": "code"},
        "payment.card": {"cipher": "FF1"},
    }
    original = spark.read.parquet(raw)
    roads = ("direct", "dataframe")
    encrypted = {}
    for road in roads:
        fields = spec(raw, tmp_path / road, road, columns=columns)
        assert run_job("encrypt_columns", fields, settings=home, run_key=road)["road"] == road
        encrypted[road] = spark.read.parquet(str(tmp_path / road))
    assert encrypted["direct"].schema == encrypted["dataframe"].schema
    assert rows(encrypted["direct"]) == rows(encrypted["dataframe"])
    clear = {row.id: row for row in original.collect()}
    for row in encrypted["direct"].collect():
        before = clear[row.id]
        assert row.code != before.code
        assert set(row.code) <= set("ABCDEFGHIJKLMNOP")
        assert (len(row.code), len(row.payment.card)) == (len(before.code), 16)
        assert row.payment.card.isdecimal()
        if before.phone is None:
            assert row.phone is None
        else:
            assert row.phone != before.phone
            assert [place for place, sign in enumerate(row.phone) if sign in "+ "] == [0, 3, 6]

    FileKeyring(home.keyring).rotate("clinic", cipher="FF1", identity=Identity.load(home.identity_file))
    rotated = {}
    for by, wrote in (roads, roads[::-1]):
        place = {"name": "clinic.visits", "path": str(tmp_path / wrote)}
        opened = {"source": place, "columns": ["*"], "road": by, "purpose": "test"}
        target = {"name": "clinic.clear", "path": str(tmp_path / f"clear by {by}")}
        run_job("decrypt_columns", opened | {"target": target}, settings=home, run_key=f"d {by}")
        decrypted = spark.read.parquet(target["path"])
        assert decrypted.schema == original.schema
        assert rows(decrypted) == rows(original)
        target = {"name": "clinic.visits", "path": str(tmp_path / f"rotated by {by}")}
        summary = run_job("rotate_keys", opened | {"target": target}, settings=home, run_key=f"r {by}")
        assert summary["rotated"] == {"phone": 270, "code": 300, "payment.card": 300}
        rotated[by] = spark.read.parquet(target["path"])
    assert rotated["direct"].schema == rotated["dataframe"].schema
    assert rows(rotated["direct"]) == rows(rotated["dataframe"])
    assert not set(rows(rotated["direct"])) & set(rows(encrypted["direct"]))
    revealed = reveal(rotated["direct"], keyring=home.keyring, identity_file=home.identity_file)
    assert rows(revealed) == rows(original)


@pytest.mark.parametrize(
    ("master", "conf", "tries"),
    [
        ("local", {}, 1),
        ("local[*]", {"spark.task.maxFailures": "9"}, 1),
        ("local[2,4]", {}, 4),
        ("local[*, 3]", {}, 3),
        ("local[ 2 , 5 ]", {}, 5),
        ("local-cluster[2,1,1024]", {}, 4),
        ("yarn", {"spark.task.maxFailures": "7"}, 7),
        ("spark://host:7077", {"spark.speculation": "True"}, 8),
        ("k8s://https://host", {"spark.speculation": "true", "spark.task.maxFailures": "3"}, 6),
        ("yarn", {"spark.speculation": "false"}, 4),
    ],
)
def test_tries_are_counted_as_spark_allows_them(master: str, conf: dict[str, str], tries: int) -> None:
    assert most_tries(master, conf) == tries


def test_rows_keep_their_order_on_the_direct_road(spark: Any, home: Settings, tmp_path: Path) -> None:
    ordered = str(tmp_path / "ordered")
    spark.range(50_000).selectExpr("id", "cast(id as string) name").coalesce(1).write.option(
        "parquet.block.size", 16 * 1024
    ).parquet(ordered)
    columns = {"name": {"cipher": "AES256_GCM"}}
    run_job("encrypt_columns", spec(ordered, tmp_path / "out", "direct", columns=columns), settings=home, run_key="r")
    files = sorted((tmp_path / "out").glob("*.parquet"))
    ids = [row.id for file in files for row in spark.read.parquet(str(file)).collect()]
    assert ids == list(range(50_000))


OTHER_WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "csv": ({"format": "csv", "options": {"header": "true"}}, "not Parquet"),
    "options": ({"options": {"mergeSchema": "true"}}, "options"),
    "partitions": ({}, "columns"),
    "interval": ({}, "interval"),
    "files differ": ({}, "columns"),
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_where_the_direct_road_does_not_lead_the_other_is_taken_and_the_reason_said(
    way: str, spark: Any, home: Settings, tmp_path: Path
) -> None:
    path = str(tmp_path / "raw")
    table = spark.range(10).selectExpr("id", "cast(id as string) name", "id % 2 part")
    if way == "csv":
        table.write.option("header", True).csv(path)
    elif way == "partitions":
        table.write.partitionBy("part").parquet(path)
    elif way == "interval":
        table.selectExpr("*", "make_dt_interval(1) long").write.parquet(path)
    elif way == "files differ":
        table.write.parquet(path)
        table.drop("part").write.mode("append").parquet(path)
    else:
        table.write.parquet(path)
    changes, reason = OTHER_WAYS[way]
    fields = spec(
        path,
        tmp_path / "out",
        "auto",
        source={"name": "clinic.raw", "path": path, **changes},
        columns={"name": {"cipher": "AES256_GCM"}},
    )
    with pytest.raises(SpecError, match=reason):
        run_job("encrypt_columns", fields | {"road": "direct"}, settings=home, run_key="d")
    summary = run_job("encrypt_columns", fields, settings=home, run_key="r")
    assert summary["road"] == "dataframe"
    assert reason in summary["road_reason"]
    assert summary["rows"] == spark.read.parquet(str(tmp_path / "out")).count()
    again = run_job("encrypt_columns", fields, settings=home, run_key="r")
    assert again == summary | {"replayed": True}


def test_files_that_other_programs_wrote_are_read_as_spark_reads_them(
    spark: Any, home: Settings, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "raw").mkdir()
    table = pa.table(
        {
            "name": pa.array(["a", "b", None, "a"]).dictionary_encode(),
            "large": pa.array(["x", None, "y", "z"], pa.large_string()),
            "seen": pa.array([1, 2, None, 4], pa.timestamp("ms", tz="Europe/Paris")),
            "price": pa.array([Decimal("1.50"), None, Decimal("-2.25"), Decimal("0.00")], pa.decimal128(9, 2)),
            "tags": pa.array([["p"], [], None, ["q", None]], pa.large_list(pa.string())),
        }
    )
    pq.write_table(table, tmp_path / "raw" / "one.parquet")
    pq.write_table(table.slice(1, 2), tmp_path / "raw" / "two.parquet", use_deprecated_int96_timestamps=True)
    columns = {name: {"cipher": "AES256_GCM"} for name in ("name", "seen", "price")}
    fields = spec(str(tmp_path / "raw"), tmp_path / "out", "direct", columns=columns)
    assert run_job("encrypt_columns", fields, settings=home, run_key="r")["rows"] == 6
    protected = spark.read.parquet(str(tmp_path / "out"))
    revealed = reveal(protected, keyring=home.keyring, identity_file=home.identity_file)
    original = spark.read.parquet(str(tmp_path / "raw"))
    assert revealed.schema == original.schema
    assert rows(revealed) == rows(original)


def test_a_worker_error_is_one_typed_error_and_nothing_is_published(
    spark: Any, home: Settings, source: str, tmp_path: Path
) -> None:
    """A value too long for its type cannot come from Parquet, so the error is a changed ciphertext, met in decryption."""
    run_job("encrypt_columns", spec(source, tmp_path / "protected", "direct"), settings=home, run_key="e")
    tampered = spark.read.parquet(str(tmp_path / "protected"))
    from pyspark.sql import functions as F

    meta = tampered.schema["name"].metadata
    broken = F.when(F.col("id") == 7, F.expr("name || X'00'")).otherwise(F.col("name")).alias("name", metadata=meta)
    frame = tampered.select(*[broken if name == "name" else F.col(f"`{name}`") for name in tampered.columns])
    frame.write.parquet(str(tmp_path / "broken"))
    fields = {
        "source": {"name": "clinic.visits", "path": str(tmp_path / "broken")},
        "target": {"name": "clinic.clear", "path": str(tmp_path / "clear")},
        "columns": ["name"],
        "purpose": "test",
    }
    for road in ("direct", "dataframe"):
        with pytest.raises(DecryptionFailed, match=r"clinic\.visits.*name.*key \d+"):
            run_job("decrypt_columns", fields | {"road": road}, settings=home, run_key=road)
    assert not [path for path in tmp_path.iterdir() if "clear" in path.name]


def test_an_empty_table_is_refused_on_the_direct_road(spark: Any, home: Settings, source: str, tmp_path: Path) -> None:
    empty = str(tmp_path / "empty")
    spark.read.parquet(source).limit(0).write.parquet(empty)
    with pytest.raises(EmptyTable):
        run_job("encrypt_columns", spec(empty, tmp_path / "out", "direct"), settings=home, run_key="r")
    assert not (tmp_path / "out").exists()


def test_files_can_be_encrypted_as_a_whole_and_are_read_decrypted_and_rotated_on_the_direct_road(
    spark: Any, home: Settings, source: str, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lepton_airflow.columnar.parquet_encryption import FileKeys
    from lepton_airflow.keys.identity import Identity
    from lepton_airflow.keys.keyring import FileKeyring

    fields = spec(source, tmp_path / "protected", "auto", parquet_encryption=True)
    summary = run_job("encrypt_columns", fields, settings=home, run_key="e")
    assert (summary["road"], summary["files_encrypted_under"]) == ("direct", "clinic")
    file = next((tmp_path / "protected").glob("*.parquet"))
    # Also what is in clear inside, the names of columns among it, cannot be read in the file.
    assert not [text for text in (b"odd name", b"Street", b"local", b"address") if text in file.read_bytes()]
    with pytest.raises(OSError, match=r"[Ee]ncrypt"):
        pq.read_table(file)
    keys = FileKeys(str(home.keyring), str(home.identity_file))
    table: pa.Table = pq.ParquetFile(file, decryption_properties=keys.reading()).read()
    assert table.schema.field("name").type == pa.binary()

    place = {"name": "clinic.visits", "path": str(tmp_path / "protected")}
    keyring, identity = FileKeyring(home.keyring), Identity.load(home.identity_file)
    old = keyring.open("clinic", cipher="AES256_GCM", identity=identity).primary_key_id
    keyring.rotate("clinic", cipher="AES256_GCM", identity=identity)
    rotation = {"source": place, "target": {**place, "mode": "overwrite"}, "purpose": "test"}
    rotated = run_job("rotate_keys", rotation, settings=home, run_key="r")
    assert rotated["files_encrypted_under"] == "clinic"
    assert rotated["rotated"]["name"] == 400
    # Neither values nor files need the old key any more.
    keyring.set_status("clinic", cipher="AES256_GCM", identity=identity, key_id=old, status="DESTROYED")

    opened = {"source": place, "target": {"name": "clinic.clear", "path": str(tmp_path / "clear")}, "columns": ["*"]}
    run_job("decrypt_columns", opened | {"purpose": "test"}, settings=home, run_key="d")
    clear, original = spark.read.parquet(str(tmp_path / "clear")), spark.read.parquet(source)
    assert clear.schema == original.schema
    assert rows(clear) == rows(original)


def test_files_are_not_left_without_the_second_layer_that_was_asked_for(
    home: Settings, source: str, tmp_path: Path
) -> None:
    for changes in ({"road": "dataframe"}, {"target": {"name": "t", "format": "orc", "path": str(tmp_path / "out")}}):
        fields = spec(source, tmp_path / "out", "auto", parquet_encryption=True) | changes
        with pytest.raises(SpecError, match="encrypted as a whole"):
            run_job("encrypt_columns", fields, settings=home, run_key="e")
    assert not (tmp_path / "out").exists()


def test_a_stranger_does_not_open_encrypted_files(home: Settings, source: str, tmp_path: Path) -> None:
    from lepton_airflow.errors import KeyUnavailable
    from lepton_airflow.keys.identity import generate_identity

    fields = spec(source, tmp_path / "protected", "auto", parquet_encryption=True)
    run_job("encrypt_columns", fields, settings=home, run_key="e")
    generate_identity("stranger", identities=home.identities, recipients=home.recipients)
    home.policy.write_text(home.policy.read_text().replace("[tester]", "[tester, stranger]"))
    opened = {
        "source": {"name": "clinic.visits", "path": str(tmp_path / "protected")},
        "target": {"name": "clinic.clear", "path": str(tmp_path / "clear")},
        "columns": ["*"],
        "purpose": "test",
    }
    stranger = home.model_copy(update={"identity": "stranger"})
    with pytest.raises(KeyUnavailable, match="stranger"):
        run_job("decrypt_columns", opened, settings=stranger, run_key="d")
