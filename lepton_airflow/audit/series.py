"""Series: leaves of one producer, one behind the other, that are alike but for what follows from the leaf before each.

A job that writes many events writes most of them alike but for their number, predecessor, id and time. Such leaves need no form:
they are compared many at a time, byte for byte with what must be there.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from itertools import chain, repeat
from typing import NamedTuple

from lepton_airflow.audit.merkle import HASH_BYTES

#: Rows compared at a time: the bytes of more would need fresh pages of the system, which cost more than comparing.
TOGETHER = 100
_UUID = len("00000000-0000-0000-0000-000000000000")
# Where its version stands, and its last 48 bits.
_VERSION, _NODE = len("00000000-0000-"), len("00000000-0000-0000-0000-")
_TO_THE_SECOND = len("0000-00-00T00:00:00")
_DATE, _MINUTE, _SECOND = len("0000-00-00"), len("0000-00-00T00:"), len("0000-00-00T00:00:")
_ZERO_TIME = b"0000-00-00T00:00:00.000000Z"
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")


class Rows(NamedTuple):
    """Rows that stand together in the tree, as columns.

    :param event_ids: as the column has them, not the payloads
    :param hashes: the leaf hashes of the payloads
    """

    event_ids: list[bytes]
    payloads: list[bytes]
    hashes: list[bytes]


class Frame(NamedTuple):
    """A leaf between whose constant parts stand its event id, its predecessor's hash, its number and its time, in this order."""

    parts: tuple[bytes, bytes, bytes, bytes, bytes]
    producer: bytes
    sequence: int
    time: bytes

    @classmethod
    def of(cls, match: re.Match[bytes]) -> Frame:
        """The frame of a leaf in a known form that names a predecessor."""
        return cls(_parts(match), match[3], int(match[5]), match[6])

    def repeated(self, rows: Rows, start: int) -> tuple[int, bytes]:
        """Where the rows end that are, from ``start`` on, this leaf but for what changes; and the time of what is before that."""
        stop, time = start, self.time
        constant = sum(map(len, self.parts)) + _UUID + 2 * HASH_BYTES + len(_ZERO_TIME)
        together, searching = 1, False  # then more, as long as they are right; and ever fewer, once they are not
        while together and stop < len(rows.payloads):
            sequence = self.sequence + 1 + stop - start
            digits = len(str(sequence))
            limit = min(len(rows.payloads), stop + together, stop + 10**digits - sequence)
            reach, last = self._compared(rows, stop, limit, constant + digits, sequence, time)
            if last is None:
                together, searching = (reach - stop) // 2, True
                continue
            stop, time = reach, last
            if reach < limit:
                break
            together = together // 2 if searching else min(4 * together, TOGETHER)
        return stop, time

    def _compared(
        self, rows: Rows, start: int, stop: int, size: int, sequence: int, before: bytes
    ) -> tuple[int, bytes | None]:
        """How far these rows are like this leaf, and the time of the last, if each of them is what must follow."""
        reach = self._reach(rows, start, stop, size)
        last = self._last_time(rows, start, reach, size, sequence, before) if reach > start else None
        if last is None:
            # What differs mostly does so in a part that should be constant; else fewer are tried.
            sooner = next((number for number in range(start, reach) if not self._is_of(rows.payloads[number])), reach)
            if start < sooner < reach:
                return sooner, self._last_time(rows, start, sooner, size, sequence, before)
        return reach, last

    def _is_of(self, payload: bytes) -> bool:
        first, middle, _, _, end = self.parts
        return payload.startswith(first) and payload.startswith(middle, len(first) + _UUID) and payload.endswith(end)

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
        numbers = (*range(sequence, sequence + count),)
        ids = ((id_format(self.producer) + b" ") * count % numbers).split()
        # With these lengths the rows are what must be there if, end to end, they are what must be there end to end.
        if {*map(len, payloads)} != {size}:
            return None
        first, middle, then, tail, end = self.parts
        text = b"".join(payloads)
        width, before_time = len(_ZERO_TIME), size - len(end) - len(_ZERO_TIME)
        times = [time for (time,) in struct.iter_unpack(f"{before_time}x{width}s{len(end)}x", text)]
        expected = zip(
            repeat(first),
            ids,
            repeat(middle),
            in_hex(rows.hashes[start - 1 : stop - 1]),
            repeat(then),
            (b"%d " * count % numbers).split(),
            repeat(tail),
            times,
            repeat(end),
            strict=False,
        )
        right = event_ids == ids and b"".join(chain.from_iterable(expected)) == text and _are_in_order([before, *times])
        return times[-1] if right else None


def are_alike(one: re.Match[bytes], other: re.Match[bytes]) -> bool:
    """Whether two leaves in known forms, each with a predecessor, have the same frame."""
    return one[4] != b"" != other[4] and _parts(one) == _parts(other)


def _parts(match: re.Match[bytes]) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    payload = match.string
    (event_id, one), (previous, two), (sequence, three), (time, four) = map(match.span, (2, 4, 5, 6))
    return payload[:event_id], payload[one:previous], payload[two:sequence], payload[three:time], payload[four:]


def in_hex(hashes: list[bytes]) -> tuple[bytes, ...]:
    """Each hash in hex, as events name them."""
    return struct.unpack(f"{2 * HASH_BYTES}s" * len(hashes), b"".join(hashes).hex().encode())


@lru_cache(maxsize=64)
def id_format(producer: bytes) -> bytes:
    """What makes an event's id of its number, for this producer (see :func:`lepton_airflow.audit.event.event_id_of`)."""
    return b"%b8%b%%012x" % (producer[:_VERSION], producer[_VERSION + 1 : _NODE])


def _are_in_order(times: list[bytes]) -> bool:
    """Whether these are times and none is before the one before it; the first is one."""
    text = b"".join(times)
    if text.translate(_DIGITS_TO_ZERO) != _ZERO_TIME * len(times) or sorted(times) != times:
        return False
    first, last = times[0], times[-1]
    if first[:_DATE] == last[:_DATE]:  # then all have the first one's date and no hour is later than the last one's
        period = len(_ZERO_TIME)
        return _is_moment(last[:_TO_THE_SECOND]) and max(text[_MINUTE::period]) <= 0x35 >= max(text[_SECOND::period])
    return are_moments(times)


def are_moments(times: Iterable[bytes]) -> bool:
    """Whether there are such times, which look like ones: no 30th of February."""
    return all(map(_is_moment, {time[:_TO_THE_SECOND] for time in times}))


@lru_cache(maxsize=64)
def _is_moment(second: bytes) -> bool:
    try:
        datetime.fromisoformat(second.decode())
    except ValueError:
        return False
    return True
