"""Sensors that find budget, that wait for it in vain, and that need not wait."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag, task

from lepton_airflow.sensors.budget import PrivacyBudgetSensor


@dag(schedule=None, default_args={"retries": 1, "retry_delay": timedelta(seconds=1)})
def lepton_budget() -> None:
    @task(trigger_rule="all_done", retries=0)
    def end() -> None:
        """The run goes on to its end."""

    def sensor(task_id: str, **changes: object) -> PrivacyBudgetSensor:
        arguments: dict[str, object] = {"dataset": "clinic.visits", "unit": "patient_id", "epsilon": "{{ '0.5' }}"}
        return PrivacyBudgetSensor(task_id=task_id, lepton_conn_id="lepton_tester", **(arguments | changes))  # type: ignore[arg-type]

    last = end()
    sensor("enough") >> last
    sensor("no_budget", dataset="clinic.labs") >> last
    sensor("too_much", epsilon=7) >> last
    sensor("waits", epsilon="0.7", mode="poke", poke_interval=0.1, timeout=1, retries=0) >> last


lepton_budget()
