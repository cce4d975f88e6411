"""Stretches: leaves that stand together in the tree, as the chains of the producers that wrote them.

Each leaf of a stretch is in a known form (see :mod:`lepton_airflow.audit.forms`) and right by itself, and it is what must follow
upon its producer's leaf before it, if the stretch has that too. So of each producer only the first and the last leaf are left to
hold against the rest of the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import repeat
from typing import Any, NamedTuple

from lepton_airflow.audit.forms import Forms
from lepton_airflow.audit.series import TOGETHER, Frame, Rows, are_alike, are_ids, are_moments, in_hex, name_of

#: By how much times may go back in the log: between machines, whose clocks differ, and events that wait for their commit.
LOG_TOLERANCE = timedelta(minutes=10)


class Chain(NamedTuple):
    """What one producer wrote in a stretch: one event behind the other, none before the one before it.

    :param producer: its id
    :param sequence: the first one's number
    :param previous: the hash that the first names in hex; None before a producer's first
    :param began: the first one's time
    :param ended: the last one's time
    :param position: of the last
    :param event_id: of the last
    :param hashed: the last one's leaf hash
    :param last_sequence: the last one's number
    :param closes: whether the last one closes the producer, and counts its events right
    """

    producer: str
    sequence: int
    previous: str | None
    began: datetime
    ended: datetime
    position: int
    event_id: str
    hashed: bytes
    last_sequence: int
    closes: bool


class Stretch(NamedTuple):
    """Leaves of which nothing is odd but, perhaps, what they follow upon.

    None of their times is more than :data:`LOG_TOLERANCE` before that of the leaf before.

    :param first: the position of the first leaf
    :param stop: the position behind the last
    :param began: the first leaf's time
    :param ended: the last leaf's
    :param latest: the latest of all
    """

    first: int
    stop: int
    chains: list[Chain]
    began: datetime
    ended: datetime
    latest: datetime


class Odd(NamedTuple):
    """A leaf that has to be looked at by itself.

    :param event_id: as the column has it
    """

    position: int
    event_id: bytes
    payload: bytes
    hashed: bytes


def stretches_of(rows: Rows, *, first: int, forms: Forms) -> Iterator[Stretch | Odd]:
    """Cut rows into stretches.

    :param first: the position of the first row
    :param forms: those of the rows that were seen before
    """
    place, stretch = 0, _Growing(rows, first, 0)
    while place < len(rows.payloads):
        matches, unknown = _known(rows.payloads, place, forms)
        for right, *leaf in _leaves(matches, rows, place):
            if right and not stretch.takes(*leaf):
                yield from stretch.finished(place)
                stretch = _Growing(rows, first, place)
                stretch.takes(*leaf)
            elif not right:
                yield from stretch.finished(place)
                yield _odd(rows, first, place)
                stretch = _Growing(rows, first, place + 1)
            place += 1
        if unknown:
            forms.learn(rows.payloads[place])
            yield from stretch.finished(place)
            yield _odd(rows, first, place)
            place += 1
            stretch = _Growing(rows, first, place)
        elif len(matches) > 1 and are_alike(*matches[-2:]):
            place = stretch.goes_on_alike(matches[-1], place)
    yield from stretch.finished(place)


def _known(payloads: list[bytes], start: int, forms: Forms) -> tuple[list[re.Match[bytes]], bool]:
    """The leaves from ``start`` on in known forms, up to one that is like the one before it; whether one in none follows."""
    matches: list[re.Match[bytes]] = []
    before = b""
    for payload in payloads[start : start + TOGETHER]:
        match = forms.match(payload)
        if match is None:
            return matches, True
        matches.append(match)
        # Most that differ do so before their id.
        head = payload[: match.start(2)]
        if head == before and are_alike(matches[-2], match):
            break
        before = head
    return matches, False


def _leaves(matches: list[re.Match[bytes]], rows: Rows, start: int) -> Iterator[tuple[Any, ...]]:
    """Of each leaf whether it is right by itself, and what :meth:`_Growing.takes` asks for."""
    if not matches:
        return iter(())
    stop = start + len(matches)
    event_ids = rows.event_ids[start:stop]
    counted, inside, producers, previous, sequences, times = zip(*(match.groups() for match in matches), strict=True)
    names = [name_of(producer) for producer in producers]
    counts = [count in (b"", sequence) for count, sequence in zip(counted, sequences, strict=True)]
    right: Iterable[bool] = repeat(True)
    if not (inside == (*event_ids,) and all(counts) and are_ids(event_ids, names, sequences) and are_moments(times)):
        right = [
            one == other and counts_right and are_ids([one], [name], [sequence]) and are_moments([time])
            for one, other, counts_right, name, sequence, time in zip(
                inside, event_ids, counts, names, sequences, times, strict=True
            )
        ]
    closes = [count != b"" for count in counted]
    hashes = in_hex(rows.hashes[start:stop])
    return zip(right, producers, map(int, sequences), previous, times, closes, hashes, range(start, stop), strict=False)


class _Chain:
    """A producer's leaves in a stretch that may go on.

    :ivar first: the first one's number, the hash that it names, and its time
    :ivar place: that of the last among the rows
    :ivar named: its hash in hex
    """

    __slots__ = ("closes", "first", "named", "place", "sequence", "time")

    def __init__(self, first: tuple[int, bytes, bytes]) -> None:
        self.first = first

    def ends(self, sequence: int, time: bytes, closes: bool, named: bytes, place: int) -> None:
        """Note which leaf is the last."""
        self.sequence, self.time, self.closes, self.named, self.place = sequence, time, closes, named, place


class _Growing:
    """A stretch to which the rows from ``start`` on are added."""

    def __init__(self, rows: Rows, first: int, start: int) -> None:
        self._rows, self._first, self._start = rows, first, start
        self._chains: dict[bytes, _Chain] = {}
        self._began = self._ended = self._latest = b""

    def takes(
        self, producer: bytes, sequence: int, previous: bytes, time: bytes, closes: bool, named: bytes, place: int
    ) -> bool:
        """Add a row, unless it is not what must follow. A stretch takes any first row."""
        if time < self._ended and _moment(self._ended) - _moment(time) > LOG_TOLERANCE:
            return False
        chain = self._chains.get(producer)
        if chain is None:
            chain = self._chains[producer] = _Chain((sequence, previous, time))
        elif sequence != chain.sequence + 1 or previous != chain.named or time < chain.time or chain.closes:
            return False
        chain.ends(sequence, time, closes, named, place)
        self._began, self._ended = self._began or time, time
        self._latest = max(self._latest, time)
        return True

    def goes_on_alike(self, last: re.Match[bytes], start: int) -> int:
        """Add the rows from ``start`` on that are like the one before it, if that was added; where they end."""
        chain = self._chains.get(last[3])
        if chain is None or chain.closes:
            return start
        stop, frame = Frame.of(last).repeated(self._rows, start)
        if stop > start:
            named = self._rows.hashes[stop - 1].hex().encode()
            chain.ends(frame.sequence, frame.time, closes=False, named=named, place=stop - 1)
            self._ended, self._latest = frame.time, max(self._latest, frame.time)
        return stop

    def finished(self, stop: int) -> Iterator[Stretch]:
        """The stretch up to, not including, the row at ``stop``; none if there is nothing in it."""
        if not self._chains:
            return
        rows, first = self._rows, self._first
        chains = []
        for producer, chain in self._chains.items():
            sequence, previous, time = chain.first
            chains.append(
                Chain(
                    producer=producer.decode(),
                    sequence=sequence,
                    previous=previous.decode() or None,
                    began=_moment(time),
                    ended=_moment(chain.time),
                    position=first + chain.place,
                    event_id=rows.event_ids[chain.place].decode(),
                    hashed=rows.hashes[chain.place],
                    last_sequence=chain.sequence,
                    closes=chain.closes,
                )
            )
        began, ended, latest = map(_moment, (self._began, self._ended, self._latest))
        yield Stretch(first + self._start, first + stop, chains, began, ended, latest)


def _odd(rows: Rows, first: int, place: int) -> Odd:
    return Odd(first + place, rows.event_ids[place], rows.payloads[place], rows.hashes[place])


def _moment(time: bytes) -> datetime:
    return datetime.fromisoformat(time.decode())
