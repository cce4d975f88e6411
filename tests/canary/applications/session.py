"""One Spark session that sees it all. Arguments: home, folder of the data.

It runs each job on the road that the DAG does not take, stores and restores, trains and scores a model, and then decrypts,
shuffles and sorts by decrypted values, protects again, rotates and explains itself: what Spark may spill or show.
"""

import sys

from lepton_airflow.encryption.dataframe import protect, reveal, rotate_columns
from lepton_airflow.encryption.planning import protectors_of
from lepton_airflow.encryption.protection import Protection
from lepton_airflow.jobs.runner import run_job
from lepton_airflow.jobs.session import start_session
from lepton_airflow.keys.reference import KeysetReference
from lepton_airflow.settings import load_settings

home, data = sys.argv[1:3]
settings = load_settings(home)
protected = {"name": "clinic.visits", "path": f"{data}/protected"}
ciphers = {
    "email": "AES256_GCM",
    "card": "AES256_GCM",
    "reading": "AES256_GCM",
    "patient": "AES256_SIV",
    "phone": "FF1",
}


def run(job: str, source: dict, target: dict, **fields: object) -> None:
    spec = {"source": source, "target": target, "purpose": "test", **fields}
    print(run_job(job, spec, settings=settings, run_key=target["path"]))


run(
    "encrypt_columns",
    {"name": "clinic.visits_raw", "path": f"{data}/raw"},
    {"name": "clinic.visits", "path": f"{data}/protected directly"},
    keyset="clinic",
    columns={column: {"cipher": cipher} for column, cipher in ciphers.items()},
    road="direct",
)
run("rotate_keys", protected, {"name": "clinic.visits", "path": f"{data}/rotated again"}, road="dataframe")
# Uncompressed, as the search reads it.
letters = {"name": "clinic.letters", "path": f"{data}/decrypted directly", "options": {"compression": "none"}}
run("decrypt_columns", protected, letters, columns=["*"], road="direct")

# What is in the clear goes into shards, and comes back.
store = {"source": {"name": "clinic.letters", "path": f"{data}/decrypted directly"}, "parity_shards": 1}
print(run_job("store_dataset", {**store, "keyset": "clinic", "purpose": "test"}, settings=settings, run_key="store"))
back = {"name": "clinic.letters", "path": f"{data}/restored"}
restore = {"dataset": "clinic.letters", "target": back, "purpose": "test"}
print(run_job("restore_dataset", restore, settings=settings, run_key="restore"))

# A model learns from two of the planted columns, and is then attacked with them.
model = f"{data}/models/diagnosis"
training = {
    "source": protected,
    "privacy_unit": "patient",
    "label_column": "diagnosis",
    "classes": ["well", "ill"],
    "features": ["card", "reading"],
    "threat_model": {"norm": "linf", "epsilon": 0.05, "units": "standard deviations"},
    "training": {"epochs": 20, "hidden": [16]},
    "evaluation": {"epsilons": [], "steps": 20, "restarts": 1, "apgd_steps": 20, "square_queries": 50},
    "gate": {"minimum_clean_accuracy": 0.8, "minimum_robust_accuracy": 0.5},
    "target": model,
    "purpose": "test",
}
print(run_job("retrain_model", training, settings=settings, run_key="retrain"))
score = {"minimum_clean_accuracy": 0.8, "minimum_robust_accuracy": 0.5, "model": model, "purpose": "test"}
print(run_job("score_model", {"source": protected, **score}, settings=settings, run_key="score"))

spark = start_session("session")
table = spark.read.parquet(protected["path"])
shuffled = (
    reveal(table, keyring=settings.keyring, identity_file=settings.identity_file)
    .repartition(4, "email")
    .sortWithinPartitions("patient")
)
again = protect(
    shuffled,
    dataset="clinic.sorted",
    protections={column: Protection(cipher=cipher) for column, cipher in ciphers.items()},
    keysets={
        cipher: KeysetReference(
            keyring=str(settings.keyring), name="clinic", cipher=cipher, identity_file=str(settings.identity_file)
        )
        for cipher in ciphers.values()
    },
)
again.explain("extended")
again.write.parquet(f"{data}/sorted")
protectors = protectors_of(table.schema, keyring=settings.keyring, identity_file=settings.identity_file)
rotate_columns(table, protectors).explain("extended")
spark.stop()
