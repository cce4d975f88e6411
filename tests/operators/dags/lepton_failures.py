"""Tasks that must fail, each in its own way; `retries` shows which errors Airflow tries again."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag, task

from lepton_airflow.operators.encrypt import EncryptColumnsOperator

DATA = "{{ var.value.lepton_data }}"


@dag(schedule=None, default_args={"retries": 1, "retry_delay": timedelta(seconds=1)})
def lepton_failures() -> None:
    @task(trigger_rule="all_done", retries=0)
    def end() -> None:
        """The run goes on to its end."""

    def encrypt(task_id: str, **changes: object) -> EncryptColumnsOperator:
        arguments: dict[str, object] = {
            "source": {"name": "clinic.visits_raw", "path": f"{DATA}/raw"},
            "target": {"name": "clinic.visits", "path": f"{DATA}/{task_id}"},
            "keyset": "clinic",
            "columns": {"email": {"cipher": "AES256_GCM"}, "i?": {"cipher": "AES256_SIV", "domain": "visit"}},
            "purpose": "test",
        }
        return EncryptColumnsOperator(task_id=task_id, lepton_conn_id="lepton_tester", **(arguments | changes))  # type: ignore[arg-type]

    last = end()
    encrypt("works") >> last
    encrypt("missing_column", columns={"emial": {"cipher": "AES256_GCM"}}) >> last
    encrypt("denied", purpose="curiosity") >> last
    # A JVM that cannot live: the driver dies before it can say why.
    encrypt("dead_driver", driver_memory="1m") >> last


lepton_failures()
