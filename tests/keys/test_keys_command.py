from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sql
import tink
import yaml
from tink import aead, json_proto_keyset_format, secret_key_access
from typer.testing import CliRunner

from lepton_airflow.audit.database import connect, leaf_table, migrate
from lepton_airflow.cli.keys import app, create_keyset
from lepton_airflow.errors import (
    AuditUnavailable,
    ConfigurationError,
    KeyExposure,
    KeyUnavailable,
    LeptonError,
    TargetExists,
)
from lepton_airflow.keys.identity import Identity, identity_file
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.keys.usage import reserve_usage
from lepton_airflow.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path) -> Settings:
    (tmp_path / "lepton.yaml").write_text(yaml.safe_dump({"identity": "etl"}))
    settings = load_settings(tmp_path)
    migrate(connect(settings, check_schema=False))
    return settings


@pytest.fixture
def keys(settings):
    """Run `lepton keys ...`; returns standard output, raises what the command raises."""

    def run(*arguments: str) -> str:
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--home", str(settings.home)])
        if isinstance(result.exception, LeptonError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    run("identity", "etl")
    run("identity", "analyst", "--algorithm", "HPKE_X25519")
    run("create", "clinic", "--recipient", "etl")
    return run


def events(settings: Settings) -> list[dict]:
    with connect(settings).connect() as connection:
        rows = connection.execute(sql.select(leaf_table.c.payload).order_by(leaf_table.c.id))
        return [event for (payload,) in rows if (event := json.loads(payload))["action"] != "producer"]


def last(settings: Settings) -> list[tuple[str, str]]:
    return [(event["action"], event["phase"]) for event in events(settings)[-2:]]


def key_ids(settings: Settings, cipher: str = "AES256_GCM") -> dict[int, str]:
    (keyset,) = (each for each in FileKeyring(settings.keyring).describe("clinic") if each.cipher == cipher)
    return dict(keyset.keys)


def identity(settings: Settings, name: str) -> Identity:
    return Identity.load(identity_file(name, settings.identities))


def test_a_keyset_is_made_for_each_cipher_and_listed(keys, settings):
    listed = keys("list")
    assert last(settings) == [("keys.list", "intent"), ("keys.list", "success")]
    for shown in ("clinic", "AES256_GCM", "AES256_SIV", "etl", *map(str, key_ids(settings))):
        assert shown in listed


def test_a_keyset_is_made_for_chosen_ciphers_and_oneself(keys, settings):
    keys("create", "lab", "--cipher", "AES256_SIV")
    (lab,) = FileKeyring(settings.keyring).describe("lab")
    assert (lab.cipher, list(lab.recipients)) == ("AES256_SIV", ["etl"])
    with pytest.raises(TargetExists):
        keys("create", "lab", "--cipher", "AES256_SIV")
    with pytest.raises(KeyUnavailable):
        keys("create", "ward", "--recipient", "nobody")
    assert not (settings.keyring / "ward").exists()


def test_rotate_grant_revoke_and_destroy_do_what_they_say(keys, settings):
    keyring = FileKeyring(settings.keyring)
    (first,) = key_ids(settings)
    keys("rotate", "clinic")
    assert list(key_ids(settings).values()) == ["ENABLED", "ENABLED"]
    assert len(key_ids(settings, "AES256_SIV")) == 2
    keys("grant", "clinic", "--recipient", "analyst")
    assert keyring.open("clinic", cipher="AES256_SIV", identity=identity(settings, "analyst"))
    keys("revoke", "clinic", "--recipient", "analyst")
    with pytest.raises(KeyUnavailable):
        keyring.open("clinic", cipher="AES256_SIV", identity=identity(settings, "analyst"))
    assert len(key_ids(settings)) == 3
    keys("disable", "clinic", "--key-id", str(first))
    assert key_ids(settings)[first] == "DISABLED"
    keys("enable", "clinic", "--key-id", str(first))
    assert key_ids(settings)[first] == "ENABLED"
    keys("destroy", "clinic", "--key-id", str(first))
    assert key_ids(settings)[first] == "DESTROYED"
    with pytest.raises(KeyUnavailable, match="destroyed"):
        keys("enable", "clinic", "--key-id", str(first))
    done = [event["action"] for event in events(settings) if event["phase"] == "success"]
    assert done == [
        *("keys.identity", "keys.identity", "keys.create", "keys.rotate", "keys.grant", "keys.revoke"),
        *("keys.disable", "keys.enable", "keys.destroy"),
    ]


def test_a_walk_from_the_first_value_to_the_shredded_one(keys, settings):
    """What a custodian does in the life of a keyset, and what each step means for the values and for the others."""
    keyring = FileKeyring(settings.keyring)

    def opened(name: str) -> Any:
        return keyring.open("clinic", cipher="AES256_GCM", identity=identity(settings, name))

    (first,) = key_ids(settings)
    old = opened("etl").aead().encrypt(b"Ada", b"context")
    keys("rotate", "clinic", "--cipher", "AES256_GCM")
    new = opened("etl").aead().encrypt(b"Bea", b"context")
    assert int.from_bytes(old[1:5], "big") == first != int.from_bytes(new[1:5], "big")
    assert opened("etl").aead().decrypt(old, b"context") == b"Ada", "no rewrite is needed"

    with pytest.raises(KeyUnavailable, match="lepton keys grant clinic --recipient analyst"):
        opened("analyst")
    keys("grant", "clinic", "--recipient", "analyst")
    kept = opened("analyst")
    assert kept.aead().decrypt(old, b"context") == b"Ada"

    keys("revoke", "clinic", "--recipient", "analyst")
    with pytest.raises(KeyUnavailable):
        opened("analyst")
    newest = opened("etl").aead().encrypt(b"Cyd", b"context")
    with pytest.raises(tink.TinkError):
        kept.aead().decrypt(newest, b"context")

    keys("destroy", "clinic", "--key-id", str(first))
    with pytest.raises(tink.TinkError):
        opened("etl").aead().decrypt(old, b"context")
    assert opened("etl").aead().decrypt(new, b"context") == b"Bea"

    exported = keys("export", "clinic", "--cipher", "AES256_GCM", "--i-understand-this-prints-secret-keys")
    elsewhere = json_proto_keyset_format.parse(exported, secret_key_access.TOKEN).primitive(aead.Aead)
    assert elsewhere.decrypt(newest, b"context") == b"Cyd"
    with pytest.raises(tink.TinkError):
        elsewhere.decrypt(old, b"context")

    steps = [(event["action"], event["phase"]) for event in events(settings)][-10:]
    assert steps == [
        (f"keys.{action}", phase)
        for action in ("rotate", "grant", "revoke", "destroy", "export")
        for phase in ("intent", "success")
    ]


#: Arguments with which each command does its work.
COMMANDS: dict[str, list[str]] = {
    "identity": ["identity", "nurse"],
    "create": ["create", "lab"],
    "list": ["list"],
    "rotate": ["rotate", "clinic"],
    "grant": ["grant", "clinic", "--recipient", "analyst"],
    "revoke": ["revoke", "clinic", "--recipient", "analyst"],
    "disable": ["disable", "clinic", "--key-id", "{old}"],
    "enable": ["enable", "clinic", "--key-id", "{old}"],
    "destroy": ["destroy", "clinic", "--key-id", "{old}"],
    "export": ["export", "clinic", "--cipher", "AES256_GCM", "--i-understand-this-prints-secret-keys"],
}


def test_every_command_is_an_intent_and_an_outcome(keys, settings):
    assert set(COMMANDS) == {command.name or command.callback.__name__ for command in app.registered_commands}
    (old,) = key_ids(settings)
    keys("rotate", "clinic")
    for name, arguments in COMMANDS.items():
        keys(*(argument.format(old=old) for argument in arguments))
        assert last(settings) == [(f"keys.{name}", "intent"), (f"keys.{name}", "success")]


def test_the_list_shows_how_much_of_a_key_is_used_and_proposes_to_rotate(keys, settings):
    (key_id,) = key_ids(settings)
    engine = connect(settings)
    assert "rotate" not in keys("list")
    assert reserve_usage(engine, "clinic", key_id, 43_000_000) is None
    assert "43,000,000 (1%)" in keys("list")
    assert reserve_usage(engine, "clinic", key_id, 2**31)
    engine.dispose()
    assert "(51%) rotate" in keys("list")


def test_an_identity_has_its_key_in_one_place(keys, settings):
    for arguments in (
        ["--token", "lepton"],
        ["--pkcs11-module", "/usr/lib/token.so"],
        ["--pin-file", "pin"],
        ["--pkcs11-module", "/usr/lib/token.so", "--token", "lepton", "--kms-key", "aws-kms://key"],
    ):
        with pytest.raises(ConfigurationError, match="in one place"):
            keys("identity", "nurse", *arguments)
    assert not identity_file("nurse", settings.identities).exists()


def test_what_cannot_be_done_is_an_event_too(keys, settings):
    primary = max(key_ids(settings))
    for arguments, action in (
        (["destroy", "clinic", "--key-id", str(primary)], "keys.destroy"),
        (["destroy", "clinic", "--key-id", "7"], "keys.destroy"),
        (["revoke", "clinic", "--recipient", "analyst"], "keys.revoke"),
        (["revoke", "clinic", "--recipient", "etl"], "keys.revoke"),
        (["rotate", "nowhere"], "keys.rotate"),
        (["grant", "clinic", "--recipient", "nobody"], "keys.grant"),
    ):
        with pytest.raises(KeyUnavailable):
            keys(*arguments)
        assert last(settings) == [(action, "intent"), (action, "failure")]
        assert events(settings)[-1]["details"]["error"] == "KeyUnavailable"
    assert key_ids(settings) == {primary: "ENABLED"}


def test_the_events_say_who_acted_on_which_keyset(keys, settings):
    keys("rotate", "clinic", "--cipher", "AES256_GCM")
    intent, outcome = events(settings)[-2:]
    assert intent["actor"]["principal"] == "etl"
    assert intent["details"]["keyset"] == "clinic"
    assert outcome["intent"] == intent["event_id"]
    assert outcome["details"]["AES256_GCM.primary_key_id"] in key_ids(settings)
    first = events(settings)[0]
    assert first["action"] == "keys.identity"
    assert first["actor"]["principal"] == first["actor"]["on_behalf_of"]


def test_nothing_is_done_when_the_audit_cannot_record_it(keys, settings):
    before = key_ids(settings)
    with connect(settings).begin() as connection:
        connection.execute(sql.text("ALTER TABLE lepton_audit_leaf RENAME TO lost"))
    with pytest.raises(AuditUnavailable):
        keys("rotate", "clinic")
    assert key_ids(settings) == before


def test_keys_are_printed_only_to_who_says_to_know_it(keys, settings):
    with pytest.raises(KeyExposure, match="--i-understand-this-prints-secret-keys"):
        keys("export", "clinic", "--cipher", "AES256_GCM")
    assert last(settings) == [("keys.export", "intent"), ("keys.export", "failure")]
    printed = keys("export", "clinic", "--cipher", "AES256_GCM", "--i-understand-this-prints-secret-keys")
    assert last(settings) == [("keys.export", "intent"), ("keys.export", "success")]
    handle = json_proto_keyset_format.parse(printed, secret_key_access.TOKEN)
    keyset = FileKeyring(settings.keyring).open("clinic", cipher="AES256_GCM", identity=identity(settings, "etl"))
    assert keyset.aead().decrypt(handle.primitive(aead.Aead).encrypt(b"value", b""), b"") == b"value"


def test_no_key_is_in_the_audit_or_in_what_other_commands_print(keys, settings):
    exported = keys("export", "clinic", "--cipher", "AES256_GCM", "--i-understand-this-prints-secret-keys")
    value = json.loads(exported)["key"][0]["keyData"]["value"]
    private = json.loads(settings.identity_file.read_text())["private_key"]
    printed = keys("list") + keys("rotate", "clinic") + json.dumps(events(settings))
    for secret in (value, private):
        assert secret not in printed


def test_the_first_keyset_is_made_without_a_command(settings):
    CliRunner().invoke(app, ["identity", "etl", "--home", str(settings.home)])
    create_keyset(settings, "default", recipients=("etl",))
    assert [each.cipher for each in FileKeyring(settings.keyring).describe("default")] == [
        "AES256_GCM",
        "AES256_SIV",
        "FF1",
    ]
    assert last(settings) == [("keys.create", "intent"), ("keys.create", "success")]
