"""The release job from end to end: what it publishes, what it refuses, what it costs, and what the audit says."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.audit import runs
from lepton_airflow.audit.database import connect
from lepton_airflow.errors import (
    AccessDenied,
    BudgetError,
    BudgetExhausted,
    InvalidData,
    MissingColumn,
    RunKeyConflict,
    SpecError,
    TargetExists,
    UnreadableSource,
    UnsupportedType,
)
from lepton_airflow.jobs.release_aggregates import ReleaseAggregatesSpec
from lepton_airflow.jobs.runner import run_job
from lepton_airflow.jobs.spec import parse_spec
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.settings import Settings

DATASET, UNIT = "clinic.visits", "patient_id"
# Sixty patients with two visits each, in two wards and one ward that is not declared; ages 30 to 49.
ROWS = [
    (f"p{i % 60}", ("north", "south", "cellar")[i % 3], float(30 + i % 20) if i % 7 else None, i % 2 == 0)
    for i in range(120)
]


@pytest.fixture
def table(spark: Any, tmp_path: Path) -> str:
    path = str(tmp_path / "raw")
    spark.createDataFrame(ROWS, "patient_id string, ward string, age double, open boolean").write.parquet(path)
    return path


@pytest.fixture
def ledger(home: Settings) -> Iterator[Ledger]:
    engine = connect(home)
    ledger = Ledger(engine)
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(100), owner="tester")
    yield ledger
    engine.dispose()


def spec(path: str, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "source": {"name": DATASET, "path": path},
        "privacy_unit": UNIT,
        "group_by": ["ward"],
        "groups": ["north", "south", "attic"],
        "metrics": [
            {"name": "visits", "type": "count"},
            {"name": "patients", "type": "count_units"},
            {"name": "years", "type": "sum", "column": "age", "lower": 0, "upper": 100},
            {"name": "age", "type": "mean", "column": "age", "lower": 0, "upper": 100},
        ],
        "max_groups_per_unit": 3,
        "max_rows_per_unit_and_group": 2,
        "epsilon": "40",
        "target": str(tmp_path / "release.json"),
        "purpose": "test",
    }
    return fields | changes


def run(home: Settings, fields: dict[str, Any], run_key: str = "d/t/r/-1") -> dict[str, Any]:
    return run_job("release_aggregates", fields, settings=home, run_key=run_key)


def protect(home: Settings, table: str, tmp_path: Path, **columns: str) -> str:
    """Encrypt ``columns`` of the table under the keyset of the home; the protected table's path."""
    fields = {
        "source": {"name": "clinic.visits_raw", "path": table},
        "target": {"name": DATASET, "path": str(tmp_path / "protected")},
        "keyset": "clinic",
        "columns": {name: {"cipher": cipher} for name, cipher in columns.items()},
        "purpose": "test",
    }
    summary: dict[str, Any] = run_job("encrypt_columns", fields, settings=home, run_key="protect")
    return str(summary["target"])


def test_a_release_is_published_and_paid_for(home: Settings, ledger: Ledger, table: str, tmp_path: Path) -> None:
    summary = run(home, spec(table, tmp_path))
    file = tmp_path / "release.json"
    assert summary == {
        "cells": 12,
        "epsilon_spent": "40",
        "epsilon_left": "60",
        "release": str(file),
        "published": True,
        "road": "direct",
        "replayed": False,
    }
    document = json.loads(file.read_text())
    cells = {cell["group"]["ward"]: cell["values"] for cell in document["groupings"][0]["cells"]}
    assert list(cells) == ["north", "south", "attic"]
    # Epsilon is large, so the numbers are near the truth; how near they have to be is in the other tests.
    north = [row for row in ROWS if row[1] == "north"]
    ages = [row[2] for row in north if row[2] is not None]
    assert cells["north"]["visits"]["value"] == pytest.approx(len(north), abs=20)
    assert cells["attic"]["patients"]["value"] == pytest.approx(0, abs=20)
    assert cells["north"]["age"]["value"] == pytest.approx(sum(ages) / len(ages), abs=30)
    assert document["run_key"] == "d/t/r/-1"
    record = runs.get(connect(home), "d/t/r/-1")
    assert record is not None
    assert record.payload["result"] == summary


def test_the_audit_says_what_left_and_holds_no_number_of_the_table(
    home: Settings, ledger: Ledger, table: str, tmp_path: Path, events: Any
) -> None:
    run(home, spec(table, tmp_path))
    intent, success = events(home)
    assert (intent["action"], intent["phase"], success["phase"]) == ("release", "intent", "success")
    assert intent["columns"] == ["age", "patient_id", "ward"]
    assert intent["details"]["epsilon"] == 40
    assert success["counts"] == {"cells": 12}
    assert success["details"].items() >= {"epsilon_spent": "40", "road": "direct", "replayed": False}.items()
    content = (tmp_path / "release.json").read_bytes()
    assert success["digests"]["release"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert success["digests"].keys() >= {"release", "source"}


def test_a_repeated_run_gives_the_same_numbers_for_nothing(
    home: Settings, ledger: Ledger, table: str, tmp_path: Path
) -> None:
    run(home, spec(table, tmp_path))
    content = (tmp_path / "release.json").read_bytes()
    # The same spec in other words, and no data to read any more.
    for part in Path(table).iterdir():
        part.unlink()
    again = run(home, spec(table, tmp_path, epsilon=40.0))
    assert (again["replayed"], again["epsilon_left"]) == (True, "60")
    assert (tmp_path / "release.json").read_bytes() == content


def test_a_changed_spec_under_the_run_key_is_refused(
    home: Settings, ledger: Ledger, table: str, tmp_path: Path
) -> None:
    run(home, spec(table, tmp_path))
    content = (tmp_path / "release.json").read_bytes()
    with pytest.raises(RunKeyConflict):
        run(home, spec(table, tmp_path, max_groups_per_unit=1, mode="overwrite"))
    assert (tmp_path / "release.json").read_bytes() == content
    with pytest.raises(TargetExists):
        run(home, spec(table, tmp_path), run_key="another")
    assert ledger.balance(dataset=DATASET, unit=UNIT).left == 60


def test_overspending_is_refused_before_the_table_is_opened(
    home: Settings, ledger: Ledger, tmp_path: Path, events: Any
) -> None:
    with pytest.raises(BudgetExhausted, match=r"asks for epsilon 100\.5; of 100 there is 100 left"):
        run(home, spec("/nowhere", tmp_path, epsilon="100.5"))
    assert [event["phase"] for event in events(home)] == ["intent", "failure"]
    assert events(home)[1]["details"]["error"] == "BudgetExhausted"


def test_without_a_budget_nothing_is_released(home: Settings, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="lepton budget create"):
        run(home, spec("/nowhere", tmp_path))


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"source": {"name": DATASET, "path": "/nowhere"}}, UnreadableSource, "/nowhere"),
        ({"privacy_unit": UNIT, "group_by": ["room"]}, MissingColumn, "room"),
        (
            {"metrics": [{"name": "m", "type": "sum", "column": "open", "lower": 0, "upper": 1}]},
            UnsupportedType,
            "open",
        ),
    ],
)
def test_a_table_that_does_not_fit_the_spec_costs_nothing(
    home: Settings, ledger: Ledger, table: str, tmp_path: Path, changes: dict[str, Any], error: type, named: str
) -> None:
    with pytest.raises(error, match=named):
        run(home, spec(table, tmp_path, **changes))
    assert ledger.balance(dataset=DATASET, unit=UNIT).left == 100
    # The mended spec can use the same run key: in Airflow, the same task of the same run.
    assert not run(home, spec(table, tmp_path))["replayed"]


def test_an_encrypted_table_gives_the_same_aggregates(
    home: Settings, ledger: Ledger, table: str, tmp_path: Path, events: Any
) -> None:
    """Epsilon is so large that the noise is zero, so that the two releases must agree to the last digit."""
    engine = connect(home)
    Ledger(engine).create(dataset="clinic.copy", unit=UNIT, epsilon=Decimal("1e20"), owner="tester")
    Ledger(engine).create(dataset="clinic.open", unit=UNIT, epsilon=Decimal("1e20"), owner="tester")
    engine.dispose()
    plain = spec(table, tmp_path, epsilon="1e19", source={"name": "clinic.open", "path": table})
    run(home, plain, run_key="plain")
    protected = protect(home, table, tmp_path, patient_id="AES256_SIV", ward="AES256_GCM", age="AES256_GCM")
    hidden = spec(protected, tmp_path, epsilon="1e19", budget="clinic.copy", target=str(tmp_path / "hidden.json"))
    before = len(events(home))
    run(home, hidden, run_key="hidden")
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("release.json", "hidden.json"))
    assert first["groupings"] == second["groupings"]
    steps = [(e["action"], e["phase"], e["dataset"], tuple(e["columns"])) for e in events(home)[before:]]
    released, paid = ("release", DATASET, ("age", "patient_id", "ward")), ("release", "clinic.copy", (UNIT,))
    decrypted = ("decrypt", DATASET, ("age", "ward"))
    assert steps == [
        (action, phase, dataset, columns)
        for phase, order in (("intent", [released, paid, decrypted]), ("success", [decrypted, paid, released]))
        for action, dataset, columns in order
    ]


def test_who_may_release_but_not_decrypt_gets_nothing_from_an_encrypted_measure(
    home: Settings, ledger: Ledger, table: str, tmp_path: Path
) -> None:
    protected = protect(home, table, tmp_path, patient_id="AES256_SIV", age="AES256_GCM")
    policy = home.policy.read_text()
    home.policy.write_text(policy.replace("decrypt, ", ""))
    with pytest.raises(AccessDenied, match="decrypt"):
        run(home, spec(protected, tmp_path))
    assert not (tmp_path / "release.json").exists()
    assert ledger.balance(dataset=DATASET, unit=UNIT).left == 100
    # What needs no decryption can be released: the unit is used as it is.
    counts = [{"name": "patients", "type": "count_units"}]
    assert run(home, spec(protected, tmp_path, metrics=counts), run_key="counts")["cells"] == 3


def test_who_may_not_spend_another_datasets_budget_does_not(
    home: Settings, ledger: Ledger, table: str, tmp_path: Path
) -> None:
    home.policy.write_text(home.policy.read_text().replace('datasets: ["*"]', "datasets: [lab.*]"))
    with pytest.raises(AccessDenied, match=r"clinic\.visits"):
        run(home, spec(table, tmp_path, source={"name": "lab.results", "path": table}, budget=DATASET))
    assert ledger.find("d/t/r/-1") is None


def test_a_randomly_encrypted_unit_is_refused(home: Settings, ledger: Ledger, table: str, tmp_path: Path) -> None:
    protected = protect(home, table, tmp_path, patient_id="AES256_GCM")
    with pytest.raises(SpecError, match=r"clinic\.visits\.patient_id.*AES256_SIV"):
        run(home, spec(protected, tmp_path))
    assert ledger.balance(dataset=DATASET, unit=UNIT).left == 100


def test_a_protected_table_under_another_name_is_refused(
    home: Settings, ledger: Ledger, table: str, tmp_path: Path
) -> None:
    protected = protect(home, table, tmp_path, patient_id="AES256_SIV")
    source = {"name": "clinic.other", "path": protected}
    with pytest.raises(InvalidData, match=r"encrypted for the dataset 'clinic\.visits'"):
        run(home, spec(protected, tmp_path, source=source, budget=DATASET))


AGE = {"name": "a", "column": "age", "lower": 0, "upper": 100}


def test_both_roads_publish_the_same_numbers(home: Settings, ledger: Ledger, table: str, tmp_path: Path) -> None:
    """Epsilon is so large that the noise is zero, and no unit is in more groups than it may be."""
    engine = connect(home)
    Ledger(engine).create(dataset="clinic.open", unit=UNIT, epsilon=Decimal("1e20"), owner="tester")
    engine.dispose()
    metrics = [
        {"name": "visits", "type": "count"},
        {**AGE, "name": "spread", "type": "standard_deviation"},
        {**AGE, "name": "ages", "type": "histogram", "bins": 10},
        {**AGE, "name": "middle", "type": "quantiles", "quantiles": ["0.5"]},
    ]
    documents = []
    for road in ("direct", "dataframe"):
        file = tmp_path / f"{road}.json"
        source = {"name": "clinic.open", "path": table}
        fields = spec(table, tmp_path, epsilon="1e19", source=source, road=road, target=str(file), metrics=metrics)
        assert run(home, fields, run_key=road)["road"] == road
        documents.append(json.loads(file.read_text())["groupings"])
    assert documents[0] == documents[1]
    ages = [row[2] for row in ROWS if row[1] == "north" and row[2] is not None]
    values = documents[0][0]["cells"][0]["values"]
    assert values["spread"]["value"] == pytest.approx(statistics.pstdev(ages), rel=1e-2)
    assert sum(part["value"] for part in values["ages"]["bins"]) == len(ages)
    assert values["middle"]["0.5"]["value"] == pytest.approx(statistics.median(ages), abs=1)


def test_several_groupings_share_one_epsilon(home: Settings, ledger: Ledger, table: str, tmp_path: Path) -> None:
    groupings = [
        {"by": ["ward"], "keys": ["north", "south", "attic"]},
        {"by": ["ward", "open"], "keys": [["north", True], ["north", False], ["south", True], ["south", False]]},
        {"max_groups_per_unit": 1},
    ]
    metrics = [{"name": "visits", "type": "count"}]
    fields = spec(
        table,
        tmp_path,
        group_by=[],
        groups=[],
        groupings=groupings,
        metrics=metrics,
        post_processing={"nonnegative": True, "decimals": 0},
    )
    assert run(home, fields)["cells"] == 8
    document = json.loads((tmp_path / "release.json").read_text())
    assert [grouping["name"] for grouping in document["groupings"]] == ["ward", "ward-open", "all"]
    engine = connect(home)
    shares = [event.epsilon for event in Ledger(engine).mechanisms(dataset=DATASET, unit=UNIT)]
    engine.dispose()
    assert sum(shares, Fraction(0)) == 40
    assert ledger.balance(dataset=DATASET, unit=UNIT).left == 60


def test_private_groups_and_gaussian_noise_are_charged_to_epsilon_and_delta(
    home: Settings, table: str, tmp_path: Path
) -> None:
    """All wards have 20 patients, so only a large epsilon shows them; ``cellar`` is chosen without having been declared."""
    engine = connect(home)
    ledger = Ledger(engine)
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(500), delta=Decimal("1e-5"), owner="tester")
    fields = spec(table, tmp_path, groups="private", epsilon="300", delta="1e-6", noise="gaussian")
    run(home, fields)
    cells = json.loads((tmp_path / "release.json").read_text())["groupings"][0]["cells"]
    assert [cell["group"]["ward"] for cell in cells] == ["cellar", "north", "south"]
    balance = ledger.balance(dataset=DATASET, unit=UNIT)
    engine.dispose()
    # What it costs exactly, PLD knows better than the bound that the release was planned with.
    assert 200 <= balance.left < 500


def test_gaussian_noise_is_not_paid_from_a_budget_without_delta(
    home: Settings, ledger: Ledger, table: str, tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match="delta"):
        run(home, spec(table, tmp_path, noise="gaussian", delta="1e-6"))


def test_keys_come_from_a_public_table(spark: Any, home: Settings, ledger: Ledger, table: str, tmp_path: Path) -> None:
    wards = str(tmp_path / "wards")
    spark.createDataFrame([("south",), ("north",), ("south",)], "ward string").write.parquet(wards)
    keys = {"name": "public.wards", "path": wards}
    run(home, spec(table, tmp_path, groups=keys))
    document = json.loads((tmp_path / "release.json").read_text())
    assert [cell["group"]["ward"] for cell in document["groupings"][0]["cells"]] == ["north", "south"]


def test_a_table_of_keys_is_published_only_by_who_may_read_it(
    home: Settings, ledger: Ledger, table: str, tmp_path: Path
) -> None:
    policy = home.policy.read_text()
    home.policy.write_text(policy.replace("decrypt, ", ""))
    with pytest.raises(AccessDenied, match="decrypt"):
        run(home, spec(table, tmp_path, groups={"name": DATASET, "path": table}))
    assert ledger.balance(dataset=DATASET, unit=UNIT).left == 100


def test_encrypted_keys_are_not_published(home: Settings, ledger: Ledger, table: str, tmp_path: Path) -> None:
    protected = protect(home, table, tmp_path, patient_id="AES256_SIV", ward="AES256_SIV")
    with pytest.raises(SpecError, match="encrypted columns: ward"):
        run(home, spec(protected, tmp_path, groups={"name": DATASET, "path": protected}))


def test_what_needs_approval_is_not_published(
    home: Settings, ledger: Ledger, table: str, tmp_path: Path, events: Any
) -> None:
    summary = run(home, spec(table, tmp_path, approval="required"))
    assert (summary["published"], (tmp_path / "release.json").exists()) == (False, False)
    assert events(home)[-1]["details"]["state"] == "drawn"


def test_a_picture_is_drawn_of_a_release(home: Settings, ledger: Ledger, table: str, tmp_path: Path) -> None:
    run(home, spec(table, tmp_path, plot=str(tmp_path / "release.svg")))
    assert "<svg" in (tmp_path / "release.svg").read_text()


def test_diffprivlib_is_a_second_backend(home: Settings, ledger: Ledger, table: str, tmp_path: Path) -> None:
    run(home, spec(table, tmp_path, backend="diffprivlib", mechanism="Geometric"))
    document = json.loads((tmp_path / "release.json").read_text())
    assert document["backend"] == "diffprivlib"
    assert document["groupings"][0]["cells"][0]["values"]["visits"]["value"] == pytest.approx(40, abs=25)


def test_an_empty_table_is_released_like_any_other(spark: Any, home: Settings, ledger: Ledger, tmp_path: Path) -> None:
    empty = str(tmp_path / "empty")
    spark.createDataFrame([], "patient_id string, ward string, age double").write.parquet(empty)
    assert run(home, spec(empty, tmp_path))["cells"] == 12


def test_missing_values_and_infinities_have_a_defined_meaning(spark: Any, home: Settings, tmp_path: Path) -> None:
    """Rows without a unit do not count; null and NaN are no values; infinities are clipped."""
    engine = connect(home)
    Ledger(engine).create(dataset=DATASET, unit=UNIT, epsilon=Decimal("1e20"), owner="tester")
    engine.dispose()
    rows = [
        ("a", "north", math.inf),
        ("b", "north", -math.inf),
        ("c", "north", math.nan),
        ("d", "north", None),
        (None, "north", 50.0),
        ("e", None, 50.0),
    ]
    odd = str(tmp_path / "odd")
    spark.createDataFrame(rows, "patient_id string, ward string, age double").write.parquet(odd)
    for road in ("direct", "dataframe"):
        file = tmp_path / f"{road}.json"
        run(
            home, spec(odd, tmp_path, epsilon="1e19", groups=["north", None], road=road, target=str(file)), run_key=road
        )
        north, nowhere = (cell["values"] for cell in json.loads(file.read_text())["groupings"][0]["cells"])
        assert (north["visits"]["value"], north["patients"]["value"], nowhere["visits"]["value"]) == (4, 4, 1)
        assert (north["years"]["value"], north["age"]["value"]) == (100, 50)


def bad_spec(**changes: Any) -> str:
    with pytest.raises(SpecError) as refused:
        parse_spec(ReleaseAggregatesSpec, spec("/data", Path("/tmp"), **changes))
    return str(refused.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epsilon": 0}, "epsilon: must be greater than 0"),
        ({"epsilon": "-1"}, "epsilon: must be greater than 0"),
        ({"epsilon": "nan"}, "epsilon: must be finite"),
        ({"epsilon": "much"}, "epsilon: must be a decimal number"),
        ({"max_groups_per_unit": 0}, "max_groups_per_unit"),
        ({"groups": ["north", "south", "north"]}, "group 3 is declared twice"),
        ({"groups": []}, "group_by and groups go together"),
        ({"group_by": []}, "group_by and groups go together"),
        ({"groups": [["north", "x"]]}, "group 1 has 2 values for 1 columns"),
        ({"groups": [0.5]}, "groups"),
        ({"metrics": []}, "metrics"),
        ({"metrics": [{"name": "n", "type": "count"}] * 2}, "same name"),
        ({"metrics": [{"name": "n", "type": "median"}]}, "metrics.0.type"),
        ({"metrics": [{"name": "n", "type": "count", "column": "age"}]}, "takes no column"),
        ({"metrics": [{"name": "n", "type": "sum", "column": "age"}]}, "needs lower, upper"),
        ({"metrics": [{"name": "n", "type": "sum", "column": "age", "lower": 2, "upper": 1}]}, "not below its upper"),
        ({"metrics": [{"name": "n", "type": "count", "weight": 0}]}, "weight: must be greater than 0"),
        ({"noise": "none"}, "noise"),
        ({"loudness": 1}, "no such field"),
        ({"noise": "gaussian", "delta": "1.5"}, "delta"),
        ({"groups": "public"}, "groups"),
        ({"groups": {"name": "wards"}}, "give path or table"),
        ({"groupings": [{"by": ["ward"], "keys": ["north"]}]}, "not both"),
        ({"group_by": [], "groups": [], "groupings": [{}, {}]}, "same name"),
        ({"post_processing": {"consistent": True}}, "two or more groupings"),
        ({"backend": "diffprivlib", "mechanism": "Laplace"}, "refused"),
        ({"backend": "diffprivlib", "mechanism": "Staircase"}, "refused"),
        ({"mechanism": "Geometric"}, "backend: diffprivlib"),
        ({"metrics": [{**AGE, "type": "quantiles"}]}, "needs quantiles"),
        ({"metrics": [{**AGE, "type": "quantiles", "quantiles": [1]}]}, "between 0 and 1"),
        ({"metrics": [{**AGE, "type": "histogram"}]}, "needs bins"),
        (
            {"metrics": [{"name": "h", "type": "histogram", "column": "age", "edges": [1, 1]}]},
            "each above the one before",
        ),
    ],
)
def test_specs_that_cannot_work_are_refused_by_the_field(changes: dict[str, Any], text: str) -> None:
    assert text.lower() in bad_spec(**changes).lower()


@pytest.mark.parametrize("missing", ["max_groups_per_unit", "max_rows_per_unit_and_group", "epsilon", "privacy_unit"])
def test_a_spec_without_its_bounds_is_refused(missing: str) -> None:
    fields = spec("/data", Path("/tmp"))
    del fields[missing]
    with pytest.raises(SpecError, match=missing):
        parse_spec(ReleaseAggregatesSpec, fields)
