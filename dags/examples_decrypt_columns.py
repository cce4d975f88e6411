"""Open two columns of the protected visits for the letters that go to patients; what cannot be read is counted, not hidden.

Needs the Airflow variable ``clinic_data`` (the folder of the clinic's pipeline) and the connection ``lepton_default`` with an
identity to which the keyset is sealed and to which the policy grants it: ``clinic/policy.yaml`` does so to ``etl``.
"""

from __future__ import annotations

from airflow.sdk import dag

from lepton_airflow.operators.decrypt import DecryptColumnsOperator

DATA = "{{ var.value.clinic_data }}"


@dag(schedule=None, catchup=False, tags=["lepton", "example"], doc_md=__doc__)
def examples_decrypt_columns() -> None:
    DecryptColumnsOperator(
        task_id="open_names",
        source={"name": "clinic.visits", "path": f"{DATA}/protected/visits"},
        target={"name": "clinic.letters", "path": f"{DATA}/letters", "mode": "overwrite"},
        columns=["name", "email"],
        on_error="null",
        purpose="letters to patients",
    )


examples_decrypt_columns()
