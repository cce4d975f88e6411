"""`lepton model`: what it shows, what it refuses, and that each of its changes is in the audit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
import yaml
from typer.testing import CliRunner, Result

from lepton_airflow.audit.database import connect, leaf_table
from lepton_airflow.audit.event import Actor
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.cli import app
from lepton_airflow.errors import (
    AccessDenied,
    ConfigurationError,
    KeyUnavailable,
    ModelTampered,
    RegistryError,
    TargetExists,
)
from lepton_airflow.keys.signing_key import private_file, public_file
from lepton_airflow.models.artefact import CARD_FILE, CARD_FORMAT, MODEL_FILE, SIGNATURE_FILE, ModelFolder, file_digest
from lepton_airflow.models.registry import ModelRegistry
from lepton_airflow.models.shipping import register_champion, register_rejected
from lepton_airflow.models.signing import signing_key_of, verifier_of
from lepton_airflow.settings import SETTINGS_FILE, Settings, load_settings

Train = Callable[..., ModelFolder]


def run(home: Settings, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["model", *arguments, "--home", str(home.home)])


def refused(result: Result, error: type[Exception], text: str) -> bool:
    return result.exit_code == 1 and isinstance(result.exception, error) and text in str(result.exception)


def events(home: Settings) -> list[tuple[str, str]]:
    engine = connect(home)
    with engine.connect() as connection:
        payloads = connection.execute(sql.select(leaf_table.c.payload).order_by(leaf_table.c.id)).scalars().all()
    engine.dispose()
    found = [json.loads(payload) for payload in payloads]
    return [(each["action"], each["phase"]) for each in found if each["action"].startswith("model.")]


@pytest.fixture
def train(home: Settings, tmp_path: Path) -> Train:
    """Publishes a model under the name ``diagnosis``, as the job does; passes ``gate=False`` for one that is refused."""

    def make(run_key: str, *, gate: bool = True) -> ModelFolder:
        settings = load_settings(home.home)
        folder = ModelFolder(tmp_path / "models" / "diagnosis", verifier=verifier_of(settings))
        engine = connect(settings)
        log = AuditLog(engine, actor=Actor(principal="tester", host="here"), run_key=run_key)
        registry = ModelRegistry(engine)
        with folder.staging(run_key) as staging:
            (staging / MODEL_FILE).write_bytes(f"weights of {run_key}".encode())
            card: dict[str, Any] = {
                "format": CARD_FORMAT,
                "run_key": run_key,
                "spec_digest": "sha256:1",
                "purpose": "test",
                "data": {
                    "dataset": "clinic.visits",
                    "digest": "sha256:data",
                    "features": ["age", "weight"],
                    "label": "diagnosis",
                    "privacy_unit": "patient_id",
                },
                "model": {"sha256": file_digest(staging / MODEL_FILE)},
                "evaluation": {
                    "clean": {"accuracy": 0.9712},
                    "robust": {"accuracy": 0.8, "epsilon": 0.5, "n": 171},
                },
            }
            if gate:
                folder.publish(staging, card, key=signing_key_of(settings))
                register_champion(registry, folder, log=log)
            else:
                register_rejected(registry, model="diagnosis", card=card, reason="masked gradients", log=log)
        log.close()
        engine.dispose()
        return folder

    return make


@pytest.fixture
def signing(home: Settings) -> Settings:
    """The deployment with a key that signs models."""
    assert run(home, "keygen", "models").exit_code == 0
    file = home.home / SETTINGS_FILE
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "model_signing_key": "models"}))
    return load_settings(home.home)


def test_models_are_listed_shown_and_their_history_told(home: Settings, train: Train) -> None:
    for number in range(2):
        train(f"run {number}")
    train("run 2", gate=False)
    listed = run(home, "list")
    assert listed.exit_code == 0
    lines = [line for line in listed.stdout.splitlines() if "diagnosis" in line]
    assert [next(s for s in ("champion", "retired", "rejected") if s in line) for line in lines] == [
        "retired",
        "champion",
        "rejected",
    ]
    assert "0.9712" in lines[0]
    entry = json.loads(run(home, "show", "diagnosis").stdout)
    assert (entry["status"], entry["run_key"], entry["dataset_digest"]) == ("champion", "run 1", "sha256:data")
    again = json.loads(run(home, "show", "diagnosis", "--sha256", entry["sha256"][7:17]).stdout)
    assert again == entry
    told = run(home, "history", "diagnosis").stdout
    assert told.count("challenger") == 4
    assert "masked gradients" in told
    for command in ("show", "history", "list"):
        assert refused(run(home, command, "prognosis"), RegistryError, "no model of this name")
    assert refused(run(home, "show", "diagnosis", "--sha256", "ffff"), RegistryError, "no such file")


def test_a_champion_verifies_and_its_verification_is_audited(home: Settings, train: Train) -> None:
    folder = train("run 1")
    result = run(home, "verify", str(folder.path))
    assert result.exit_code == 0, result.exception
    assert "champion of diagnosis" in result.stdout
    assert "not required" in result.stdout
    assert events(home)[-2:] == [("model.verify", "intent"), ("model.verify", "success")]


def test_a_signed_champion_verifies_and_any_other_does_not(home: Settings, signing: Settings, train: Train) -> None:
    folder = train("run 1")
    result = run(home, "verify", str(folder.path))
    assert result.exit_code == 0, result.exception
    assert str(public_file("models", signing.keyring)) in result.stdout.replace("\n", "")
    (folder.path / SIGNATURE_FILE).unlink()
    assert refused(run(home, "verify", str(folder.path)), ModelTampered, SIGNATURE_FILE)
    assert events(home)[-1] == ("model.verify", "failure")
    public_file("models", signing.keyring).unlink()
    assert refused(run(home, "verify", str(folder.path)), KeyUnavailable, "public key of models")


def test_what_is_tampered_with_does_not_verify(home: Settings, train: Train, tmp_path: Path) -> None:
    folder = train("run 1")
    copy = tmp_path / "copy"
    shutil.copytree(folder.path, copy / "diagnosis")
    (folder.path / MODEL_FILE).write_bytes(b"a trojan")
    assert refused(run(home, "verify", str(folder.path)), ModelTampered, MODEL_FILE)
    # Who changes the card as well, so that it describes the trojan, meets the registry.
    card = json.loads((folder.path / CARD_FILE).read_text())
    card["model"]["sha256"] = file_digest(folder.path / MODEL_FILE)
    (folder.path / CARD_FILE).write_text(json.dumps(card))
    assert refused(run(home, "verify", str(folder.path)), RegistryError, "no model 'diagnosis' with this file")
    changed = copy / "diagnosis" / CARD_FILE
    changed.write_text(changed.read_text().replace("clinic.visits", "clinic.others"))
    assert refused(run(home, "verify", str(changed.parent)), ModelTampered, "not the one that was registered")
    assert refused(run(home, "verify", str(tmp_path / "nowhere")), ModelTampered, "no model")
    changed.write_text("{}")
    assert refused(run(home, "verify", str(changed.parent)), TargetExists, "not a model")


def test_an_older_champion_put_back_is_refused_until_somebody_promotes_it(
    home: Settings, signing: Settings, train: Train, tmp_path: Path
) -> None:
    old = tmp_path / "backup" / "diagnosis"
    shutil.copytree(train("run 1").path, old)
    folder = train("run 2").path
    shutil.rmtree(folder)
    shutil.copytree(old, folder)
    assert refused(run(home, "verify", str(folder)), RegistryError, "is retired and not the champion")
    promoted = run(home, "promote", str(folder), "--reason", "run 2 fails on new scanners")
    assert promoted.exit_code == 0, promoted.exception
    assert run(home, "verify", str(folder)).exit_code == 0
    assert ("model.promote", "success") in events(home)
    assert "run 2 fails on new scanners" in run(home, "history", "diagnosis").stdout


def test_the_policy_is_asked_before_a_model_is_promoted(home: Settings, train: Train, tmp_path: Path) -> None:
    old = tmp_path / "backup" / "diagnosis"
    shutil.copytree(train("run 1").path, old)
    train("run 2")
    text = home.policy.read_text()
    forbidden = (
        "denials: [{id: never, role: '*', actions: [promote], datasets: ['*'], columns: [weight], purposes: ['*']}]"
    )
    for policy in (text.replace("promote, ", ""), f"{text}\n{forbidden}\n"):
        home.policy.write_text(policy)
        assert refused(run(home, "promote", str(old), "--reason", "please"), AccessDenied, "promote")
    assert json.loads(run(home, "show", "diagnosis").stdout)["run_key"] == "run 2"
    home.policy.write_text(text)
    assert run(home, "promote", str(old), "--reason", "please").exit_code == 0


def test_nothing_is_promoted_that_does_not_verify(
    home: Settings, signing: Settings, train: Train, tmp_path: Path
) -> None:
    old = tmp_path / "backup" / "diagnosis"
    shutil.copytree(train("run 1").path, old)
    train("run 2")
    (old / MODEL_FILE).write_bytes(b"a trojan")
    assert refused(run(home, "promote", str(old), "--reason", "please"), ModelTampered, MODEL_FILE)
    assert json.loads(run(home, "show", "diagnosis").stdout)["run_key"] == "run 2"


def test_a_model_from_before_the_key_is_signed_once_it_verifies(home: Settings, train: Train) -> None:
    folder = train("run 1")
    assert refused(run(home, "sign", str(folder.path)), ConfigurationError, "No key signs models")
    assert run(home, "keygen", "models").exit_code == 0
    file = home.home / SETTINGS_FILE
    file.write_text(file.read_text() + "model_signing_key: models\n")
    assert refused(run(home, "verify", str(folder.path)), ModelTampered, "no signature")
    assert run(home, "sign", str(folder.path)).exit_code == 0
    assert run(home, "verify", str(folder.path)).exit_code == 0
    train("run 2")
    assert run(home, "verify", str(folder.path)).exit_code == 0
    assert ("model.sign", "success") in events(home)


def test_a_key_is_sealed_to_whom_it_is_made_for(home: Settings) -> None:
    assert refused(run(home, "keygen", "models", "--recipient", "nobody"), KeyUnavailable, "recipient's public key")
    result = run(home, "keygen", "models", "--recipient", "tester")
    assert "sealed to tester" in result.stdout
    document = json.loads(private_file("models", home.keyring).read_text())
    assert [known["name"] for known in document["recipients"]] == ["tester"]
    assert refused(run(home, "keygen", "models"), TargetExists, "not replaced")
    assert events(home) == [
        ("model.keygen", "intent"),
        ("model.keygen", "failure"),
        ("model.keygen", "intent"),
        ("model.keygen", "success"),
        ("model.keygen", "intent"),
        ("model.keygen", "failure"),
    ]
