"""The retrain job from end to end: protected table in, champion or refusal out, and what the audit says of it."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lepton_airflow.audit.database import connect
from lepton_airflow.errors import (
    AccessDenied,
    AuditUnavailable,
    GateRefused,
    InvalidData,
    LeptonError,
    MissingColumn,
    ModelTampered,
    SpecError,
    TargetExists,
    UnsupportedType,
)
from lepton_airflow.jobs.retrain_model import RetrainModelSpec
from lepton_airflow.jobs.runner import run_job
from lepton_airflow.jobs.spec import parse_spec
from lepton_airflow.models import retraining
from lepton_airflow.settings import Settings

MEASUREMENTS = (
    "mean_radius",
    "mean_texture",
    "mean_concave_points",
    "worst_area",
    "worst_smoothness",
    "worst_concavity",
)
QUICK = {"epochs": 20, "hidden": [32]}
#: A measurement that no byte of the machine's disk may show once the table is protected.
PLANTED = 1234567.890625


@pytest.fixture(scope="module")
def visits(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """569 patients, one to three visits each that repeat the measurements; in the clear."""
    from sklearn.datasets import load_breast_cancer

    records = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in records.feature_names]
    patients = np.repeat(np.arange(569), 1 + np.arange(569) % 3)
    frame = pd.DataFrame(records.data[patients], columns=names)[list(MEASUREMENTS)]
    frame.loc[patients == 7, "worst_area"] = PLANTED
    frame["diagnosis"] = np.where(records.target[patients] == 0, "malignant", "benign")
    frame["patient_id"] = [f"patient-{patient:03}" for patient in patients]
    path = str(tmp_path_factory.mktemp("clinic") / "visits")
    spark.createDataFrame(frame).write.parquet(path)
    return path


@pytest.fixture
def protected(home: Settings, visits: str, tmp_path: Path) -> str:
    """The same with measurements and diagnosis randomised and the patient deterministic."""
    columns = {name: {"cipher": "AES256_GCM"} for name in (*MEASUREMENTS, "diagnosis")}
    target = str(tmp_path / "protected")
    protect = {
        "source": {"name": "clinic.visits_raw", "path": visits},
        "target": {"name": "clinic.visits", "path": target},
        "keyset": "clinic",
        "columns": columns | {"patient_id": {"cipher": "AES256_SIV", "domain": "patient"}},
        "purpose": "test",
    }
    run_job("encrypt_columns", protect, settings=home, run_key="protect")
    return target


def spec(path: str, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "source": {"name": "clinic.visits", "path": path},
        "privacy_unit": "patient_id",
        "label_column": "diagnosis",
        "classes": ["benign", "malignant"],
        "features": list(MEASUREMENTS),
        "threat_model": {"norm": "linf", "epsilon": 0.25, "units": "standard deviations"},
        "training": QUICK,
        "evaluation": {"epsilons": [0.5], "steps": 10, "restarts": 2, "apgd_steps": 10, "square_queries": 20},
        "gate": {"minimum_clean_accuracy": 0.8, "minimum_robust_accuracy": 0.6},
        "target": str(tmp_path / "models" / "diagnosis"),
        "purpose": "test",
    }
    return fields | changes


def test_a_protected_table_becomes_a_robust_model(home: Settings, protected: str, tmp_path: Path) -> None:
    summary = run_job("retrain_model", spec(protected, tmp_path), settings=home, run_key="d/t/r/-1")
    folder = tmp_path / "models" / "diagnosis"
    card = json.loads((folder / "model_card.json").read_text())
    assert summary == {
        "clean_accuracy": card["evaluation"]["clean"]["accuracy"],
        "robust_accuracy": card["evaluation"]["robust"]["accuracy"],
        "epsilon": 0.25,
        "n_test": card["data"]["test"]["examples"],
        "gate": "passed",
        "path": str(folder),
        "sha256": card["model"]["sha256"],
        "replayed": False,
    }
    assert summary["clean_accuracy"] >= 0.8
    assert summary["robust_accuracy"] >= 0.6
    assert card["data"]["rows"] > 1000
    assert card["data"]["examples"] == card["data"]["units"] == 569
    assert (card["run_key"], card["purpose"]) == ("d/t/r/-1", "test")


def test_training_and_decryption_are_authorised_and_recorded(
    home: Settings, protected: str, tmp_path: Path, events: Any
) -> None:
    summary = run_job("retrain_model", spec(protected, tmp_path), settings=home, run_key="d/t/r/-1")
    told = [(event["action"], event["phase"]) for event in events(home) if event["run_key"] == "d/t/r/-1"]
    assert told == [
        ("train", "intent"),
        ("decrypt", "intent"),
        ("decrypt", "success"),
        ("model.register", "intent"),
        ("model.register", "success"),
        ("model.promote", "intent"),
        ("model.promote", "success"),
        ("train", "success"),
    ]
    decryption, training = events(home, "decrypt")[-1], events(home, "train")[-1]
    assert decryption["columns"] == [*MEASUREMENTS, "diagnosis"], "the patient stays encrypted"
    assert training["columns"] == [*MEASUREMENTS, "diagnosis", "patient_id"]
    assert training["digests"]["model"] == summary["sha256"]
    assert training["counts"]["units"] == 569


def test_nothing_is_written_in_the_clear(home: Settings, protected: str, tmp_path: Path) -> None:
    run_job("retrain_model", spec(protected, tmp_path), settings=home, run_key="r")
    needles = [
        struct.pack(">d", PLANTED),
        struct.pack("<d", PLANTED),
        struct.pack("<f", PLANTED),
        b"1234567.89",
        b"patient-007",
    ]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [(path, needle) for path in files for needle in needles if needle in path.read_bytes()]


def test_a_rerun_finds_its_model_and_does_not_train_again(
    home: Settings, protected: str, tmp_path: Path, events: Any
) -> None:
    first = run_job("retrain_model", spec(protected, tmp_path), settings=home, run_key="d/t/r/-1")
    second = run_job("retrain_model", spec(protected, tmp_path), settings=home, run_key="d/t/r/-1")
    assert second == first | {"replayed": True}
    assert len(events(home, "decrypt")) == 2, "intent and success of the first run only"


def test_a_refused_model_leaves_the_champion(home: Settings, protected: str, tmp_path: Path, events: Any) -> None:
    first = run_job("retrain_model", spec(protected, tmp_path), settings=home, run_key="first")
    strict = spec(protected, tmp_path, gate={"minimum_clean_accuracy": 0.5, "minimum_robust_accuracy": 1.0})
    with pytest.raises(GateRefused, match="robust accuracy"):
        run_job("retrain_model", strict, settings=home, run_key="second")
    card = json.loads((tmp_path / "models" / "diagnosis" / "model_card.json").read_text())
    assert card["model"]["sha256"] == first["sha256"]
    last = events(home, "train")[-1]
    assert (last["phase"], last["details"]["error"]) == ("failure", "GateRefused")


def test_a_model_whose_outcome_cannot_be_recorded_is_not_published(
    home: Settings, visits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, page = home.home / "audit.db", retraining.card_page

    def lose(*arguments: Any, **named: Any) -> str:
        database.rename(tmp_path / "aside")
        return page(*arguments, **named)

    monkeypatch.setattr(retraining, "card_page", lose)
    with pytest.raises(AuditUnavailable, match="gone"):
        run_job("retrain_model", spec(visits, tmp_path), settings=home, run_key="d/t/r/-1")
    assert (tmp_path / "aside").exists()
    assert not (tmp_path / "models" / "diagnosis").exists()


def test_a_table_in_the_clear_needs_no_decryption(home: Settings, visits: str, tmp_path: Path, events: Any) -> None:
    summary = run_job("retrain_model", spec(visits, tmp_path), settings=home, run_key="r")
    assert summary["gate"] == "passed"
    assert not events(home, "decrypt")


def test_who_may_train_but_not_decrypt_reads_nothing(
    home: Settings, protected: str, tmp_path: Path, events: Any
) -> None:
    home.policy.write_text(home.policy.read_text().replace("decrypt, ", ""))
    with pytest.raises(AccessDenied, match="decrypt"):
        run_job("retrain_model", spec(protected, tmp_path), settings=home, run_key="r")
    assert [event["phase"] for event in events(home, "decrypt")] == ["denied"]
    assert events(home, "train")[-1]["phase"] == "failure"


def test_a_randomised_privacy_unit_is_refused(home: Settings, visits: str, tmp_path: Path) -> None:
    target = str(tmp_path / "randomised")
    protect = {
        "source": {"name": "clinic.visits_raw", "path": visits},
        "target": {"name": "clinic.visits", "path": target},
        "keyset": "clinic",
        "columns": {"patient_id": {"cipher": "AES256_GCM"}},
        "purpose": "test",
    }
    run_job("encrypt_columns", protect, settings=home, run_key="protect")
    with pytest.raises(SpecError, match="AES256_SIV"):
        run_job("retrain_model", spec(target, tmp_path), settings=home, run_key="r")


def test_a_unit_under_two_keys_is_refused_for_it_could_be_on_both_sides(
    spark: Any, home: Settings, protected: str, tmp_path: Path
) -> None:
    from pyspark.sql import functions as F

    # As after a rotation: half of the rows carry another key id in Tink's prefix.
    frame = spark.read.parquet(protected)
    metadata = frame.schema["patient_id"].metadata
    rotated = F.when(
        F.crc32(F.col("mean_radius")) % 2 == 0,
        F.concat(F.unhex(F.lit("0101020304")), F.expr("substring(patient_id, 6)")),
    ).otherwise(F.col("patient_id"))
    mixed = str(tmp_path / "mixed")
    frame.withColumn("patient_id", rotated.alias("patient_id", metadata=metadata)).write.parquet(mixed)
    assert "lepton" in spark.read.parquet(mixed).schema["patient_id"].metadata
    with pytest.raises(InvalidData, match=r"clinic\.visits\.patient_id: .* 2 keys"):
        run_job("retrain_model", spec(mixed, tmp_path), settings=home, run_key="r")


def test_a_tampered_champion_is_neither_returned_nor_replaced(home: Settings, visits: str, tmp_path: Path) -> None:
    run_job("retrain_model", spec(visits, tmp_path), settings=home, run_key="r")
    file = tmp_path / "models" / "diagnosis" / "model.keras"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x00")
    for run_key in ("r", "another"):
        with pytest.raises(ModelTampered):
            run_job("retrain_model", spec(visits, tmp_path), settings=home, run_key=run_key)


BAD: list[tuple[dict[str, Any], type[LeptonError], str]] = [
    ({"features": ["mean_radius", "mean_readius"]}, MissingColumn, "mean_readius"),
    ({"features": ["mean_radius", "diagnosis_text"], "label_column": "diagnosis"}, MissingColumn, "diagnosis_text"),
    ({"classes": ["benign", "harmless"]}, InvalidData, "clinic.visits.diagnosis"),
    ({"classes": [0, 1]}, UnsupportedType, "clinic.visits.diagnosis"),
    ({"purpose": "curiosity"}, AccessDenied, "curiosity"),
]


@pytest.mark.parametrize(("changes", "error", "names"), BAD)
def test_bad_input_is_one_typed_error(
    changes: dict[str, Any], error: type[LeptonError], names: str, home: Settings, visits: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        run_job("retrain_model", spec(visits, tmp_path, **changes), settings=home, run_key="r")
    assert names in str(caught.value)
    assert not (tmp_path / "models").exists()


def test_a_target_that_is_no_model_is_left_alone(home: Settings, visits: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(TargetExists):
        run_job("retrain_model", spec(visits, tmp_path, target=str(tmp_path)), settings=home, run_key="r")
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"threat_model": {"norm": "linf", "epsilon": 0.5}}, "threat_model.units"),
        ({"threat_model": {"norm": "linf", "epsilon": -1, "units": "standard deviations"}}, "threat_model.epsilon"),
        ({"features": ["mean_radius", "diagnosis"]}, "different columns"),
        ({"features": ["mean_radius", "patient_id"]}, "different columns"),
        ({"features": ["mean_radius", "mean_radius"]}, "different columns"),
        ({"features": []}, "features"),
        ({"classes": ["benign"]}, "classes"),
        ({"classes": ["benign", "benign"]}, "classes"),
        ({"classes": ["benign", 1]}, "one type"),
        ({"classes": [0.5, 1.5]}, "classes"),
        ({"target": "s3://models/diagnosis"}, "target"),
        ({"gate": {"minimum_clean_accuracy": 0.9}}, "gate.minimum_robust_accuracy"),
        ({"training": {"method": "hope"}}, "training.method"),
        ({"evaluation": {"epsilons": [0.5, 0.25]}}, "rise"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_by_field(changes: dict[str, Any], names: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(RetrainModelSpec, spec("/data", tmp_path, **changes))
    assert names in str(caught.value)


def test_the_same_spec_in_yaml_and_json_is_one_spec(tmp_path: Path) -> None:
    parsed = parse_spec(RetrainModelSpec, spec("/data", tmp_path, classes=[False, True]))
    assert parse_spec(RetrainModelSpec, json.loads(json.dumps(parsed.model_dump(mode="json")))) == parsed


def test_what_was_judged_is_in_the_registry(home: Settings, visits: str, tmp_path: Path) -> None:
    from lepton_airflow.models.artefact import ModelFolder
    from lepton_airflow.models.registry import ModelRegistry
    from lepton_airflow.models.shipping import require_champion

    first = run_job("retrain_model", spec(visits, tmp_path), settings=home, run_key="first")
    strict = spec(visits, tmp_path, gate={"minimum_clean_accuracy": 0.5, "minimum_robust_accuracy": 1.0})
    with pytest.raises(GateRefused):
        run_job("retrain_model", strict, settings=home, run_key="second")
    engine = connect(home)
    try:
        registry = ModelRegistry(engine)
        assert require_champion(registry, ModelFolder(Path(first["path"]))).sha256 == first["sha256"]
        statuses = [(entry.status, entry.run_key) for entry in registry.entries("diagnosis")]
        assert statuses == [("champion", "first"), ("rejected", "second")]
        assert "robust accuracy" in registry.history("diagnosis")[-1].reason
    finally:
        engine.dispose()


@pytest.mark.slow
def test_private_training_is_paid_once_and_refused_when_nothing_is_left(
    home: Settings, protected: str, tmp_path: Path, events: Any
) -> None:
    from decimal import Decimal

    from lepton_airflow.errors import BudgetExhausted
    from lepton_airflow.privacy.ledger import Ledger

    engine = connect(home)
    ledger = Ledger(engine)
    ledger.create(dataset="clinic.visits", unit="patient_id", epsilon=Decimal(8), delta=Decimal("1e-4"), owner="ann")
    bounds = dict(zip(MEASUREMENTS, [[5, 30], [5, 40], [0, 0.25], [100, 4500], [0.05, 0.25], [0, 1.3]], strict=True))
    private = spec(
        protected,
        tmp_path,
        threat_model={
            "norm": "linf",
            "epsilon": 0.01,
            "units": "feature scales",
            "scales": {name: high - low for name, (low, high) in bounds.items()},
            "constraints": {"bounds": bounds},
        },
        training={
            "hidden": [],  # the noise of private training can switch hidden units off
            "learning_rate": 0.05,
            "steps": 1,
            "differential_privacy": {"epsilon": "6", "delta": "1e-5", "sampling_rate": 0.2, "steps": 25},
        },
        gate={"minimum_clean_accuracy": 0.6, "minimum_robust_accuracy": 0.3},
    )
    try:
        first = run_job("retrain_model", private, settings=home, run_key="first")
        assert (first["epsilon_spent"], first["gate"]) == ("6", "passed")
        assert 1.9 < float(first["epsilon_left"]) < 2.1
        again = run_job("retrain_model", private, settings=home, run_key="first")
        assert again["replayed"]
        assert len(ledger.history(dataset="clinic.visits", unit="patient_id")) == 1
        reads = len(events(home, "decrypt"))
        with pytest.raises(BudgetExhausted):
            run_job("retrain_model", private, settings=home, run_key="second")
        assert len(events(home, "decrypt")) == reads, "refused before any data was read"
    finally:
        engine.dispose()


@pytest.mark.slow
def test_two_workers_train_one_model(home: Settings, protected: str, tmp_path: Path) -> None:
    together = spec(protected, tmp_path, training={**QUICK, "workers": 2})
    summary = run_job("retrain_model", together, settings=home, run_key="r")
    assert summary["gate"] == "passed"
    card = json.loads((Path(summary["path"]) / "model_card.json").read_text())
    assert card["training"]["workers"] == 2


@pytest.mark.slow
def test_a_job_that_was_killed_goes_on_from_its_last_checkpoint(
    home: Settings, protected: str, tmp_path: Path, events: Any
) -> None:
    program = textwrap.dedent(
        """
        import json, sys
        from pathlib import Path
        from lepton_airflow.jobs.runner import run_job
        from lepton_airflow.settings import load_settings
        run_job("retrain_model", json.loads(sys.stdin.read()), settings=load_settings(Path(sys.argv[1])), run_key="killed")
        """
    )
    slowly = spec(protected, tmp_path, training={**QUICK, "epochs": 60, "checkpoint_interval": 0})
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(home.home)], stdin=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(slowly))
    process.stdin.close()
    models = tmp_path / "models"
    # The run's seeds, the standard model, and the hardened one, which is in training.
    while len(list(models.glob(".diagnosis.lepton/checkpoints-*/*.checkpoint"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)  # with its JVM
    assert process.wait() == -signal.SIGKILL
    assert not (models / "diagnosis").exists()
    assert [event["phase"] for event in events(home, "train")] == ["intent"]

    run_job("retrain_model", slowly, settings=home, run_key="killed")
    card = json.loads((models / "diagnosis" / "model_card.json").read_text())
    resumed_after = {name: training["resumed_after"] for name, training in card["trainings"].items()}
    assert resumed_after["standard"] == 60
    assert 1 <= resumed_after["hardened"] < 60
    assert not list(models.glob(".diagnosis.lepton/checkpoints-*")), "nothing of it is left behind"
