"""`lepton budget`: owners, amounts, and the audit of both."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from typer.testing import CliRunner, Result

from lepton_airflow.audit.database import connect, leaf_table
from lepton_airflow.cli import app
from lepton_airflow.errors import AccessDenied, BudgetError, KeyUnavailable
from lepton_airflow.keys.identity import generate_identity
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.records import GAUSSIAN, LAPLACE, MechanismEvent
from lepton_airflow.settings import Settings


def budget(home: Settings, *arguments: str, identity: str = "tester") -> Result:
    variables = {"LEPTON_IDENTITY": identity, "COLUMNS": "200"}
    return CliRunner().invoke(app, ["budget", *arguments, "--home", str(home.home)], env=variables)


def create(home: Settings, **options: str) -> Result:
    amounts = {"epsilon": "1.5"} | options
    flags = [part for name, value in amounts.items() for part in (f"--{name}", value)]
    return budget(home, "create", "clinic.visits", "--unit", "patient_id", *flags)


def events(home: Settings) -> list[dict[str, Any]]:
    engine = connect(home)
    with engine.connect() as connection:
        payloads = connection.execute(sql.select(leaf_table.c.payload).order_by(leaf_table.c.id)).scalars().all()
    engine.dispose()
    return [event for event in map(json.loads, payloads) if event["action"].startswith("budget.")]


def laplace(epsilon: str = "0.5") -> MechanismEvent:
    noise = {"groups": 1, "per_group": 1, "width": 1, "scale": 1 / float(epsilon)}
    return MechanismEvent(query="rows", mechanism=LAPLACE, epsilon=Fraction(epsilon), **noise)  # type: ignore[arg-type]


def gaussian() -> MechanismEvent:
    noise = {"groups": 1, "per_group": 1, "width": 1, "scale": 10.0}
    return MechanismEvent(query="rows", mechanism=GAUSSIAN, epsilon=Fraction(0), rho=Fraction(1, 200), **noise)  # type: ignore[arg-type]


def reserve(home: Settings, run_key: str, event: MechanismEvent | None = None, *, approver: str | None = None) -> None:
    """Reserve and, where somebody approves it, draw."""
    engine = connect(home)
    ledger = Ledger(engine)
    ledger.reserve(
        run_key=run_key,
        spec_digest="sha256:a",
        spec={},
        dataset="clinic.visits",
        unit="patient_id",
        mechanisms=[event or laplace()],
        principal="tester",
        requested_by="ada",
        needs_approval=approver is not None,
    )
    if approver is not None:
        ledger.draw(run_key=run_key, spec_digest="sha256:a", result={"rows": 1})
        ledger.approve(run_key=run_key, approver=approver)
    engine.dispose()


def rows(shown: str) -> list[list[str]]:
    """The cells of the printed tables, a header and its rows."""
    lines = [line.replace("┃", "│") for line in shown.splitlines() if line.startswith(("│", "┃"))]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_a_budget_is_made_shown_and_audited(home: Settings) -> None:
    assert create(home).exit_code == 0
    shown = budget(home, "show")
    assert shown.exit_code == 0
    assert {"clinic.visits", "patient_id", "1.5", "tester"} <= set(shown.stdout.replace("│", " ").split())
    intent, outcome = events(home)
    assert (intent["phase"], outcome["phase"]) == ("intent", "success")
    assert outcome["details"] == {"unit": "patient_id", "epsilon": "1.5", "delta": "0", "period": None}
    assert outcome["actor"]["principal"] == "tester"


def test_a_budget_is_not_replaced(home: Settings) -> None:
    create(home)
    again = create(home, epsilon="100")
    assert isinstance(again.exception, BudgetError)
    assert events(home)[-1]["phase"] == "failure"
    assert "100" not in budget(home, "show").stdout


def test_amounts_that_are_none_are_refused(home: Settings) -> None:
    for epsilon in ("much", "-1", "0", "nan"):
        assert isinstance(create(home, epsilon=epsilon).exception, BudgetError), epsilon


def test_a_budget_needs_an_identity_that_owns_it(home: Settings) -> None:
    refused = budget(home, "create", "clinic.visits", "--unit", "u", "--epsilon", "1", identity="nobody")
    assert isinstance(refused.exception, KeyUnavailable)


def test_only_the_owner_gives_a_reservation_back(home: Settings) -> None:
    create(home)
    reserve(home, "dag/task/run/-1")
    generate_identity("stranger", identities=home.identities, recipients=home.recipients)
    refused = budget(home, "release-reservation", "dag/task/run/-1", identity="stranger")
    assert isinstance(refused.exception, AccessDenied)
    given = budget(home, "release-reservation", "dag/task/run/-1")
    assert given.exit_code == 0
    assert "epsilon 0.5" in given.stdout
    assert [event["phase"] for event in events(home)] == [
        *("intent", "success"),
        *("intent", "failure"),
        *("intent", "success"),
    ]
    assert "released" in budget(home, "show", "clinic.visits").stdout


def test_a_dataset_without_a_budget_is_said(home: Settings, tmp_path: Path) -> None:
    assert isinstance(budget(home, "show", "other.table").exception, BudgetError)


def test_every_accountant_is_shown_and_no_cost_is_rounded_down(home: Settings) -> None:
    create(home, epsilon="3", delta="0.000001", period="month")
    for run in range(3):
        reserve(home, f"run{run}", laplace("0.1"), approver="grace")
    shown = budget(home, "show")
    header, row = rows(shown.stdout)
    cells = dict(zip(header, row, strict=True))
    assert cells["period"] == f"{datetime.now(UTC):%Y-%m}"
    assert (cells["basic"], cells["epsilon"], cells["delta"], cells["releases"]) == ("0.3", "3", "0.000001", "3")
    engine = connect(home)
    spending = Ledger(engine).balance(dataset="clinic.visits", unit="patient_id").spending
    engine.dispose()
    assert spending.zcdp is not None
    assert spending.pld is not None
    assert spending.charged is not None
    assert 0 <= Fraction(cells["zCDP"]) - Fraction(spending.zcdp) < Fraction(1, 10**6)
    assert 0 <= Fraction(cells["PLD"]) - Fraction(spending.pld) < Fraction(1, 10**6)
    assert (Fraction(cells["charged"]), Fraction(cells["left"])) == (spending.charged, 3 - spending.charged)


def test_the_history_says_who_approved_what(home: Settings) -> None:
    create(home)
    reserve(home, "approved", approver="grace")
    reserve(home, "free")
    header, *releases = rows(budget(home, "show", "clinic.visits").stdout)[2:]
    found = {row[header.index("run key")]: row for row in releases}
    columns = [header.index(name) for name in ("state", "period", "epsilon", "principal", "requested by", "approver")]
    assert [found["approved"][column] for column in columns] == ["drawn", "-", "0.5", "tester", "ada", "grace"]
    assert [found["free"][column] for column in columns] == ["reserved", "-", "0.5", "tester", "ada", "-"]


def test_a_period_that_is_none_is_refused(home: Settings) -> None:
    assert create(home, period="decade").exit_code == 2
    assert events(home) == []


def test_the_check_adds_up_what_diffprivlib_can_and_says_what_not(home: Settings) -> None:
    create(home, delta="0.000001")
    reserve(home, "pure", laplace("0.1"), approver="grace")
    reserve(home, "gaussian", gaussian(), approver="grace")
    checked = budget(home, "show", "clinic.visits", "--check")
    assert checked.exit_code == 0, checked.output
    assert "accountant agree" in checked.stdout
    assert "not checked: 1 releases with Gaussian noise" in checked.stdout
    engine = connect(home)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE lepton_mechanism SET epsilon = '0.05' WHERE run_key = 'pure'")
    engine.dispose()
    assert isinstance(budget(home, "show", "clinic.visits", "--check").exception, BudgetError)
