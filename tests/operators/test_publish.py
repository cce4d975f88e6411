"""Publishing after an approval: who counts as having approved, and which release a task goes on from."""

from __future__ import annotations

import importlib
import pkgutil
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from lepton_airflow import operators
from lepton_airflow.errors import EventNotSealed
from lepton_airflow.hooks.lepton import LeptonHook
from lepton_airflow.hooks.lineage import LineageMixin
from lepton_airflow.jobs.runner import Caller
from lepton_airflow.operators.publish import PublishReleaseOperator, ReleaseReceiptOperator
from lepton_airflow.settings import Settings

BOB = {"id": "7", "name": "bob"}


class Run:
    """A task instance and its DAG run, as far as the operators look at them; what the operators ask of the jobs."""

    def __init__(self, response: Any, *, triggered_by: str | None = "alice", map_index: int = -1) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.response = response
        self.outlet = SimpleNamespace(extra=None)
        instance = SimpleNamespace(dag_id="dag", task_id="publish", run_id="run/1", map_index=map_index)
        instance.xcom_pull = self.xcom_pull
        self.instance = instance
        self.context: Any = {
            "ti": instance,
            "dag_run": SimpleNamespace(triggering_user_name=triggered_by),
            "task": SimpleNamespace(owner="team"),
            "outlet_events": {Asset("released"): self.outlet},
        }

    def xcom_pull(self, *, task_ids: str, map_indexes: int) -> Any:
        assert (task_ids, map_indexes) == ("approve", self.instance.map_index)
        return self.response

    def approve(self, run_key: str, **arguments: Any) -> None:
        self.asked.append((run_key, arguments))

    def publish(self, run_key: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append((run_key, arguments))
        return {"release": "/data/release.json"}


@pytest.fixture(autouse=True)
def deployment(home: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(LeptonHook, "settings", home)
    return home


def execute(run: Run, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    monkeypatch.setattr("lepton_airflow.jobs.publish_release.approve_release", run.approve)
    monkeypatch.setattr("lepton_airflow.jobs.publish_release.publish_release", run.publish)
    arguments: dict[str, Any] = {"task_id": "publish", "release_task_id": "release", "approval_task_id": "approve"}
    operator = PublishReleaseOperator(**arguments | changes, outlets=[Asset("released")])
    return operator.execute(run.context)


def test_the_release_of_the_same_run_is_approved_and_published(
    deployment: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run({"chosen_options": ["Approve"], "responded_by_user": BOB}, map_index=3)
    summary = execute(run, monkeypatch)
    caller = Caller(on_behalf_of="alice", owner="team")
    approval = {"approver": "bob", "known_by": "airflow", "aliases": ["7"], "requesters": ["alice"]}
    shared = {"settings": deployment, "caller": caller}
    assert run.asked == [
        ("dag/release/run/1/3", {**shared, **approval}),
        ("dag/release/run/1/3", shared),
    ]
    assert run.outlet.extra == summary == {"release": "/data/release.json"}


@pytest.mark.parametrize(
    "response",
    [
        None,
        "Approve",
        {},
        {"chosen_options": ["Approve"]},
        # A default that a timeout chose has no person behind it.
        {"chosen_options": ["Approve"], "responded_by_user": None, "timedout": True},
        {"chosen_options": ["Reject"], "responded_by_user": BOB},
        {"chosen_options": ["Approve", "Reject"], "responded_by_user": BOB},
        {"chosen_options": [], "responded_by_user": BOB},
    ],
)
def test_without_a_persons_yes_nothing_is_published(response: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(response)
    with pytest.raises(AirflowFailException, match=r"\[ApprovalMissing\]"):
        execute(run, monkeypatch)
    assert run.asked == []


def test_who_triggered_the_run_counts_as_a_requester(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job refuses them and says so in the audit: see the tests of receipts and of the scheduled Airflow."""
    run = Run({"chosen_options": ["Approve"], "responded_by_user": {"id": "7", "name": "alice"}})
    execute(run, monkeypatch)
    assert (run.asked[0][1]["approver"], run.asked[0][1]["requesters"]) == ("alice", ["alice"])


def test_a_scheduled_run_has_nobody_who_triggered_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run({"chosen_options": ["Approve"], "responded_by_user": BOB}, triggered_by=None)
    execute(run, monkeypatch)
    assert [arguments.get("approver") for _, arguments in run.asked] == ["bob", None]


def test_an_approval_can_be_given_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(None)
    execute(run, monkeypatch, approval_task_id=None)
    assert len(run.asked) == 1


def test_a_receipt_before_the_seal_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("lepton_airflow.audit.checkpoint.Verifier.load", lambda _: "key")
    answers: list[Any] = [EventNotSealed("Not yet.", place="event", remedy="Seal."), b"first", b"second"]
    asked = []

    def issue(_: Any, run_key: str, *, verifier: Any) -> bytes:
        asked.append((run_key, verifier))
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bytes(answer)

    monkeypatch.setattr("lepton_airflow.privacy.receipt_issue.issue_receipt", issue)
    file = tmp_path / "receipts" / "receipt.json"
    operator = ReleaseReceiptOperator(task_id="receipt", release_task_id="release", receipt=str(file))
    with pytest.raises(AirflowException) as caught:
        operator.execute(Run(None).context)
    assert not isinstance(caught.value, AirflowFailException)
    assert not file.exists()
    for content in (b"first", b"second"):
        assert operator.execute(Run(None).context) == {"receipt": str(file), "run_key": "dag/release/run/1/-1"}
        assert file.read_bytes() == content
    assert asked == [("dag/release/run/1/-1", "key")] * 3
    assert [path.name for path in file.parent.iterdir()] == ["receipt.json"]


@pytest.mark.parametrize("operator", [PublishReleaseOperator, ReleaseReceiptOperator])
def test_every_argument_is_documented(operator: type) -> None:
    import inspect

    names = {
        name
        for cls in operator.__mro__
        if cls.__module__ == operator.__module__
        for name, parameter in inspect.signature(inspect.getattr_static(cls, "__init__").__wrapped__).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert names >= {"release_task_id", "lepton_conn_id"}
    assert not [name for name in names if f":param {name}:" not in (operator.__doc__ or "")]


def test_what_is_published_is_told_with_all_that_the_release_knew(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {
        "source": {"name": "clinic.visits", "path": "/data/visits"},
        "privacy_unit": "patient",
        "group_by": ["ward"],
        "groups": ["north"],
        "metrics": [{"name": "visits", "type": "count"}],
        "epsilon": "0.5",
        "target": "/data/release.json",
        "purpose": "statistics",
    }
    monkeypatch.setattr("lepton_airflow.jobs.publish_release.released_spec", lambda _run_key, **_: spec)
    run = Run({"chosen_options": ["Approve"], "responded_by_user": BOB})
    monkeypatch.setattr("lepton_airflow.jobs.publish_release.approve_release", run.approve)
    monkeypatch.setattr("lepton_airflow.jobs.publish_release.publish_release", run.publish)
    operator = PublishReleaseOperator(
        task_id="publish", release_task_id="release", approval_task_id="approve", outlets=[Asset("released")]
    )
    assert operator.get_openlineage_facets_on_start().outputs == []
    operator.execute(run.context)
    told = operator.get_openlineage_facets_on_complete(run.instance)
    assert [one.name for one in told.inputs] == ["/data/visits"]
    assert [one.name for one in told.outputs] == ["/data/release.json"]
    assert told.run_facets["lepton_privacy"].release["epsilon"] == 0.5


def test_every_operator_tells_its_lineage() -> None:
    for module in pkgutil.iter_modules(operators.__path__):
        found = vars(importlib.import_module(f"lepton_airflow.operators.{module.name}"))
        for name, kind in found.items():
            if isinstance(kind, type) and issubclass(kind, BaseOperator) and kind.__module__.startswith("lepton"):
                assert issubclass(kind, LineageMixin), name
