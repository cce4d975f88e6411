"""What a retraining can be asked for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from lepton_airflow.models.plan import DifferentialPrivacyPlan, EvaluationPlan, GatePlan, RetrainingPlan, TrainingPlan
from lepton_airflow.models.threat_model import ThreatModel


@pytest.mark.parametrize(
    "fields",
    [
        {"norm": "linf", "epsilon": 0.5},
        {"norm": "linf", "epsilon": 0.5, "units": "millimetres"},
        {"norm": "l0", "epsilon": 0.5, "units": "standard deviations"},
        {"norm": "linf", "epsilon": 0, "units": "standard deviations"},
        {"norm": "linf", "epsilon": float("nan"), "units": "standard deviations"},
        {"norm": "linf", "epsilon": float("inf"), "units": "standard deviations"},
        {"norm": "linf", "epsilon": 0.5, "units": "standard deviations", "colour": "red"},
        {
            "norm": "linf",
            "epsilon": 0.5,
            "units": "standard deviations",
            "constraints": {"increasing": ["a"], "decreasing": ["a"]},
        },
        {"norm": "linf", "epsilon": 0.5, "units": "standard deviations", "constraints": {"bounds": {"a": [2, 1]}}},
        {
            "norm": "linf",
            "epsilon": 0.5,
            "units": "standard deviations",
            "constraints": {"one_hot": [["a", "b"], ["b", "c"]]},
        },
        {"norm": "l2", "epsilon": 0.5, "units": "feature scales", "scales": {"a": 0}},
        {"norm": "l2", "epsilon": 0.5, "units": "pixel range", "scales": {"a": 1}},
    ],
)
def test_a_threat_model_states_norm_radius_and_units(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ThreatModel.model_validate(fields)


def test_radii_must_rise() -> None:
    with pytest.raises(ValidationError, match="rise"):
        EvaluationPlan(epsilons=(0.5, 0.25))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_gate_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(ValidationError):
        GatePlan(minimum_clean_accuracy=threshold, minimum_robust_accuracy=0.5)


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainingPlan().epochs = 1  # type: ignore[misc]


def test_a_spec_is_validated_without_any_engine() -> None:
    program = "import sys, lepton_airflow.jobs.retrain_model; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow", "keras", "numpy", "pyarrow", "pyspark"} & set(modules)


PRIVATE: dict[str, Any] = {"epsilon": "1", "delta": "1e-6", "sampling_rate": 0.1, "steps": 10}


@pytest.mark.parametrize(
    "changed",
    [
        {"training": {"warm_start": True}},
        {"training": {"validation_fraction": 0.1}},
        {"training": {"workers": 2}},
        {"training": {"method": "generator"}},
        {"training": {"averaging": 0.9}},
        {"hardening": {"ensemble": 2}},
        {"hardening": {"int8": True}},
        {"threat_model": {"norm": "linf", "epsilon": 1, "units": "standard deviations"}},
    ],
)
def test_private_training_goes_with_nothing_that_reads_the_units_otherwise(changed: dict[str, Any]) -> None:
    plan: dict[str, Any] = {
        "threat_model": {"norm": "linf", "epsilon": 1, "units": "feature scales", "scales": {"age": 10}},
        "training": {"differential_privacy": PRIVATE},
        "hardening": {},
        "evaluation": {},
        "gate": {"minimum_clean_accuracy": 0.5, "minimum_robust_accuracy": 0.5},
    }
    RetrainingPlan.model_validate(plan)
    for part, fields in changed.items():
        plan[part] = fields if part == "threat_model" else {**plan[part], **fields}
    with pytest.raises(ValidationError, match="differential_privacy does not go with"):
        RetrainingPlan.model_validate(plan)


def test_baselines_are_paid_for() -> None:
    with pytest.raises(ValidationError, match="go together"):
        DifferentialPrivacyPlan.model_validate({**PRIVATE, "baselines": ["linear_regression"]})
