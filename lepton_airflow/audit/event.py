"""What one audit event says.

An event holds names, counts, digests and decisions: never a data value, never key material, and never one event for
each data row. Its leaf in the log is the canonical JSON of schema ``lepton.audit.event/2``:

    {"schema": "lepton.audit.event/2",
     "event_id": uuid (version 8: the producer's id, its last 48 bits being the sequence number; see `event_id_of`),
     "time": RFC 3339 in UTC with microseconds,
     "producer": {"id": uuid, "sequence": 0.., "previous": hex leaf hash of the producer's preceding event, or null},
     "run_key": ..., "actor": {the fields of Actor}, and the fields of Event}
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Literal, get_args

from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.audit.schema import FIRST_SCHEMA, SCHEMA
from lepton_airflow.errors import InvalidData

Phase = Literal["open", "intent", "success", "failure", "denied", "note", "close"]
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
        for what has no work; ``open`` is the producer's first event, ``close`` its last
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


class LeafEncoder:
    """Writes one producer's leaves: the bytes that `canonical_json` makes of them, in a fraction of the time.

    Canonical JSON of an object is that of its fields in the order of their names, so what never changes is encoded once.

    :raises InvalidData: a value that is not JSON
    """

    def __init__(self, *, actor: Actor, run_key: str, producer: str) -> None:
        self._actor = _json(asdict(actor))
        self._producer = _json(producer)
        self._run = f'"run_key":{_json(run_key)},"schema":{_json(SCHEMA)}'

    def encode(self, event: Event, *, event_id: str, sequence: int, previous: bytes | None, time: str) -> bytes:
        """One leaf.

        :param previous: the leaf hash of the producer's preceding event
        """
        before = "null" if previous is None else f'"{previous.hex()}"'
        return (
            f'{{"action":{_json(event.action)},"actor":{self._actor},"columns":{_list(event.columns)},'
            f'"counts":{_json(event.counts)},"dataset":{_json(event.dataset)},"details":{_json(event.details)},'
            f'"digests":{_json(event.digests)},"event_id":"{event_id}","intent":{_json(event.intent)},'
            f'"phase":{_json(event.phase)},"policy_digest":{_json(event.policy_digest)},'
            f'"producer":{{"id":{self._producer},"previous":{before},"sequence":{sequence}}},'
            f'"purpose":{_json(event.purpose)},"rules":{_list(event.rules)},{self._run},'
            f'"spec_digest":{_json(event.spec_digest)},"time":"{time}"}}'
        ).encode()


@lru_cache(maxsize=1024)
def _text(value: str) -> str:
    return canonical_json(value).decode()


def _json(value: Any) -> str:
    if type(value) is str:
        return _text(value)
    if isinstance(value, Mapping):
        return canonical_json(dict(value)).decode() if value else "{}"
    return "null" if value is None else canonical_json(value).decode()


def _list(values: Iterable[Any]) -> str:
    return f"[{','.join([_json(value) for value in values])}]"


def event_id_of(producer: str, sequence: int, *, schema: str = SCHEMA) -> str:
    """An event's id follows from its producer and number: the table's unique key forbids using a number twice.

    It is a UUID of version 8 (RFC 9562 section 5.8): its last 48 bits are the number, the others the producer's. So a producer's
    events stand together in the table's index over ids, and who sees an id sees whose it is. 74 bits of a producer's id are
    random: that two of a billion producers ever share them has a chance of less than one in 30,000.

    :param producer: its id, a UUID in full and in small letters
    :param schema: of the leaf; of the first one the ids are of version 5, the name being the number (section 5.5)
    """
    if schema == FIRST_SCHEMA:
        return str(uuid.uuid5(uuid.UUID(producer), str(sequence)))
    return f"{producer[:14]}8{producer[15:24]}{sequence:012x}"
