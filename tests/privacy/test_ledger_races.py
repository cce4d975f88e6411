"""Many processes at one ledger, and processes that die: never overspent, never two answers."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import pytest

from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.records import DRAWN, PUBLISHED
from lepton_airflow.settings import Settings

BOTH_STORES = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
DATASET, UNIT = "clinic.visits", "patient_id"
PROCESSES = 16

COMMON = """
import json, os, signal, sys
from fractions import Fraction
import sqlalchemy as sql
from lepton_airflow.audit.database import connect
from lepton_airflow.errors import BudgetExhausted
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.records import MechanismEvent
from lepton_airflow.settings import Settings

def reserve(ledger, run_key, **changes):
    event = MechanismEvent(
        query="q", mechanism="discrete Laplace", groups=1, per_group=1, width=1, scale=10.0, epsilon=Fraction(1, 10)
    )
    fields = {"spec_digest": "sha256:a", "spec": {}, "dataset": "clinic.visits", "unit": "patient_id", "principal": "analyst"}
    return ledger.reserve(run_key=run_key, mechanisms=[event], **(fields | changes))

settings = Settings.model_validate_json(sys.argv[1])
"""

#: Forks one process for each list of run keys. They wait for the common start; each reserves and draws its runs, and prints
#: for each the number that is stored, or that it was refused.
RACE = (
    COMMON
    + """
def attempt(ledger, run_key):
    try:
        reserve(ledger, run_key)
    except BudgetExhausted:
        return "refused"
    ledger.draw(run_key=run_key, spec_digest="sha256:a", result={"q": os.getpid()})
    return ledger.result(run_key)["q"]

waiting, start = os.pipe()
children = []
for keys in json.loads(sys.argv[2]):
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
)

#: For every boundary: a process that makes a release and is killed there, then one that makes it to the end. A boundary is the
#: moment before or after a statement (also those that begin a transaction), or before or after a commit; the first run counts
#: them. Prints for each run what was readable after the kill, in which state the release was, and what there was at the end.
KILL = (
    COMMON
    + """
def boundaries(engine, pass_one):
    def before(connection, cursor, statement, parameters, context, many):
        pass_one()
    def after(connection, cursor, statement, parameters, context, many):
        pass_one()
    # The driver commits; SQLAlchemy's event comes before it.
    commit = engine.dialect.do_commit
    def committing(connection):
        pass_one()
        commit(connection)
        pass_one()
    sql.event.listen(engine, "before_cursor_execute", before)
    sql.event.listen(engine, "after_cursor_execute", after)
    engine.dialect.do_commit = committing

def release(run_key, pass_one):
    engine = connect(settings, check_schema=False)
    boundaries(engine, pass_one)
    ledger = Ledger(engine)
    if reserve(ledger, run_key, needs_approval=True).state == "reserved":
        ledger.draw(run_key=run_key, spec_digest="sha256:a", result={"q": os.getpid()})
    pass_one()
    ledger.result(run_key)
    ledger.approve(run_key=run_key, approver="grace")
    ledger.publish(run_key=run_key, spec_digest="sha256:a")
    engine.dispose()

def in_child(work):
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]

def counting(run_key):
    count = [0]
    release(run_key, lambda: count.__setitem__(0, count[0] + 1))
    os.write(writing, str(count[0]).encode())

def dying(run_key, k):
    count = [0]
    def pass_one():
        count[0] += 1
        if count[0] == k:
            os.kill(os.getpid(), signal.SIGKILL)
    release(run_key, pass_one)

def look(run_key):
    engine = connect(settings, check_schema=False)
    ledger = Ledger(engine)
    found = ledger.find(run_key)
    drawn = found is not None and found.state in ("drawn", "published")
    balance = ledger.balance(dataset="clinic.visits", unit="patient_id")
    seen = {
        "state": found and found.state,
        "number": ledger.result(run_key)["q"] if drawn else None,
        "releases": sum(r.run_key == run_key for r in balance.releases),
        "charged": str(balance.spending.charged),
    }
    engine.dispose()
    return seen

reading, writing = os.pipe()
assert in_child(lambda: counting("count")) == 0
total = int(os.read(reading, 16))
print(json.dumps(total), flush=True)
for k in range(1, total + 1):
    key = f"run{k}"
    killed = in_child(lambda: dying(key, k))
    assert os.WIFSIGNALED(killed) and os.WTERMSIG(killed) == signal.SIGKILL, (k, killed)
    between = look(key)
    assert in_child(lambda: release(key, lambda: None)) == 0, k
    print(json.dumps([between, look(key)]), flush=True)
"""
)


def run(program: str, database: Settings, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", program, database.model_dump_json(), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def race(database: Settings, runs: list[list[str]]) -> list[list[str | int]]:
    """Run one process for each list of run keys, all at once; returns what each printed for its keys."""
    return [json.loads(line) for line in run(RACE, database, json.dumps(runs))]


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal("2.05"), owner="officer")
    return ledger


@BOTH_STORES
def test_processes_at_once_never_overspend(database: Settings, funded: Ledger) -> None:
    printed = race(database, [[f"run{process}.{i}" for i in range(2)] for process in range(PROCESSES)])
    outcomes = [outcome for outcomes in printed for outcome in outcomes]
    assert len(outcomes) == 2 * PROCESSES
    assert outcomes.count("refused") == 2 * PROCESSES - 20
    balance = funded.balance(dataset=DATASET, unit=UNIT)
    assert (balance.spending.charged, balance.left) == (Fraction(2), Fraction(5, 100))


@BOTH_STORES
def test_processes_that_try_one_run_at_once_get_one_answer(database: Settings, funded: Ledger) -> None:
    printed = race(database, [["run0", "run1", "run2"]] * PROCESSES)
    assert len(printed) == PROCESSES
    assert [len({answers[run] for answers in printed}) for run in range(3)] == [1, 1, 1]
    balance = funded.balance(dataset=DATASET, unit=UNIT)
    assert balance.spending.charged == Fraction(3, 10)
    assert [release.state for release in balance.releases] == [DRAWN] * 3
    assert len(funded.mechanisms(dataset=DATASET, unit=UNIT)) == 3


@pytest.mark.slow
@BOTH_STORES
def test_a_process_that_is_killed_between_any_two_steps_leaves_one_answer(database: Settings, ledger: Ledger) -> None:
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(100), owner="officer")
    first, *lines = run(KILL, database)
    total = int(first)
    # reserve, draw, approve and publish each have more than a dozen boundaries.
    assert total > 40
    assert len(lines) == total
    states = set()
    for done, line in enumerate(lines, start=1):
        between, end = json.loads(line)
        states.add(between["state"])
        assert (end["state"], end["releases"]) == (PUBLISHED, 1)
        # Once there was a number, it stays; and a release is paid for once, at the latest when it is drawn.
        if between["number"] is not None:
            assert end["number"] == between["number"]
        reserved = between["state"] is not None
        assert Fraction(between["charged"]) == Fraction(done + reserved, 10)
        assert Fraction(end["charged"]) == Fraction(done + 1, 10)
    assert states == {None, "reserved", "drawn", "published"}
