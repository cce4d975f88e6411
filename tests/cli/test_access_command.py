"""``lepton access``: decisions with their reasons, the lint against a real keyring, the translation; exit statuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from lepton_airflow.access.cedar import CedarPolicy
from lepton_airflow.access.policy import Policy, Request
from lepton_airflow.cli import app
from lepton_airflow.errors import ConfigurationError, TargetExists
from lepton_airflow.keys.identity import generate_identity
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.settings import Settings

POLICY = """
version: 1
roles:
  billing: {members: [billing-analyst]}
  science: {members: [sam]}
grants:
  - id: billing-reads-addresses
    role: billing
    actions: [decrypt]
    datasets: [clinic.*]
    columns: [email, phone]
    purposes: [billing]
    conditions: {time: {zone: Europe/Berlin, from: 08:00, to: 18:00}}
  - id: science-releases
    role: science
    actions: [release]
    datasets: [clinic.visits]
    columns: [age]
    purposes: ["*"]
    conditions: {max_epsilon: 1.0, environments: [production], approval: required}
denials:
  - id: nobody-reads-phones
    role: "*"
    actions: [decrypt]
    datasets: ["*"]
    columns: [phone]
    purposes: ["*"]
"""
#: With somebody who can approve what needs it.
APPROVED = POLICY.replace("  science:", "  ethics: {members: [eve]}\n  science:").replace(
    "denials:",
    "  - {id: approves, role: ethics, actions: [approve], datasets: [clinic.visits], columns: [age], purposes: ['*']}\n"
    "denials:",
)
READS = ("--as", "billing-analyst", "--action", "decrypt", "--purpose", "billing")
NOON = ("--at", "2026-11-24T12:00+01:00")
RELEASES = ("--as", "sam", "--action", "release", "--purpose", "study", "--column", "clinic.visits.age")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return file


def access(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["access", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def check(policy: Path, *arguments: str, code: int) -> dict[str, Any]:
    answer = json.loads(access("check", "--policy", policy, "--json", *arguments, code=code).output)
    assert answer["allow"] is (code == 0)
    assert answer["policy_digest"] == Policy.load(policy).digest
    return answer


def test_what_is_allowed_names_its_rule_and_exits_0(policy: Path) -> None:
    answer = check(policy, *READS, *NOON, "--column", "clinic.visits.email", code=0)
    assert answer["rules"] == ["billing-reads-addresses"]
    assert answer["nearest"] == []
    shown = access("check", "--policy", policy, *READS, *NOON, "--column", "clinic.visits.email").output
    for part in ("allowed", "billing-reads-addresses", "billing-analyst: decrypt email of clinic.visits, for billing"):
        assert part in shown


def test_what_is_denied_exits_1_and_says_why_the_nearest_grants_do_not_apply(policy: Path) -> None:
    asked = (
        *READS,
        "--column",
        "clinic.visits.email",
        "--column",
        "clinic.visits.Phone",
        "--at",
        "2026-11-24T19:00+01:00",
    )
    answer = check(policy, *asked, code=1)
    assert answer["rules"] == ["nobody-reads-phones"]
    near, far = answer["nearest"]
    assert near["rule"] == "billing-reads-addresses"
    assert [obstacle["part"] for obstacle in near["obstacles"]] == ["column", "condition"]
    assert "case exactly" in near["obstacles"][0]["text"]
    assert "19:00 in Europe/Berlin" in near["obstacles"][1]["text"]
    assert {obstacle["part"] for obstacle in far["obstacles"]} >= {"role", "action", "column"}
    shown = access("check", "--policy", policy, *asked, code=1).output
    for part in (
        "denied",
        "nobody-reads-phones",
        "grant billing-reads-addresses does not allow it",
        "time: it is 19:00",
    ):
        assert part in shown


def test_a_grant_that_only_a_denial_overrides_is_said_so(policy: Path) -> None:
    shown = access("check", "--policy", policy, *READS, *NOON, "--column", "clinic.visits.phone", code=1).output
    assert "grant billing-reads-addresses would allow it, but a denial wins" in shown


def test_conditions_of_a_release_are_options(policy: Path) -> None:
    met = ("--epsilon", "1", "--environment", "production", "--needs-approval")
    assert check(policy, *RELEASES, *met, code=0)["rules"] == ["science-releases"]
    failed = check(policy, *RELEASES, "--epsilon", "2", "--environment", "staging", code=1)
    texts = " ".join(obstacle["text"] for obstacle in failed["nearest"][0]["obstacles"])
    for name in ("max_epsilon", "environments", "approval"):
        assert name in texts
        assert name in failed["reason"]


def test_the_environment_is_that_of_the_settings_unless_given(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    home.policy.write_text(POLICY)
    asked = ("check", "--home", str(home.home), *RELEASES, "--epsilon", "1", "--needs-approval")
    access(*asked, code=1)
    monkeypatch.setenv("LEPTON_ENVIRONMENT", "production")
    access(*asked)
    access(*asked, "--environment", "staging", code=1)


def test_a_nested_column_and_a_whole_dataset_need_the_option_dataset(policy: Path) -> None:
    nested = check(policy, *READS, *NOON, "--dataset", "clinic.visits", "--column", "address.street", code=1)
    assert (nested["request"]["dataset"], nested["request"]["columns"]) == ("clinic.visits", ["address.street"])
    whole = check(policy, *READS, *NOON, "--dataset", "clinic.visits", code=1)
    assert "the dataset as a whole" in whole["reason"]


@pytest.mark.parametrize(
    "arguments",
    [
        (*READS,),
        (*READS, "--column", "email"),
        (*READS, "--column", "a.x", "--column", "b.x"),
        (*READS, "--column", "a.x", "--at", "noon"),
        (*READS, "--column", "a.x", "--at", "2026-11-24T12:00"),
        (*READS, "--column", "a.x", "--epsilon", "nan"),
    ],
)
def test_a_question_that_is_not_clear_is_refused(policy: Path, arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError):
        access("check", "--policy", policy, *arguments)


def test_the_lint_passes_a_good_policy_and_fails_on_errors(policy: Path) -> None:
    fields = yaml.safe_load(APPROVED)
    policy.write_text(APPROVED)
    shown = access("lint", "--policy", policy).output
    assert "dead-part" in shown
    access("lint", "--policy", policy, "--strict", code=1)
    fields["grants"][0]["columns"] = ["phone"]
    policy.write_text(yaml.safe_dump(fields).replace("480", "'08:00'").replace("1080", "'18:00'"))
    [finding] = json.loads(access("lint", "--policy", policy, "--json", code=1).output)
    assert (finding["rule"], finding["severity"], finding["kind"]) == (
        "billing-reads-addresses",
        "error",
        "unreachable-grant",
    )
    fields["grants"][0]["columns"] = ["email"]
    policy.write_text(yaml.safe_dump(fields).replace("480", "'08:00'").replace("1080", "'18:00'"))
    assert access("lint", "--policy", policy, "--strict").output.startswith("ok: 3 grants, 1 denials")


def test_the_lint_holds_grants_against_the_keyring(home: Settings, tmp_path: Path) -> None:
    recipient = generate_identity("sam", identities=home.identities, recipients=home.recipients)
    FileKeyring(home.keyring).create("lab", cipher="AES256_GCM", recipients=[recipient])
    spec = tmp_path / "encrypt.yaml"
    spec.write_text("keyset: clinic\ntarget: {name: clinic.visits}\ncolumns: {email: {cipher: AES256_GCM}}\n")
    home.policy.write_text(APPROVED.replace("columns: [email, phone]", "columns: [email]"))
    folder = ("--home", home.home)

    def lint(*options: str | Path, code: int) -> set[tuple[str, str]]:
        found = json.loads(access("lint", *folder, "--json", *options, code=code).output)
        return {(finding["rule"], finding["kind"]) for finding in found}

    assert lint(code=0) == set()
    unmapped = {("keyset clinic", "unmapped-keyset"), ("keyset lab", "unmapped-keyset")}
    assert lint("--keyring", code=0) == unmapped
    # The keyset is sealed to `tester`, and granted to `billing-analyst`.
    wrong = {("billing-reads-addresses", "grant-without-key"), ("keyset clinic", "key-without-grant")}
    lab = {("keyset lab", "unmapped-keyset")}
    assert lint("--spec", spec, code=1) == wrong | lab
    assert lint("--keyset", "clinic=clinic.*", "--keyset", "lab=lab.*", code=1) == wrong | {
        ("keyset lab", "key-without-grant")
    }
    with pytest.raises(ConfigurationError, match="no keyset nowhere"):
        lint("--keyset", "nowhere=*", code=1)
    with pytest.raises(ConfigurationError, match="which datasets"):
        lint("--keyset", "clinic", code=1)


def test_a_translated_policy_decides_the_same_under_the_settings(
    home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.policy.write_text(POLICY)
    target = home.home / "policy.cedar"
    written = access("to-cedar", "--home", home.home, "--output", target).output
    assert {file.suffix for file in home.home.glob("policy.*")} == {".yaml", ".cedar", ".json", ".cedarschema"}
    assert "policy.entities.json" in written
    with pytest.raises(TargetExists):
        access("to-cedar", "--home", home.home, "--output", target)
    monkeypatch.setenv("LEPTON_POLICY", str(target))
    monkeypatch.setenv("LEPTON_POLICY_ENGINE", "cedar")
    folder = ("--home", home.home)
    access("check", *folder, *READS, *NOON, "--column", "clinic.visits.email")
    refused = access("check", *folder, *READS, *NOON, "--column", "clinic.visits.phone", code=1).output
    assert "nobody-reads-phones" in refused
    assert "Cedar names the policies that decided" in refused
    with pytest.raises(ConfigurationError, match="built-in engine"):
        access("lint", *folder)
    request = Request("billing-analyst", "decrypt", "lab.visits", ("email",), "billing")
    assert not CedarPolicy.load(target).decide(request).allow
