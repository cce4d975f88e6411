"""The score sensor lets a retraining start once the champion is worse than it may be, and only then."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lepton_airflow.jobs.runner import run_job
from lepton_airflow.jobs.score_model import ScoreModelSpec
from lepton_airflow.provider_info import get_provider_info
from lepton_airflow.settings import Settings


def visits(*, day: int, drifted: bool) -> pa.Table:
    """200 patients whose size tells their diagnosis, unless something drifted."""
    draw = np.random.default_rng(day)
    ill = np.arange(200) % 2
    told = draw.permutation(ill) if drifted else ill
    return pa.table(
        {
            "size": draw.normal(size=200) + 6.0 * told,
            "weight": draw.normal(size=200),
            "diagnosis": np.where(ill, "ill", "well"),
            "patient": [f"patient {day} {number}" for number in range(200)],
            "day": pa.array(np.full(200, day), pa.int32()),
        }
    )


@pytest.fixture
def data(spark: Any, home: Settings, tmp_path: Path) -> Path:
    """A champion of the first day, and the protected visits of that day and of a second one on which nothing is as it was."""
    (tmp_path / "raw").mkdir()
    both = pa.concat_tables([visits(day=1, drifted=False), visits(day=2, drifted=True)])
    pq.write_table(both, tmp_path / "raw" / "rows.parquet")
    protect = {
        "source": {"name": "clinic.raw", "path": str(tmp_path / "raw")},
        "target": {"name": "clinic.visits", "path": str(tmp_path / "protected")},
        "keyset": "clinic",
        "columns": {
            **{name: {"cipher": "AES256_GCM"} for name in ("size", "weight", "diagnosis")},
            "patient": {"cipher": "AES256_SIV"},
        },
        "purpose": "test",
    }
    run_job("encrypt_columns", protect, settings=home, run_key="protect")
    (tmp_path / "first").mkdir()
    pq.write_table(visits(day=1, drifted=False), tmp_path / "first" / "rows.parquet")
    train = {
        "source": {"name": "clinic.visits", "path": str(tmp_path / "first")},
        "privacy_unit": "patient",
        "label_column": "diagnosis",
        "classes": ["well", "ill"],
        "features": ["size", "weight"],
        "threat_model": {"norm": "linf", "epsilon": 0.1, "units": "standard deviations"},
        "training": {"epochs": 20, "hidden": [8], "batch_size": 32, "learning_rate": 0.03},
        "evaluation": {"epsilons": [], "steps": 20, "restarts": 1, "apgd_steps": 20, "square_queries": 50},
        "gate": {"minimum_clean_accuracy": 0.9, "minimum_robust_accuracy": 0.5},
        "target": str(tmp_path / "models" / "diagnosis"),
        "purpose": "test",
        "seed": 1,
    }
    run_job("retrain_model", train, settings=home, run_key="train")
    return tmp_path


@pytest.fixture
def connections(home: Settings) -> dict[str, str]:
    lepton = {"conn_type": "lepton", "extra": json.dumps({"home": str(home.home), "identity": "tester"})}
    return {
        "AIRFLOW_CONN_LEPTON_TESTER": json.dumps(lepton),
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[1]"}),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def sensor(data: Path, **changes: Any) -> Any:
    from lepton_airflow.sensors.score import ModelScoreSensor

    arguments: dict[str, Any] = {
        "source": {"name": "clinic.visits", "path": str(data / "protected")},
        "model": str(data / "models" / "diagnosis"),
        "minimum_clean_accuracy": 0.9,
        "minimum_robust_accuracy": 0.0,
        "steps": 2,
        "restarts": 1,
        "purpose": "test",
        "lepton_conn_id": "lepton_tester",
    }
    return ModelScoreSensor(task_id="worse", **(arguments | changes))


@pytest.mark.slow
def test_in_a_real_airflow_it_starts_what_comes_after_it_once_the_model_is_worse(
    data: Path, connections: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.exceptions import AirflowRescheduleException

    environment = {
        **os.environ,
        **connections,
        "AIRFLOW_VAR_LEPTON_DATA": str(data),
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(Path(__file__).parent / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    program = str(Path(sys.executable).with_name("airflow"))
    for arguments in (("db", "migrate"), ("dags", "test", "lepton_score")):
        finished = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)
    log = finished.stdout + finished.stderr
    with sqlite3.connect(tmp_path / "airflow" / "airflow.db") as database:
        found = database.execute("select task_id, state, try_number from task_instance").fetchall()
        (returned,) = database.execute("select value from xcom where task_id = 'retrain'").fetchone()
    assert {task: (state, tries) for task, state, tries in found} == {
        "worse": ("success", 1),
        "retrain": ("success", 1),
        "denied": ("failed", 1),
        "end": ("success", 1),
    }, log
    # SQLite may give the JSON number 200 as text or as the number it looks like.
    assert str(returned) == "200", "the units of the second day, as the sensor's XCom says"
    assert "is below 0.9" in log
    assert "[AccessDenied]" in log
    # As long as the model holds, the sensor keeps no worker and comes again later.
    for name, value in connections.items():
        monkeypatch.setenv(name, value)
    instance = SimpleNamespace(
        dag_id="d", task_id="worse", run_id="r", map_index=-1, get_first_reschedule_date=lambda _context: None
    )
    waiting = sensor(data, minimum_clean_accuracy=0.2)
    context = {"ti": instance, "dag_run": SimpleNamespace(triggering_user_name="ada"), "task": waiting}
    with pytest.raises(AirflowRescheduleException):
        waiting.execute(context)
    assert waiting._summary["below"] is False
    assert waiting._summary["units"] == 400


def test_its_arguments_are_the_fields_of_the_spec_and_documented() -> None:
    from lepton_airflow.sensors.score import ModelScoreSensor

    assert set(ModelScoreSensor.spec_fields) == set(ScoreModelSpec.model_fields)
    assert set(ModelScoreSensor.template_fields) <= set(ModelScoreSensor.spec_fields)
    assert not [name for name in ModelScoreSensor.spec_fields if f":param {name}:" not in str(ModelScoreSensor.__doc__)]
    made = sensor(Path("/data"), newer_than={"column": "day", "value": "1"})
    assert ScoreModelSpec(**made._spec()).newer_than is not None
    assert (made.mode, made.poke_interval) == ("reschedule", 86400)


def test_the_provider_names_the_sensor() -> None:
    (listed,) = get_provider_info()["sensors"]
    assert "lepton_airflow.sensors.score" in listed["python-modules"]


def test_parsing_a_dag_with_the_sensor_imports_no_engine() -> None:
    heavy = ("pyspark", "pyarrow", "numpy", "pandas", "opendp", "dp_accounting", "scipy", "tensorflow", "keras")
    program = (
        "import sys, airflow.sdk; before = set(sys.modules); from lepton_airflow.sensors.score import ModelScoreSensor\n"
        "ModelScoreSensor(task_id='t', source={}, model='m', minimum_clean_accuracy=1, minimum_robust_accuracy=1,"
        " purpose='p')\n"
        f"print([m for m in {heavy!r} if m in set(sys.modules) - before])"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
