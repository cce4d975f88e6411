"""Keep the protected visits in encrypted shards over several nodes, of which two may be lost; and show that they come back.

Every night: store a new version, mend what nodes have lost of any version, and restore the newest one into a folder of its
own, for a copy that nobody ever restored is none. Needs storage nodes in the deployment's settings, prepared with `lepton
storage prepare`, the Airflow variable ``clinic_data`` (the folder of the clinic's pipeline) and the connection
``lepton_default`` with an identity to which the keyset is sealed and to which the policy grants it: ``clinic/policy.yaml``
does so to ``etl``.
"""

from __future__ import annotations

from airflow.sdk import dag

from lepton_airflow.operators.storage import RepairStorageOperator, RestoreDatasetOperator, StoreDatasetOperator


@dag(schedule=None, catchup=False, tags=["lepton", "example"], doc_md=__doc__)
def examples_encrypted_storage() -> None:
    store = StoreDatasetOperator(
        task_id="store_visits",
        source={"name": "clinic.visits", "path": "{{ var.value.clinic_data }}/protected/visits"},
        keyset="clinic",
        parity_shards=2,
        keep_versions=7,
        purpose="archive",
    )
    repair = RepairStorageOperator(
        task_id="mend_shards", dataset="clinic.visits", abandon_after_hours=48, purpose="archive"
    )
    restore = RestoreDatasetOperator(
        task_id="recovery_drill",
        dataset="clinic.visits",
        target={"name": "clinic.visits", "path": "{{ var.value.clinic_data }}/drill/visits", "mode": "overwrite"},
        purpose="recovery drill",
    )
    store >> repair >> restore


examples_encrypted_storage()
