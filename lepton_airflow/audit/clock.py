"""Times in the log that go back or lie in the future: a clock that was set, or somebody who writes history."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from lepton_airflow.audit.findings import Finding, Leaf
from lepton_airflow.audit.forms import Fields
from lepton_airflow.audit.stretches import Stretch
from lepton_airflow.audit.tolerance import LOG_TOLERANCE, PRODUCER_TOLERANCE


class Clock:
    """Fed with the leaves in the order of the log."""

    def __init__(self) -> None:
        self._now = datetime.now(UTC)
        self._before: datetime | None = None
        self._producers: dict[str, tuple[int, datetime]] = {}

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
        self._note(producer, sequence, time, closes=event.closes)

    def take(self, stretch: Stretch) -> bool:
        """Take in the events of a stretch; False, and nothing done, if one of its chains begins before what it follows upon, or
        the stretch before what stands before it, or if anything in it lies in the future.
        """
        if stretch.latest - self._now > LOG_TOLERANCE or (
            self._before is not None and self._before - stretch.began > LOG_TOLERANCE
        ):
            return False
        known = ((chain, self._producers.get(chain.producer)) for chain in stretch.chains)
        if any(last is not None and last[1] - chain.began > PRODUCER_TOLERANCE for chain, last in known):
            return False
        self._before = stretch.ended
        for chain in stretch.chains:
            self._note(chain.producer, chain.last_sequence, chain.ended, closes=chain.closes)
        return True

    def _note(self, producer: str, sequence: int, time: datetime, *, closes: bool) -> None:
        if closes:
            self._producers.pop(producer, None)
        else:
            self._producers[producer] = (sequence, time)
