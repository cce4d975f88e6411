"""Series: leaves of one producer, one behind the other, each what must follow upon the one before it, checked by their forms.

Each is in a known form (see :mod:`lepton_airflow.audit.forms`), so only what follows from the leaf before it is left to check:
its number, its predecessor's hash, its id and its time. A job that writes many events writes most of them alike but for these
four; such leaves are compared many at a time, byte for byte with what must be there.
"""

from __future__ import annotations

import hashlib
import re
import struct
import uuid
from bisect import bisect
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from itertools import chain, repeat
from typing import NamedTuple

from lepton_airflow.audit.forms import Forms
from lepton_airflow.audit.merkle import HASH_BYTES

#: Rows compared at a time: the bytes of more would need fresh pages of the system, which cost more than comparing.
_TOGETHER = 100
_UUID = len("00000000-0000-0000-0000-000000000000")
_UUID_BYTES = 16
_DASHES = (
    (23, 36),
    (18, 35),
    (13, 34),
    (8, 33),
)  # the place of each and the length of an id, once those behind it are gone
_TO_THE_SECOND = len("0000-00-00T00:00:00")
_DATE, _MINUTE, _SECOND = len("0000-00-00"), len("0000-00-00T00:"), len("0000-00-00T00:00:")
_ZERO_TIME = b"0000-00-00T00:00:00.000000Z"
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
# The seventh and the ninth byte of a UUID of version 5, from those of the SHA-1 (RFC 9562 section 5.5).
_VERSION = bytes(byte & 0x0F | 0x50 for byte in range(256))
_VARIANT = bytes(byte & 0x3F | 0x80 for byte in range(256))


class Rows(NamedTuple):
    """Rows that stand together in the tree, as columns.

    :param event_ids: as the column has them, not the payloads
    :param hashes: the leaf hashes of the payloads
    """

    event_ids: list[bytes]
    payloads: list[bytes]
    hashes: list[bytes]


class Opening(NamedTuple):
    """The first leaf of a series, which is sound by itself; whether it follows upon others of its producer was not looked at.

    :param previous: the hash of the producer's preceding event in hex; None before its first
    """

    producer: uuid.UUID
    sequence: int
    previous: str | None
    time: datetime


class Last(NamedTuple):
    """The last leaf of a series, which was checked as far as the series' first can be believed."""

    event_id: bytes
    hashed: bytes
    producer: uuid.UUID
    sequence: int
    time: datetime


class Series(NamedTuple):
    """Leaves of one producer, one behind the other. Of all but the first everything was checked but the clock.

    The clock: their times do not go back; :class:`Last` has the latest.

    :param first: its position
    :param length: how many there are
    :param event_id: of the first, as are ``payload`` and ``hashed``
    :param opening: None if nothing was found out about the first
    :param last: None if there is only one
    :param closes: whether the last one closes its producer, and counts its events right
    """

    first: int
    length: int
    event_id: bytes
    payload: bytes
    hashed: bytes
    opening: Opening | None
    last: Last | None
    closes: bool


def series_of(rows: Rows, *, first: int, forms: Forms) -> Iterator[Series]:
    """Cut rows into series.

    :param first: the position of the first row
    :param forms: those of the rows that were seen before
    """
    start = 0
    while start < len(rows.payloads):
        stop, opening, last, closes = _follow(rows, start, forms)
        yield Series(
            first=first + start,
            length=stop - start,
            event_id=rows.event_ids[start],
            payload=rows.payloads[start],
            hashed=rows.hashes[start],
            opening=opening,
            last=last,
            closes=closes,
        )
        start = stop


def _follow(rows: Rows, start: int, forms: Forms) -> tuple[int, Opening | None, Last | None, bool]:
    """Where the series that begins at ``start`` ends, its first and its last row, and whether it closes its producer."""
    match = forms.match(rows.payloads[start])
    if match is None:
        # Whatever ends a series begins the next one: so each leaf is looked at once.
        forms.learn(rows.payloads[start])
    if match is None or not _is_moment(match[6][:_TO_THE_SECOND]):
        return start + 1, None, None, False
    frame, stop = _Frame.of(match), start + 1
    opening, ended = frame.opening(match, rows.event_ids[start]), frame.closes
    while not ended and stop < len(rows.payloads):
        frames = _one_by_one(frame, rows, stop, forms)
        count = len(frames) - 1
        right = _right_ids(rows.event_ids[stop : stop + count], frame.producer, frame.sequence + 1)
        repeats = count > 0 and frames[-1].parts == frames[-2].parts
        frame, stop = frames[right], stop + right
        ended = right < count or frame.closes or not (repeats or count == _TOGETHER)
        if repeats and not ended:
            stop, frame = frame.repeated(rows, stop)
    if stop == start + 1:
        return stop, opening, None, frame.closes
    last = Last(rows.event_ids[stop - 1], rows.hashes[stop - 1], frame.producer, frame.sequence, _moment(frame.time))
    return stop, opening, last, frame.closes


def _one_by_one(frame: _Frame, rows: Rows, start: int, forms: Forms) -> list[_Frame]:
    """A leaf and the rows from ``start`` on that follow it, up to one that is like the one before it; ids are not checked."""
    frames = [frame]
    for number in range(start, min(start + _TOGETHER, len(rows.payloads))):
        match = forms.match(rows.payloads[number])
        if match is None or not frames[-1].precedes(match, rows, number):
            break
        frames.append(_Frame.of(match))
        if frames[-1].closes or frames[-1].parts == frames[-2].parts:
            break
    return frames


def _right_ids(event_ids: list[bytes], producer: uuid.UUID, sequence: int) -> int:
    """How many of these are the ids of the producer's events from this number on, before the first that is not."""

    def wrong(count: int) -> bool:
        return not _are_ids(
            event_ids[:count], producer, [b"%d" % number for number in range(sequence, sequence + count)]
        )

    count = len(event_ids)
    return count if not wrong(count) else bisect(range(count), False, key=wrong) - 1


class _Frame(NamedTuple):
    """A leaf between whose constant parts stand its event id, its predecessor's hash, its number and its time, in this order."""

    parts: tuple[bytes, bytes, bytes, bytes, bytes]
    producer: uuid.UUID
    sequence: int
    time: bytes
    closes: bool

    @classmethod
    def of(cls, match: re.Match[bytes]) -> _Frame:
        payload = match.string
        (event_id, one), (previous, two), (sequence, three), (time, four) = map(match.span, (2, 4, 5, 6))
        middle, then = payload[one:previous], payload[two:sequence]
        if previous == two:  # the parts are those of the leaves that follow, which do have a predecessor
            middle, then = middle.removesuffix(b"null") + b'"', b'"' + then
        parts = (payload[:event_id], middle, then, payload[three:time], payload[four:])
        return cls(parts, _uuid(match[3]), int(match[5]), match[6], match[1] != b"")

    def opening(self, match: re.Match[bytes], event_id: bytes) -> Opening | None:
        """What is to be known of this leaf as the first of a series, if it is sound.

        :param event_id: the one beside it
        """
        counted, own_id, _, previous, sequence, _ = match.groups()
        if own_id != event_id or counted not in (b"", sequence) or not _are_ids([own_id], self.producer, [sequence]):
            return None
        return Opening(self.producer, self.sequence, previous.decode() or None, _moment(self.time))

    def precedes(self, match: re.Match[bytes], rows: Rows, number: int) -> bool:
        """Whether the row of this number, in a known form, is what must follow upon this leaf, its neighbour, but for its id."""
        counted, event_id, producer, previous, sequence, time = match.groups()
        return (
            counted in (b"", sequence)
            and int(sequence) == self.sequence + 1
            and _uuid(producer) == self.producer
            and previous == rows.hashes[number - 1].hex().encode()
            and time >= self.time
            and event_id == rows.event_ids[number]
            and _is_moment(time[:_TO_THE_SECOND])
        )

    def repeated(self, rows: Rows, start: int) -> tuple[int, _Frame]:
        """Where the rows from ``start`` on end that are this leaf but for what changes; and the last of them, or this leaf."""
        stop, sequence, time = start, self.sequence + 1, self.time
        constant = sum(map(len, self.parts)) + _UUID + 2 * HASH_BYTES + len(_ZERO_TIME)
        together = 1  # then more, as long as they are right
        while stop < len(rows.payloads):
            digits = len(str(sequence))
            limit = min(len(rows.payloads), stop + together, stop + 10**digits - sequence)
            count = self._reach(rows, stop, limit, constant + digits) - stop
            while count and not (found := self._last_time(rows, stop, stop + count, constant + digits, sequence, time)):
                count //= 2
            if not count:
                break
            stop, sequence, time = stop + count, sequence + count, found or time
            together = min(4 * together, _TOGETHER)
        return stop, self._replace(sequence=sequence - 1, time=time)

    def _reach(self, rows: Rows, start: int, stop: int, size: int) -> int:
        """How far the rows seem to be of this length and this producer; to look at each of them is left to who uses it."""
        middle, place = self.parts[1], len(self.parts[0]) + _UUID

        def differs(number: int) -> bool:
            payload = rows.payloads[number]
            return len(payload) != size or not payload.startswith(middle, place)

        return stop if not differs(stop - 1) else bisect(range(stop), False, lo=start, hi=stop - 1, key=differs)

    def _last_time(self, rows: Rows, start: int, stop: int, size: int, sequence: int, before: bytes) -> bytes | None:
        """The time of the last of these rows, if each of them is what must follow upon the one before it."""
        payloads, event_ids = rows.payloads[start:stop], rows.event_ids[start:stop]
        count = len(payloads)
        numbers = (b"%d " * count % (*range(sequence, sequence + count),)).split()
        # With these lengths the rows are what must be there if, end to end, they are what must be there end to end.
        if {*map(len, payloads)} != {size} or {*map(len, event_ids)} != {_UUID}:
            return None
        first, middle, then, tail, end = self.parts
        text = b"".join(payloads)
        width, before_time = len(_ZERO_TIME), size - len(end) - len(_ZERO_TIME)
        times = [time for (time,) in struct.iter_unpack(f"{before_time}x{width}s{len(end)}x", text)]
        named = struct.unpack(f"{2 * HASH_BYTES}s" * count, b"".join(rows.hashes[start - 1 : stop - 1]).hex().encode())
        expected = zip(
            repeat(first),
            event_ids,
            repeat(middle),
            named,
            repeat(then),
            numbers,
            repeat(tail),
            times,
            repeat(end),
            strict=False,
        )
        right = (
            b"".join(chain.from_iterable(expected)) == text
            and _are_ids(event_ids, self.producer, numbers)
            and _are_in_order([before, *times])
        )
        return times[-1] if right else None


def _moment(time: bytes) -> datetime:
    return datetime.fromisoformat(time.decode())


@lru_cache(maxsize=64)
def _uuid(text: bytes) -> uuid.UUID:
    return uuid.UUID(text.decode())


def _are_ids(event_ids: list[bytes], producer: uuid.UUID, numbers: list[bytes]) -> bool:
    """Whether these are the ids of the producer's events of these numbers (see `event_id_of`)."""
    name = hashlib.sha1(producer.bytes, usedforsecurity=False)
    digests = []
    for number in numbers:
        sha1 = name.copy()
        sha1.update(number)
        digests.append(sha1.digest())
    made = bytearray().join(digests)
    for place in reversed(range(_UUID_BYTES, name.digest_size)):
        del made[place :: place + 1]
    made[6::_UUID_BYTES] = made[6::_UUID_BYTES].translate(_VERSION)
    made[8::_UUID_BYTES] = made[8::_UUID_BYTES].translate(_VARIANT)
    text = bytearray().join(event_ids)
    for place, period in _DASHES:
        if text[place::period] != b"-" * len(event_ids):
            return False
        del text[place::period]
    return text == made.hex().encode()


def _are_in_order(times: list[bytes]) -> bool:
    """Whether these are times and none is before the one before it; the first is one."""
    text = b"".join(times)
    if text.translate(_DIGITS_TO_ZERO) != _ZERO_TIME * len(times) or sorted(times) != times:
        return False
    first, last = times[0], times[-1]
    if first[:_DATE] == last[:_DATE]:  # then all have the first one's date and no hour is later than the last one's
        period = len(_ZERO_TIME)
        return _is_moment(last[:_TO_THE_SECOND]) and max(text[_MINUTE::period]) <= 0x35 >= max(text[_SECOND::period])
    return all(map(_is_moment, {time[:_TO_THE_SECOND] for time in times}))


@lru_cache(maxsize=64)
def _is_moment(second: bytes) -> bool:
    """Whether there is such a second: no 30th of February."""
    try:
        datetime.fromisoformat(second.decode())
    except ValueError:
        return False
    return True
