"""Times in the log that go back or lie in the future: a clock that was set, or somebody who writes history."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from lepton_airflow.audit.findings import Finding, Leaf
from lepton_airflow.audit.forms import Fields

#: Within one producer, which has one clock.
PRODUCER_TOLERANCE = timedelta(seconds=1)
#: Between machines, whose clocks differ, and events that wait for their commit.
LOG_TOLERANCE = timedelta(minutes=10)


class Clock:
    """Fed with the leaves in the order of the log."""

    def __init__(self) -> None:
        self._now = datetime.now(UTC)
        self._before: datetime | None = None
        self._producers: dict[uuid.UUID, tuple[int, datetime]] = {}

    def check(self, leaf: Leaf, event: Fields) -> Iterator[Finding]:
        """What is odd about the time of ``event``, the contents of ``leaf``; nothing if it has none of our form."""
        producer, sequence = event.producer, event.sequence
        try:
            time = datetime.fromisoformat(event.time)
            late = time - self._now
        except (TypeError, ValueError):
            return
        if late > LOG_TOLERANCE:
            yield Finding("clock", leaf.position, "Its time is in the future.")
        number, last = self._producers.get(producer, (-1, None))
        if last is not None and sequence > number and last - time > PRODUCER_TOLERANCE:
            text = f"Its time is {last - time} before that of its producer's preceding event."
            yield Finding("clock", leaf.position, text)
        elif self._before is not None and self._before - time > LOG_TOLERANCE:
            text = f"Its time is {self._before - time} before that of the event before it in the log."
            yield Finding("clock", leaf.position, text)
        self._before = time
        if event.closes:
            self._producers.pop(producer, None)
        else:
            self._producers[producer] = (sequence, time)

    def take(self, producer: uuid.UUID, sequence: int, *, first: datetime, last: datetime, closes: bool) -> bool:
        """Take in events of one producer that stand behind each other, none before the one before it; False, and nothing done, if
        the first is before what it follows upon, or the last in the future.

        :param sequence: the last one's number
        """
        known = self._producers.get(producer)
        if (
            last - self._now > LOG_TOLERANCE
            or (known is not None and known[1] - first > PRODUCER_TOLERANCE)
            or (self._before is not None and self._before - first > LOG_TOLERANCE)
        ):
            return False
        self._before = last
        if closes:
            self._producers.pop(producer, None)
        else:
            self._producers[producer] = (sequence, last)
        return True
