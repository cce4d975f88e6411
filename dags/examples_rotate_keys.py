"""Bring the protected visits under the newest keys of their keyset, after ``lepton keys rotate clinic``.

Needs the Airflow variable ``clinic_data`` (the folder of the clinic's pipeline) and the connection ``lepton_default`` with an
identity to which the keyset is sealed and to which the policy grants it: ``clinic/policy.yaml`` does so to ``etl``.
"""

from __future__ import annotations

from airflow.sdk import dag

from lepton_airflow.operators.rotate import RotateKeysOperator

VISITS = {"name": "clinic.visits", "path": "{{ var.value.clinic_data }}/protected/visits"}


@dag(schedule=None, catchup=False, tags=["lepton", "example"], doc_md=__doc__)
def examples_rotate_keys() -> None:
    RotateKeysOperator(
        task_id="rotate_visits",
        source=VISITS,
        target={**VISITS, "mode": "overwrite"},
        purpose="key rotation",
    )


examples_rotate_keys()
