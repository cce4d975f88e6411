"""Look every day whether the diagnosis model still is good enough on fresh visits, and train it anew once it is not.

Needs the Airflow variable ``clinic_data`` (the folder of the clinic's pipeline, with a model in it) and the connections
``spark_default`` and ``lepton_trainer``: an identity to which the keyset is sealed and to which the policy grants it, as
``clinic/policy.yaml`` does. Visits after the date in the variable ``clinic_fresh_since`` are scored, or all.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Asset, dag

from clinic.records import MEASUREMENTS
from lepton_airflow.operators.retrain import RetrainModelOperator
from lepton_airflow.sensors.score import ModelScoreSensor

DATA = "{{ var.value.clinic_data }}"
VISITS = {"name": "clinic.visits", "path": f"{DATA}/protected/visits"}


@dag(schedule="@continuous", catchup=False, max_active_runs=1, tags=["lepton", "example"], doc_md=__doc__)
def examples_retrain_on_drift() -> None:
    worse = ModelScoreSensor(
        task_id="worse",
        lepton_conn_id="lepton_trainer",
        source=VISITS,
        newer_than={"column": "visit_date", "value": "{{ var.value.get('clinic_fresh_since', '1900-01-01') }}"},
        model=f"{DATA}/models/diagnosis",
        minimum_clean_accuracy=0.85,
        minimum_robust_accuracy=0.55,
        purpose="diagnosis model",
        poke_interval=timedelta(days=1),
        timeout=timedelta(days=365),
    )
    retrain = RetrainModelOperator(
        task_id="retrain",
        lepton_conn_id="lepton_trainer",
        source=VISITS,
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
    worse >> retrain


examples_retrain_on_drift()
