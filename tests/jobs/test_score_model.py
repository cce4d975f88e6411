"""A champion is scored on fresh protected rows: what a drift looks like, and what cannot be scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lepton_airflow.errors import (
    AccessDenied,
    InvalidData,
    LeptonError,
    MissingColumn,
    ModelTampered,
    SpecError,
    UnreadableSource,
)
from lepton_airflow.jobs.runner import run_job
from lepton_airflow.settings import Settings

MEASUREMENTS = ("mean_radius", "mean_texture", "mean_concave_points", "worst_area")


def visits(*, drifted: bool = False, patients: int = 569) -> pa.Table:
    """One visit of each patient on day 1; drifted ones hardly tell malignant from benign and came on day 2."""
    from sklearn.datasets import load_breast_cancer

    records = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in records.feature_names]
    data = dict(zip(names, records.data[:patients].T, strict=True))
    if drifted:
        draw = np.random.default_rng(2)
        data = {name: draw.permutation(column) for name, column in data.items()}
    return pa.table(
        {
            **{name: data[name] for name in MEASUREMENTS},
            "diagnosis": np.where(records.target[:patients] == 0, "malignant", "benign"),
            "patient_id": [f"patient-{patient:03}" for patient in range(patients)],
            "day": pa.array(np.full(patients, 2 if drifted else 1), pa.int32()),
        }
    )


def written(table: pa.Table, folder: Path) -> str:
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "rows.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def champion(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a deployment of its own."""
    from typer.testing import CliRunner

    from lepton_airflow.cli import app
    from lepton_airflow.settings import load_settings

    folder = tmp_path_factory.mktemp("champion")
    made = CliRunner().invoke(
        app, ["init", "--home", str(folder / "home"), "--identity", "tester", "--keyset", "clinic"]
    )
    assert made.exit_code == 0, made.output
    settings = load_settings(folder / "home")
    settings.policy.write_text(
        "version: 1\nroles: {all: {members: [tester]}}\ngrants: [{id: all, role: all, actions: [train], "
        "datasets: ['*'], columns: ['*'], purposes: ['*']}]\n"
    )
    spec = {
        "source": {"name": "clinic.visits", "path": written(visits(), folder / "visits")},
        "privacy_unit": "patient_id",
        "label_column": "diagnosis",
        "classes": ["benign", "malignant"],
        "features": list(MEASUREMENTS),
        "threat_model": {"norm": "linf", "epsilon": 0.25, "units": "standard deviations"},
        "training": {"epochs": 15, "hidden": [16]},
        "evaluation": {"epsilons": [], "steps": 20, "restarts": 1, "apgd_steps": 20, "square_queries": 50},
        "gate": {"minimum_clean_accuracy": 0.7, "minimum_robust_accuracy": 0.5},
        "target": str(folder / "models" / "diagnosis"),
        "purpose": "test",
        "seed": 3,
    }
    run_job("retrain_model", spec, settings=settings, run_key="train")
    return folder / "models" / "diagnosis"


def score(home: Settings, champion: Path, path: str, **changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "source": {"name": "clinic.visits", "path": path},
        "model": str(champion),
        "minimum_clean_accuracy": 0.75,
        "minimum_robust_accuracy": 0.6,
        "steps": 5,
        "restarts": 1,
        "purpose": "test",
    }
    return run_job("score_model", spec | changes, settings=home, run_key="score")


def test_the_rows_of_a_protected_table_tell_a_drift(
    home: Settings, champion: Path, tmp_path: Path, events: Any
) -> None:
    raw = written(pa.concat_tables([visits(), visits(drifted=True)]), tmp_path / "raw")
    protect = {
        "source": {"name": "clinic.raw", "path": raw},
        "target": {"name": "clinic.visits", "path": str(tmp_path / "protected")},
        "keyset": "clinic",
        "columns": {
            **{name: {"cipher": "AES256_GCM"} for name in (*MEASUREMENTS, "diagnosis")},
            "patient_id": {"cipher": "AES256_SIV"},
        },
        "purpose": "test",
    }
    run_job("encrypt_columns", protect, settings=home, run_key="protect")
    protected = str(tmp_path / "protected")
    everything = score(home, champion, protected)
    assert everything["n"] == 2 * 569
    assert everything["units"] == 569
    fresh = score(home, champion, protected, newer_than={"column": "day", "value": "1"})
    assert fresh["below"]
    assert fresh["n"] == 569
    assert [reason.partition(" accuracy")[0] for reason in fresh["reasons"]] == ["clean", "robust"]
    assert fresh["robust_accuracy"] <= fresh["clean_accuracy"] < 0.75
    low, high = fresh["clean_interval"]
    assert low < fresh["clean_accuracy"] < high < 0.75
    assert fresh["sha256"] == json.loads((champion / "model_card.json").read_text())["model"]["sha256"]
    # Decrypted under the guard, evaluated under the guard; nothing else was opened.
    last = events(home, "evaluate")[-1]
    assert last["phase"] == "success"
    assert last["columns"] == [*MEASUREMENTS, "diagnosis", "patient_id"]
    assert last["counts"] == {"rows": 569, "examples": 569, "units": 569}
    assert last["details"]["below"] is True
    assert last["digests"]["model"] == fresh["sha256"]
    assert events(home, "decrypt")[-1]["columns"] == [*MEASUREMENTS, "diagnosis"]


def test_a_model_that_holds_stays_and_few_rows_decide_nothing(home: Settings, champion: Path, tmp_path: Path) -> None:
    path = written(visits(), tmp_path / "visits")
    held = score(home, champion, path)
    assert (held["below"], held["reasons"]) == (False, [])
    assert held["clean_accuracy"] > 0.8
    # A bound within the interval is not broken; one above it is.
    inside = (held["clean_accuracy"] + held["clean_interval"][1]) / 2
    assert not score(home, champion, path, minimum_clean_accuracy=inside)["below"]
    assert score(home, champion, path, minimum_clean_accuracy=0.999)["below"]
    few = written(visits(drifted=True, patients=60), tmp_path / "few")
    undecided = score(home, champion, few)
    assert not undecided["below"]
    assert undecided["reasons"] == ["60 privacy units are too few to decide on; 100 are needed"]
    assert "clean_accuracy" not in undecided
    assert score(home, champion, few, minimum_units=60)["below"]
    nothing = score(home, champion, path, newer_than={"column": "day", "value": "1"})
    assert (nothing["below"], nothing["n"]) == (False, 0)


def changed(**columns: Any) -> pa.Table:
    table = visits()
    for name, values in columns.items():
        values = [*values, *table[name].to_pylist()[len(values) :]]
        table = table.set_column(table.column_names.index(name), name, [values])
    return table


@pytest.mark.parametrize(
    ("table", "changes", "error", "names"),
    [
        ({"worst_area": [float("nan")]}, {}, InvalidData, "clinic.visits.worst_area"),
        ({"diagnosis": ["unclear"]}, {}, InvalidData, "1 labels are none of the 2"),
        ({}, {"newer_than": {"column": "hour", "value": "1"}}, MissingColumn, "hour"),
        ({}, {"purpose": "curiosity"}, AccessDenied, "evaluate"),
        ({}, {"model": "/nowhere"}, UnreadableSource, "no model"),
        ({}, {"minimum_clean_accuracy": 2}, SpecError, "minimum_clean_accuracy"),
    ],
)
def test_what_cannot_be_scored_is_one_typed_error(
    table: dict[str, Any],
    changes: dict[str, Any],
    error: type[LeptonError],
    names: str,
    home: Settings,
    champion: Path,
    tmp_path: Path,
) -> None:
    path = written(changed(**table), tmp_path / "visits")
    with pytest.raises(error, match=names) as caught:
        score(home, champion, path, **changes)
    assert caught.value.final
    assert (champion / "model.keras").exists()


def test_a_tampered_model_is_not_loaded(home: Settings, champion: Path, tmp_path: Path, events: Any) -> None:
    import shutil

    copy = tmp_path / "diagnosis"
    shutil.copytree(champion, copy)
    file = copy / "model.keras"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x00")
    with pytest.raises(ModelTampered):
        score(home, copy, written(visits(), tmp_path / "visits"))
    # Nothing was opened, so there is no intent.
    assert [(event["phase"], event["details"]["error"]) for event in events(home, "evaluate")] == [
        ("failure", "ModelTampered")
    ]


def test_a_successor_with_other_inputs_or_classes_is_refused_and_the_champion_stays(
    home: Settings, champion: Path, tmp_path: Path
) -> None:
    before = (champion / "model.keras").read_bytes()
    spec: dict[str, Any] = {
        "source": {"name": "clinic.visits", "path": written(visits(), tmp_path / "visits")},
        "privacy_unit": "patient_id",
        "label_column": "diagnosis",
        "classes": ["benign", "malignant"],
        "features": list(MEASUREMENTS),
        "threat_model": {"norm": "linf", "epsilon": 0.25, "units": "standard deviations"},
        "gate": {"minimum_clean_accuracy": 0.7, "minimum_robust_accuracy": 0.5},
        "target": str(champion),
        "purpose": "test",
    }
    image = {"column": "picture", "shape": [2, 2, 1], "high": 255}
    for changes, names in (
        ({"classes": ["malignant", "benign"]}, "other classes"),
        ({"features": list(reversed(MEASUREMENTS))}, "other features"),
        ({"features": list(MEASUREMENTS[:3])}, "other features"),
        ({"features": [], "image": image}, "other features and other image"),
    ):
        with pytest.raises(SpecError, match=names):
            run_job("retrain_model", spec | changes, settings=home, run_key=names)
    assert (champion / "model.keras").read_bytes() == before
