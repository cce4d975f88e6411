"""Receipts: what they say, that they are refused before there is proof, and that no byte of them can be changed unnoticed."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.audit.canonical import digest
from lepton_airflow.audit.checkpoint import Signer, generate_signer
from lepton_airflow.audit.database import connect
from lepton_airflow.audit.event import Actor, Event
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.proofs import events_of_run, prove_events
from lepton_airflow.audit.sealer import seal
from lepton_airflow.errors import (
    AccessDenied,
    ApprovalMissing,
    AuditTampered,
    BudgetError,
    EventNotSealed,
    ReceiptInvalid,
)
from lepton_airflow.jobs import release_aggregates
from lepton_airflow.jobs.publish_release import approve_release, publish_release, show_release
from lepton_airflow.jobs.runner import Caller, run_job
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.receipt import Verified, claims_of, receipt_bytes, verify_receipt
from lepton_airflow.privacy.receipt_issue import issue_receipt
from lepton_airflow.privacy.tables import mechanism_table
from lepton_airflow.settings import Settings

DATASET, UNIT, SOURCE = "clinic.visits", "patient_id", "sha256:" + "ab" * 32
DOCUMENT = Path(__file__).parents[2] / "docs" / "receipts.md"


@pytest.fixture(autouse=True)
def aggregates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job, but for the data: its totals are given here. With Spark it runs in the tests of the command line."""

    def open_source(self: Any, plan: Any, keys: Any) -> Any:
        import numpy as np

        self._operation.record(digests={"source": SOURCE}, details={"road": "direct"})

        def totals(own: Any) -> Any:
            if own is None:
                return [([b'["north"]', b'["south"]'], np.full((2, plan.width), 10_000, np.int64))]
            return np.full((len(own), plan.width), 100, np.int64)

        return lambda: [totals(own) for own in keys]

    monkeypatch.setattr(release_aggregates.ReleaseSource, "open", open_source)


@pytest.fixture
def signer(home: Settings) -> Signer:
    home.checkpoint_signer.parent.mkdir(mode=0o700)
    home.checkpoint_verifier.write_text(generate_signer(home.checkpoint_signer, name="lepton-audit") + "\n")
    return Signer.load(home.checkpoint_signer)


@pytest.fixture
def engine(home: Settings) -> Iterator[sql.Engine]:
    engine = connect(home)
    Ledger(engine).create(
        dataset=DATASET, unit=UNIT, epsilon=Decimal(100), delta=Decimal("1e-6"), owner="tester", period="month"
    )
    yield engine
    engine.dispose()


def release(home: Settings, run_key: str = "dag/release/run/-1", **changes: Any) -> Path:
    """Run the job; the release file."""
    target = home.home / f"{run_key.replace('/', '_')}.json"
    spec: dict[str, Any] = {
        "source": {"name": DATASET, "path": "nowhere"},
        "privacy_unit": UNIT,
        "group_by": ["ward"],
        "groups": ["north", "south"],
        "metrics": [
            {"name": "visits", "type": "count"},
            {"name": "age", "type": "mean", "column": "age", "lower": 0, "upper": 100},
        ],
        "max_groups_per_unit": 2,
        "max_rows_per_unit_and_group": 3,
        "epsilon": "0.7",
        "target": str(target),
        "purpose": "test",
    }
    caller = Caller(on_behalf_of="alice", owner="team")
    run_job("release_aggregates", spec | changes, settings=home, run_key=run_key, caller=caller)
    return target


def approved(home: Settings, run_key: str = "dag/release/run/-1", **changes: Any) -> Path:
    file = release(home, run_key, approval="required", **changes)
    approve_release(run_key, settings=home, approver="bob", known_by="airflow", caller=Caller(on_behalf_of="alice"))
    publish_release(run_key, settings=home, caller=Caller(on_behalf_of="alice"))
    return file


def sealed_receipt(
    home: Settings, engine: sql.Engine, signer: Signer, run_key: str = "dag/release/run/-1"
) -> dict[str, Any]:
    seal(engine, signer=signer, exports=home.checkpoint_exports)
    receipt: dict[str, Any] = json.loads(issue_receipt(engine, run_key, verifier=signer.verifier))
    return receipt


def verified(receipt: dict[str, Any], signer: Signer, release_file: bytes | None = None) -> Verified:
    return verify_receipt(receipt_bytes(receipt), verifier=signer.verifier, release_file=release_file)


GAUSSIAN = {"noise": "gaussian", "delta": "1e-7"}
PRIVATE = {"groups": "private", "delta": "1e-8", "epsilon": "5"}
PRIVATE_GAUSSIAN = {"groups": "private", "noise": "gaussian", "delta": "1e-7", "epsilon": "5"}


@pytest.mark.parametrize("changes", [{}, GAUSSIAN, PRIVATE, PRIVATE_GAUSSIAN])
@pytest.mark.parametrize("make", [release, approved])
def test_a_receipt_says_what_the_release_cost_and_who_let_it_out(
    make: Callable[..., Path], changes: dict[str, Any], home: Settings, engine: sql.Engine, signer: Signer
) -> None:
    file = make(home, **changes)
    receipt = sealed_receipt(home, engine, signer)
    result = verified(receipt, signer, file.read_bytes())
    claims = result.claims
    assert (result.file_checked, result.signed_by, result.further_signatures) == (True, "lepton-audit", 0)
    assert [claims[name] for name in ("dataset", "privacy_unit", "source_digest")] == [DATASET, UNIT, SOURCE]
    assert claims["epsilon"] == changes.get("epsilon", "0.7")
    assert Fraction(claims["delta"]) == Fraction(changes.get("delta", "0"))
    assert (claims["principal"], claims["requested_by"]) == ("tester", "alice")
    assert claims["policy"]["rules"] == ["tests"]
    budget = claims["budget"]
    assert (budget["dataset"], budget["epsilon"], budget["period"]) == (DATASET, "100", "month")
    assert Fraction(claims["accounting"]["charged"]) > 0
    roles = [leaf["role"] for leaf in receipt["evidence"]["leaves"]]
    if make is approved:
        assert (claims["approval"]["approver"], claims["approval"]["known_by"]) == ("bob", "airflow")
        assert claims["approval"]["policy"]["rules"] == ["approvals"]
        assert roles == ["draw", "approval", "publication"]
    else:
        assert claims["approval"] is None
        assert roles == ["draw"]
    document = json.loads(file.read_text())
    scales = {mechanism["query"]: float(mechanism["scale"]) for mechanism in claims["mechanisms"]}
    assert {noise["query"]: noise["scale"] for noise in document["groupings"][0]["noise"]}.items() <= scales.items()


def test_a_receipt_needs_a_publication_and_a_seal(home: Settings, engine: sql.Engine, signer: Signer) -> None:
    run_key = "dag/release/run/-1"
    with pytest.raises(BudgetError, match="not there"):
        issue_receipt(engine, run_key, verifier=signer.verifier)
    release(home, approval="required")
    seal(engine, signer=signer, exports=[])
    with pytest.raises(BudgetError, match="drawn, not published"):
        issue_receipt(engine, run_key, verifier=signer.verifier)
    # Who looks at the numbers first has not approved them yet.
    show_release(run_key, settings=home)
    approve_release(run_key, settings=home, approver="bob", known_by="identity")
    publish_release(run_key, settings=home)
    with pytest.raises(EventNotSealed, match="lepton audit seal"):
        issue_receipt(engine, run_key, verifier=signer.verifier)
    sealed_receipt(home, engine, signer)


@pytest.mark.parametrize(
    ("names", "allowed"),
    [
        ({"approver": "alice"}, False),
        ({"approver": " ALICE"}, False),
        ({"approver": "tester"}, False),
        ({"approver": "7", "aliases": ["alice"]}, False),
        ({"approver": "bob", "requesters": ["bob"]}, False),
        ({"approver": "7", "aliases": ["Bob"], "requesters": [None, "bob"]}, False),
        ({"approver": "bob", "aliases": ["7"], "requesters": [None, "carol"]}, True),
    ],
)
def test_who_asked_for_a_release_or_ran_it_does_not_approve_it(
    names: dict[str, Any], allowed: bool, home: Settings, engine: sql.Engine
) -> None:
    run_key = "dag/release/run/-1"
    file = release(home, approval="required")
    # The policy would let all of them.
    home.policy.write_text(
        home.policy.read_text().replace("[tester, alice, bob]", '[tester, alice, bob, " ALICE", "7"]')
    )
    if allowed:
        approve_release(run_key, settings=home, known_by="airflow", **names)
        publish_release(run_key, settings=home)
        assert file.exists()
        return
    with pytest.raises(AccessDenied):
        approve_release(run_key, settings=home, known_by="airflow", **names)
    last = [event for event in events_of_run(engine, run_key) if event["action"] == "approve"][-1]
    assert (last["phase"], last["details"]["error"]) == ("failure", "AccessDenied")
    assert "who asked for it or ran it" in last["details"]["text"]
    with pytest.raises(ApprovalMissing):
        publish_release(run_key, settings=home)
    assert not file.exists()


def test_a_replayed_or_republished_release_keeps_its_receipt(
    home: Settings, engine: sql.Engine, signer: Signer
) -> None:
    approved(home)
    first = sealed_receipt(home, engine, signer)
    release(home, approval="required")
    publish_release("dag/release/run/-1", settings=home)
    approve_release("dag/release/run/-1", settings=home, approver="bob", known_by="airflow")
    again = sealed_receipt(home, engine, signer)
    assert again["release"] == first["release"]
    assert again["evidence"] != first["evidence"]
    verified(first, signer)


def test_a_ledger_that_was_edited_gets_no_receipt(home: Settings, engine: sql.Engine, signer: Signer) -> None:
    release(home)
    with engine.begin() as connection:
        connection.execute(mechanism_table.update().values(scale="1000.0"))
    with pytest.raises(AuditTampered, match="mechanisms"):
        sealed_receipt(home, engine, signer)


# Every value of a receipt, and of it every byte.


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the scalars are."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(inner, (*path, name))
    else:
        yield path


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


def others(value: Any) -> list[Any]:
    """Values that are not this one."""
    match value:
        case bool():
            return [not value, int(value), None]
        case int():
            return [value + 1, value - 1, float(value), str(value), None]
        case float():
            return [value * (1 + 2**-50), value / 2, repr(value), None]
        case str():
            return [f"{value} ", value[1:], f"x{value}", value.swapcase() + "y", None, [value]]
        case _:
            return ["x", 0, False, {}]


@pytest.mark.parametrize("changes", [{}, PRIVATE_GAUSSIAN])
def test_no_value_of_a_receipt_can_be_changed(
    changes: dict[str, Any], home: Settings, engine: sql.Engine, signer: Signer
) -> None:
    approved(home, **changes)
    receipt = sealed_receipt(home, engine, signer)
    verified(receipt, signer)
    tried = 0
    for path in paths(receipt):
        for other in others(at(receipt, path)):
            changed = copy.deepcopy(receipt)
            at(changed, path[:-1])[path[-1]] = other
            with pytest.raises(ReceiptInvalid) as caught:
                verified(changed, signer)
            if path[0] == "release" and path[1] != "mechanisms":
                assert caught.value.place == ".".join(map(str, path)) or ".".join(map(str, path)).startswith(
                    caught.value.place
                )
            tried += 1
    assert tried > 300


def test_no_field_of_a_receipt_can_be_left_out_or_added(home: Settings, engine: sql.Engine, signer: Signer) -> None:
    approved(home)
    receipt = sealed_receipt(home, engine, signer)
    containers = {path[:length] for path in paths(receipt) for length in range(len(path))}
    for path in containers:
        inside = at(receipt, path)
        for name in list(inside) if isinstance(inside, dict) else range(len(inside)):
            changed = copy.deepcopy(receipt)
            del at(changed, path)[name]
            with pytest.raises(ReceiptInvalid):
                verified(changed, signer)
        changed = copy.deepcopy(receipt)
        if isinstance(inside, dict):
            at(changed, path)["another"] = 1
        else:
            at(changed, path).append(copy.deepcopy(inside[0]))
        with pytest.raises(ReceiptInvalid):
            verified(changed, signer)


def test_no_byte_of_a_receipt_or_of_its_release_file_can_be_changed(
    home: Settings, engine: sql.Engine, signer: Signer
) -> None:
    file = release(home).read_bytes()
    receipt = receipt_bytes(sealed_receipt(home, engine, signer))
    check = {"verifier": signer.verifier}
    verify_receipt(receipt, **check, release_file=file)
    for position in range(len(receipt)):
        broken = bytearray(receipt)
        broken[position] ^= 1 << position % 8
        with pytest.raises(ReceiptInvalid):
            verify_receipt(bytes(broken), **check)
    for other in (receipt[:-1], receipt + b"\n", b" " + receipt, b"", b"null", b"[" * 100_000, b"\xff"):
        with pytest.raises(ReceiptInvalid):
            verify_receipt(other, **check)
    for position in range(len(file)):
        broken = bytearray(file)
        broken[position] ^= 1 << position % 8
        with pytest.raises(ReceiptInvalid) as caught:
            verify_receipt(receipt, **check, release_file=bytes(broken))
        assert caught.value.place == "release file"


def test_the_key_is_the_pinned_one(home: Settings, engine: sql.Engine, signer: Signer, tmp_path: Path) -> None:
    release(home)
    receipt = sealed_receipt(home, engine, signer)
    # The forger's log says the same under the same name, and is sealed by the forger's own key.
    generate_signer(tmp_path / "forged.key", name="lepton-audit")
    forger = Signer.load(tmp_path / "forged.key")
    text = receipt["evidence"]["checkpoint"].rpartition("\n\n")[0] + "\n"
    receipt["evidence"]["checkpoint"] = forger.sign(text)
    verified(receipt, forger)
    with pytest.raises(ReceiptInvalid, match="no valid signature") as caught:
        verified(receipt, signer)
    assert caught.value.place == "evidence.checkpoint"


def test_a_signature_of_a_witness_is_left_alone_and_said(home: Settings, engine: sql.Engine, signer: Signer) -> None:
    release(home)
    receipt = sealed_receipt(home, engine, signer)
    receipt["evidence"]["checkpoint"] += "— witness.example AAAAAQID\n"
    assert verified(receipt, signer).further_signatures == 1
    receipt["evidence"]["checkpoint"] += "— witness.example AAAAAQI\n"
    with pytest.raises(ReceiptInvalid, match="canonical base64"):
        verified(receipt, signer)


# A log that holds a lie: its leaves are proved, and still do not make a receipt.


def relogged(
    receipt: dict[str, Any], engine: sql.Engine, signer: Signer, edit: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The receipt that a dishonest writer of the log could make: every event logged anew, as ``edit`` would have it."""
    leaves = {leaf["role"]: json.loads(leaf["leaf"]) for leaf in receipt["evidence"]["leaves"]}
    lie = {"leaves": leaves, "mechanisms": copy.deepcopy(receipt["release"]["mechanisms"])}
    honest = copy.deepcopy(lie)
    edit(lie)
    if lie["mechanisms"] != honest["mechanisms"]:
        for role in leaves.keys() - {"approval"}:
            leaves[role]["digests"]["mechanisms"] = digest(lie["mechanisms"])
    ids = {}
    for role, leaf in leaves.items():
        log = AuditLog(engine, actor=Actor(**leaf["actor"]), run_key=leaf["run_key"])
        said = {field.name: leaf[field.name] for field in fields(Event)}
        ids[role] = log.append(Event(**said | {"columns": tuple(said["columns"]), "rules": tuple(said["rules"])}))
        log.close()
    seal(engine, signer=signer, exports=[])
    note, proven = prove_events(engine, list(ids.values()), verifier=signer.verifier)
    events = {role: json.loads(proven[event_id].payload) for role, event_id in ids.items()}
    try:
        claims = claims_of(events) | {"mechanisms": lie["mechanisms"]}
    except ReceiptInvalid:
        claims = receipt["release"]
    evidence = [
        {
            "role": role,
            "index": proven[event_id].index,
            "path": [node.hex() for node in proven[event_id].path],
            "leaf": proven[event_id].payload,
        }
        for role, event_id in ids.items()
    ]
    return {"schema": receipt["schema"], "release": claims, "evidence": {"checkpoint": note, "leaves": evidence}}


def details(role: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda lie: lie["leaves"][role]["details"].update(changes)


def mechanism(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda lie: lie["mechanisms"][0].update(changes)


def both(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(lie: dict[str, Any]) -> None:
        for role in ("draw", "publication"):
            lie["leaves"][role]["details"][name] = value

    return edit


def approver(name: str) -> Callable[[dict[str, Any]], None]:
    def edit(lie: dict[str, Any]) -> None:
        for role in ("approval", "publication"):
            lie["leaves"][role]["details"]["approver"] = name

    return edit


LIES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "requester approves": (approver("alice"), "approver is the requester"),
    "requester approves in capitals": (approver(" ALICE"), "approver is the requester"),
    "job's identity approves": (approver("tester"), "approver is the requester"),
    "no approval": (lambda lie: lie["leaves"].pop("approval"), "needs an approval"),
    "needless approval": (both("approval", "none"), "needs no approval"),
    "two approvers": (details("publication", approver="carol"), "another approver"),
    "too little noise": (mechanism(scale="0.5"), "too little noise"),
    "too large a sensitivity": (mechanism(per_group=10**6), "too little noise"),
    "no noise": (mechanism(scale="0.0"), "too little noise"),
    "negative noise": (mechanism(scale="-20.0"), "too little noise"),
    "share too large": (mechanism(epsilon="10"), "cost more"),
    "delta from nowhere": (mechanism(delta="0.1"), "cost more"),
    "no mechanism": (lambda lie: lie["mechanisms"].clear(), "cost more"),
    "infinite noise": (mechanism(scale="inf"), "cannot be added up"),
    "endless number": (mechanism(epsilon="1e999999999"), "cannot be added up"),
    "a zero divides": (mechanism(epsilon="1/0"), "cannot be added up"),
    "a count is text": (mechanism(groups="2"), "cannot be added up"),
    "cheaper than it was": (both("epsilon_spent", "0.6"), "cost more"),
    "two prices": (details("publication", epsilon_spent="0.6"), "differ in epsilon_spent"),
    "another mechanism": (
        lambda lie: lie["leaves"]["publication"]["digests"].update(mechanisms="sha256:" + "0" * 64),
        "not of one release",
    ),
    "overspent": (details("draw", accounting_charged="101"), "than the budget has"),
    "approval of another run": (lambda lie: lie["leaves"]["approval"].update(run_key="other"), "another release"),
    "publication of another spec": (
        lambda lie: lie["leaves"]["publication"].update(spec_digest="x"),
        "another release",
    ),
    "failed": (lambda lie: lie["leaves"]["draw"].update(phase="failure"), "not that of a successful release"),
    "another action": (lambda lie: lie["leaves"]["approval"].update(action="release"), "successful approve"),
    "looked at, not approved": (details("approval", step="show"), "does not say that the release was approved"),
    "nothing said": (lambda lie: lie["leaves"]["draw"]["details"].clear(), "do not say"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_proved_lie_is_no_receipt(name: str, home: Settings, engine: sql.Engine, signer: Signer) -> None:
    edit, rule = LIES[name]
    approved(home)
    receipt = sealed_receipt(home, engine, signer)
    verified(relogged(receipt, engine, signer, lambda _: None), signer)
    with pytest.raises(ReceiptInvalid, match=rule):
        verified(relogged(receipt, engine, signer, edit), signer)


def test_gaussian_noise_that_costs_too_much_is_no_receipt(home: Settings, engine: sql.Engine, signer: Signer) -> None:
    approved(home, **GAUSSIAN)
    receipt = sealed_receipt(home, engine, signer)
    rho = receipt["release"]["mechanisms"][0]["rho"]
    for edit, rule in (
        (mechanism(rho=str(4 * Fraction(rho))), "cost more"),
        (mechanism(scale=repr(float(receipt["release"]["mechanisms"][0]["scale"]) / 2)), "too little noise"),
        (both("delta_spent", "0"), "cost more"),
    ):
        with pytest.raises(ReceiptInvalid, match=rule):
            verified(relogged(receipt, engine, signer, edit), signer)


def test_a_file_that_contradicts_its_own_event_is_refused(home: Settings, engine: sql.Engine, signer: Signer) -> None:
    """Its hash is in the log, so it was published; but what it says of itself is not what it cost."""
    import hashlib

    document = json.loads(approved(home).read_text())
    receipt = sealed_receipt(home, engine, signer)
    for change in ({"epsilon": "0.1"}, {"run_key": "x"}, {"spec_digest": "x"}, {"approved_by": "carol"}):
        content = json.dumps(document | change).encode()
        sha = f"sha256:{hashlib.sha256(content).hexdigest()}"

        def edit(lie: dict[str, Any], sha: str = sha) -> None:
            lie["leaves"]["publication"]["digests"]["release"] = sha

        with pytest.raises(ReceiptInvalid) as caught:
            verified(relogged(receipt, engine, signer, edit), signer, content)
        assert caught.value.place == f"release file.{next(iter(change))}"


def test_an_event_that_does_not_say_enough_makes_no_receipt(home: Settings, engine: sql.Engine, signer: Signer) -> None:
    release(home)
    receipt = sealed_receipt(home, engine, signer)
    leaf = json.loads(receipt["evidence"]["leaves"][0]["leaf"])
    claims = claims_of({"draw": leaf})
    assert claims_of({"draw": leaf | {"schema": "lepton.audit.event/1"}}) == claims
    with pytest.raises(ReceiptInvalid, match="not that of a successful release"):
        claims_of({"draw": leaf | {"schema": "lepton.audit.event/3"}})
    del leaf["details"]["budget_epsilon"]
    with pytest.raises(ReceiptInvalid, match="do not say 'budget_epsilon'"):
        claims_of({"draw": leaf})


# Others' programs.


def test_the_program_in_the_documentation_verifies_a_receipt_without_this_package(
    home: Settings, engine: sql.Engine, signer: Signer, tmp_path: Path
) -> None:
    program = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert program is not None
    (tmp_path / "verify.py").write_text("import sys; sys.modules['lepton_airflow'] = None\n" + program[1])
    file = approved(home, **GAUSSIAN)
    receipt = sealed_receipt(home, engine, signer)

    def status(**changes: bytes) -> int:
        contents = {
            "receipt.json": receipt_bytes(receipt),
            "checkpoint.pub": signer.verifier.text.encode(),
            "release.json": file.read_bytes(),
        }
        for name, content in contents.items():
            (tmp_path / name).write_bytes(changes.get(name.partition(".")[0], content))
        command = [sys.executable, "verify.py", *contents]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode

    assert status() == 0
    assert status(release=file.read_bytes() + b" ") != 0
    generate_signer(tmp_path / "other.key", name="lepton-audit")
    assert status(checkpoint=Signer.load(tmp_path / "other.key").verifier.text.encode()) != 0
    for path in (("release", "epsilon"), ("release", "approval", "approver"), ("evidence", "leaves", 1, "leaf")):
        changed = copy.deepcopy(receipt)
        at(changed, path[:-1])[path[-1]] += " "
        assert status(receipt=receipt_bytes(changed)) != 0, path
    lie = relogged(receipt, engine, signer, mechanism(scale="0.5"))
    assert status(receipt=receipt_bytes(lie)) != 0
