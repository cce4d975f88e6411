"""Tasks whose lineage Airflow's OpenLineage provider tells: one that works, and one that is denied."""

from __future__ import annotations

from airflow.sdk import dag

from lepton_airflow.operators.encrypt import EncryptColumnsOperator

DATA = "{{ var.value.lepton_data }}"


@dag(schedule=None)
def lepton_lineage() -> None:
    def encrypt(task_id: str, purpose: str) -> EncryptColumnsOperator:
        return EncryptColumnsOperator(
            task_id=task_id,
            lepton_conn_id="lepton_tester",
            source={"name": "clinic.visits_raw", "path": f"{DATA}/raw"},
            target={"name": "clinic.visits", "path": f"{DATA}/protected", "mode": "overwrite"},
            keyset="clinic",
            columns={"email": {"cipher": "AES256_GCM"}, "i?": {"cipher": "AES256_SIV", "domain": "visit"}},
            purpose=purpose,
        )

    encrypt("works", "test") >> encrypt("denied", "curiosity")


lepton_lineage()
