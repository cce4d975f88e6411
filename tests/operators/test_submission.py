"""Who a task runs for, as Airflow's context says it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lepton_airflow.hooks.submission import caller_of
from lepton_airflow.jobs.runner import Caller


def test_user_owner_team_and_bundle_come_from_where_airflow_has_them() -> None:
    from airflow.sdk.api.datamodels._generated import DagRun

    assert "team_name" in DagRun.model_fields, "Airflow names the team elsewhere now"
    context: Any = {
        "ti": SimpleNamespace(bundle_instance=SimpleNamespace(version="v12")),
        "dag_run": SimpleNamespace(triggering_user_name="ann", team_name="oncology"),
        "task": SimpleNamespace(owner="data-platform"),
    }
    assert caller_of(context) == Caller(
        on_behalf_of="ann", owner="data-platform", team="oncology", bundle_version="v12"
    )
