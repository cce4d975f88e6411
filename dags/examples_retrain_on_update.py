"""Train the diagnosis model anew whenever the protected visits were written: the asset that the clinic's pipeline updates.

Needs the Airflow variable ``clinic_data`` (the folder of the clinic's pipeline) and the connections ``spark_default`` and
``lepton_trainer``: an identity to which the keyset is sealed and to which the policy grants it, as ``clinic/policy.yaml`` does.
"""

from __future__ import annotations

from airflow.sdk import Asset, dag

from clinic.records import MEASUREMENTS
from lepton_airflow.operators.retrain import RetrainModelOperator

DATA = "{{ var.value.clinic_data }}"


# Each update starts one run; the gate keeps a champion that the new model does not beat.
@dag(schedule=[Asset("clinic.visits")], catchup=False, max_active_runs=1, tags=["lepton", "example"], doc_md=__doc__)
def examples_retrain_on_update() -> None:
    RetrainModelOperator(
        task_id="retrain",
        lepton_conn_id="lepton_trainer",
        source={"name": "clinic.visits", "path": f"{DATA}/protected/visits"},
        privacy_unit="patient_id",
        label_column="diagnosis",
        classes=["benign", "malignant"],
        features=list(MEASUREMENTS),
        threat_model={"norm": "linf", "epsilon": 0.5, "units": "standard deviations"},
        gate={"minimum_clean_accuracy": 0.85, "minimum_robust_accuracy": 0.55},
        target=f"{DATA}/models/diagnosis",
        purpose="diagnosis model",
        outlets=[Asset("clinic.diagnosis_model")],
    )


examples_retrain_on_update()
