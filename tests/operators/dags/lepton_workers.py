"""A run for real workers, which have no session of Airflow's database."""

from __future__ import annotations

from airflow.sdk import Asset, dag

from lepton_airflow.operators.audit import SealAuditOperator, VerifyAuditOperator
from lepton_airflow.operators.encrypt import EncryptColumnsOperator

DATA = "{{ var.value.lepton_data }}"


@dag(schedule=None)
def lepton_workers() -> None:
    protect = EncryptColumnsOperator(
        task_id="protect",
        lepton_conn_id="lepton_tester",
        source={"name": "clinic.visits_raw", "path": f"{DATA}/raw"},
        target={"name": "clinic.visits", "path": f"{DATA}/protected"},
        keyset="clinic",
        columns={"email": {"cipher": "AES256_GCM"}},
        purpose="test",
        outlets=[Asset("test.visits")],
    )
    seal = SealAuditOperator(task_id="seal", lepton_conn_id="lepton_tester")
    verify = VerifyAuditOperator(task_id="verify", lepton_conn_id="lepton_tester", purpose="test", minimum_events=3)
    protect >> seal >> verify


lepton_workers()
