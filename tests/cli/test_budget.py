"""`lepton budget`: owners, amounts, and the audit of both."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from typer.testing import CliRunner, Result

from lepton_airflow.audit.database import connect, leaf_table
from lepton_airflow.cli import app
from lepton_airflow.errors import AccessDenied, BudgetError, KeyUnavailable
from lepton_airflow.keys.identity import generate_identity
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.settings import Settings


def budget(home: Settings, *arguments: str, identity: str = "tester") -> Result:
    variables = {"LEPTON_IDENTITY": identity, "COLUMNS": "160"}
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


def reserve(home: Settings, run_key: str) -> None:
    engine = connect(home)
    Ledger(engine).reserve(
        run_key=run_key,
        spec_digest="sha256:a",
        dataset="clinic.visits",
        unit="patient_id",
        epsilon=Decimal("0.5"),
        principal="tester",
    )
    engine.dispose()


def test_a_budget_is_made_shown_and_audited(home: Settings) -> None:
    assert create(home).exit_code == 0
    shown = budget(home, "show")
    assert shown.exit_code == 0
    assert {"clinic.visits", "patient_id", "1.5", "tester"} <= set(shown.stdout.replace("│", " ").split())
    intent, outcome = events(home)
    assert (intent["phase"], outcome["phase"]) == ("intent", "success")
    assert outcome["details"] == {"unit": "patient_id", "epsilon": "1.5", "delta": "0"}
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
