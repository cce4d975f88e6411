"""Protect, release and learn from a clinic's visits, and prove it.

    land ─► protect ─┬─► release ─┬─► seal_audit ─► verify_audit
                     └─► retrain ─┘

The measurements are real records, the identities are invented: see ``clinic/records.py``. ``make demo`` runs this DAG; it needs
the Airflow variable ``clinic_data`` (a folder) and the connections ``spark_default``, ``lepton_etl``, ``lepton_analyst``,
``lepton_trainer`` and ``lepton_auditor``: one Lepton identity for each duty.
"""

from __future__ import annotations

from airflow.sdk import Asset, dag, task

from clinic.records import MEASUREMENTS
from clinic.records import land as land_visits
from lepton_airflow.operators.audit import SealAuditOperator, VerifyAuditOperator
from lepton_airflow.operators.encrypt import EncryptColumnsOperator
from lepton_airflow.operators.release import ReleaseAggregatesOperator
from lepton_airflow.operators.retrain import RetrainModelOperator

DATA = "{{ var.value.clinic_data }}"

# Other DAGs can be scheduled on these.
PROTECTED_VISITS = Asset("clinic.visits")
RELEASE = Asset("clinic.visits_release")
MODEL = Asset("clinic.diagnosis_model")

RANDOMISED = {"cipher": "AES256_GCM"}


@dag(schedule=None, catchup=False, tags=["lepton", "example"], doc_md=__doc__)
def clinic_privacy_pipeline() -> None:
    @task
    def land(folder: str) -> int:
        return land_visits(folder)

    protect = EncryptColumnsOperator(
        task_id="protect",
        lepton_conn_id="lepton_etl",
        source={"name": "clinic.visits_raw", "path": f"{DATA}/landing/visits"},
        target={"name": "clinic.visits", "path": f"{DATA}/protected/visits", "mode": "overwrite"},
        keyset="clinic",
        columns={
            # Equal ids stay equal, so that visits can be counted by patient without knowing who it is.
            "patient_id": {"cipher": "AES256_SIV", "domain": "patient"},
            "insurance_number": {"cipher": "AES256_SIV", "domain": "insurance"},
            **dict.fromkeys(("name", "email", "phone", *MEASUREMENTS), RANDOMISED),
        },
        purpose="ingestion",
        outlets=[PROTECTED_VISITS],
    )

    release = ReleaseAggregatesOperator(
        task_id="release",
        lepton_conn_id="lepton_analyst",
        source={"name": "clinic.visits", "path": f"{DATA}/protected/visits"},
        privacy_unit="patient_id",
        group_by=["diagnosis", "site"],
        groups=[
            [diagnosis, site] for diagnosis in ("malignant", "benign") for site in ("north", "south", "east", "west")
        ],
        metrics=[
            {"name": "visits", "type": "count"},
            {"name": "patients", "type": "count_units"},
            {"name": "mean_radius", "type": "mean", "column": "mean_radius", "lower": 5, "upper": 30},
        ],
        max_groups_per_unit=1,
        max_rows_per_unit_and_group=4,
        epsilon="2.0",
        post_processing={"nonnegative": True, "decimals": 3},
        target=f"{DATA}/released/visits.json",
        mode="overwrite",
        purpose="public statistics",
        outlets=[RELEASE],
    )

    retrain = RetrainModelOperator(
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
        outlets=[MODEL],
    )

    seal = SealAuditOperator(task_id="seal_audit", lepton_conn_id="lepton_auditor")
    verify = VerifyAuditOperator(
        task_id="verify_audit", lepton_conn_id="lepton_auditor", purpose="nightly verification", minimum_events=8
    )

    land(f"{DATA}/landing/visits") >> protect >> [release, retrain] >> seal >> verify


clinic_privacy_pipeline()
