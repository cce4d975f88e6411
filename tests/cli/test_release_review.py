"""`lepton release approve | publish | receipt | verify`, after a real release: who may, what they see, what the audit says."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from typer.testing import CliRunner, Result

from lepton_airflow.audit.checkpoint import generate_signer
from lepton_airflow.audit.database import connect, leaf_table
from lepton_airflow.cli import app
from lepton_airflow.errors import (
    AccessDenied,
    ApprovalMissing,
    BudgetError,
    EventNotSealed,
    KeyUnavailable,
    ReceiptInvalid,
    TargetExists,
)
from lepton_airflow.jobs.runner import Caller, run_job
from lepton_airflow.keys.identity import generate_identity
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.tables import release_table
from lepton_airflow.settings import Settings

RUN = "dag/release/manual__1/-1"
DATASET, UNIT = "clinic.visits", "patient_id"


def lepton(home: Settings, *arguments: str, identity: str = "tester", answer: str | None = None) -> Result:
    variables = {"LEPTON_IDENTITY": identity, "COLUMNS": "160", "LEPTON_HOME": str(home.home)}
    return CliRunner().invoke(app, list(arguments), env=variables, input=answer)


def events(home: Settings, action: str) -> list[dict[str, Any]]:
    engine = connect(home)
    with engine.connect() as connection:
        payloads = connection.execute(sql.select(leaf_table.c.payload).order_by(leaf_table.c.id)).scalars().all()
    engine.dispose()
    return [event for event in map(json.loads, payloads) if event["action"] == action]


@pytest.fixture
def drawn(home: Settings, spark: Any, tmp_path: Path) -> Iterator[Path]:
    """A release that waits for approval: alice asked for it, tester ran it. The file that it will be."""
    home.checkpoint_signer.parent.mkdir(mode=0o700)
    home.checkpoint_verifier.write_text(generate_signer(home.checkpoint_signer, name="lepton-audit") + "\n")
    for name in ("alice", "bob"):
        generate_identity(name, identities=home.identities, recipients=home.recipients)
    engine = connect(home)
    Ledger(engine).create(dataset=DATASET, unit=UNIT, epsilon=Decimal(10), owner="tester")
    rows = [(f"p{index}", ("north", "south")[index % 2]) for index in range(20)]
    source = str(tmp_path / "visits")
    spark.createDataFrame(rows, "patient_id string, ward string").write.parquet(source)
    spec = {
        "source": {"name": DATASET, "path": source},
        "privacy_unit": UNIT,
        "group_by": ["ward"],
        "groups": ["north", "south"],
        "metrics": [{"name": "visits", "type": "count"}],
        "max_groups_per_unit": 1,
        "max_rows_per_unit_and_group": 1,
        "epsilon": "1",
        "target": str(tmp_path / "release.json"),
        "purpose": "test",
        "approval": "required",
    }
    summary = run_job("release_aggregates", spec, settings=home, run_key=RUN, caller=Caller(on_behalf_of="alice"))
    assert summary["published"] is False
    yield tmp_path / "release.json"
    engine.dispose()


def numbers(home: Settings) -> list[str]:
    engine = connect(home)
    vectors = Ledger(engine).result(RUN)["groupings"]["ward"]["vectors"]["visits"]
    engine.dispose()
    return [str(vector[0]) for vector in vectors]


def test_a_release_is_approved_by_another_published_proved_and_verified(
    home: Settings, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = tmp_path / "receipt.json"
    early = lepton(home, "release", "publish", RUN)
    assert isinstance(early.exception, ApprovalMissing)
    assert not drawn.exists()

    # Neither who asked for it nor the identity that ran it; and refusing to say yes is no approval.
    assert isinstance(lepton(home, "release", "approve", RUN, "--yes", identity="alice").exception, AccessDenied)
    assert isinstance(lepton(home, "release", "approve", RUN, "--yes", identity="tester").exception, AccessDenied)
    assert lepton(home, "release", "approve", RUN, identity="bob", answer="n\n").exit_code == 1
    assert isinstance(lepton(home, "release", "publish", RUN).exception, ApprovalMissing)
    assert not drawn.exists()

    approved = lepton(home, "release", "approve", RUN, identity="bob", answer="y\n")
    assert approved.exit_code == 0, approved.output
    shown = set(approved.stdout.replace("│", " ").split())
    assert {DATASET, "test", "patient_id", "alice", "tester", "ward:", "2", "visits", "Laplace"} <= shown
    assert "release.json" in approved.stdout.replace("\n", "")
    outcomes = [(event["phase"], event["details"]["approver"]) for event in events(home, "approve")]
    assert outcomes == [
        *(("intent", "alice"), ("failure", "alice")),
        *(("intent", "tester"), ("failure", "tester")),
        *(("intent", "bob"), ("success", "bob")),
    ]
    last = events(home, "approve")[-1]
    assert (last["run_key"], last["dataset"], last["actor"]["principal"]) == (RUN, DATASET, "bob")
    assert last["details"]["known_by"] == "identity"

    published = lepton(home, "release", "publish", RUN)
    assert published.exit_code == 0, published.output
    assert json.loads(drawn.read_text())["approved_by"] == "bob"
    again = drawn.read_bytes()
    assert lepton(home, "release", "publish", RUN).exit_code == 0
    assert drawn.read_bytes() == again

    unsealed = lepton(home, "release", "receipt", RUN, "-o", str(receipt))
    assert isinstance(unsealed.exception, EventNotSealed)
    assert "lepton audit seal" in str(unsealed.exception)
    assert not receipt.exists()
    assert lepton(home, "audit", "seal").exit_code == 0
    assert lepton(home, "release", "receipt", RUN, "-o", str(receipt)).exit_code == 0
    assert isinstance(lepton(home, "release", "receipt", RUN, "-o", str(receipt)).exception, TargetExists)

    # Offline: no database, no network, no home.
    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(sql, "create_engine", forbidden)
    verify = ("release", "verify", str(receipt))
    key = ("--verifier-key", str(home.checkpoint_verifier))
    nowhere = home.model_copy(update={"home": tmp_path / "nowhere"})
    good = lepton(nowhere, *verify, *key, "--release", str(drawn))
    assert good.exit_code == 0, good.output
    said = " ".join(good.stdout.split())
    for part in (
        "ok:",
        "approved by bob",
        "epsilon 1,",
        "SHA-256 is that",
        "not proved: that the numbers were computed",
    ):
        assert part in said
    assert "so not checked" in " ".join(lepton(home, *verify).stdout.split())

    changed = tmp_path / "changed.json"
    changed.write_bytes(drawn.read_bytes().replace(b"north", b"nurth"))
    refused = lepton(home, *verify, "--release", str(changed))
    assert isinstance(refused.exception, ReceiptInvalid)
    assert refused.exception.place == "release file"
    changed.write_text(receipt.read_text().replace('"epsilon": "1"', '"epsilon": "0.1"'))
    refused = lepton(home, "release", "verify", str(changed))
    assert isinstance(refused.exception, ReceiptInvalid)
    assert refused.exit_code == 1
    assert isinstance(lepton(nowhere, *verify, "--verifier-key", "no/such/key").exception, KeyUnavailable)
    assert isinstance(lepton(home, "release", "verify", "no/such/receipt").exception, ReceiptInvalid)


def test_an_approver_sees_numbers_only_on_request_and_the_audit_knows(home: Settings, drawn: Path) -> None:
    hidden = lepton(home, "release", "approve", RUN, identity="bob", answer="n\n")
    assert '"value"' not in hidden.stdout
    assert not events(home, "approve")
    shown = lepton(home, "release", "approve", RUN, "--show", identity="bob", answer="n\n")
    document = json.loads(shown.stdout[shown.stdout.index("{") : shown.stdout.rindex("}") + 1])
    values = [str(cell["values"]["visits"]["value"]) for cell in document["groupings"][0]["cells"]]
    assert values == numbers(home)
    seen = [(one["phase"], one["details"]["step"], one["run_key"], one["rules"]) for one in events(home, "approve")]
    assert seen == [("intent", "show", RUN, ["approvals"]), ("success", "show", RUN, ["approvals"])]
    assert isinstance(lepton(home, "release", "publish", RUN).exception, ApprovalMissing)


@pytest.mark.parametrize("options", [["--yes"], ["--show"]])
def test_who_has_no_grant_to_approve_neither_sees_the_numbers_nor_lets_them_out(
    home: Settings, drawn: Path, options: list[str]
) -> None:
    """A grant of the release is none of its approval."""
    allowed = home.policy.read_text()
    home.policy.write_text(allowed.replace("[tester, alice, bob]", "[alice]").replace("[tester]", "[tester, bob]"))
    denied = lepton(home, "release", "approve", RUN, *options, identity="bob", answer="y\n")
    assert isinstance(denied.exception, AccessDenied)
    assert "bob may not approve for the purpose test: no grant covers column patient_id, ward" in str(denied.exception)
    assert '"value"' not in denied.output
    (event,) = events(home, "approve")
    assert (event["phase"], event["run_key"], event["actor"]["principal"]) == ("denied", RUN, "bob")
    assert isinstance(lepton(home, "release", "publish", RUN).exception, ApprovalMissing)
    assert not drawn.exists()

    rule = "role: everyone, actions: [approve], datasets: ['*'], columns: [ward], purposes: ['*']"
    forbidden = f"denials:\n  - {{id: not-bob, {rule}}}\n"
    home.policy.write_text(allowed.replace("[tester]", "[tester, bob]") + forbidden)
    denied = lepton(home, "release", "approve", RUN, *options, identity="bob", answer="y\n")
    assert "denied by rule not-bob" in str(denied.exception)


def test_publishing_is_a_release_to_the_policy(home: Settings, drawn: Path) -> None:
    lepton(home, "release", "approve", RUN, "--yes", identity="bob")
    denied = lepton(home, "release", "publish", RUN, identity="alice")
    assert isinstance(denied.exception, AccessDenied)
    assert not drawn.exists()
    last = events(home, "release")[-1]
    assert (last["phase"], last["details"]["step"], last["actor"]["principal"]) == ("denied", "publish", "alice")
    assert (last["run_key"], last["dataset"], last["columns"]) == (RUN, DATASET, ["patient_id", "ward"])


def test_what_is_not_there_or_was_changed_is_said_and_audited(home: Settings, drawn: Path) -> None:
    for command in ("approve", "publish"):
        refused = lepton(home, "release", command, "no/such/run/-1", *(["--yes"] if command == "approve" else []))
        assert isinstance(refused.exception, BudgetError), command
    assert events(home, "release")[-1]["details"]["error"] == "BudgetError"
    lepton(home, "release", "approve", RUN, "--yes", identity="bob")
    engine = connect(home)
    with engine.begin() as connection:
        spec = sql.func.replace(release_table.c.spec, "release.json", "elsewhere.json")
        connection.execute(release_table.update().values(spec=spec))
    engine.dispose()
    refused = lepton(home, "release", "publish", RUN)
    assert "its digest differs" in str(refused.exception)
    assert not drawn.exists()
    assert not drawn.with_name("elsewhere.json").exists()
