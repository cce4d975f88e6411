"""The example DAGs in the demo's deployment: what its policy allows them to whom, and that they do what they say."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lepton_airflow.access.policy import Policy, Request
from lepton_airflow.errors import AccessDenied
from lepton_airflow.jobs.runner import run_job
from lepton_airflow.jobs.storage import storage_nodes
from lepton_airflow.keys.identity import Identity
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.settings import Settings, load_settings

pytestmark = [pytest.mark.slow]
DAGS = Path(__file__).parents[2] / "dags"
NAMES = ("name", "email")


#: What training and its evaluation cost less with than in the examples.
QUICK: dict[str, Any] = {
    "training": {"epochs": 20, "hidden": [32]},
    "evaluation": {"epsilons": [], "steps": 20, "restarts": 1, "apgd_steps": 20, "square_queries": 50},
    "gate": {"minimum_clean_accuracy": 0.5, "minimum_robust_accuracy": 0.0},
}


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The demo's deployment, by its own commands, and its ``visits`` as they land."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        patch.syspath_prepend(str(DAGS))
        modules = {name: importlib.import_module(name) for name in ("clinic.demo", "clinic.records")}
        demo = modules["clinic.demo"].Demo(tmp_path_factory.mktemp("demo"))
        demo.make_deployment()
        modules["clinic.records"].land(str(demo.data / "landing" / "visits"))
        yield SimpleNamespace(
            data=demo.data,
            identities=("owner", *modules["clinic.demo"].IDENTITIES),
            settings={
                name: load_settings(demo.home, {"identity": name})
                for name in ("owner", *modules["clinic.demo"].IDENTITIES)
            },
        )
    for name in [name for name in sys.modules if name.partition(".")[0] == "clinic"]:
        del sys.modules[name]


def job_of(dag: str, task: str, data: Path) -> tuple[str, dict[str, Any]]:
    """The job of a task of an example DAG, and its spec as Airflow would render it."""
    module = importlib.import_module(dag)
    operator = getattr(module, dag)().task_dict[task]

    def rendered(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{{ var.value.clinic_data }}", str(data))
        if isinstance(value, dict):
            return {key: rendered(item) for key, item in value.items()}
        return value

    return operator.job, rendered(operator._spec())


@pytest.fixture
def run(events_file: Path, specification: Any, expected_events: Any) -> Callable[..., dict[str, Any]]:
    """Runs the job of an example's task, and holds what it told at its end against the file beside the DAG."""

    def runs(task: str, job: str, spec: dict[str, Any], settings: Settings, data: Path) -> dict[str, Any]:
        key = f"{task.replace('.', '/')}/run/-1"
        summary: dict[str, Any] = run_job(job, spec, settings=settings, run_key=key, announce=True)
        *_, complete = specification.read_events(events_file)
        expected_events.hold(task, complete["eventType"], complete, data=data)
        return summary

    return runs


@pytest.fixture(scope="module")
def protected(spark: Any, clinic: SimpleNamespace) -> SimpleNamespace:
    """The same after the pipeline protected the visits, and the keys were rotated."""
    job, spec = job_of("clinic_privacy_pipeline", "protect", clinic.data)
    run_job(job, spec, settings=clinic.settings["etl"], run_key="protect")
    etl: Settings = clinic.settings["etl"]
    for cipher in ("AES256_GCM", "AES256_SIV"):
        FileKeyring(etl.keyring).rotate("clinic", cipher=cipher, identity=Identity.load(etl.identity_file))
    return clinic


EXAMPLES = {"examples_decrypt_columns": "open_names", "examples_rotate_keys": "rotate_visits"}


@pytest.mark.parametrize("dag", EXAMPLES)
def test_only_etl_may_run_the_example(dag: str, protected: SimpleNamespace) -> None:
    job, spec = job_of(dag, EXAMPLES[dag], protected.data)
    for name in protected.identities:
        if name != "etl":
            with pytest.raises(AccessDenied, match=f"{name} may not"):
                run_job(job, spec, settings=protected.settings[name], run_key=f"{dag} {name}")
    for changes in ({"purpose": "curiosity"}, {"purpose": "ingestion"}, {"purpose": "public statistics"}):
        with pytest.raises(AccessDenied, match=changes["purpose"]):
            run_job(job, spec | changes, settings=protected.settings["etl"], run_key=f"{dag} {changes}")


def test_the_letters_get_names_and_addresses_and_nothing_else(
    spark: Any, protected: SimpleNamespace, run: Callable[..., dict[str, Any]]
) -> None:
    job, spec = job_of("examples_decrypt_columns", "open_names", protected.data)
    for columns in (["phone"], ["*"], ["name", "insurance_number"], ["patient_id"], ["mean_radius"], ["`phone`"]):
        with pytest.raises(AccessDenied):
            run_job(job, spec | {"columns": columns}, settings=protected.settings["etl"], run_key=str(columns))
    summary = run("examples_decrypt_columns.open_names", job, spec, protected.settings["etl"], protected.data)
    assert summary["failed"] == {"name": 0, "email": 0}
    letters = spark.read.parquet(str(protected.data / "letters"))
    landed = spark.read.parquet(str(protected.data / "landing" / "visits"))
    columns = ["visit_id", *NAMES]
    assert sorted(letters.select(*columns).collect()) == sorted(landed.select(*columns).collect())
    assert dict(letters.dtypes)["phone"] == "binary"


def test_the_rotation_brings_the_visits_under_the_new_keys(
    protected: SimpleNamespace, run: Callable[..., dict[str, Any]]
) -> None:
    job, spec = job_of("examples_rotate_keys", "rotate_visits", protected.data)
    other = {part: {**spec[part], "name": "clinic.other"} for part in ("source", "target")}
    with pytest.raises(AccessDenied, match=r"clinic\.other"):
        run_job(job, spec | other, settings=protected.settings["etl"], run_key="other")
    summary = run("examples_rotate_keys.rotate_visits", job, spec, protected.settings["etl"], protected.data)
    assert summary["rotated"].keys() >= {*NAMES, "phone", "patient_id", "mean_radius"}
    assert set(summary["rotated"].values()) == {summary["rows"]}


def test_only_etl_keeps_the_visits_in_shards_and_they_come_back(
    spark: Any, protected: SimpleNamespace, tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    places = {name: tmp_path / name for name in ("north", "south", "east", "west")}
    settings = {
        name: Settings(**one.model_dump() | {"storage_nodes": places}) for name, one in protected.settings.items()
    }
    for node in storage_nodes(settings["etl"]):
        node.prepare()
    for task in ("store_visits", "mend_shards", "recovery_drill"):
        job, spec = job_of("examples_encrypted_storage", task, protected.data)
        for name in protected.identities:
            if name != "etl":
                with pytest.raises(AccessDenied, match=f"{name} may not"):
                    run_job(job, spec, settings=settings[name], run_key=f"{task} {name}")
        if task != "store_visits":
            shutil.rmtree(places["north"], ignore_errors=True)
        run(f"examples_encrypted_storage.{task}", job, spec, settings["etl"], protected.data)
    kept = protected.data / "protected" / "visits"
    drilled = protected.data / "drill" / "visits"
    names = sorted(file.name for file in kept.glob("*.parquet"))
    assert names == sorted(file.name for file in drilled.glob("*.parquet"))
    assert all((kept / name).read_bytes() == (drilled / name).read_bytes() for name in names)


def test_to_rotate_is_not_to_read_and_science_never_learns_names(clinic: SimpleNamespace) -> None:
    policy = Policy.load(clinic.settings["etl"].policy)
    purposes = ("ingestion", "key rotation", "letters to patients", "public statistics", "diagnosis model", "anything")
    readers = {
        (name, column, purpose)
        for name in (*clinic.identities, "stranger")
        for column in (*NAMES, "phone", "insurance_number", "patient_id")
        for purpose in purposes
        if policy.decide(Request(name, "decrypt", "clinic.visits", (column,), purpose)).allow
    }
    assert readers == {
        ("etl", "name", "letters to patients"),
        ("etl", "email", "letters to patients"),
        ("trainer", "patient_id", "diagnosis model"),
    }
    # Nor by a grant that is added to the file by mistake.
    granted = policy.model_copy(
        update={
            "grants": tuple(
                rule.model_copy(update={"columns": ("*",), "purposes": ("*",), "datasets": ("*",)})
                for rule in policy.grants
                if "decrypt" in rule.actions
            )
        }
    )
    for name in ("analyst", "trainer", "auditor"):
        for column in (*NAMES, "EMAIL", "phone", "insurance_number"):
            assert not granted.decide(Request(name, "decrypt", "clinic.visits", (column,), "anything")).allow
    assert not granted.decide(Request("etl", "decrypt", "clinic.visits", ("phone",), "anything")).allow
    assert granted.decide(Request("trainer", "decrypt", "clinic.visits", ("mean_radius",), "anything")).allow


def test_only_the_trainer_retrains_on_an_update_and_looks_for_a_drift(
    spark: Any, protected: SimpleNamespace, run: Callable[..., dict[str, Any]]
) -> None:
    job, spec = job_of("examples_retrain_on_update", "retrain", protected.data)
    drift_job, drift = job_of("examples_retrain_on_drift", "worse", protected.data)
    drift |= {"newer_than": {"column": "visit_date", "value": "2025-06-30"}}
    trainer, data = protected.settings["trainer"], protected.data
    trained = run("examples_retrain_on_update.retrain", job, spec | QUICK, trainer, data)
    scored = run("examples_retrain_on_drift.worse", drift_job, drift, trainer, data)
    # The same again, but as the first of its name: a model that is as good does not replace it.
    shutil.rmtree(data / "models")
    again = job_of("examples_retrain_on_drift", "retrain", data)[1]
    run("examples_retrain_on_drift.retrain", job, again | QUICK, trainer, data)
    assert scored["sha256"] == trained["sha256"]
    assert 100 < scored["units"] < 569, "visits of the second half of the year"
    assert scored["robust_accuracy"] <= scored["clean_accuracy"]
    for name in protected.identities:
        if name != "trainer":
            for denied, fields in ((job, spec), (drift_job, drift)):
                with pytest.raises(AccessDenied, match=f"{name} may not"):
                    run_job(denied, fields, settings=protected.settings[name], run_key=f"{denied} {name}")


def test_only_the_trainer_holds_the_model_against_new_patients(
    spark: Any, protected: SimpleNamespace, tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    landed = spark.read.parquet(str(protected.data / "landing" / "visits"))
    # Half of the patients are new: the model was not trained on them.
    parts = {"visits": "crc32(patient_id) % 2 = 0", "new_visits": "crc32(patient_id) % 2 = 1"}
    protect_job, protect = job_of("clinic_privacy_pipeline", "protect", protected.data)
    for name, half in parts.items():
        landed.where(half).write.parquet(str(tmp_path / "landing" / name))
        places = {
            "source": protect["source"] | {"path": str(tmp_path / "landing" / name)},
            "target": {"name": f"clinic.{name}", "path": str(tmp_path / "protected" / name)},
        }
        run_job(protect_job, protect | places, settings=protected.settings["etl"], run_key=f"protect {name}")
    train_job, train = job_of("examples_retrain_on_update", "retrain", tmp_path)
    trainer = protected.settings["trainer"]
    run_job(train_job, train | QUICK, settings=trainer, run_key="half")
    job, spec = job_of("examples_robustness_gate", "gate_diagnosis", tmp_path)
    quick = {"evaluation": QUICK["evaluation"], "gate": QUICK["gate"]}
    summary = run("examples_robustness_gate.gate_diagnosis", job, spec | quick, trainer, tmp_path)
    assert summary["gate"] == "passed"
    for name in protected.identities:
        if name != "trainer":
            with pytest.raises(AccessDenied, match=f"{name} may not"):
                run_job(job, spec, settings=protected.settings[name], run_key=f"gate {name}")
