"""Follows every producer's numbers and hashes through the log, to see events that were lost or changed before sealing."""

from __future__ import annotations

from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from lepton_airflow.audit.clock import Clock
from lepton_airflow.audit.event import event_id_of
from lepton_airflow.audit.findings import Finding, Leaf
from lepton_airflow.audit.forms import NOT_OF_THE_SCHEMA, Forms
from lepton_airflow.audit.schema import SCHEMA, SCHEMAS
from lepton_airflow.audit.stretches import Chain, Stretch

#: Of a longer run of missing numbers, only so many events are named.
_LONGEST_GAP = 16
#: So many numbers more than a log has leaves are looked for.
_LOOKED_FOR = 10_000


@dataclass
class _Producer:
    """What has been seen of one producer.

    :param schema: of its leaves
    :param missing: [start, stop) of numbers that were skipped
    """

    schema: str = SCHEMA
    next_sequence: int = 0
    last: Leaf | None = None
    missing: list[tuple[int, int]] = field(default_factory=list)


class Producers:
    """Fed with the leaves in the order of the log. Memory grows with the producers that have not closed."""

    def __init__(self) -> None:
        self._open: dict[str, _Producer] = {}
        self._finished: list[tuple[str, _Producer]] = []
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
            text = f"The payload is not canonical JSON of a schema that is known: {' or '.join(SCHEMAS)}."
            yield Finding("malformed", leaf.position, text)
            return
        yield from self._clock.check(leaf, event)
        producer_id, sequence = event.producer, event.sequence
        if event.event_id != event_id_of(producer_id, sequence, schema=event.schema):
            yield Finding("malformed", leaf.position, "The event's id does not follow from its producer and number.")
        if event.schema == SCHEMA and event.opens != (sequence == 0):
            yield Finding("malformed", leaf.position, "A producer opens with its number 0, and with no other.")
        if event.event_id != leaf.event_id:
            yield Finding("edited", leaf.position, "The event id beside the payload is not the payload's.")
        producer = self._open.setdefault(producer_id, _Producer(event.schema))
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

    def take(self, stretch: Stretch) -> bool:
        """Take in a whole stretch.

        :returns: False, and nothing is done, if one of its chains does not follow upon what was seen of its producer, or its
            times upon those before it: then its leaves have to be checked one by one
        """
        if not all(map(self._precedes, stretch.chains)) or not self._clock.take(stretch):
            return False
        for chain in stretch.chains:
            producer = self._open.setdefault(chain.producer, _Producer())
            producer.next_sequence = chain.last_sequence + 1
            # Of the last leaf only its place and its hash will be asked for.
            producer.last = Leaf(
                row=chain.position,
                event_id=chain.event_id,
                payload=b"",
                stored_hash=chain.hashed,
                actual_hash=chain.hashed,
                tree_index=chain.position,
            )
        for chain in sorted(stretch.chains, key=lambda chain: chain.position):  # in the order of the log
            if chain.closes:
                self._close(chain.producer)
        return True

    def _precedes(self, chain: Chain) -> bool:
        producer = self._open.get(chain.producer) or _Producer()
        return chain.sequence == producer.next_sequence and chain.previous in _hashes(producer.last)

    def _close(self, producer_id: str) -> None:
        producer = self._open.pop(producer_id)
        self._finished += [(producer_id, producer)] if producer.missing else []

    def skip(self, leaf: Leaf) -> None:
        """Take in a leaf whose payload cannot be trusted: the event id beside it says whose it was."""
        for producer_id, producer in self._open.items():
            if event_id_of(producer_id, producer.next_sequence, schema=producer.schema) == leaf.event_id:
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
                gone = ((number, event_id_of(producer_id, number, schema=producer.schema)) for number in looked_for)
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
    """Strike ``sequence`` off the skipped numbers, which are in order; False when it was not one of them."""
    place = bisect(missing, sequence, key=lambda span: span[0]) - 1
    if place < 0 or sequence >= missing[place][1]:
        return False
    start, stop = missing[place]
    missing[place : place + 1] = [piece for piece in ((start, sequence), (sequence + 1, stop)) if piece[0] < piece[1]]
    return True
