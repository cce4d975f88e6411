"""The breast cancer records as a table of visits, and small things to train and attack."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lepton_airflow.models.examples import Examples, examples_from_arrow

CLASSES = ("benign", "malignant")


@pytest.fixture(scope="session")
def visits() -> pa.Table:
    """569 patients with one to three visits each, which repeat the patient's measurements; rows in no order."""
    from sklearn.datasets import load_breast_cancer

    records = load_breast_cancer()
    patients = np.repeat(np.arange(569), 1 + np.arange(569) % 3)
    np.random.default_rng(5).shuffle(patients)
    columns: dict[str, Any] = {
        name.replace(" ", "_"): records.data[patients, position] for position, name in enumerate(records.feature_names)
    }
    columns["diagnosis"] = np.where(records.target[patients] == 0, "malignant", "benign")
    columns["patient_id"] = [f"patient {patient}".encode() for patient in patients]
    return pa.table(columns)


@pytest.fixture(scope="session")
def features(visits: pa.Table) -> tuple[str, ...]:
    return tuple(visits.column_names[:30])


@pytest.fixture(scope="session")
def examples(visits: pa.Table, features: tuple[str, ...]) -> Examples:
    return examples_from_arrow(
        visits, dataset="clinic.visits", features=features, label="diagnosis", classes=CLASSES, unit="patient_id"
    )


@pytest.fixture(scope="session")
def blobs() -> Callable[..., Examples]:
    """Makes two overlapping clouds of points, one unit each."""

    def make(count: int, *, features: int = 5, seed: int = 0) -> Examples:
        draw = np.random.default_rng(seed)
        labels = np.arange(count) % 2
        points = draw.normal(size=(count, features)) + 1.2 * (2 * labels[:, None] - 1) / np.sqrt(features)
        return Examples(
            features=points.astype(np.float32),
            labels=labels.astype(np.int32),
            units=np.arange(count),
            unit_ids=tuple(f"{unit:06}".encode() for unit in range(count)),
        )

    return make


@pytest.fixture(scope="session")
def corpus() -> ModuleType:
    """The masked and the honest models that the benchmark of robustness uses too."""
    file = Path(__file__).parents[2] / "benchmarks" / "corpus" / "masked_models.py"
    spec = importlib.util.spec_from_file_location("masked_models", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
