"""The budget sensor waits for what can come, and fails at once for what cannot."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.audit.database import connect
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.records import LAPLACE, MechanismEvent
from lepton_airflow.provider_info import get_provider_info
from lepton_airflow.settings import Settings

DATASET, UNIT = "clinic.visits", "patient_id"
LAST_MONTH = datetime.now(UTC).replace(day=1) - timedelta(days=1)


@pytest.fixture
def connection(home: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    text = json.dumps({"conn_type": "lepton", "extra": json.dumps({"home": str(home.home), "identity": "tester"})})
    monkeypatch.setenv("AIRFLOW_CONN_LEPTON_TESTER", text)
    return text


@pytest.fixture
def ledger(home: Settings) -> Iterator[Ledger]:
    engine = connect(home)
    yield Ledger(engine)
    engine.dispose()


def spend(ledger: Ledger, run_key: str, *, drawn: bool = True) -> None:
    """Spend 0.4, or only reserve it."""
    event = MechanismEvent(
        query="rows", mechanism=LAPLACE, groups=1, per_group=1, width=1, scale=2.5, epsilon=Fraction(4, 10)
    )
    fields: dict[str, Any] = {"dataset": DATASET, "unit": UNIT, "spec": {}, "principal": "job"}
    ledger.reserve(run_key=run_key, spec_digest="sha256:a", mechanisms=[event], **fields)
    if drawn:
        ledger.draw(run_key=run_key, spec_digest="sha256:a", result={})


def sensor(**changes: Any) -> Any:
    from lepton_airflow.sensors.budget import PrivacyBudgetSensor

    arguments = {"dataset": DATASET, "unit": UNIT, "epsilon": "0.7", "lepton_conn_id": "lepton_tester"}
    return PrivacyBudgetSensor(task_id="wait", **(arguments | changes))


def test_it_waits_for_the_next_period(connection: str, home: Settings, ledger: Ledger) -> None:
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(1), owner="tester", period="month")
    spend(Ledger(ledger._engine, clock=lambda: LAST_MONTH), "last month")
    assert sensor().poke({})
    spend(ledger, "this month")
    assert not sensor().poke({})
    # Exactly what is left is enough.
    assert sensor(epsilon=0.6).poke({})


def test_it_reschedules_and_keeps_no_worker(connection: str, ledger: Ledger) -> None:
    from airflow.sdk.exceptions import AirflowRescheduleException

    class Instance:
        def get_first_reschedule_date(self, _context: Any) -> None:
            return None

    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(1), owner="tester", period="day")
    spend(ledger, "run")
    with pytest.raises(AirflowRescheduleException):
        sensor().execute({"ti": Instance()})


def test_it_waits_for_a_reservation_but_not_for_what_is_spent(connection: str, ledger: Ledger) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(1), owner="tester")
    spend(ledger, "run", drawn=False)
    assert not sensor().poke({})
    ledger.draw(run_key="run", spec_digest="sha256:a", result={})
    with pytest.raises(AirflowFailException, match=r"\[BudgetExhausted\].*0\.6 left and 0\.7 is needed"):
        sensor().poke({})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dataset": "clinic.labs"}, r"\[BudgetError\].*no privacy budget"),
        ({"unit": "ward"}, r"\[BudgetError\].*no privacy budget"),
        ({"epsilon": "1.1"}, r"\[BudgetExhausted\].*waiting brings no more"),
        ({"epsilon": "much"}, r"\[BudgetError\].*must be a decimal"),
    ],
)
def test_what_no_waiting_brings_fails_without_a_retry(
    connection: str, ledger: Ledger, changes: dict[str, Any], text: str
) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(1), owner="tester", period="month")
    with pytest.raises(AirflowFailException, match=text):
        sensor(**changes).poke({})


def test_an_audit_database_that_is_away_may_be_tried_again(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.exceptions import AirflowException, AirflowFailException

    extra = json.dumps({"home": str(home.home), "audit_database": "postgresql://me@127.0.0.1:1/audit"})
    monkeypatch.setenv("AIRFLOW_CONN_LEPTON_TESTER", json.dumps({"conn_type": "lepton", "extra": extra}))
    with pytest.raises(AirflowException, match=r"\[AuditUnavailable\]") as raised:
        sensor().poke({})
    assert not isinstance(raised.value, AirflowFailException)


def test_the_provider_names_the_sensor() -> None:
    (listed,) = get_provider_info()["sensors"]
    assert "lepton_airflow.sensors.budget" in listed["python-modules"]


def test_parsing_a_dag_with_the_sensor_imports_no_engine() -> None:
    heavy = ("pyspark", "pyarrow", "numpy", "pandas", "opendp", "dp_accounting", "scipy", "tensorflow")
    program = (
        "import sys, airflow.sdk; before = set(sys.modules); import lepton_airflow.sensors.budget as budget\n"
        "budget.PrivacyBudgetSensor(task_id='t', dataset='d', unit='u', epsilon=1)\n"
        f"print([m for m in {heavy!r} if m in set(sys.modules) - before])"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.slow
def test_it_works_in_a_real_airflow(connection: str, ledger: Ledger, tmp_path: Path) -> None:
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(1), owner="tester", period="year")
    spend(ledger, "run")
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(Path(__file__).parent / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    program = str(Path(sys.executable).with_name("airflow"))
    for arguments in (("db", "migrate"), ("dags", "test", "lepton_budget")):
        finished = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)
    log = finished.stdout + finished.stderr
    with sqlite3.connect(tmp_path / "airflow" / "airflow.db") as database:
        found = database.execute("select task_id, state, try_number from task_instance").fetchall()
    assert {task: (state, tries) for task, state, tries in found} == {
        "enough": ("success", 1),
        "no_budget": ("failed", 1),
        "too_much": ("failed", 1),
        "waits": ("failed", 1),
        "end": ("success", 1),
    }, log
    assert "[BudgetError] budget of clinic.labs per patient_id: There is no privacy budget." in log
    assert "epsilon 0.6 is left, 0.7 is needed; waiting." in log
