"""Series: leaves that follow upon each other and differ only in what must differ, checked together instead of one by one.

A job that writes many events writes most of them in one form: only the event's id, its number, the hash of its predecessor and
its time change. That such a leaf is canonical JSON of the schema need not be found out by parsing it, when it is byte for byte
the leaf before it but for those four, each at its place and in its form.
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
from typing import Any, NamedTuple

from lepton_airflow.audit.canonical import canonical_json, parse_canonical
from lepton_airflow.audit.merkle import HASH_BYTES
from lepton_airflow.audit.schema import SCHEMA
from lepton_airflow.errors import InvalidData

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
#: Stands for what changes from leaf to leaf while a form is cut; a leaf that has it elsewhere has no form.
_MARK = "what changes"
_HEX_HASH = re.compile("[0-9a-f]{64}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
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


class Last(NamedTuple):
    """The last leaf of a series, which was checked as far as the series' first can be believed."""

    event_id: bytes
    hashed: bytes
    producer: uuid.UUID
    sequence: int
    time: datetime


class Series(NamedTuple):
    """Leaves of one producer, one behind the other. Nothing was checked of the first, everything of the others but the clock.

    The clock: their times do not go back; :class:`Last` has the latest.

    :param first: its position
    :param length: how many there are
    :param event_id: of the first, as are ``payload`` and ``hashed``
    :param last: None if there is only one
    """

    first: int
    length: int
    event_id: bytes
    payload: bytes
    hashed: bytes
    last: Last | None


def series_of(rows: Rows, *, first: int) -> Iterator[Series]:
    """Cut rows into series.

    :param first: the position of the first row
    """
    start = 0
    while start < len(rows.payloads):
        form = _Form.of(rows, start)
        stop, last = (start + 1, None) if form is None else form.follow(rows, start)
        yield Series(
            first=first + start,
            length=stop - start,
            event_id=rows.event_ids[start],
            payload=rows.payloads[start],
            hashed=rows.hashes[start],
            last=last,
        )
        start = stop


class _Form(NamedTuple):
    """A leaf between whose constant parts stand its event id, its predecessor's hash, its number and its time, in this order.

    :param parts: the five constant parts
    :param sequence: its number, as ``time`` is its time
    """

    parts: tuple[bytes, bytes, bytes, bytes, bytes]
    producer: uuid.UUID
    sequence: int
    time: bytes

    @classmethod
    def of(cls, rows: Rows, start: int) -> _Form | None:
        """The form of the row at ``start``; None if it has another, or if the row behind it is not like it."""
        if start + 1 == len(rows.payloads):
            return None
        payload, behind = rows.payloads[start], rows.payloads[start + 1]
        same = payload.find(b'"event_id":"')
        place = payload.find(b'"producer":{"id":"')
        stop = place + len(b'"producer":{"id":"') + _UUID
        if min(same, place) < 0 or payload[:same] != behind[:same] or payload[place:stop] != behind[place:stop]:
            return None
        try:
            return _form(parse_canonical(payload), payload)
        except (InvalidData, KeyError, TypeError, ValueError, AttributeError):
            return None

    def follow(self, rows: Rows, start: int) -> tuple[int, Last | None]:
        """Where the series that begins at ``start`` ends, and its last row."""
        stop, sequence, time = start + 1, self.sequence + 1, self.time
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
        if stop == start + 1:
            return stop, None
        moment = datetime.fromisoformat(time.decode())
        return stop, Last(rows.event_ids[stop - 1], rows.hashes[stop - 1], self.producer, sequence - 1, moment)

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


def _form(event: Any, payload: bytes) -> _Form | None:
    """The form of a leaf whose payload is the canonical JSON of ``event``."""
    producer, time = event["producer"], event["time"]
    previous = producer["previous"]
    usual = (
        event["schema"] == SCHEMA
        and event["phase"] != "close"
        and set(producer) == {"id", "previous", "sequence"}
        and producer["id"] == str(uuid.UUID(producer["id"]))
        and type(producer["sequence"]) is int
        and producer["sequence"] >= 0
        and (previous is None or _HEX_HASH.fullmatch(previous))
        and len(event["event_id"]) == _UUID
        and _TIME.fullmatch(time)
        and _is_moment(time[:_TO_THE_SECOND].encode())
    )
    if not usual:
        return None
    marked = {**event, "event_id": _MARK, "time": _MARK}
    marked["producer"] = {**producer, "previous": _MARK, "sequence": _MARK}
    # Canonical JSON has its fields in the order of their names.
    pieces = canonical_json(marked).split(canonical_json(_MARK))
    if len(pieces) != len(("event_id", "previous", "sequence", "time")) + 1:
        return None
    first, middle, then, tail, end = parts = (
        pieces[0] + b'"',
        b'"' + pieces[1] + b'"',
        b'"' + pieces[2],
        pieces[3] + b'"',
        b'"' + pieces[4],
    )
    if previous is None:
        middle, then, previous = middle[:-1], then[1:], "null"
    changing = (event["event_id"], previous, str(producer["sequence"]), time)
    one, two, three, four = (text.encode() for text in changing)
    if first + one + middle + two + then + three + tail + four + end != payload:
        return None
    return _Form(parts, uuid.UUID(producer["id"]), producer["sequence"], four)


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
