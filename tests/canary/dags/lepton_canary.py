"""Protects the table with planted values, rotates and decrypts it.

`lepton_leaks` does in Airflow what must never happen, to show that it is found.
"""

from __future__ import annotations

import subprocess

from airflow.sdk import dag, task

from lepton_airflow.hooks.lepton import LeptonHook
from lepton_airflow.operators.decrypt import DecryptColumnsOperator
from lepton_airflow.operators.encrypt import EncryptColumnsOperator
from lepton_airflow.operators.rotate import RotateKeysOperator

DATA = "{{ var.value.lepton_data }}"
PROTECTED = {"name": "clinic.visits", "path": f"{DATA}/protected"}
EVERY_TASK = {
    "lepton_conn_id": "lepton_tester",
    "spark_conf": {"spark.eventLog.enabled": "true", "spark.eventLog.compress": "false"},
    "purpose": "test",
}


@dag(schedule=None)
def lepton_canary() -> None:
    protect = EncryptColumnsOperator(
        task_id="protect",
        source={"name": "clinic.visits_raw", "path": f"{DATA}/raw"},
        target=PROTECTED,
        keyset="clinic",
        columns={
            "email": {"cipher": "AES256_GCM"},
            "card": {"cipher": "AES256_GCM"},
            "reading": {"cipher": "AES256_GCM"},
            "patient": {"cipher": "AES256_SIV", "domain": "patient"},
            "phone": {"cipher": "FF1"},
        },
        road="dataframe",
        **EVERY_TASK,
    )

    @task
    def new_keys() -> None:
        home = LeptonHook("lepton_tester").settings.home
        subprocess.run(["lepton", "keys", "rotate", "clinic", "--home", str(home)], check=True)

    rotate = RotateKeysOperator(
        task_id="rotate",
        source=PROTECTED,
        target={**PROTECTED, "path": f"{DATA}/rotated"},
        road="direct",
        **EVERY_TASK,
    )
    decrypt = DecryptColumnsOperator(
        task_id="decrypt",
        source={**PROTECTED, "path": f"{DATA}/rotated"},
        # Uncompressed, as the search reads it.
        target={"name": "clinic.letters", "path": f"{DATA}/decrypted", "options": {"compression": "none"}},
        columns=["*"],
        road="dataframe",
        **EVERY_TASK,
    )
    protect >> new_keys() >> rotate >> decrypt


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
