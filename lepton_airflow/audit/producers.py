"""Follows every producer's numbers and hashes through the log, to see events that were lost or changed before sealing."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from lepton_airflow.audit.clock import Clock
from lepton_airflow.audit.event import event_id_of
from lepton_airflow.audit.findings import Finding, Leaf
from lepton_airflow.audit.forms import NOT_OF_THE_SCHEMA, Forms
from lepton_airflow.audit.schema import SCHEMA
from lepton_airflow.audit.series import Series

#: Of a longer run of missing numbers, only so many events are named.
_LONGEST_GAP = 16
#: So many numbers more than a log has leaves are looked for.
_LOOKED_FOR = 10_000


@dataclass
class _Producer:
    """What has been seen of one producer; ``missing`` holds [start, stop) of numbers that were skipped."""

    next_sequence: int = 0
    last: Leaf | None = None
    missing: list[tuple[int, int]] = field(default_factory=list)


class Producers:
    """Fed with the leaves in the order of the log. Memory grows with the producers that have not closed."""

    def __init__(self) -> None:
        self._open: dict[uuid.UUID, _Producer] = {}
        self._finished: list[tuple[uuid.UUID, _Producer]] = []
        self._untrusted: set[str] = set()
        self._clock = Clock()
        self._forms = Forms()

    @property
    def open_count(self) -> int:
        """Producers without a closing event."""
        return len(self._open)

    def check(self, leaf: Leaf) -> Iterator[Finding]:
        """Take in a leaf whose payload is the one that was hashed; yield what is wrong with it or its predecessor."""
        try:
            event = self._forms.fields(leaf.payload)
        except NOT_OF_THE_SCHEMA:
            yield Finding("malformed", leaf.position, f"The payload is not canonical JSON of the schema {SCHEMA}.")
            return
        yield from self._clock.check(leaf, event)
        producer_id, sequence = event.producer, event.sequence
        if event.event_id != event_id_of(producer_id, sequence):
            yield Finding("malformed", leaf.position, "The event's id does not follow from its producer and number.")
        if event.event_id != leaf.event_id:
            yield Finding("edited", leaf.position, "The event id beside the payload is not the payload's.")
        producer = self._open.setdefault(producer_id, _Producer())
        if sequence < producer.next_sequence:
            if not _fill(producer.missing, sequence):
                yield Finding("malformed", leaf.position, "Its producer has used this number before.")
            return
        if sequence > producer.next_sequence:
            producer.missing.append((producer.next_sequence, sequence))
        elif event.previous not in _hashes(producer.last):
            before = producer.last.position if producer.last else leaf.position
            yield Finding("edited", before, "The producer's next event names another hash for it.")
        producer.next_sequence = sequence + 1
        producer.last = leaf
        if event.counted is not None:
            if event.counted != sequence:
                yield Finding("malformed", leaf.position, "The closing event does not count the events before it.")
            self._close(producer_id)

    def take(self, series: Series) -> bool:
        """Take in a whole series.

        :returns: False, and nothing is done, if its first leaf is not sound or does not follow upon what was seen of its producer
        """
        opening = series.opening
        if opening is None:
            return False
        producer = self._open.get(opening.producer) or _Producer()
        if opening.sequence != producer.next_sequence or opening.previous not in _hashes(producer.last):
            return False
        time, sequence = (series.last or opening).time, opening.sequence + series.length - 1
        if not self._clock.take(opening.producer, sequence, first=opening.time, last=time, closes=series.closes):
            return False
        self._open[opening.producer] = producer
        self._go_on(opening.producer, producer, series, sequence)
        return True

    def follow(self, series: Series) -> bool:
        """Take in the leaves of a series behind its first, which was checked just now.

        :returns: False, and nothing is done, if they have to be checked one by one
        """
        last = series.last
        producer = None if last is None else self._open.get(last.producer)
        if last is None or producer is None or producer.last is None or producer.last.tree_index != series.first:
            return False
        # The first was looked at by itself, and none of the others is before it.
        if not self._clock.take(last.producer, last.sequence, first=last.time, last=last.time, closes=series.closes):
            return False
        self._go_on(last.producer, producer, series, last.sequence)
        return True

    def _go_on(self, producer_id: uuid.UUID, producer: _Producer, series: Series, sequence: int) -> None:
        """Note that a producer has come to the end of a series, which has this number."""
        producer.next_sequence = sequence + 1
        index = series.first + series.length - 1
        event_id, hashed = (series.event_id, series.hashed) if series.last is None else series.last[:2]
        # Of the last leaf only its place and its hash will be asked for.
        producer.last = Leaf(
            row=index, event_id=event_id.decode(), payload=b"", stored_hash=hashed, actual_hash=hashed, tree_index=index
        )
        if series.closes:
            self._close(producer_id)

    def _close(self, producer_id: uuid.UUID) -> None:
        producer = self._open.pop(producer_id)
        self._finished += [(producer_id, producer)] if producer.missing else []

    def skip(self, leaf: Leaf) -> None:
        """Take in a leaf whose payload cannot be trusted: the event id beside it says whose it was."""
        for producer_id, producer in self._open.items():
            if event_id_of(producer_id, producer.next_sequence) == leaf.event_id:
                producer.next_sequence += 1
                producer.last = leaf
                return
        self._untrusted.add(leaf.event_id)

    def missing(
        self, is_there: Callable[[str], bool] = lambda _event_id: False, *, leaves: int = 0
    ) -> Iterator[Finding]:
        """The events that the numbers say were written and that are not there.

        :param is_there: says of an event id whether the log has it in a part that was not read
        :param leaves: how many the log has at most: where more are looked for, most of them are missing
        """
        left = leaves + _LOOKED_FOR
        for producer_id, producer in [*self._finished, *self._open.items()]:
            for start, stop in producer.missing:
                looked_for = range(start, min(stop, start + left))
                left -= len(looked_for)
                gone = ((number, event_id_of(producer_id, number)) for number in looked_for)
                gone = (
                    (number, event) for number, event in gone if event not in self._untrusted and not is_there(event)
                )
                for number, event in islice(gone, _LONGEST_GAP):
                    text = f"Its producer {producer_id} wrote it as number {number}; the log does not have it."
                    yield Finding("missing", f"event {event}", text)
                more = next(gone, None)
                if more is not None:
                    last = deque(gone, maxlen=1)
                    where = f"numbers {more[0]} to {(last or [more])[0][0]} of producer {producer_id}"
                    yield Finding("missing", where, "They were written; the log does not have them.")
                if looked_for.stop < stop:
                    where = f"numbers {looked_for.stop} to {stop - 1} of producer {producer_id}"
                    text = "They were written. So many are missing that these were not looked for one by one."
                    yield Finding("missing", where, text)


def _hashes(leaf: Leaf | None) -> tuple[str | None, ...]:
    """What the next event may name. That a leaf's two hashes differ is a finding of its own; either may be the true one."""
    return (None,) if leaf is None else (leaf.stored_hash.hex(), leaf.actual_hash.hex())


def _fill(missing: list[tuple[int, int]], sequence: int) -> bool:
    """Strike ``sequence`` off the skipped numbers; False when it was not one of them."""
    for position, (start, stop) in enumerate(missing):
        if start <= sequence < stop:
            missing[position : position + 1] = [
                piece for piece in ((start, sequence), (sequence + 1, stop)) if piece[0] < piece[1]
            ]
            return True
    return False
