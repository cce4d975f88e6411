"""What every job leaves in the audit, whatever it does: who, each part apart, the policy that was loaded, and its own steps."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.access.engine import load_policy
from lepton_airflow.audit.checkpoint import Signer, generate_signer
from lepton_airflow.audit.database import connect, leaf_table
from lepton_airflow.audit.sealer import seal
from lepton_airflow.errors import AccessDenied, ConfigurationError, SpecError
from lepton_airflow.jobs.main import main
from lepton_airflow.jobs.runner import Caller, run_job
from lepton_airflow.settings import Settings

CALLER = Caller(on_behalf_of="ann", owner="data-platform", team="oncology", bundle_version="v12")


@pytest.fixture
def sealed_home(home: Settings) -> Settings:
    home.checkpoint_signer.parent.mkdir()
    home.checkpoint_verifier.write_text(generate_signer(home.checkpoint_signer, name="test-log"))
    seal_home(home)
    return home


def seal_home(home: Settings) -> None:
    engine = connect(home)
    seal(engine, signer=Signer.load(home.checkpoint_signer), exports=home.checkpoint_exports)
    engine.dispose()


def events(home: Settings) -> list[dict[str, Any]]:
    engine = connect(home)
    with engine.connect() as connection:
        payloads = connection.scalars(sql.select(leaf_table.c.payload).order_by(leaf_table.c.id)).all()
    engine.dispose()
    return [event for event in map(json.loads, payloads) if event["action"] != "producer"]


def steps(home: Settings) -> list[tuple[str, str]]:
    return [(event["action"], event["phase"]) for event in events(home)]


def test_loading_the_policy_and_verifying_the_audit_are_events_themselves(sealed_home: Settings) -> None:
    run_job("verify_audit", {"purpose": "test", "minimum_events": 0}, settings=sealed_home, run_key="d/t/r/-1")
    assert steps(sealed_home) == [("policy.load", "note"), ("verify", "intent"), ("verify", "success")]
    loaded, intent, _ = events(sealed_home)
    assert loaded["policy_digest"] == intent["policy_digest"] == load_policy(sealed_home).digest
    assert loaded["details"] == {"engine": "builtin", "file": str(sealed_home.policy)}


def test_a_policy_that_cannot_be_loaded_is_an_event_and_nothing_else_happens(sealed_home: Settings) -> None:
    sealed_home.policy.write_text("version: 2")
    with pytest.raises(ConfigurationError):
        run_job("verify_audit", {"purpose": "test"}, settings=sealed_home, run_key="d/t/r/-1")
    assert steps(sealed_home) == [("policy.load", "failure"), ("verify", "failure")]


def test_a_job_that_did_not_get_as_far_as_its_intent_is_found_by_what_it_was_to_do(home: Settings) -> None:
    fields = {
        "source": {"name": "clinic.visits_raw", "path": "/nowhere"},
        "target": {"name": "clinic.visits", "path": "/nowhere/else"},
        "keyset": "clinic",
        "columns": {"email": {"cipher": "NONE"}},
        "purpose": "test",
    }
    with pytest.raises(SpecError):
        run_job("encrypt_columns", fields, settings=home, run_key="first")
    with pytest.raises(SpecError):
        run_job(
            "encrypt_columns", {"source": 5, "target": [], "columns": "x", "purpose": {}}, settings=home, run_key="2"
        )
    first, second = (event for event in events(home) if event["phase"] == "failure")
    told = (first["action"], first["dataset"], first["columns"], first["purpose"], first["details"]["job"])
    assert told == ("encrypt", "clinic.visits", ["email"], "test", "encrypt_columns")
    assert (second["dataset"], second["columns"], second["purpose"]) == (None, [], None)


def test_a_denied_verification_is_an_event(sealed_home: Settings) -> None:
    with pytest.raises(AccessDenied):
        run_job("verify_audit", {"purpose": "curiosity"}, settings=sealed_home, run_key="d/t/r/-1")
    assert steps(sealed_home) == [("policy.load", "note"), ("verify", "denied")]


def test_who_acted_is_told_in_parts_that_are_not_confused(sealed_home: Settings) -> None:
    run_job(
        "verify_audit",
        {"purpose": "test", "minimum_events": 0},
        settings=sealed_home,
        run_key="d/t/r/-1",
        caller=CALLER,
    )
    for event in events(sealed_home):
        actor = event["actor"]
        assert actor.pop("host")
        assert actor == {
            "principal": "tester",
            "on_behalf_of": "ann",
            "owner": "data-platform",
            "team": "oncology",
            "bundle_version": "v12",
        }


def test_spark_submit_tells_the_same(sealed_home: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--spec-json", '{"purpose": "test", "minimum_events": 0}', "--home", str(sealed_home.home)]
    who = ["--on-behalf-of", "ann", "--owner", "data-platform", "--team", "oncology", "--bundle-version", "v12"]
    assert main("verify_audit", [*arguments, *who]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["events"] == 0
    assert {tuple(sorted(event["actor"].items())) for event in events(sealed_home)} == {
        tuple(
            sorted({"principal": "tester", "host": events(sealed_home)[0]["actor"]["host"], **CALLER.__dict__}.items())
        )
    }
