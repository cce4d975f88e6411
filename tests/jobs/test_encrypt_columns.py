"""The encrypt job from end to end: what it writes, what it refuses, and what the audit says of both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.audit import runs
from lepton_airflow.audit.database import connect
from lepton_airflow.encryption.dataframe import protections_of, reveal
from lepton_airflow.errors import (
    AccessDenied,
    EmptyTable,
    KeyUnavailable,
    LeptonError,
    MissingColumn,
    SpecError,
    TargetExists,
    UnreadableSource,
)
from lepton_airflow.jobs.runner import run_job
from lepton_airflow.settings import Settings

ROWS = [(1, "Ada", "ada@example.org", 1.5), (2, "Bea", None, 2.5), (1, "Ada", "ada@example.org", 3.5)]


@pytest.fixture
def source(spark: Any, tmp_path: Path) -> str:
    path = str(tmp_path / "raw")
    spark.createDataFrame(ROWS, "id int, name string, email string, charge double").write.parquet(path)
    return path


def spec(path: str, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "source": {"name": "clinic.visits_raw", "path": path},
        "target": {"name": "clinic.visits", "path": str(tmp_path / "protected")},
        "keyset": "clinic",
        "columns": {
            "email": {"cipher": "AES256_GCM"},
            "charge": {"cipher": "AES256_GCM"},
            "id": {"cipher": "AES256_SIV", "domain": "patient"},
        },
        "purpose": "test",
    }
    return fields | changes


def test_a_table_is_protected_and_comes_back_exactly(spark: Any, home: Settings, source: str, tmp_path: Path) -> None:
    summary = run_job("encrypt_columns", spec(source, tmp_path), settings=home, run_key="d/t/r/-1")
    assert summary == {
        "rows": 3,
        "columns": ["charge", "email", "id"],
        "target": str(tmp_path / "protected"),
        "road": "direct",
        "replayed": False,
    }
    protected = spark.read.parquet(summary["target"])
    assert dict(protected.dtypes) == {"id": "binary", "name": "string", "email": "binary", "charge": "binary"}
    assert set(protections_of(protected.schema)) == {"charge", "email", "id"}
    stored = protected.collect()
    assert sorted(row.name for row in stored) == ["Ada", "Ada", "Bea"]
    ids = [row.id for row in stored if row.name == "Ada"]
    emails = [row.email for row in stored if row.name == "Ada"]
    assert ids[0] == ids[1], "deterministic: equal values stay equal"
    assert emails[0] != emails[1], "randomised: equal values look different"
    revealed = reveal(
        protected, columns=["email", "charge", "id"], keyring=home.keyring, identity_file=home.identity_file
    )
    assert sorted(map(tuple, revealed.collect()), key=str) == sorted(ROWS, key=str)
    assert dict(revealed.dtypes) == {"id": "int", "name": "string", "email": "string", "charge": "double"}


def test_the_audit_has_the_intent_before_and_the_outcome_after(
    home: Settings, source: str, tmp_path: Path, events: Any
) -> None:
    run_job("encrypt_columns", spec(source, tmp_path), settings=home, run_key="d/t/r/-1")
    intent, outcome = events(home)
    assert (intent["phase"], outcome["phase"]) == ("intent", "success")
    assert outcome["intent"] == intent["event_id"]
    assert outcome["counts"] == {"rows": 3}
    assert outcome["run_key"] == "d/t/r/-1"
    assert outcome["actor"]["principal"] == "tester"
    assert outcome["columns"] == ["charge", "email", "id"]
    assert outcome["rules"] == ["tests"]
    assert "ada@example.org" not in json.dumps(events(home))


def test_a_rerun_finds_what_it_committed_and_writes_nothing(home: Settings, source: str, tmp_path: Path) -> None:
    first = run_job("encrypt_columns", spec(source, tmp_path), settings=home, run_key="d/t/r/-1")
    before = {path.name: path.read_bytes() for path in (tmp_path / "protected").glob("*.parquet")}
    second = run_job("encrypt_columns", spec(source, tmp_path), settings=home, run_key="d/t/r/-1")
    assert second == first | {"replayed": True}
    assert {path.name: path.read_bytes() for path in (tmp_path / "protected").glob("*.parquet")} == before


def test_another_run_does_not_replace_the_target_unless_asked(home: Settings, source: str, tmp_path: Path) -> None:
    run_job("encrypt_columns", spec(source, tmp_path), settings=home, run_key="first")
    with pytest.raises(TargetExists, match="overwrite"):
        run_job("encrypt_columns", spec(source, tmp_path), settings=home, run_key="second")
    target = {"name": "clinic.visits", "path": str(tmp_path / "protected"), "mode": "overwrite"}
    summary = run_job("encrypt_columns", spec(source, tmp_path, target=target), settings=home, run_key="second")
    assert summary["replayed"] is False


BAD: list[tuple[dict[str, Any], type[LeptonError], str]] = [
    ({"columns": {"emial": {"cipher": "AES256_GCM"}}}, MissingColumn, "emial"),
    ({"colour": "red"}, SpecError, "colour"),
    ({"source": {"name": "clinic.visits_raw", "path": "/nowhere/at/all"}}, UnreadableSource, "/nowhere/at/all"),
    ({"purpose": "curiosity"}, AccessDenied, "curiosity"),
    ({"keyset": "other"}, KeyUnavailable, "other"),
    ({"columns": {"email": {"cipher": "ROT13"}}}, SpecError, "cipher"),
]


@pytest.mark.parametrize(("changes", "error", "names"), BAD, ids=[error.__name__ for _, error, _ in BAD])
def test_bad_input_is_one_typed_error_in_audit_and_result(
    changes: dict[str, Any],
    error: type[LeptonError],
    names: str,
    home: Settings,
    source: str,
    tmp_path: Path,
    events: Any,
) -> None:
    with pytest.raises(error) as caught:
        run_job("encrypt_columns", spec(source, tmp_path, **changes), settings=home, run_key="r", attempt="1")
    assert names in str(caught.value)
    assert caught.value.remedy
    assert caught.value.stored
    assert not (tmp_path / "protected").exists()
    last = events(home)[-1]
    assert last["phase"] in ("failure", "denied")
    engine = connect(home)
    record = runs.get(engine, "r")
    engine.dispose()
    assert record is not None
    assert record.status == "failure"
    assert record.payload == {"attempt": "1", "error": caught.value.to_dict()}


def test_a_source_in_another_format_is_unreadable(home: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "part.parquet").write_text("this is no Parquet file, though it is long enough to be one")
    source = {"name": "clinic.visits_raw", "path": str(folder)}
    with pytest.raises(UnreadableSource, match=r"clinic\.visits_raw"):
        run_job("encrypt_columns", spec("", tmp_path, source=source), settings=home, run_key="r")


def test_an_empty_table_is_refused_and_the_old_target_stays(
    spark: Any, home: Settings, source: str, tmp_path: Path
) -> None:
    run_job("encrypt_columns", spec(source, tmp_path), settings=home, run_key="first")
    empty = str(tmp_path / "empty")
    spark.read.parquet(source).limit(0).write.parquet(empty)
    target = {"name": "clinic.visits", "path": str(tmp_path / "protected"), "mode": "overwrite"}
    with pytest.raises(EmptyTable, match=r"clinic\.visits"):
        run_job("encrypt_columns", spec(empty, tmp_path, target=target), settings=home, run_key="second")
    assert spark.read.parquet(str(tmp_path / "protected")).count() == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "lepton", "protected", "raw"]


def test_an_identity_to_which_the_keyset_is_not_sealed_is_refused(
    home: Settings, source: str, tmp_path: Path, events: Any
) -> None:
    from lepton_airflow.keys.identity import generate_identity

    generate_identity("stranger", identities=home.identities, recipients=home.recipients)
    policy = home.policy.read_text().replace("[tester]", "[tester, stranger]")
    home.policy.write_text(policy)
    stranger = home.model_copy(update={"identity": "stranger"})
    with pytest.raises(KeyUnavailable, match="stranger"):
        run_job("encrypt_columns", spec(source, tmp_path), settings=stranger, run_key="r")
    assert events(home)[-1]["actor"]["principal"] == "stranger"


PLACES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "csv to parquet": ({"format": "csv", "path": "{tmp}/csv", "options": {"header": "true"}}, {"path": "{tmp}/out"}),
    "table to table": ({"table": "raw_visits"}, {"table": "protected_visits"}),
    "json to orc": ({"format": "json", "path": "{tmp}/json"}, {"format": "orc", "path": "{tmp}/out"}),
}


@pytest.mark.parametrize("way", PLACES)
def test_any_source_and_sink_of_spark_will_do(
    way: str, spark: Any, home: Settings, source: str, tmp_path: Path
) -> None:
    raw = spark.read.parquet(source)
    raw.write.option("header", True).csv(str(tmp_path / "csv"))
    raw.write.json(str(tmp_path / "json"))
    places = [json.loads(json.dumps(place).replace("{tmp}", str(tmp_path))) for place in PLACES[way]]
    protected = {"name": "clinic.visits"} | places[1]
    fields = spec(
        "",
        tmp_path,
        source={"name": "clinic.visits_raw"} | places[0],
        target=protected,
        columns={"email": {"cipher": "AES256_GCM"}, "name": {"cipher": "AES256_SIV"}},
    )
    opened = {
        "source": protected,
        "target": {"name": "clinic.clear", "path": str(tmp_path / "clear")},
        "purpose": "test",
    }
    try:
        raw.write.mode("overwrite").saveAsTable("raw_visits")
        summary = run_job("encrypt_columns", fields, settings=home, run_key="r")
        assert (summary["rows"], summary["road"]) == (3, "dataframe")
        if way == "json to orc":
            written = spark.read.orc(summary["target"])
            assert (dict(written.dtypes)["email"], written.count()) == ("binary", 3)
            # Files of ORC keep no field metadata, which the reader is told.
            with pytest.raises(SpecError, match="protection was lost"):
                run_job("decrypt_columns", opened | {"columns": ["email"]}, settings=home, run_key="d")
            return
        run_job("decrypt_columns", opened | {"columns": ["*"]}, settings=home, run_key="d")
        clear = spark.read.parquet(str(tmp_path / "clear")).select("name", "email")
        assert sorted(map(tuple, clear.collect()), key=str) == sorted(((row[1], row[2]) for row in ROWS), key=str)
    finally:
        spark.sql("drop table if exists raw_visits")
        spark.sql("drop table if exists protected_visits")


def test_patterns_and_tags_choose_columns_and_the_policy_is_asked_about_those(
    spark: Any, home: Settings, source: str, tmp_path: Path, events: Any
) -> None:
    from pyspark.sql import functions as F

    tagged = str(tmp_path / "tagged")
    columns = [F.col("id").alias("patient_id"), "name", F.col("email").alias("email", metadata={"comment": "#pii"})]
    spark.read.parquet(source).select(*columns).write.parquet(tagged)
    chosen = {"*_id": {"cipher": "AES256_SIV"}, "tag:pii": {"cipher": "AES256_GCM"}, "`name`": {"cipher": "AES256_GCM"}}
    summary = run_job("encrypt_columns", spec(tagged, tmp_path, columns=chosen), settings=home, run_key="r")
    assert summary["columns"] == events(home)[-1]["columns"] == ["email", "name", "patient_id"]
    assert set(protections_of(spark.read.parquet(summary["target"]).schema)) == {"email", "name", "patient_id"}


def test_a_sensitive_column_that_is_not_protected_fails_the_job(home: Settings, source: str, tmp_path: Path) -> None:
    for sensitive in (["name"], ["na*"]):
        with pytest.raises(SpecError, match="name sensitive"):
            run_job("encrypt_columns", spec(source, tmp_path, sensitive=sensitive), settings=home, run_key="r")
    assert not (tmp_path / "protected").exists()
    fields = spec(source, tmp_path, sensitive=["email", "id"])
    assert run_job("encrypt_columns", fields, settings=home, run_key="r")["rows"] == 3


@pytest.mark.slow
def test_a_driver_killed_in_mid_write_leaves_nothing_and_the_rerun_succeeds(
    spark: Any, home: Settings, tmp_path: Path, events: Any
) -> None:
    big = str(tmp_path / "big")
    rows = 400_000
    spark.range(rows).selectExpr("cast(id as int) id", "cast(id as string) email", "rand() charge").write.parquet(big)
    fields = json.dumps(spec(big, tmp_path))
    script = Path(__file__).parents[2] / "spark_jobs" / "encrypt_columns.py"
    command = [sys.executable, str(script), "--spec-json", fields, "--run-key", "r", "--home", str(home.home)]
    # A group of its own, so that driver, JVM and workers all die at once.
    driver = subprocess.Popen(
        command,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"},
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".protected.staging-*/**/*.parquet")):
        assert driver.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not (tmp_path / "protected").exists()
    summary = run_job("encrypt_columns", json.loads(fields), settings=home, run_key="r")
    assert summary["rows"] == rows
    assert spark.read.parquet(str(tmp_path / "protected")).count() == rows
    assert not list(tmp_path.glob(".protected.*"))
    phases = [event["phase"] for event in events(home)]
    assert phases == ["intent", "intent", "success"], "the killed try shows as an intent without an outcome"
