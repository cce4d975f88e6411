"""Hold the clinic's diagnosis model against newer visits before anybody relies on it for another quarter.

Needs the Airflow variable ``clinic_data`` (the folder of the clinic's pipeline, after a model was trained) and the connection
``lepton_trainer`` with an identity to which the keyset is sealed and to which the policy grants ``evaluate`` and ``decrypt``
of the model's columns for the purpose ``diagnosis model``. The visits under ``protected/new_visits`` must be of other patients
than those that the model was trained on: their rows would flatter it.
"""

from __future__ import annotations

from airflow.sdk import dag

from lepton_airflow.operators.gate import RobustnessGateOperator

DATA = "{{ var.value.clinic_data }}"


@dag(schedule=None, catchup=False, tags=["lepton", "example"], doc_md=__doc__)
def examples_robustness_gate() -> None:
    RobustnessGateOperator(
        task_id="gate_diagnosis",
        lepton_conn_id="lepton_trainer",
        source={"name": "clinic.new_visits", "path": f"{DATA}/protected/new_visits"},
        trained_on={"name": "clinic.visits", "path": f"{DATA}/protected/visits"},
        model=f"{DATA}/models/diagnosis",
        gate={"minimum_clean_accuracy": 0.85, "minimum_robust_accuracy": 0.55},
        purpose="diagnosis model",
    )


examples_robustness_gate()
