"""A ledger of the version before keeps what it has spent."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import sqlalchemy as sql
from alembic import command

from lepton_airflow.audit.database import _migration_config, connect, migrate
from lepton_airflow.errors import BudgetError
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.records import LAPLACE, MechanismEvent
from lepton_airflow.settings import Settings

DATASET, UNIT = "clinic.visits", "patient_id"
DRAWN_BEFORE = """'{"schema": "lepton.draw/1", "vectors": {"rows": [7]}}'"""


@pytest.fixture(params=["sqlite", "postgresql"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sql.Engine]:
    """A database of revision 0003 with a budget and a release in each state."""
    settings = Settings(home=tmp_path)
    if request.param == "postgresql":
        settings = Settings(home=tmp_path, audit_database=request.getfixturevalue("postgresql_database"))
    engine = connect(settings, check_schema=False)
    with engine.begin() as connection:
        config = _migration_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0003_key_usage")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO lepton_budget (dataset, unit, epsilon, delta, owner, created_at) "
            "VALUES ('clinic.visits', 'patient_id', '2', '0', 'officer', '2026-10-01')"
        )
        for state in ("reserved", "drawn", "published", "released"):
            numbers = DRAWN_BEFORE if state in ("drawn", "published") else "NULL"
            connection.exec_driver_sql(
                "INSERT INTO lepton_release "
                "(run_key, budget_id, spec_digest, state, epsilon, delta, principal, reserved_at, result) "
                f"VALUES ('{state}', 1, 'sha256:a', '{state}', '0.4', '0', 'job', '2026-10-01', {numbers})"
            )
        for run_key, query, sensitivity in (
            ("drawn", "rows", "3"),
            ("published", "rows", "5"),
            ("published", "sum", "1000000"),
        ):
            share = "0.4" if run_key == "drawn" else "0.2"
            scale = repr(float(Fraction(sensitivity) / Fraction(share)) * (1 + 1e-15))
            connection.exec_driver_sql(
                "INSERT INTO lepton_mechanism (run_key, query, mechanism, sensitivity, scale, epsilon) "
                f"VALUES ('{run_key}', '{query}', 'discrete Laplace', '{sensitivity}', '{scale}', '{share}')"
            )
    yield engine
    engine.dispose()


def test_what_was_spent_stays_spent(old: sql.Engine) -> None:
    migrate(old)
    ledger = Ledger(old)
    balance = ledger.balance(dataset=DATASET, unit=UNIT)
    assert (balance.period, balance.period_start, balance.spending.charged) == (None, None, Fraction(8, 10))
    assert (balance.spent, balance.reserved, balance.left) == (Fraction(8, 10), 0, Fraction(12, 10))
    states = {release.run_key: release.state for release in balance.releases}
    assert states == {"reserved": "released", "drawn": "drawn", "published": "published", "released": "released"}
    by_release = ledger.mechanisms_by_release(dataset=DATASET, unit=UNIT)
    assert {key: [(e.l1, e.groups, e.per_group, e.width) for e in events] for key, events in by_release.items()} == {
        "drawn": [(3, 1, 3, 1)],
        "published": [(5, 1, 5, 1), (1000000, 1, 1000000, 1)],
    }
    assert ledger.result("published") == {"vectors": {"rows": [7]}}
    assert ledger.publish(run_key="drawn", spec_digest="sha256:a").needs_approval is False


def test_a_job_that_was_at_work_reserves_again(old: sql.Engine) -> None:
    migrate(old)
    ledger = Ledger(old)
    with pytest.raises(BudgetError, match="no reservation"):
        ledger.draw(run_key="reserved", spec_digest="sha256:a", result={})
    event = MechanismEvent(
        query="rows", mechanism=LAPLACE, groups=1, per_group=1, width=1, scale=2.5, epsilon=Fraction(4, 10)
    )
    ledger.reserve(
        run_key="reserved",
        spec_digest="sha256:a",
        spec={},
        dataset=DATASET,
        unit=UNIT,
        mechanisms=[event],
        principal="job",
    )
    assert ledger.balance(dataset=DATASET, unit=UNIT).left == Fraction(8, 10)


def test_the_migrated_tables_refer_to_each_other_and_keep_their_rules(old: sql.Engine) -> None:
    migrate(old)
    for statement in (
        "DELETE FROM lepton_release WHERE run_key = 'drawn'",
        "UPDATE lepton_release SET budget_id = 99",
        "UPDATE lepton_release SET state = 'reserved' WHERE run_key = 'drawn'",
        "UPDATE lepton_release SET approver = principal",
    ):
        with pytest.raises(sql.exc.IntegrityError), old.begin() as connection:
            connection.exec_driver_sql(statement)
