"""Stretches: leaves that stand together in the tree, as the chains of the producers that wrote them.

Each leaf of a stretch is in a known form (see :mod:`lepton_airflow.audit.forms`) and right by itself, and it is what must follow
upon its producer's leaf before it, if the stretch has that too. So of each producer only the first and the last leaf are left to
hold against the rest of the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple, TypeAlias

from lepton_airflow.audit.forms import Forms
from lepton_airflow.audit.series import TOGETHER, Frame, Rows, are_alike, are_moments, id_format, in_hex
from lepton_airflow.audit.tolerance import LOG_TOLERANCE

#: Behind so many like leaves what follows is compared with them. Where so few or fewer are like them, that took longer than
#: looking at each, and from then on more like leaves are asked for.
_ALIKE, _TOO_FEW = 6, 32


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

    None of their times is before that of the leaf before it by more than the log tolerates.

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


def stretches_of(rows: Rows, *, first: int, forms: Forms) -> list[Stretch | Odd]:
    """Cut rows into stretches.

    :param first: the position of the first row
    :param forms: those of the rows that were seen before
    """
    cut, place, enough = _Cut(rows, first), 0, _ALIKE
    while place < len(rows.payloads):
        matches, ending = _known(rows.payloads, place, forms, enough)
        for leaf in _leaves(matches, rows, place):
            cut.add(*leaf)
        place += len(matches)
        if ending == "alike":
            before, place = place, cut.go_on_alike(matches[-1], place)
            enough = 2 * enough if place - before <= _TOO_FEW else _ALIKE
        elif ending == "unknown":
            forms.learn(rows.payloads[place])
            cut.add_odd(place)
            place += 1
    cut.end(place)
    return cut.parts


def _known(
    payloads: list[bytes], start: int, forms: Forms, enough: int
) -> tuple[list[re.Match[bytes]], Literal["alike", "unknown", ""]]:
    """The leaves from ``start`` on in known forms: up to ``enough`` that are alike, or one in none, which is left out."""
    matches: list[re.Match[bytes]] = []
    before, alike = b"", 1
    for payload in payloads[start : start + TOGETHER]:
        match = forms.match(payload)
        if match is None:
            return matches, "unknown"
        matches.append(match)
        # Most that differ do so before their id.
        head = payload[: match.start(2)]
        alike = alike + 1 if head == before and are_alike(matches[-2], match) else 1
        if alike == enough:
            return matches, "alike"
        before = head
    return matches, ""


#: Of a leaf in a known form: whether it is right by itself, its producer, number, the hash that it names, its time, whether it
#: closes its producer, its own hash in hex, and its place among the rows.
_Leaf: TypeAlias = tuple[bool, bytes, int, bytes, bytes, bool, bytes, int]


def _leaves(matches: list[re.Match[bytes]], rows: Rows, start: int) -> Iterable[_Leaf]:
    if not matches:
        return ()
    stop = start + len(matches)
    event_ids = rows.event_ids[start:stop]
    counted, inside, producers, previous, sequences, times = zip(*(match.groups() for match in matches), strict=True)
    numbers = [*map(int, sequences)]
    expected = [id_format(producer) % number for producer, number in zip(producers, numbers, strict=True)]
    counts = [count in (b"", sequence) for count, sequence in zip(counted, sequences, strict=True)]
    right = [True] * len(matches)
    if not (inside == (*event_ids,) and event_ids == expected and all(counts) and are_moments(times)):
        right = [
            one == other == needed and counts_right and are_moments([time])
            for one, other, needed, counts_right, time in zip(inside, event_ids, expected, counts, times, strict=True)
        ]
    closes = [count != b"" for count in counted]
    hashes, places = in_hex(rows.hashes[start:stop]), range(start, stop)
    return zip(right, producers, numbers, previous, times, closes, hashes, places, strict=True)


class _Chain:
    """A producer's leaves in a stretch that may go on.

    :ivar first: the first one's number, the hash that it names, and its time
    :ivar named: the last one's hash in hex
    :ivar place: that of the last among the rows
    """

    __slots__ = ("closes", "first", "named", "place", "sequence", "time")

    def __init__(self, first: tuple[int, bytes, bytes]) -> None:
        self.first = first

    def end(self, sequence: int, time: bytes, closes: bool, named: bytes, place: int) -> None:
        """Note which leaf is the last."""
        self.sequence, self.time, self.closes, self.named, self.place = sequence, time, closes, named, place


class _Cut:
    """Rows that are being cut, in their order.

    :ivar parts: what is finished
    """

    def __init__(self, rows: Rows, first: int) -> None:
        self.parts: list[Stretch | Odd] = []
        self._rows, self._first = rows, first
        self._start = 0
        self._chains: dict[bytes, _Chain] = {}
        self._began = self._ended = self._latest = b""

    def add(
        self,
        right: bool,
        producer: bytes,
        sequence: int,
        previous: bytes,
        time: bytes,
        closes: bool,
        named: bytes,
        place: int,
    ) -> None:
        """Add a leaf in a known form (see :data:`_Leaf`)."""
        if not right:
            self.add_odd(place)
            return
        chain = self._chains.get(producer)
        follows = chain is None or (
            sequence == chain.sequence + 1 and previous == chain.named and time >= chain.time and not chain.closes
        )
        if not follows or (time < self._ended and _moment(self._ended) - _moment(time) > LOG_TOLERANCE):
            self.end(place)
            chain = None
        if chain is None:
            chain = self._chains[producer] = _Chain((sequence, previous, time))
        chain.end(sequence, time, closes, named, place)
        self._began, self._ended = self._began or time, time
        self._latest = max(self._latest, time)

    def go_on_alike(self, last: re.Match[bytes], start: int) -> int:
        """Add the rows from ``start`` on that are like the one before it, if that was right; where they end."""
        chain = self._chains.get(last[3])
        if chain is None or chain.closes:
            return start
        stop, time = Frame.of(last).repeated(self._rows, start)
        if stop > start:
            named = self._rows.hashes[stop - 1].hex().encode()
            chain.end(chain.sequence + stop - start, time, closes=False, named=named, place=stop - 1)
            self._ended, self._latest = time, max(self._latest, time)
        return stop

    def add_odd(self, place: int) -> None:
        """Add a leaf that has to be looked at by itself."""
        self.end(place)
        rows = self._rows
        self.parts.append(Odd(self._first + place, rows.event_ids[place], rows.payloads[place], rows.hashes[place]))
        self._start = place + 1

    def end(self, stop: int) -> None:
        """End the stretch before the row at ``stop``; the next one begins there."""
        if self._chains:
            chains = [self._finished(producer, chain) for producer, chain in self._chains.items()]
            began, ended, latest = map(_moment, (self._began, self._ended, self._latest))
            self.parts.append(Stretch(self._first + self._start, self._first + stop, chains, began, ended, latest))
        self._start = stop
        self._chains, self._began, self._ended, self._latest = {}, b"", b"", b""

    def _finished(self, producer: bytes, chain: _Chain) -> Chain:
        sequence, previous, time = chain.first
        return Chain(
            producer=producer.decode(),
            sequence=sequence,
            previous=previous.decode() or None,
            began=_moment(time),
            ended=_moment(chain.time),
            position=self._first + chain.place,
            event_id=self._rows.event_ids[chain.place].decode(),
            hashed=self._rows.hashes[chain.place],
            last_sequence=chain.sequence,
            closes=chain.closes,
        )


def _moment(time: bytes) -> datetime:
    return datetime.fromisoformat(time.decode())
