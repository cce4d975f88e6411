"""An operator's arguments are its job's spec, and its task fails the way Airflow should see it."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from lepton_airflow.hooks.submission import SparkSubmission, job_script
from lepton_airflow.jobs.runner import JOBS
from lepton_airflow.operators.audit import SealAuditOperator, VerifyAuditOperator
from lepton_airflow.operators.base import LeptonOperator
from lepton_airflow.operators.decrypt import DecryptColumnsOperator
from lepton_airflow.operators.encrypt import EncryptColumnsOperator
from lepton_airflow.operators.gate import RobustnessGateOperator
from lepton_airflow.operators.publish import PublishReleaseOperator
from lepton_airflow.operators.release import ReleaseAggregatesOperator
from lepton_airflow.operators.retrain import RetrainModelOperator
from lepton_airflow.operators.rotate import RotateKeysOperator
from lepton_airflow.operators.storage import RepairStorageOperator, RestoreDatasetOperator, StoreDatasetOperator
from lepton_airflow.provider_info import get_provider_info

OPERATORS: list[type[LeptonOperator]] = [
    DecryptColumnsOperator,
    EncryptColumnsOperator,
    ReleaseAggregatesOperator,
    RetrainModelOperator,
    RobustnessGateOperator,
    RotateKeysOperator,
    StoreDatasetOperator,
    RestoreDatasetOperator,
    RepairStorageOperator,
    VerifyAuditOperator,
]


def arguments(operator: type) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(operator.__init__).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in ("self", "kwargs")}


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_arguments_are_the_fields_of_the_spec(operator: type[LeptonOperator]) -> None:
    module = importlib.import_module(f"lepton_airflow.jobs.{operator.job}")
    fields = getattr(module, JOBS[operator.job]).model_fields
    declared = inspect.getattr_static(operator, "__init__").__wrapped__
    named = {
        name: parameter
        for name, parameter in inspect.signature(declared).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert set(operator.spec_fields) == set(fields) == set(named)
    required = {name for name, field in fields.items() if field.is_required()}
    assert {name for name, parameter in named.items() if parameter.default is parameter.empty} == required
    assert set(operator.template_fields) <= set(fields)


@pytest.mark.parametrize("operator", [*OPERATORS, SealAuditOperator])
def test_every_argument_is_documented(operator: type) -> None:
    own = getattr(operator, "spec_fields", ("lepton_conn_id",))
    missing = [name for name in own if f":param {name}:" not in (operator.__doc__ or "")]
    assert not missing


def test_the_script_of_every_job_is_found() -> None:
    for job in JOBS:
        assert job_script(job).endswith(f"{job}.py")


def test_the_provider_names_every_operator_module() -> None:
    listed = get_provider_info()["operators"][0]["python-modules"]
    assert {operator.__module__ for operator in (*OPERATORS, PublishReleaseOperator, SealAuditOperator)} == set(listed)


def test_an_argument_that_is_no_json_is_named() -> None:
    from lepton_airflow.errors import SpecError
    from lepton_airflow.hooks.submission import _as_json

    with pytest.raises(SpecError) as caught:
        _as_json({"purpose": "test", "columns": {"a", "b"}})
    assert caught.value.place == "columns"


def test_nothing_is_done_when_an_operator_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(SparkSubmission, "_submit", forbidden)
    monkeypatch.setattr("lepton_airflow.hooks.lepton.LeptonHook.get_connection", forbidden)
    EncryptColumnsOperator(
        task_id="t", source={"no": "check"}, target={}, keyset="{{ no }}", columns={"a": {}}, purpose=""
    )
