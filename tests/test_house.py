"""The house keeps its promises about what imports what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
HEAVY = ("pyspark", "tensorflow", "pyarrow", "opendp", "numpy", "pandas", "matplotlib")


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has imported after running ``code``."""
    program = f"{code}\nimport sys; print('\\n'.join({{name.partition('.')[0] for name in sys.modules}}))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(finished.stdout.split())


def test_importing_every_operator_imports_no_engine() -> None:
    code = "\n".join(
        f"import {module}"
        for module in (
            "lepton_airflow.operators.encrypt",
            "lepton_airflow.operators.decrypt",
            "lepton_airflow.operators.rotate",
            "lepton_airflow.operators.release",
            "lepton_airflow.operators.publish",
            "lepton_airflow.operators.retrain",
            "lepton_airflow.operators.audit",
            "lepton_airflow.provider_info",
        )
    )
    # What Airflow itself brings along is not ours to judge.
    ours = modules_after(code) - modules_after("import airflow.sdk")
    assert not ours & set(HEAVY)


def test_parsing_the_pipeline_imports_no_engine() -> None:
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY / 'dags')!r}); import clinic_privacy_pipeline"
    ours = modules_after(code) - modules_after("import airflow.sdk")
    assert not ours & set(HEAVY)


@pytest.mark.parametrize(
    "package", ["encryption.dataframe", "privacy.ledger", "models.gate", "audit.verify", "jobs.runner"]
)
def test_the_engine_imports_no_airflow(package: str) -> None:
    assert "airflow" not in modules_after(f"import lepton_airflow.{package}")


def test_the_command_line_imports_no_engine() -> None:
    assert not modules_after("import lepton_airflow.cli") & {*HEAVY, "airflow"}


def test_the_layers_hold() -> None:
    program = str(Path(sys.executable).with_name("lint-imports"))
    finished = subprocess.run([program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout
