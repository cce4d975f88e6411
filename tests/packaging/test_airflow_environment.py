"""``pip install`` of the wheel beside Airflow and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# One worker makes the environment.
pytestmark = [pytest.mark.slow]
REPOSITORY = Path(__file__).parents[2]

OPERATORS = """
import importlib.util, json, pathlib
from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook
from lepton_airflow.operators.audit import SealAuditOperator, VerifyAuditOperator
from lepton_airflow.hooks.submission import job_script
from lepton_airflow.operators.encrypt import EncryptColumnsOperator
from lepton_airflow.operators.release import ReleaseAggregatesOperator
from lepton_airflow.operators.retrain import RetrainModelOperator
import clinic_privacy_pipeline
engines = ("pyspark", "tensorflow", "pyarrow", "opendp", "numpy", "pandas", "matplotlib", "sklearn")
print(json.dumps({
    "engines": [name for name in engines if importlib.util.find_spec(name)],
    "scripts": [job_script(operator.job) for operator in (
        EncryptColumnsOperator, ReleaseAggregatesOperator, RetrainModelOperator, VerifyAuditOperator)
    ],
}))
"""

CONNECTION = """
import json
from airflow.providers_manager import ProvidersManager
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime
manager = ProvidersManager()
print(json.dumps({
    "hook": ProvidersManagerTaskRuntime().hooks["lepton"].hook_class_name,
    "fields": sorted(name for name in manager.connection_form_widgets if name.startswith("extra__lepton__")),
    "behaviour": manager.field_behaviours["lepton"],
}))
"""


@pytest.fixture(scope="module")
def environment(make_environment: Callable[[str], Any]) -> Any:
    return make_environment((REPOSITORY / "requirements" / "airflow.txt").read_text())


def answer(environment: Any, program: str, **variables: str) -> dict[str, Any]:
    ran = environment.run("python", "-W", "ignore", "-c", program, **variables)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_the_lock_is_complete(environment: Any) -> None:
    checked = environment.pip("check")
    # Left out on purpose: it would overwrite PySpark where both are installed, and the submit hook does not need it.
    assert [line for line in checked.stdout.splitlines() if "pyspark-client" not in line] == []


def test_operators_and_the_pipeline_import_and_find_their_scripts_without_any_engine(environment: Any) -> None:
    found = answer(environment, OPERATORS, PYTHONPATH=str(REPOSITORY / "dags"))
    assert found["engines"] == []
    package = environment.folder / "venv" / "lib"
    for script in map(Path, found["scripts"]):
        assert script.is_file()
        assert package in script.parents


def test_airflow_lists_the_provider(environment: Any) -> None:
    listed = environment.run("airflow", "providers", "get", "lepton-airflow", "--output", "json")
    assert listed.returncode == 0, listed.stderr
    (provider,) = json.loads(listed.stdout)
    assert provider["Provider"] == "lepton-airflow"


def test_airflow_knows_the_connection_type_and_its_form(environment: Any) -> None:
    found = answer(environment, CONNECTION)
    assert found["hook"] == "lepton_airflow.hooks.lepton.LeptonHook"
    fields = ("audit_database", "home", "identity", "keyring", "policy")
    assert found["fields"] == [f"extra__lepton__{name}" for name in fields]
    assert found["behaviour"]["relabeling"] == {"password": "Audit database password"}
    assert "password" not in found["behaviour"]["hidden_fields"]


def test_the_command_line_makes_a_home(environment: Any) -> None:
    made = environment.run("lepton", "init", "--home", "home", "--identity", "auditor")
    assert made.returncode == 0, made.stderr
    assert (environment.folder / "home" / "lepton.yaml").is_file()
