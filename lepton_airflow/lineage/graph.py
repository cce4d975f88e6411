"""The graph of datasets and runs that the audit log's own events tell, whether or not OpenLineage events were sent.

An edge stands for an operation that succeeded: its intent names the datasets, its outcome says that it was done. Runs of the same
task on the same datasets are one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lepton_airflow.lineage.audited import ciphers_of

if TYPE_CHECKING:
    from sqlalchemy import Engine

Direction = Literal["up", "down", "both"]

#: The actions that move data, as events name them.
#: What is asked of an event; what is none is for verification to say.
_FIELDS = {"action", "phase", "event_id", "intent", "run_key", "dataset", "details", "counts", "columns", "time"}
ACTIONS = ("decrypt", "encrypt", "release", "restore", "rotate", "store", "train")


@dataclass(kw_only=True)
class Step:
    """What one task did, over all its runs.

    :param task: ``dag.task``, or how the job was started without Airflow
    :param source: the dataset that was read
    :param target: the dataset, file or folder that was written; None if the events do not say
    :param columns: each column and what it became: a cipher, ``in clear``, ``under the primary key``, ...
    :param runs: how many runs succeeded
    :param last: when the last did, RFC 3339
    :param note: what it cost: epsilon and the privacy unit
    :param run_key: of the last run
    """

    action: str
    task: str
    source: str
    target: str | None
    columns: dict[str, str] = field(default_factory=dict)
    runs: int = 0
    last: str = ""
    note: str = ""
    run_key: str = ""


@dataclass
class Graph:
    """Datasets by name, and the steps between them; a rotation leads from a dataset to itself."""

    steps: list[Step] = field(default_factory=list)

    @property
    def datasets(self) -> set[str]:
        """Every dataset, file or folder that a step reads or writes."""
        return {name for step in self.steps for name in (step.source, step.target) if name is not None}

    def upstream(self, dataset: str) -> list[Step]:
        """The steps that write the dataset."""
        return [step for step in self.steps if step.target == dataset != step.source]

    def downstream(self, dataset: str) -> list[Step]:
        """The steps that read the dataset and write another."""
        return [step for step in self.steps if step.source == dataset != step.target]

    def within(self, dataset: str) -> list[Step]:
        """The steps that write the dataset anew from itself."""
        return [step for step in self.steps if step.source == dataset == step.target]

    def around(self, dataset: str, direction: Direction) -> Graph:
        """What lies upstream of a dataset, downstream, or both; and the rotations of what is found."""
        found: list[Step] = []
        for towards, wanted in ((self.upstream, "up"), (self.downstream, "down")):
            if direction not in (wanted, "both"):
                continue
            waiting, known = [dataset], {dataset}
            while waiting:
                for step in towards(waiting.pop()):
                    found.append(step)
                    further = step.source if wanted == "up" else step.target
                    if further is not None and further not in known:
                        known.add(further)
                        waiting.append(further)
        near = {name for step in found for name in (step.source, step.target)} | {dataset}
        kept = {id(step) for step in found}
        return Graph(
            [step for step in self.steps if id(step) in kept or (step.source == step.target and step.source in near)]
        )


def read_graph(engine: Engine) -> Graph:
    """The graph of the whole audit log. It is read, not verified: that is ``lepton audit verify``.

    :raises AuditUnavailable: the database cannot be reached
    """
    return build_graph(_events(engine))


def build_graph(events: Iterable[Mapping[str, Any]]) -> Graph:
    """The graph of events in the order of the log."""
    intents: dict[str, Mapping[str, Any]] = {}
    opened: dict[str, set[str]] = {}
    steps: dict[tuple[str, str, str, str | None], Step] = {}
    for event in events:
        if event["action"] not in ACTIONS:
            continue
        if event["phase"] == "intent":
            intents[event["event_id"]] = event
            continue
        intent = intents.pop(event["intent"] or "", None)
        # Approved releases are published by another operation, which writes what the first one drew.
        if event["phase"] != "success" or intent is None or intent["details"].get("step") == "publish":
            continue
        _add(steps, opened, intent, event)
    return Graph(list(steps.values()))


def _add(
    steps: dict[tuple[str, str, str, str | None], Step],
    opened: dict[str, set[str]],
    intent: Mapping[str, Any],
    outcome: Mapping[str, Any],
) -> None:
    action, details, run_key = intent["action"], intent["details"], intent["run_key"]
    if action == "decrypt" and "target" not in details:
        # A release or a training opened columns in memory; its own outcome comes after.
        if "published_as" not in details:
            opened.setdefault(run_key, set()).update(intent["columns"])
        return
    if action == "release" and "target" not in details:
        # The authorisation of another dataset's budget, or an event of an older version.
        return
    dataset = intent["dataset"]
    if action == "encrypt" and "source" not in details:
        return
    source = str(details["source"]) if action == "encrypt" else _in_shards(dataset) if action == "restore" else dataset
    written = {"encrypt": dataset, "rotate": dataset, "store": _in_shards(dataset)}
    target = written.get(action, details.get("target"))
    key = (action, _task(run_key), source, target)
    step = steps.setdefault(key, Step(action=action, task=key[1], source=source, target=target))
    if step.run_key != run_key:
        step.runs += 1
    step.run_key, step.last = run_key, outcome["time"]
    step.columns = _columns(action, intent, opened.pop(run_key, set()))
    step.note = _note(action, intent)


def _in_shards(dataset: str) -> str:
    """What is on storage nodes is not the table that was stored: that can change or go."""
    return f"{dataset} in shards"


def _columns(action: str, intent: Mapping[str, Any], opened: set[str]) -> dict[str, str]:
    columns, details = intent["columns"], intent["details"]
    if action == "encrypt":
        ciphers = ciphers_of(str(details.get("ciphers", "")))
        return {column: ciphers.get(column, "encrypted") for column in columns}
    if action == "decrypt":
        return dict.fromkeys(columns, "in clear")
    if action == "rotate":
        return dict.fromkeys(columns, "under the primary key")
    unit = details.get("privacy_unit")
    return {
        column: "privacy unit" if column == unit else "opened in memory" if column in opened else "as it is"
        for column in columns
    }


def _note(action: str, intent: Mapping[str, Any]) -> str:
    details = intent["details"]
    if action == "store":
        return f"{details.get('data_shards')} of {len(str(details.get('nodes')).split())} nodes are enough"
    if action == "release":
        return f"epsilon {details.get('epsilon')} for each {details.get('privacy_unit')}"
    return f"keyset {details['keyset']}" if details.get("keyset") else ""


def _task(run_key: str) -> str:
    """The task of a run key of Airflow; else its first part, such as ``spark-submit``."""
    parts = run_key.split("/")
    return ".".join(parts[:2]) if len(parts) >= 4 else parts[0]


def _events(engine: Engine) -> Iterator[Mapping[str, Any]]:
    import sqlalchemy as sql

    from lepton_airflow.audit.database import leaf_table, reading
    from lepton_airflow.audit.search import readable_event

    # Leaves are canonical JSON, without spaces: the database picks what the graph is made of.
    wanted = sql.or_(*(leaf_table.c.payload.contains(f'"action":"{action}"', autoescape=True) for action in ACTIONS))
    query = sql.select(leaf_table.c.payload).where(wanted).order_by(leaf_table.c.id)
    with reading(engine) as connection:
        for payload in connection.execution_options(yield_per=1000).execute(query).scalars():
            event = readable_event(payload)
            if event is not None and event.keys() >= _FIELDS and isinstance(event["details"], dict):
                yield event
