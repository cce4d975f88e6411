"""The gate job from end to end: a model's folder and a protected table in, a verdict out, and what the audit says of it."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lepton_airflow.errors import (
    AccessDenied,
    GateRefused,
    LeptonError,
    ModelTampered,
    SpecError,
    UnreadableSource,
)
from lepton_airflow.jobs.gate_model import GateModelSpec
from lepton_airflow.jobs.runner import run_job
from lepton_airflow.jobs.spec import parse_spec
from lepton_airflow.settings import Settings

pytestmark = pytest.mark.slow
MEASUREMENTS = ("mean_radius", "mean_texture", "mean_concave_points", "worst_area", "worst_smoothness")
QUICK = {"epsilons": [0.5], "steps": 20, "restarts": 2, "apgd_steps": 30, "square_queries": 100}
NARROW = {"norm": "linf", "epsilon": 0.1, "units": "standard deviations"}
DAGS = Path(__file__).parents[2] / "dags"
#: Patients whom the model was trained on; the others come later.
TRAINED_ON = 380


def measurements() -> pd.DataFrame:
    from sklearn.datasets import load_breast_cancer

    records = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in records.feature_names]
    frame = pd.DataFrame(records.data, columns=names)[list(MEASUREMENTS)]
    frame["diagnosis"] = np.where(records.target == 0, "malignant", "benign")
    frame["patient_id"] = [f"patient-{patient:03}" for patient in range(len(frame))]
    return frame


@pytest.fixture(scope="module")
def model(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the first patients, as the retrain job publishes it."""
    from lepton_airflow.models.runtime import load_tensorflow

    load_tensorflow()
    import pyarrow as pa

    from lepton_airflow.models.artefact import ModelFolder
    from lepton_airflow.models.card import Origin
    from lepton_airflow.models.examples import examples_from_arrow
    from lepton_airflow.models.networks import Means
    from lepton_airflow.models.plan import EvaluationPlan, GatePlan, RetrainingPlan, TrainingPlan
    from lepton_airflow.models.retraining import retrain
    from lepton_airflow.models.threat_model import ThreatModel

    columns: dict[str, Any] = {
        "features": MEASUREMENTS,
        "label": "diagnosis",
        "classes": ("benign", "malignant"),
    }
    path = tmp_path_factory.mktemp("models") / "diagnosis"
    retrain(
        examples_from_arrow(
            pa.Table.from_pandas(measurements()[:TRAINED_ON], preserve_index=False),
            dataset="clinic.visits",
            unit="patient_id",
            **columns,
        ),
        origin=Origin(
            run_key="training",
            spec_digest="sha256:1",
            purpose="test",
            dataset="clinic.visits",
            rows=TRAINED_ON,
            privacy_unit="patient_id",
            **columns,
        ),
        plan=RetrainingPlan(
            threat_model=ThreatModel(norm="linf", epsilon=0.25, units="standard deviations"),
            training=TrainingPlan(epochs=20, hidden=(32,)),
            evaluation=EvaluationPlan(**QUICK),
            gate=GatePlan(minimum_clean_accuracy=0.8, minimum_robust_accuracy=0.5),
            seed=3,
        ),
        folder=ModelFolder(path),
        means=Means(report=lambda _report: None),
    )
    return path


@pytest.fixture(scope="module")
def tables(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The visits of the patients of the training and of the later ones, in the clear."""
    folder = tmp_path_factory.mktemp("clinic")
    frame = measurements()
    parts = {"old": frame[:TRAINED_ON], "new": frame[TRAINED_ON:], "mixed": frame[TRAINED_ON - 5 :]}
    for name, part in parts.items():
        spark.createDataFrame(part).write.parquet(str(folder / name))
    return {name: str(folder / name) for name in parts}


def spec(path: str, candidate: Path, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "source": {"name": "clinic.new_visits", "path": path},
        "model": str(candidate),
        "evaluation": QUICK,
        "gate": {"minimum_clean_accuracy": 0.8, "minimum_robust_accuracy": 0.5},
        "purpose": "test",
        "seed": 4,
    }
    return fields | changes


def gate(home: Settings, fields: dict[str, Any], run_key: str = "d/gate/r/-1") -> dict[str, Any]:
    return run_job("gate_model", fields, settings=home, run_key=run_key)


def copied(model: Path, target: Path, **card: Any) -> Path:
    shutil.copytree(model, target)
    file = target / "model_card.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | card))
    return target


def test_a_model_that_keeps_its_promise_on_new_patients_passes(
    home: Settings, model: Path, tables: dict[str, str], tmp_path: Path, events: Any
) -> None:
    """The new visits are protected; the model's card says which columns to decrypt."""
    target = str(tmp_path / "protected")
    protect = {
        "source": {"name": "clinic.visits_raw", "path": tables["new"]},
        "target": {"name": "clinic.new_visits", "path": target},
        "keyset": "clinic",
        "columns": {name: {} for name in (*MEASUREMENTS, "diagnosis")}
        | {"patient_id": {"cipher": "AES256_SIV", "domain": "patient"}},
        "purpose": "test",
    }
    run_job("encrypt_columns", protect, settings=home, run_key="protect")
    before = {file: file.read_bytes() for file in model.iterdir()}
    summary = gate(home, spec(target, model))
    card = json.loads((model / "model_card.json").read_text())
    assert summary["gate"] == "passed"
    assert summary["sha256"] == card["model"]["sha256"]
    assert (summary["n_test"], summary["units"], summary["epsilon"]) == (189, 189, 0.25)
    low, high = summary["robust_interval"]
    assert low < summary["robust_accuracy"] < high
    assert summary["attacks"]["clean"] == round(189 * summary["clean_accuracy"])
    assert list(summary["attacks"].values()) == sorted(summary["attacks"].values(), reverse=True)
    assert {file: file.read_bytes() for file in model.iterdir()} == before
    told = [(event["action"], event["phase"]) for event in events(home) if event["run_key"] == "d/gate/r/-1"]
    assert told == [("evaluate", "intent"), ("decrypt", "intent"), ("decrypt", "success"), ("evaluate", "success")]
    last = events(home)[-1]
    assert last["details"]["gate"] == "passed"
    assert last["digests"]["model"] == summary["sha256"]
    assert last["columns"] == [*MEASUREMENTS, "diagnosis", "patient_id"]


def test_a_model_below_a_minimum_is_refused_with_its_numbers(
    home: Settings, model: Path, tables: dict[str, str], events: Any
) -> None:
    strict = {"minimum_clean_accuracy": 0.5, "minimum_robust_accuracy": 1.0}
    with pytest.raises(GateRefused, match=r"robust accuracy 0\.\d+ \(\d+ of 189\) is below 1") as caught:
        gate(home, spec(tables["new"], model, gate=strict))
    assert caught.value.final, "the same model does not become better by trying again"
    last = events(home)[-1]
    assert (last["action"], last["phase"], last["details"]["gate"]) == ("evaluate", "failure", "refused")
    assert last["details"]["error"] == "GateRefused"
    assert last["counts"]["examples"] == 189


def test_a_masked_model_is_refused_however_high_it_scores(
    home: Settings, model: Path, tables: dict[str, str], tmp_path: Path, events: Any
) -> None:
    import keras

    from lepton_airflow.models.artefact import file_digest

    masked = copied(model, tmp_path / "masked")
    honest = keras.models.load_model(model / "model.keras", compile=False)
    scaled = keras.Sequential([keras.Input((len(MEASUREMENTS),)), honest, keras.layers.Rescaling(400.0)])
    scaled.save(masked / "model.keras")
    card = json.loads((masked / "model_card.json").read_text())
    card["model"]["sha256"] = file_digest(masked / "model.keras")
    (masked / "model_card.json").write_text(json.dumps(card))
    nothing = {"minimum_clean_accuracy": 0, "minimum_robust_accuracy": 0}
    with pytest.raises(GateRefused, match="zero-gradients: the loss of"):
        gate(home, spec(tables["new"], masked, gate=nothing))
    assert "zero-gradients" in events(home)[-1]["details"]["refusals"]


def test_people_whom_the_model_was_trained_on_are_refused(home: Settings, model: Path, tables: dict[str, str]) -> None:
    with pytest.raises(GateRefused, match="overlap: the 380 examples are those that the model was trained on"):
        gate(home, spec(tables["old"], model))
    old = {"name": "clinic.visits", "path": tables["old"]}
    with pytest.raises(GateRefused, match="overlap: 5 privacy units"):
        gate(home, spec(tables["mixed"], model, trained_on=old), "second")


def test_the_example_gates_the_clinics_model_on_new_patients(
    home: Settings, model: Path, tables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Any
) -> None:
    home.policy.write_text(home.policy.read_text().replace("[test]", "[test, diagnosis model]"))
    copied(model, tmp_path / "models" / "diagnosis")
    for name, kind in (("visits", "old"), ("new_visits", "new")):
        shutil.copytree(tables[kind], tmp_path / "protected" / name)
    monkeypatch.syspath_prepend(str(DAGS))
    (task,) = importlib.import_module("examples_robustness_gate").examples_robustness_gate().tasks
    fields = json.loads(json.dumps(task._spec()).replace("{{ var.value.clinic_data }}", str(tmp_path)))
    summary = gate(home, fields | {"evaluation": QUICK, "threat_model": NARROW})
    assert summary["gate"] == "passed"
    read = {event["dataset"] for event in events(home) if event["action"] == "evaluate"}
    assert read == {"clinic.visits", "clinic.new_visits"}


def test_a_model_is_compared_with_the_champion_on_the_same_examples(
    home: Settings, model: Path, tables: dict[str, str], tmp_path: Path
) -> None:
    champion = copied(model, tmp_path / "champion")
    allowed = {"minimum_clean_accuracy": 0.5, "minimum_robust_accuracy": 0.5, "allowed_clean_loss": 0.1}
    summary = gate(
        home, spec(tables["new"], model, champion=str(champion), gate=allowed | {"allowed_robust_loss": 0.1})
    )
    assert summary["champion_sha256"] == summary["sha256"]
    mean, low, high = summary["clean_difference"]
    assert mean == 0
    assert low < 0 < high
    none = allowed | {"allowed_robust_loss": 0.0}
    with pytest.raises(GateRefused, match=r"robust accuracy may be 0\.\d+ below the champion's"):
        gate(home, spec(tables["new"], model, champion=str(champion), gate=none), "second")


def test_another_threat_model_than_the_cards_can_be_asked_for(
    home: Settings, model: Path, tables: dict[str, str]
) -> None:
    wider = {"norm": "linf", "epsilon": 1.0, "units": "standard deviations"}
    nothing = {"minimum_clean_accuracy": 0.5, "minimum_robust_accuracy": 0}
    summary = gate(home, spec(tables["new"], model, threat_model=wider, gate=nothing))
    assert summary["epsilon"] == 1.0
    assert summary["robust_accuracy"] < 0.4


def test_a_tampered_model_is_not_loaded(home: Settings, model: Path, tables: dict[str, str], tmp_path: Path) -> None:
    tampered = copied(model, tmp_path / "tampered")
    (tampered / "model.keras").write_bytes((model / "model.keras").read_bytes()[:-1] + b"\x00\x00")
    with pytest.raises(ModelTampered):
        gate(home, spec(tables["new"], tampered))


def test_who_may_train_may_not_therefore_evaluate(
    home: Settings, model: Path, tables: dict[str, str], events: Any
) -> None:
    home.policy.write_text(home.policy.read_text().replace("evaluate, ", ""))
    with pytest.raises(AccessDenied, match="evaluate"):
        gate(home, spec(tables["new"], model))
    assert [event["phase"] for event in events(home)] == ["denied"]


def test_there_must_be_a_model_and_a_champion_of_the_same_inputs(
    home: Settings, model: Path, tables: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UnreadableSource, match="no model"):
        gate(home, spec(tables["new"], tmp_path / "nowhere"))
    data = json.loads((model / "model_card.json").read_text())["data"]
    other = copied(model, tmp_path / "other", data=data | {"classes": ["malignant", "benign"]})
    with pytest.raises(SpecError, match="classes"):
        gate(home, spec(tables["new"], model, champion=str(other)), "second")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "model"),
    ({"champion": "/models/diagnosis", "model": "/models/diagnosis"}, "different folders"),
    ({"gate": {"minimum_clean_accuracy": 0.9}}, "gate.minimum_robust_accuracy"),
    ({"threat_model": {"norm": "linf", "epsilon": 0.5}}, "threat_model.units"),
    ({"evaluation": {"steps": 0}}, "evaluation.steps"),
    ({"colour": "red"}, "colour"),
]


@pytest.mark.parametrize(("changes", "names"), BAD)
def test_a_spec_that_makes_no_sense_is_refused_by_field(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(GateModelSpec, spec("/data", Path("/models/candidate"), **changes))
    error: LeptonError = caught.value
    assert names in str(error)
