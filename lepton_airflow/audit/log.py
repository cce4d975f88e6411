"""The writer's end of the audit log: durable appends, numbered and chained for each producer."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.audit.database import leaf_table
from lepton_airflow.audit.event import Actor, Event, leaf_fields
from lepton_airflow.audit.merkle import leaf_hash
from lepton_airflow.errors import AuditUnavailable

#: The action of a producer's last event.
PRODUCER = "producer"


def event_id_of(producer: uuid.UUID, sequence: int) -> str:
    """An event's id follows from its producer and number: the table's unique key forbids using a number twice."""
    return str(uuid.uuid5(producer, str(sequence)))


class AuditLog:
    """One producer of events: one attempt of one job.

    Writers only insert; they never wait for each other's hashes. Each producer numbers its events from 0, names the
    hash of its preceding one, and ends with a ``close`` event that counts them, so that rows which are lost or changed
    before the sealer takes them show up. Threads may share a log; processes may not.

    :param engine: from `lepton_airflow.audit.database.connect`
    :param actor: who acts, in every event
    :param run_key: of the job, in every event
    """

    def __init__(self, engine: sql.Engine, *, actor: Actor, run_key: str) -> None:
        self.actor = actor
        self.run_key = run_key
        self._engine = engine
        self._producer = uuid.uuid4()
        self._lock = threading.Lock()
        self._sequence = 0
        self._previous: bytes | None = None
        # Hashes of leaves whose commit failed: one of them may have reached the disk before the connection broke.
        self._uncertain: set[bytes] = set()
        self._closed = False

    def append(self, event: Event) -> str:
        """Commit ``event`` durably and return its event id.

        :raises AuditUnavailable: it could not be committed
        :raises InvalidData: it holds something that is not JSON
        """
        with self._lock:
            if self._closed:
                raise self._unavailable("The audit log of this run is closed.")
            return self._append(event)

    def close(self) -> None:
        """Append the closing event, which counts the events before it; nothing can be appended afterwards.

        :raises AuditUnavailable: it could not be committed
        """
        with self._lock:
            if not self._closed:
                self._append(Event(action=PRODUCER, phase="close"))
                self._closed = True

    def _append(self, event: Event) -> str:
        try:
            return self._insert(event)
        except IntegrityError:
            # Our number is taken. If by a leaf that we believed lost, it was not lost: go on after it.
            committed = self._committed_hash()
            if committed not in self._uncertain:
                raise self._unavailable("Another process has written under this producer's number.") from None
        self._advance(committed)
        return self._insert(event)

    def _insert(self, event: Event) -> str:
        event_id = event_id_of(self._producer, self._sequence)
        if event.phase == "close":
            event = Event(action=event.action, phase="close", counts={"events": self._sequence})
        payload = canonical_json(
            leaf_fields(
                event,
                actor=self.actor,
                run_key=self.run_key,
                producer={
                    "id": str(self._producer),
                    "sequence": self._sequence,
                    "previous": self._previous.hex() if self._previous else None,
                },
                event_id=event_id,
                time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            )
        )
        hashed = leaf_hash(payload)
        try:
            with self._engine.begin() as connection:
                connection.execute(
                    leaf_table.insert().values(event_id=event_id, payload=payload.decode(), leaf_hash=hashed)
                )
        except IntegrityError:
            raise
        except BaseException:
            self._uncertain.add(hashed)
            raise
        self._advance(hashed)
        return event_id

    def _advance(self, hashed: bytes) -> None:
        self._sequence += 1
        self._previous = hashed
        self._uncertain.clear()

    def _committed_hash(self) -> bytes:
        event_id = event_id_of(self._producer, self._sequence)
        with self._engine.begin() as connection:
            row = connection.execute(sql.select(leaf_table.c.leaf_hash).where(leaf_table.c.event_id == event_id)).one()
        return bytes(row.leaf_hash)

    def _unavailable(self, rule: str) -> AuditUnavailable:
        return AuditUnavailable(
            rule, place=f"audit log of run {self.run_key}", remedy="Open one AuditLog in each process and attempt."
        )
