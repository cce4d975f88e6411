"""A release that waits for a person, and is published with a receipt once somebody else than its requester approved."""

from __future__ import annotations

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Asset, dag

from lepton_airflow.operators.audit import SealAuditOperator
from lepton_airflow.operators.publish import PublishReleaseOperator, ReleaseReceiptOperator
from lepton_airflow.operators.release import ReleaseAggregatesOperator

DATA = "{{ var.value.lepton_data }}"


@dag(schedule=None)
def lepton_approval() -> None:
    release = ReleaseAggregatesOperator(
        task_id="release",
        lepton_conn_id="lepton_tester",
        source={"name": "clinic.visits", "path": f"{DATA}/raw"},
        privacy_unit="patient_id",
        group_by=["ward"],
        groups=["north", "south"],
        metrics=[{"name": "visits", "type": "count"}],
        max_groups_per_unit=1,
        max_rows_per_unit_and_group=1,
        epsilon="1",
        target=f"{DATA}/{{{{ run_id }}}}.json",
        purpose="test",
        approval="required",
    )
    approve = ApprovalOperator(task_id="approve", subject="Publish the visits?")
    publish = PublishReleaseOperator(
        task_id="publish",
        lepton_conn_id="lepton_tester",
        release_task_id="release",
        approval_task_id="approve",
        outlets=[Asset("test.visits_release")],
    )
    seal = SealAuditOperator(task_id="seal", lepton_conn_id="lepton_tester")
    receipt = ReleaseReceiptOperator(
        task_id="receipt",
        lepton_conn_id="lepton_tester",
        release_task_id="release",
        receipt=f"{DATA}/{{{{ run_id }}}}.receipt.json",
    )
    release >> approve >> publish >> seal >> receipt


lepton_approval()
