"""Protects the table with planted values; `lepton_leaks` does in Airflow what must never happen, to show that it is found."""

from __future__ import annotations

from airflow.sdk import dag, task

from lepton_airflow.operators.encrypt import EncryptColumnsOperator

DATA = "{{ var.value.lepton_data }}"


@dag(schedule=None)
def lepton_canary() -> None:
    EncryptColumnsOperator(
        task_id="protect",
        lepton_conn_id="lepton_tester",
        source={"name": "clinic.visits_raw", "path": f"{DATA}/raw"},
        target={"name": "clinic.visits", "path": f"{DATA}/protected"},
        keyset="clinic",
        columns={
            "email": {"cipher": "AES256_GCM"},
            "card": {"cipher": "AES256_GCM"},
            "patient": {"cipher": "AES256_SIV", "domain": "patient"},
        },
        purpose="test",
        spark_conf={"spark.eventLog.enabled": "true", "spark.eventLog.compress": "false"},
    )


@dag(schedule=None)
def lepton_leaks() -> None:
    @task
    def into_rendered_fields(key: str) -> None:
        """The argument is templated, and Airflow stores what it was rendered to."""
        assert key

    @task
    def into_xcom() -> str:
        from airflow.sdk import Variable

        return str(Variable.get("canary_returned"))

    into_rendered_fields("{{ var.value.canary_rendered }}")
    into_xcom()


lepton_canary()
lepton_leaks()
