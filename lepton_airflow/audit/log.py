"""The writer's end of the audit log: durable appends, numbered and chained for each producer."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from lepton_airflow.audit.database import leaf_table, reading
from lepton_airflow.audit.event import Actor, Event, LeafEncoder, event_id_of
from lepton_airflow.audit.merkle import leaf_hash
from lepton_airflow.audit.schema import PRODUCER
from lepton_airflow.audit.writing import inserter
from lepton_airflow.errors import AuditUnavailable


@dataclass(frozen=True)
class _Leaf:
    event_id: str
    payload: str
    hashed: bytes


_OPENING = Event(action=PRODUCER, phase="open")


class AuditLog:
    """One producer of events: one attempt of one job.

    Writers only insert; they never wait for each other's hashes. Each producer begins with an ``open`` event, committed together
    with the first that is appended, numbers its events from 0, names the hash of its preceding one, and ends with a ``close``
    event that counts those before it, so that rows which are lost or changed before the sealer takes them show up. Threads may
    share a log; processes may not. On PostgreSQL a log keeps a connection until it is closed; on SQLite writers stand in line
    (see :mod:`lepton_airflow.audit.writing`).

    :param engine: from `lepton_airflow.audit.database.connect`
    :param actor: who acts, in every event
    :param run_key: of the job, in every event
    :ivar producer: this producer's id
    """

    def __init__(self, engine: sql.Engine, *, actor: Actor, run_key: str) -> None:
        self.actor = actor
        self.run_key = run_key
        self._engine = engine
        self._inserter = inserter(engine)
        self.producer = str(uuid.uuid4())
        self._encoder = LeafEncoder(actor=actor, run_key=run_key, producer=self.producer)
        self._lock = threading.Lock()
        self._sequence = 0
        self._previous: bytes | None = None
        # What was inserted when the commit failed, by its first hash: one of them may have reached the disk before the
        # connection broke. A batch commits as a whole, so its first leaf tells for all.
        self._uncertain: dict[bytes, list[_Leaf]] = {}
        self._closed = False

    def append(self, event: Event) -> str:
        """Commit ``event`` durably and return its event id.

        :raises AuditUnavailable: it could not be committed
        :raises InvalidData: it holds something that is not JSON
        """
        return self.append_all((event,))[0]

    def append_all(self, events: Sequence[Event]) -> list[str]:
        """Commit several events durably, all of them or none, and return their event ids.

        :raises AuditUnavailable: they could not be committed
        :raises InvalidData: one of them holds something that is not JSON
        """
        with self._lock:
            if self._closed:
                raise self._unavailable("The audit log of this run is closed.")
            return self._append(events) if events else []

    def close(self) -> None:
        """Append the closing event, which counts the events before it; nothing can be appended afterwards.

        :raises AuditUnavailable: it could not be committed
        """
        with self._lock:
            if not self._closed:
                try:
                    self._append((Event(action=PRODUCER, phase="close"),))
                    self._closed = True
                finally:
                    self._inserter.close()

    def _append(self, events: Sequence[Event]) -> list[str]:
        try:
            return self._insert(events)
        except IntegrityError as error:
            # Either our number is taken, or the database refuses the leaf by another of its rules.
            committed = self._committed_hash()
            if committed is None:
                raise self._unavailable(f"The audit database refuses the event ({_broken_rule(error)}).") from None
            # If by a leaf that we believed lost, it was not lost: go on after it.
            if committed not in self._uncertain:
                raise self._unavailable("Another process has written under this producer's number.") from None
        self._advance(self._uncertain[committed])
        return self._insert(events)

    def _insert(self, events: Sequence[Event]) -> list[str]:
        leaves = self._leaves(events)
        try:
            self._inserter.insert([(leaf.event_id, leaf.payload, leaf.hashed) for leaf in leaves])
        except IntegrityError:
            raise
        except BaseException:
            self._uncertain[leaves[0].hashed] = leaves
            raise
        self._advance(leaves)
        return [leaf.event_id for leaf in leaves[-len(events) :]]

    def _leaves(self, events: Sequence[Event]) -> list[_Leaf]:
        if self._sequence == 0:
            events = (_OPENING, *events)
        leaves: list[_Leaf] = []
        previous = self._previous
        for sequence, event in enumerate(events, self._sequence):
            event_id = event_id_of(self.producer, sequence)
            if event.phase == "close":
                event = Event(action=event.action, phase="close", counts={"events": sequence})
            # The offset of UTC is what isoformat ends with; RFC 3339 has a letter for it.
            time = f"{datetime.now(UTC).isoformat(timespec='microseconds')[:-6]}Z"
            payload = self._encoder.encode(event, event_id=event_id, sequence=sequence, previous=previous, time=time)
            previous = leaf_hash(payload)
            leaves.append(_Leaf(event_id, payload.decode(), previous))
        return leaves

    def _advance(self, leaves: Sequence[_Leaf]) -> None:
        self._sequence += len(leaves)
        self._previous = leaves[-1].hashed
        self._uncertain.clear()

    def _committed_hash(self) -> bytes | None:
        """The hash that stands under this producer's next number; None when nothing does."""
        event_id = event_id_of(self.producer, self._sequence)
        with reading(self._engine) as connection:
            found = connection.scalar(sql.select(leaf_table.c.leaf_hash).where(leaf_table.c.event_id == event_id))
        return None if found is None else bytes(found)

    def _unavailable(self, rule: str) -> AuditUnavailable:
        return AuditUnavailable(
            rule, place=f"audit log of run {self.run_key}", remedy="Open one AuditLog in each process and attempt."
        )


def _broken_rule(error: IntegrityError) -> str:
    """The name of the constraint, as far as the driver tells it; never its values."""
    constraint = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
    return constraint or getattr(error.orig, "sqlite_errorname", None) or type(error.orig).__name__
