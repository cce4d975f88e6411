"""A sensor that finds a model worse than it may be, what comes after it, and one that may not look."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag, task

from lepton_airflow.sensors.score import ModelScoreSensor

DATA = "{{ var.value.lepton_data }}"


@dag(schedule=None, default_args={"retries": 1, "retry_delay": timedelta(seconds=1)})
def lepton_score() -> None:
    def sensor(task_id: str, **changes: object) -> ModelScoreSensor:
        arguments: dict[str, object] = {
            "source": {"name": "clinic.visits", "path": f"{DATA}/protected"},
            "newer_than": {"column": "day", "value": "{{ '1' }}"},
            "model": f"{DATA}/models/diagnosis",
            "minimum_clean_accuracy": 0.9,
            "minimum_robust_accuracy": 0.0,
            "steps": 2,
            "restarts": 1,
            "purpose": "test",
        }
        return ModelScoreSensor(task_id=task_id, lepton_conn_id="lepton_tester", **(arguments | changes))  # type: ignore[arg-type]

    @task
    def retrain(score: dict[str, object]) -> object:
        return score["units"]

    @task(trigger_rule="all_done", retries=0)
    def end() -> None:
        """The run goes on to its end."""

    worse = sensor("worse")
    last = end()
    retrain(worse.output) >> last
    sensor("denied", purpose="curiosity") >> last


lepton_score()
