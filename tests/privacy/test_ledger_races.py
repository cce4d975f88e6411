"""Many processes at one ledger: never overspent, never two answers."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import pytest

from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.records import DRAWN
from lepton_airflow.settings import Settings

BOTH_STORES = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
DATASET, UNIT = "clinic.visits", "patient_id"
PROCESSES = 8

#: Forks one process for each list of run keys. They wait for the common start; each reserves and draws its runs, and prints
#: for each the number that is stored, or that it was refused.
PROGRAM = """
import json, os, sys
from decimal import Decimal
from fractions import Fraction
from lepton_airflow.audit.database import connect
from lepton_airflow.errors import BudgetExhausted
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.records import MechanismEvent
from lepton_airflow.settings import Settings

def attempt(ledger, run_key):
    fields = {"run_key": run_key, "spec_digest": "sha256:a"}
    try:
        ledger.reserve(**fields, dataset="clinic.visits", unit="patient_id", epsilon=Decimal("0.1"), principal="analyst")
    except BudgetExhausted:
        return "refused"
    event = MechanismEvent(query="q", mechanism="none", sensitivity=1, scale=1.0, epsilon=Fraction(1, 10))
    ledger.draw(**fields, vectors={"q": [os.getpid()]}, mechanisms=[event])
    return ledger.numbers(run_key)["q"][0]

settings, runs = Settings.model_validate_json(sys.argv[1]), json.loads(sys.argv[2])
waiting, start = os.pipe()
children = []
for keys in runs:
    child = os.fork()
    if not child:
        os.close(start)
        ledger = Ledger(connect(settings))
        os.read(waiting, 1)
        # One write of less than a pipe's buffer: lines of several processes do not mix.
        os.write(1, json.dumps([attempt(ledger, key) for key in keys]).encode() + b"\\n")
        os._exit(0)
    children.append(child)
os.close(start)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def race(database: Settings, runs: list[list[str]]) -> list[list[str | int]]:
    """Run one process for each list of run keys, all at once; returns what each printed for its keys."""
    racing = subprocess.run(
        [sys.executable, "-c", PROGRAM, database.model_dump_json(), json.dumps(runs)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in racing.stdout.splitlines()]


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal("2.05"), owner="officer")
    return ledger


@BOTH_STORES
def test_processes_at_once_never_overspend(database: Settings, funded: Ledger) -> None:
    printed = race(database, [[f"run{process}.{i}" for i in range(4)] for process in range(PROCESSES)])
    outcomes = [outcome for outcomes in printed for outcome in outcomes]
    assert len(outcomes) == 4 * PROCESSES
    assert outcomes.count("refused") == 4 * PROCESSES - 20
    balance = funded.balance(dataset=DATASET, unit=UNIT)
    assert (balance.spent, balance.left) == (Fraction(2), Fraction(5, 100))


@BOTH_STORES
def test_processes_that_try_one_run_at_once_get_one_answer(database: Settings, funded: Ledger) -> None:
    printed = race(database, [["run0", "run1", "run2"]] * PROCESSES)
    assert [len({answers[run] for answers in printed}) for run in range(3)] == [1, 1, 1]
    balance = funded.balance(dataset=DATASET, unit=UNIT)
    assert balance.spent == Fraction(3, 10)
    assert [release.state for release in balance.releases] == [DRAWN] * 3
    assert len(funded.mechanisms(dataset=DATASET, unit=UNIT)) == 3
