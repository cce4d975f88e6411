"""The ledger never lets more be spent than there is, and a release happens once."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from lepton_airflow.audit.database import VERSION_TABLE, metadata
from lepton_airflow.errors import AccessDenied, BudgetError, BudgetExhausted, RunKeyConflict
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.records import (
    DRAWN,
    GAUSSIAN,
    LAPLACE,
    PUBLISHED,
    RELEASED,
    RESERVED,
    MechanismEvent,
    Release,
)
from lepton_airflow.privacy.tables import budget_table, mechanism_table, release_table

BOTH_STORES = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
DATASET, UNIT, OWNER = "clinic.visits", "patient_id", "officer"


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(1), owner=OWNER)
    return ledger


def laplace(epsilon: str | Fraction, *, query: str = "rows", delta: Fraction = Fraction(0)) -> MechanismEvent:
    noise = {"groups": 1, "per_group": 1, "width": 1, "scale": float(2 / Fraction(epsilon)), "delta": delta}
    return MechanismEvent(query=query, mechanism=LAPLACE, epsilon=Fraction(epsilon), **noise)  # type: ignore[arg-type]


def gaussian(rho: str, *, query: str = "rows") -> MechanismEvent:
    noise = {"groups": 3, "per_group": 5, "width": 4, "scale": (3 * 25 / float(Fraction(rho))) ** 0.5}
    fields = {"epsilon": Fraction(0), "rho": Fraction(rho), "delta": Fraction(1, 10**9)}
    return MechanismEvent(query=query, mechanism=GAUSSIAN, **noise, **fields)  # type: ignore[arg-type]


def reserve(
    ledger: Ledger, run_key: str = "run", *, epsilon: str | Fraction = "0.4", spec: str = "sha256:a", **changes: Any
) -> Release:
    arguments: dict[str, Any] = {
        "spec": {"metrics": ["count"], "epsilon": str(epsilon)},
        "mechanisms": [laplace(epsilon)],
        "principal": "analyst",
        "requested_by": "ada",
        "needs_approval": False,
    }
    return ledger.reserve(run_key=run_key, spec_digest=spec, dataset=DATASET, unit=UNIT, **(arguments | changes))


def draw(ledger: Ledger, run_key: str = "run", *, spec: str = "sha256:a", noisy: int = 7) -> Release:
    return ledger.draw(run_key=run_key, spec_digest=spec, result={"rows": [noisy, -1]})


def left(ledger: Ledger) -> Fraction:
    return ledger.balance(dataset=DATASET, unit=UNIT).left


@BOTH_STORES
def test_a_release_is_reserved_drawn_and_published(funded: Ledger) -> None:
    assert reserve(funded).state == RESERVED
    assert left(funded) == Fraction(6, 10)
    drawn = draw(funded)
    assert (drawn.state, funded.result("run")) == (DRAWN, {"rows": [7, -1]})
    published = funded.publish(run_key="run", spec_digest="sha256:a")
    assert (published.state, published.drawn_at) == (PUBLISHED, drawn.drawn_at)
    balance = funded.balance(dataset=DATASET, unit=UNIT)
    assert (balance.spent, balance.reserved, balance.left) == (Fraction(4, 10), 0, Fraction(6, 10))
    assert funded.mechanisms(dataset=DATASET, unit=UNIT) == [laplace("0.4")]
    assert funded.spec("run") == {"metrics": ["count"], "epsilon": "0.4"}


@BOTH_STORES
def test_numbers_of_64_bits_come_back_exactly(funded: Ledger) -> None:
    reserve(funded)
    draw(funded, noisy=2**62 + 1)
    assert funded.result("run")["rows"][0] == 2**62 + 1


def test_ten_tenths_are_one(funded: Ledger) -> None:
    for i in range(10):
        reserve(funded, f"run{i}", epsilon="0.1")
    assert left(funded) == 0
    with pytest.raises(BudgetExhausted):
        reserve(funded, "one more", epsilon=Fraction(1, 10**30))


@BOTH_STORES
def test_overspending_is_refused_and_says_what_is_left(funded: Ledger) -> None:
    reserve(funded)
    with pytest.raises(BudgetExhausted, match=r"asks for epsilon 0\.7; of 1 there is 0\.6 left\.") as refused:
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
    assert (second.state, funded.result("run")["rows"][0]) == (DRAWN, 7)
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
    assert funded.result("run") == {"rows": [7, -1]}


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


def test_a_mechanism_with_less_noise_than_it_is_charged_for_is_refused(funded: Ledger) -> None:
    weak = MechanismEvent(
        query="rows", mechanism=LAPLACE, groups=2, per_group=1, width=1, scale=4.0, epsilon=Fraction(49, 100)
    )
    with pytest.raises(BudgetError, match="too little noise"):
        reserve(funded, mechanisms=[weak])
    with pytest.raises(BudgetError, match="one name"):
        reserve(funded, mechanisms=[laplace("0.1"), laplace("0.2")])
    assert funded.find("run") is None


def test_a_reservation_that_is_made_again_has_the_mechanisms_of_its_new_spec(funded: Ledger) -> None:
    reserve(funded, mechanisms=[laplace("0.3"), laplace("0.2", query="sum")])
    funded.cancel(run_key="run", spec_digest="sha256:a")
    reserve(funded, spec="sha256:b", epsilon="0.1")
    draw(funded, spec="sha256:b")
    assert funded.mechanisms(dataset=DATASET, unit=UNIT) == [laplace("0.1")]
    assert left(funded) == Fraction(9, 10)


@BOTH_STORES
def test_events_come_back_as_they_were_stored(ledger: Ledger) -> None:
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(2), delta=Decimal("1e-6"), owner=OWNER)
    events = [gaussian("1/300"), laplace(Fraction(1, 7), query="sum", delta=Fraction(1, 3 * 10**8))]
    release = ledger.reserve(
        run_key="run",
        spec_digest="sha256:a",
        spec={},
        dataset=DATASET,
        unit=UNIT,
        mechanisms=events,
        principal="analyst",
        epsilon=Decimal("0.5"),
        delta=Decimal("1e-7"),
    )
    assert (release.epsilon, release.delta) == (Fraction(1, 2), Fraction(1, 10**7))
    draw(ledger)
    assert ledger.mechanisms(dataset=DATASET, unit=UNIT) == events


def test_nothing_is_published_that_was_not_drawn(funded: Ledger) -> None:
    reserve(funded)
    with pytest.raises(BudgetError, match="drawn"):
        funded.publish(run_key="run", spec_digest="sha256:a")
    with pytest.raises(BudgetError, match="drawn"):
        funded.result("run")


@pytest.mark.parametrize(("epsilon", "delta"), [("0", "0"), ("-1", "0"), ("1", "1"), ("1", "-0.1")])
def test_a_budget_has_a_positive_epsilon_and_a_delta_below_one(ledger: Ledger, epsilon: str, delta: str) -> None:
    with pytest.raises(BudgetError):
        ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(epsilon), delta=Decimal(delta), owner=OWNER)


def test_old_draws_are_still_read(funded: Ledger, engine: sql.Engine) -> None:
    reserve(funded)
    draw(funded)
    old = '{"schema": "lepton.draw/1", "vectors": {"rows": [5]}}'
    with engine.begin() as connection:
        connection.execute(release_table.update().values(result=old, spec=None))
    assert funded.result("run") == {"vectors": {"rows": [5]}}
    with pytest.raises(BudgetError, match="No spec is stored"):
        funded.spec("run")


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
    heavy = ("pyspark", "pyarrow", "numpy", "opendp", "diffprivlib", "dp_accounting", "airflow", "tensorflow")
    program = f"import sys, lepton_airflow.privacy.ledger; print([m for m in {heavy!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_neither_does_the_spec_of_the_job() -> None:
    heavy = ("pyspark", "pyarrow", "numpy", "opendp", "diffprivlib", "airflow", "tensorflow")
    program = f"import sys, lepton_airflow.jobs.release_aggregates; print([m for m in {heavy!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
