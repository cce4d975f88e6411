"""What one audit event says.

An event holds names, counts, digests and decisions: never a data value, never key material, and never one event for
each data row. Its leaf in the log is the canonical JSON of schema ``lepton.audit.event/1``:

    {"schema": "lepton.audit.event/1",
     "event_id": uuid (version 5 of the producer's id and the sequence number),
     "time": RFC 3339 in UTC with microseconds,
     "producer": {"id": uuid, "sequence": 0.., "previous": hex leaf hash of the producer's preceding event, or null},
     "run_key": ..., "actor": {the fields of Actor}, and the fields of Event}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lepton_airflow.errors import InvalidData

SCHEMA = "lepton.audit.event/1"
Phase = Literal["intent", "success", "failure", "denied", "note", "close"]
Detail = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Who acted, each part kept apart.

    :param principal: the identity that the policy authorised and that unseals the keys
    :param on_behalf_of: the person who triggered the run, if known
    :param owner: the owner of the DAG or job
    :param team: the team of the DAG or job
    :param host: where the job ran
    :param bundle_version: the version of the DAG bundle or code
    """

    principal: str
    host: str
    on_behalf_of: str | None = None
    owner: str | None = None
    team: str | None = None
    bundle_version: str | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """One step of an operation.

    :param action: ``encrypt``, ``decrypt``, ``release``, ``train``, ``verify``, ``keys.create``, ...
    :param phase: ``intent`` before the work, then ``success`` or ``failure``; ``denied`` instead of both; ``note``
        for what has no work; ``close`` is the producer's last event
    :param intent: in an outcome, the event id of its intent
    :param rules: ids of the policy rules that decided
    :raises InvalidData: an unknown phase
    """

    action: str
    phase: Phase
    dataset: str | None = None
    columns: tuple[str, ...] = ()
    purpose: str | None = None
    intent: str | None = None
    rules: tuple[str, ...] = ()
    policy_digest: str | None = None
    spec_digest: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Detail] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.phase not in get_args(Phase):
            raise InvalidData(
                "Unknown phase.", place=f"audit event {self.action}", remedy=f"Known: {', '.join(get_args(Phase))}."
            )

    def fields(self) -> dict[str, Any]:
        """The event's part of its leaf."""
        return {
            **self.__dict__,
            "columns": list(self.columns),
            "rules": list(self.rules),
            "counts": dict(self.counts),
            "digests": dict(self.digests),
            "details": dict(self.details),
        }


def leaf_fields(
    event: Event, *, actor: Mapping[str, Any], run_key: str, producer: Mapping[str, Any], event_id: str, time: str
) -> dict[str, Any]:
    """The whole leaf of ``event``, ready for `canonical_json`.

    :param actor: the fields of the :class:`Actor`
    """
    return {
        "schema": SCHEMA,
        "event_id": event_id,
        "time": time,
        "producer": dict(producer),
        "run_key": run_key,
        "actor": dict(actor),
        **event.fields(),
    }
