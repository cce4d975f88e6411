"""The example policies of docs/access.md: valid, without findings, translatable, and deciding what their text says."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml

from lepton_airflow.access.cedar import CedarPolicy
from lepton_airflow.access.lint import Kind, lint
from lepton_airflow.access.policy import Policy, Request, policy_schema
from lepton_airflow.access.translation import to_cedar

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "access.md").read_text(encoding="utf-8")
EXAMPLES: dict[str, str] = dict(re.findall(r"^### (\w+)\n.*?^```yaml\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE))
NOON, NIGHT = "2026-11-24T12:00Z", "2026-11-24T04:00Z"


def load(name: str, folder: Path) -> Policy:
    file = folder / "policy.yaml"
    file.write_text(EXAMPLES[name])
    return Policy.load(file)


def test_there_is_an_example_for_each_field() -> None:
    assert EXAMPLES.keys() == {"Finance", "Health", "Retail", "Government"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_valid_for_editors_too_and_has_no_findings(name: str, tmp_path: Path) -> None:
    policy = load(name, tmp_path)
    assert policy.grants
    assert policy.denials
    assert lint(policy, at=datetime.fromisoformat(NOON)) == ()
    # As an editor reads it: YAML 1.2 has neither dates nor times.
    fields = yaml.load(EXAMPLES[name], Loader=yaml.BaseLoader)
    for grant in fields["grants"]:
        if "max_epsilon" in grant.get("conditions", {}):
            grant["conditions"]["max_epsilon"] = float(grant["conditions"]["max_epsilon"])
    jsonschema.validate({**fields, "version": 1}, yaml.safe_load(policy_schema()))
    translated = to_cedar(policy)
    assert CedarPolicy(translated.policies, translated.entities, place=name).rules


@pytest.mark.parametrize(
    ("name", "request_", "at", "allowed"),
    [
        ("Finance", Request("fraud-desk", "decrypt", "payments.transfers", ("iban",), "fraud case"), NOON, True),
        ("Finance", Request("fraud-desk", "decrypt", "payments.transfers", ("iban",), "fraud case"), NIGHT, False),
        ("Finance", Request("card-etl", "decrypt", "payments.cards", ("PAN",), "fraud case"), NOON, False),
        ("Health", Request("ward-app", "decrypt", "clinic.visits", ("name",), "treatment"), NOON, True),
        ("Health", Request("study-a-models", "train", "clinic.visits", ("mean_x", "diagnosis"), "study A"), NOON, True),
        (
            "Health",
            Request("study-a-models", "train", "clinic.visits", ("mean_x",), "study A"),
            "2036-01-01T12:00Z",
            False,
        ),
        (
            "Retail",
            Request(
                "newsletter",
                "decrypt",
                "shop.customers",
                ("email",),
                "newsletter with consent",
                environment="production",
            ),
            NIGHT,
            True,
        ),
        (
            "Retail",
            Request(
                "newsletter",
                "decrypt",
                "shop.customers",
                ("email",),
                "newsletter with consent",
                environment="production",
            ),
            NOON,
            False,
        ),
        (
            "Government",
            Request(
                "statistics-office",
                "release",
                "register.income",
                ("income",),
                "official statistics",
                1.0,
                True,
                "secure",
            ),
            NOON,
            True,
        ),
        (
            "Government",
            Request(
                "statistics-office",
                "release",
                "register.income",
                ("income",),
                "official statistics",
                1.0,
                False,
                "secure",
            ),
            NOON,
            False,
        ),
        (
            "Government",
            Request("statistics-office", "approve", "register.income", ("income",), "official statistics"),
            NOON,
            False,
        ),
        (
            "Government",
            Request("head-of-methods", "approve", "register.income", ("income",), "official statistics"),
            NOON,
            True,
        ),
        (
            "Government",
            Request("linkage-office", "decrypt", "register.income", ("person_number",), "record linkage"),
            NOON,
            False,
        ),
    ],
)
def test_examples_decide_what_their_text_says(
    name: str, request_: Request, at: str, allowed: bool, tmp_path: Path
) -> None:
    policy = load(name, tmp_path)
    time = datetime.fromisoformat(at)
    assert policy.decide(request_, at=time).allow is allowed
    translated = to_cedar(policy)
    assert CedarPolicy(translated.policies, translated.entities, place=name).decide(request_, at=time).allow is allowed


def test_the_documented_findings_are_those_that_there_are() -> None:
    table = TEXT.partition("| Finding |")[2].partition("Errors give")[0]
    assert set(re.findall(r"`([a-z]+-[a-z-]+)`", table)) == set(get_args(Kind))
