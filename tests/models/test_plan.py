"""What a retraining can be asked for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from lepton_airflow.models.plan import EvaluationPlan, GatePlan, TrainingPlan
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
