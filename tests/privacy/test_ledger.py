"""The ledger never lets more be spent than there is, and a release happens once."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from lepton_airflow.audit.database import VERSION_TABLE, metadata
from lepton_airflow.errors import AccessDenied, BudgetError, BudgetExhausted, RunKeyConflict
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.records import DRAWN, PUBLISHED, RELEASED, RESERVED, MechanismEvent, Release
from lepton_airflow.privacy.tables import budget_table, mechanism_table, release_table

BOTH_STORES = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
DATASET, UNIT, OWNER = "clinic.visits", "patient_id", "officer"


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(1), owner=OWNER)
    return ledger


def reserve(ledger: Ledger, run_key: str = "run", *, epsilon: str = "0.4", spec: str = "sha256:a") -> Release:
    return ledger.reserve(
        run_key=run_key, spec_digest=spec, dataset=DATASET, unit=UNIT, epsilon=Decimal(epsilon), principal="analyst"
    )


def draw(
    ledger: Ledger, run_key: str = "run", *, epsilon: str = "0.4", spec: str = "sha256:a", noisy: int = 7
) -> Release:
    event = MechanismEvent(
        query="rows", mechanism="discrete Laplace", sensitivity=1, scale=2.5, epsilon=Fraction(epsilon)
    )
    return ledger.draw(run_key=run_key, spec_digest=spec, vectors={"rows": [noisy, -1]}, mechanisms=[event])


def left(ledger: Ledger) -> Fraction:
    return ledger.balance(dataset=DATASET, unit=UNIT).left


@BOTH_STORES
def test_a_release_is_reserved_drawn_and_published(funded: Ledger) -> None:
    assert reserve(funded).state == RESERVED
    assert left(funded) == Fraction(6, 10)
    drawn = draw(funded)
    assert (drawn.state, funded.numbers("run")) == (DRAWN, {"rows": [7, -1]})
    published = funded.publish(run_key="run", spec_digest="sha256:a")
    assert (published.state, published.drawn_at) == (PUBLISHED, drawn.drawn_at)
    balance = funded.balance(dataset=DATASET, unit=UNIT)
    assert (balance.spent, balance.reserved, balance.left) == (Fraction(4, 10), 0, Fraction(6, 10))
    assert funded.mechanisms(dataset=DATASET, unit=UNIT) == [
        MechanismEvent(query="rows", mechanism="discrete Laplace", sensitivity=1, scale=2.5, epsilon=Fraction(4, 10))
    ]


@BOTH_STORES
def test_numbers_of_64_bits_come_back_exactly(funded: Ledger) -> None:
    reserve(funded)
    draw(funded, noisy=2**62 + 1)
    assert funded.numbers("run")["rows"][0] == 2**62 + 1


def test_ten_tenths_are_one(funded: Ledger) -> None:
    for i in range(10):
        reserve(funded, f"run{i}", epsilon="0.1")
    assert left(funded) == 0
    with pytest.raises(BudgetExhausted):
        reserve(funded, "one more", epsilon="0.000000000000000000000000000001")


@BOTH_STORES
def test_overspending_is_refused_and_says_what_is_left(funded: Ledger) -> None:
    reserve(funded)
    with pytest.raises(BudgetExhausted, match=r"asks for epsilon 0\.7, of 1 there is 0\.6 left") as refused:
        reserve(funded, "another", epsilon="0.7")
    assert "clinic.visits per patient_id" in str(refused.value)
    assert OWNER in refused.value.remedy
    assert funded.find("another") is None
    assert left(funded) == Fraction(6, 10)


def test_budgets_of_other_units_and_datasets_are_apart(funded: Ledger) -> None:
    funded.create(dataset=DATASET, unit="ward", epsilon=Decimal(5), owner=OWNER)
    reserve(funded, epsilon="1")
    assert funded.balance(dataset=DATASET, unit="ward").left == 5
    with pytest.raises(BudgetError, match="lepton budget create"):
        funded.balance(dataset="clinic.labs", unit=UNIT)


def test_no_budget_no_release(ledger: Ledger) -> None:
    with pytest.raises(BudgetError, match="no privacy budget"):
        reserve(ledger)


def test_the_same_run_asks_again_and_spends_nothing_more(funded: Ledger) -> None:
    reserve(funded)
    assert reserve(funded).state == RESERVED
    draw(funded, noisy=7)
    assert reserve(funded).state == DRAWN
    second = draw(funded, noisy=8)
    assert (second.state, funded.numbers("run")["rows"][0]) == (DRAWN, 7)
    assert left(funded) == Fraction(6, 10)
    assert len(funded.mechanisms(dataset=DATASET, unit=UNIT)) == 1


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_another_spec_under_the_run_key_is_refused_in_every_state(funded: Ledger, steps: int) -> None:
    reserve(funded)
    if steps >= 1:
        draw(funded)
    if steps >= 2:
        funded.publish(run_key="run", spec_digest="sha256:a")
    with pytest.raises(RunKeyConflict):
        reserve(funded, spec="sha256:b")
    with pytest.raises(RunKeyConflict):
        draw(funded, spec="sha256:b")
    with pytest.raises(RunKeyConflict):
        funded.publish(run_key="run", spec_digest="sha256:b")


def test_only_the_owner_gives_a_reservation_back(funded: Ledger) -> None:
    reserve(funded)
    with pytest.raises(AccessDenied, match=OWNER):
        funded.release_reservation(run_key="run", principal="analyst")
    assert left(funded) == Fraction(6, 10)
    assert funded.release_reservation(run_key="run", principal=OWNER).state == RELEASED
    assert left(funded) == 1


@BOTH_STORES
def test_what_is_drawn_is_never_refunded(funded: Ledger) -> None:
    reserve(funded)
    draw(funded)
    with pytest.raises(BudgetError, match="drawn"):
        funded.release_reservation(run_key="run", principal=OWNER)
    funded.cancel(run_key="run", spec_digest="sha256:a")
    funded.publish(run_key="run", spec_digest="sha256:a")
    with pytest.raises(BudgetError, match="published"):
        funded.release_reservation(run_key="run", principal=OWNER)
    assert left(funded) == Fraction(6, 10)
    assert funded.numbers("run") == {"rows": [7, -1]}


def test_a_job_that_was_not_dead_after_all_cannot_draw_on_a_released_reservation(funded: Ledger) -> None:
    reserve(funded)
    funded.release_reservation(run_key="run", principal=OWNER)
    reserve(funded, "another", epsilon="1")
    with pytest.raises(BudgetError, match="no reservation"):
        draw(funded)
    with pytest.raises(BudgetExhausted):
        reserve(funded)
    assert left(funded) == 0


@BOTH_STORES
def test_a_released_run_key_can_be_used_again_also_with_another_spec(funded: Ledger) -> None:
    reserve(funded)
    funded.release_reservation(run_key="run", principal=OWNER)
    assert reserve(funded, spec="sha256:b", epsilon="0.3").state == RESERVED
    assert left(funded) == Fraction(7, 10)
    with pytest.raises(RunKeyConflict):
        draw(funded, spec="sha256:a")


def test_mechanisms_cannot_cost_more_than_is_reserved(funded: Ledger) -> None:
    reserve(funded, epsilon="0.4")
    with pytest.raises(BudgetError, match=r"cost epsilon 0\.41, reserved is 0\.4"):
        draw(funded, epsilon="0.41")
    assert funded.balance(dataset=DATASET, unit=UNIT).releases[0].state == RESERVED


def test_nothing_is_published_that_was_not_drawn(funded: Ledger) -> None:
    reserve(funded)
    with pytest.raises(BudgetError, match="drawn"):
        funded.publish(run_key="run", spec_digest="sha256:a")
    with pytest.raises(BudgetError, match="drawn"):
        funded.numbers("run")


@pytest.mark.parametrize(("epsilon", "delta"), [("0", "0"), ("-1", "0"), ("1", "1"), ("1", "-0.1")])
def test_a_budget_has_a_positive_epsilon_and_a_delta_below_one(ledger: Ledger, epsilon: str, delta: str) -> None:
    with pytest.raises(BudgetError):
        ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(epsilon), delta=Decimal(delta), owner=OWNER)


def test_a_budget_is_not_replaced(funded: Ledger) -> None:
    with pytest.raises(BudgetError, match="already"):
        funded.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(100), owner=OWNER)
    assert left(funded) == 1


def test_the_database_itself_refuses_a_draw_without_numbers(funded: Ledger, engine: sql.Engine) -> None:
    reserve(funded)
    with engine.begin() as connection, pytest.raises(sql.exc.IntegrityError):
        connection.exec_driver_sql("UPDATE lepton_release SET state = 'drawn'")


@pytest.mark.filterwarnings("ignore:Did not recognize type 'xid8'")
@BOTH_STORES
def test_the_migration_makes_the_tables_that_the_code_expects(engine: sql.Engine) -> None:
    with engine.connect() as connection:
        # PostgreSQL's audit leaves have a column that only SQL knows; the ledger's tables must be as the code says.
        mine = {table.name for table in (budget_table, release_table, mechanism_table)}
        only_mine = {"include_object": lambda _object, name, kind, *_: kind != "table" or name in mine}
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, **only_mine})
        assert compare_metadata(context, metadata) == []


def test_reading_the_ledger_needs_no_engine_libraries() -> None:
    heavy = ("pyspark", "pyarrow", "numpy", "opendp", "diffprivlib", "airflow", "tensorflow")
    program = f"import sys, lepton_airflow.privacy.ledger; print([m for m in {heavy!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_neither_does_the_spec_of_the_job() -> None:
    heavy = ("pyspark", "pyarrow", "numpy", "opendp", "diffprivlib", "airflow", "tensorflow")
    program = f"import sys, lepton_airflow.jobs.release_aggregates; print([m for m in {heavy!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
