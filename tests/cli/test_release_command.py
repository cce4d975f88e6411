"""`lepton release plan`, `plot` and `tune`: what people see before and after a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sql
import yaml
from typer.testing import CliRunner, Result

from lepton_airflow.audit.database import connect, leaf_table
from lepton_airflow.cli import app
from lepton_airflow.errors import SpecError, UnreadableSource
from lepton_airflow.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SPEC = {
    "source": {"name": "clinic.visits", "path": "/nowhere"},
    "target": "/nowhere/release.json",
    "purpose": "test",
    "privacy_unit": "patient",
    "max_groups_per_unit": 1,
    "max_rows_per_unit_and_group": 4,
    "epsilon": 1,
    "group_by": ["ward"],
    "groups": ["north", "south"],
    "metrics": [
        {"name": "visits", "type": "count"},
        {"name": "patients", "type": "count_units"},
        {"name": "age", "type": "mean", "column": "age", "lower": 0, "upper": 100},
    ],
}


def release(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["release", *map(str, arguments)])


def spec_file(folder: Path, **fields: Any) -> Path:
    file = folder / "release.yaml"
    file.write_text(yaml.safe_dump({name: value for name, value in (SPEC | fields).items() if value is not None}))
    return file


def test_a_plan_needs_nothing_but_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No home, and no table where the spec says.
    monkeypatch.setenv("LEPTON_HOME", str(tmp_path / "missing"))
    shown = release("plan", "--spec", spec_file(tmp_path))
    assert shown.exit_code == 0, shown.output
    assert "epsilon 1, delta 0, laplace noise" in shown.output
    (visits,) = [line.split() for line in shown.output.splitlines() if line.startswith("ward") and " visits " in line]
    # Scale 4 / (1/3): P(abs(noise) > 35) < 5%. The same for every size, and in proportion.
    assert visits[:5] == ["ward", "visits", "count", "±", "36"]
    assert visits[5::3] == ["(360%)", "(36%)", "(3.6%)", "(0.36%)"]
    assert list(tmp_path.iterdir()) == [tmp_path / "release.yaml"]


def test_a_plan_proposes_weights_that_can_be_pasted(tmp_path: Path) -> None:
    shown = release("plan", "--spec", spec_file(tmp_path), "--rows", 10_000)
    head, _, pasted = shown.output.partition("To paste:\n")
    before, after = (float(part.split("%")[0]) for part in head.rpartition("rows: ")[2].split(" would become "))
    assert after < before
    weights = {metric["name"]: metric["weight"] for metric in yaml.safe_load(pasted)}
    assert list(weights) == ["visits", "patients", "age"]
    assert weights["visits"] > weights["patients"]
    metrics = [{**metric, "weight": weights[metric["name"]]} for metric in SPEC["metrics"]]
    again = release("plan", "--spec", spec_file(tmp_path, metrics=metrics), "--rows", 10_000)
    assert "about those of the spec" in again.output


def test_a_plan_tells_which_private_groups_will_show(tmp_path: Path) -> None:
    shown = release("plan", "--spec", spec_file(tmp_path, groups="private", delta="1e-6"))
    assert shown.exit_code == 0, shown.output
    assert "groups are shown whose noisy number of units is" in shown.output
    assert "95 of 100 releases" in shown.output


def test_keys_in_a_table_are_counted_by_hand(tmp_path: Path) -> None:
    keys = {"name": "wards", "path": "/wards"}
    groupings = [
        {"by": ["ward"], "keys": keys},
        {"by": ["sex"], "keys": ["f", "m"]},
        {"by": ["town"], "keys": keys},
    ]
    file = spec_file(tmp_path, group_by=None, groups=None, groupings=groupings, max_groups_per_unit=5)
    missing = release("plan", "--spec", file)
    assert isinstance(missing.exception, SpecError)
    assert "ward, town" in str(missing.exception)
    for wrong in ("many", "0", "sex=3", "nothing=1", "ward=-1"):
        assert isinstance(release("plan", "--spec", file, "--groups", wrong).exception, SpecError), wrong
    few = release("plan", "--spec", file, "--groups", "ward=1", "--groups", "town=3")
    many = release("plan", "--spec", file, "--groups", "3")
    assert few.exit_code == many.exit_code == 0
    # L0 is at most the number of groups: with one ward there is less noise in it.
    widths = {
        (place, line.split()[0]): line.split()[4]
        for place, shown in enumerate((few, many))
        for line in shown.output.splitlines()
        if " visits " in line
    }
    assert float(widths[0, "ward"]) < float(widths[1, "ward"])
    assert widths[0, "town"] == widths[1, "town"]


def test_a_wrong_spec_is_one_message(tmp_path: Path) -> None:
    refused = release("plan", "--spec", spec_file(tmp_path, epsilon=-1))
    assert isinstance(refused.exception, SpecError)
    assert "epsilon" in refused.exception.place


def test_a_release_is_drawn(tmp_path: Path) -> None:
    cells = [{"group": {}, "values": {"visits": {"value": 7, "interval": [4, 10]}}}]
    document = {
        "schema": "lepton.release/2",
        "dataset": "clinic.visits",
        "epsilon": "1",
        "delta": "0",
        "noise": "laplace",
        "metrics": [{"name": "visits", "type": "count"}],
        "groupings": [{"name": "all", "group_by": [], "cells": cells}],
    }
    file, picture = tmp_path / "release.json", tmp_path / "release.svg"
    file.write_text(json.dumps(document))
    assert release("plot", file, "-o", picture).exit_code == 0
    assert "visits (count)" in picture.read_text()
    file.write_text("no json")
    assert isinstance(release("plot", file, "-o", picture).exception, UnreadableSource)
    assert isinstance(release("plot", tmp_path / "none", "-o", picture).exception, UnreadableSource)


def events(home: Settings) -> list[dict[str, Any]]:
    engine = connect(home)
    with engine.connect() as connection:
        payloads = connection.execute(sql.select(leaf_table.c.payload).order_by(leaf_table.c.id)).scalars().all()
    engine.dispose()
    return [event for event in map(json.loads, payloads) if event["action"] == "release.tune"]


def test_tuning_wants_to_hear_that_the_table_is_public(home: Settings, tmp_path: Path) -> None:
    file = spec_file(tmp_path)
    refused = release("tune", "--spec", file, "--public-table", tmp_path / "table", "--home", home.home)
    assert isinstance(refused.exception, SpecError)
    assert "--this-table-is-public" in refused.exception.remedy
    assert not events(home)


def test_tuning_shows_writes_and_draws_every_combination(home: Settings, tmp_path: Path, spark: SparkSession) -> None:
    rows = [(f"p{i}", ward, 40 + i % 20) for i in range(200) for ward in ("north", "north", "south")]
    table = tmp_path / "table"
    spark.createDataFrame(rows, "patient string, ward string, age int").write.parquet(str(table))
    common = ["--spec", spec_file(tmp_path), "--this-table-is-public", "--home", home.home]
    files = ["--table", tmp_path / "tuning.csv", "--plot", tmp_path / "tuning.png"]
    shown = release(
        "tune", *common, "--public-table", table, "--groups", "1,2", "--rows", "2", "--clip", "0.75,1", *files
    )
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[0].split()[:4] == ["L0", "Linf", "clip", "rows"]
    assert len([line for line in lines if line.startswith(("1  ", "2  "))]) == 4
    assert sum(line.endswith("best") for line in lines) == 1
    assert "no privacy budget was touched" in shown.output
    assert len((tmp_path / "tuning.csv").read_text().splitlines()) == 1 + 4 * 3
    assert (tmp_path / "tuning.png").read_bytes().startswith(b"\x89PNG")
    intent, outcome = events(home)
    assert (intent["phase"], outcome["phase"]) == ("intent", "success")
    assert intent["details"]["public_table"] == str(table)
    for wrong in (["--groups", "0"], ["--rows", "1.5"], ["--clip", "nan"], ["--clip", "x"]):
        assert isinstance(release("tune", *common, "--public-table", table, *wrong).exception, SpecError), wrong
    missing = release("tune", *common, "--public-table", tmp_path / "none")
    assert isinstance(missing.exception, UnreadableSource)
