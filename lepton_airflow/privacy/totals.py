"""The reduce side of a release: messages of a partition become totals, totals are summed by group, and the driver reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lepton_airflow.errors import InvalidData
from lepton_airflow.privacy.bounding import Groups, Units, bounded_totals, summed
from lepton_airflow.privacy.bounds import MAX_ROWS
from lepton_airflow.privacy.groups import NO_GROUP
from lepton_airflow.privacy.plan import ROWS, ReleasePlan
from lepton_airflow.privacy.salted_hash import Integers, SaltedHash
from lepton_airflow.privacy.scatter import PrivateKeys, PublicKeys

#: Keys and their totals, some groups at a time.
Chunk = tuple[list[bytes], Integers]
GroupTotals = Integers | Iterator[Chunk]
#: The number of a grouping, and a message of totals, see :meth:`PartitionTotals.of`.
Total = tuple[int, bytes]
#: What stands in place of a grouping's number where the prefixes of encrypted units are told.
KEY_PREFIXES = -1
#: Tink's prefix of a ciphertext: a version byte and the key's id.
_PREFIX_BYTES = 5
#: Totals that the driver holds at a time of a grouping whose groups are chosen privately.
_CHUNK = 1 << 21


def packed(batch: pa.RecordBatch) -> bytes:
    """A batch as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def unpacked(message: Any) -> pa.RecordBatch:
    """What :func:`packed` wrote."""
    with pa.ipc.open_stream(message) as reader:
        return reader.read_next_batch()


@dataclass(frozen=True, kw_only=True)
class PartitionTotals:
    """Bounds what the units of one partition contribute. Travels to the workers.

    :ivar buckets: for each grouping over how many buckets its groups are spread
    """

    plan: ReleasePlan
    groupings: tuple[PrivateKeys | PublicKeys, ...]
    hashed: SaltedHash
    unit_is_encrypted: bool
    buckets: tuple[int, ...]

    def of(self, messages: Sequence[pa.RecordBatch]) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        """The totals of one partition, all of whose messages are given: bucket, grouping, and a message of its totals."""
        units = self._units(messages)
        if self.unit_is_encrypted:
            prefixes = [pc.binary_slice(one["unit"].dictionary, 0, _PREFIX_BYTES).unique() for one in messages]
            distinct = pa.chunked_array(prefixes).unique()
            yield 0, KEY_PREFIXES, pa.RecordBatch.from_pydict({"prefix": distinct.slice(0, 2)})
        measures = [
            (measure, np.concatenate([one[f"measure{place}"].to_numpy() for one in messages]))
            for place, measure in enumerate(self.plan.measures)
        ]
        for place, (grouping, planned) in enumerate(zip(self.groupings, self.plan.groupings, strict=True)):
            groups, own, chosen = self._groups(grouping, messages, f"group{place}"), units, measures
            if (groups.index == NO_GROUP).any():
                rows = np.flatnonzero(groups.index != NO_GROUP)
                groups = Groups(groups.index[rows], groups.hashes, groups.texts)
                own, chosen = units.take(rows), [(measure, values[rows]) for measure, values in measures]
            found = bounded_totals(
                own, groups, chosen, width=self.plan.width, bounds=planned.bounds, hashed=self.hashed
            )
            yield from self._spread(place, groups, *found)

    def first_bucket(self, grouping: int) -> int:
        """The first bucket of a grouping: public ones come before private ones, and the prefixes of keys before all."""
        order = sorted(range(len(self.groupings)), key=lambda one: (isinstance(self.groupings[one], PrivateKeys), one))
        return 1 + sum(self.buckets[one] for one in order[: order.index(grouping)])

    def _units(self, messages: Sequence[pa.RecordBatch]) -> Units:
        if not pa.types.is_dictionary(messages[0]["unit"].type):
            values = np.concatenate([one["unit"].to_numpy() for one in messages]).astype(np.int64, copy=False)
            return Units.of_integers(values, self.hashed)
        return Units.of_dictionary(*_unified([one["unit"] for one in messages]), self.hashed)

    def _groups(self, grouping: PrivateKeys | PublicKeys, messages: Sequence[pa.RecordBatch], name: str) -> Groups:
        if isinstance(grouping, PublicKeys):
            index, texts = np.concatenate([one[name].to_numpy() for one in messages]), grouping.keys.texts
        else:
            index, texts = _unified([one[name] for one in messages])
        return Groups(index, self.hashed.of_bytes(texts), texts)

    def _spread(
        self, grouping: int, groups: Groups, places: Integers, totals: Integers
    ) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        width, count, first = self.plan.width, self.buckets[grouping], self.first_bucket(grouping)
        if isinstance(self.groupings[grouping], PublicKeys):
            bucket = places // width * count // len(groups.texts)
        else:
            bucket = self.hashed.partitions(groups.hashes, count)[places // width].astype(np.int64)
        for number in np.unique(bucket).tolist():
            rows = np.flatnonzero(bucket == number)
            if isinstance(self.groupings[grouping], PublicKeys):
                message = pa.RecordBatch.from_pydict({"place": pa.array(places[rows]), "total": pa.array(totals[rows])})
            else:
                message = _keyed(places[rows], totals[rows], groups.texts, width)
            yield first + number, grouping, message


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Sums totals of the same groups. Travels to the workers."""

    plan: ReleasePlan
    groupings: tuple[PrivateKeys | PublicKeys, ...]

    def of(self, grouping: int, messages: Sequence[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The sums of one bucket, all of whose messages are given."""
        if grouping == KEY_PREFIXES:
            yield from messages
            return
        totals = np.concatenate([one["total"].to_numpy() for one in messages])
        if isinstance(self.groupings[grouping], PublicKeys):
            places, totals = summed(np.concatenate([one["place"].to_numpy() for one in messages]), totals)
            yield pa.RecordBatch.from_pydict({"place": pa.array(places), "total": pa.array(totals)})
            return
        index, texts = _unified([one["key"] for one in messages])
        width = self.plan.width
        columns = np.concatenate([one["column"].to_numpy() for one in messages])
        # Keys are put in order, so that it says nothing about where and when they were met.
        order = np.array(pc.sort_indices(texts), dtype=np.int64)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        places, totals = summed(rank[index] * width + columns, totals)
        texts = texts.take(pa.array(order))
        some = max(_CHUNK // width, 1)
        ends = np.searchsorted(places, np.arange(0, len(texts) + some, some) * width)
        for first, last in pairwise(ends.tolist()):
            if last > first:
                yield _keyed(places[first:last], totals[first:last], texts, width)


class Aggregates(Sequence[GroupTotals]):
    """For each grouping the totals of its groups; not private.

    Of a grouping with declared keys: an array (groups x columns of the plan's totals) in the order of the keys. Of one without:
    an iterator over chunks of keys, as canonical texts, and such arrays, of every group that a unit counts in. These are
    streamed: each can be read once, and they have to be read in the order of the groupings.

    :param totals: grouping and message; groupings with declared keys come first
    :param place: of the unit column, for errors
    :raises InvalidData: units were encrypted under several keys, or there are so many rows that totals could overflow
    """

    def __init__(
        self, totals: Iterator[Total], *, plan: ReleasePlan, groupings: Sequence[PrivateKeys | PublicKeys], place: str
    ) -> None:
        self._totals, self._width, self._place = totals, plan.width, place
        self._next: Total | None = None
        self._read = -1
        self._public: list[Integers | None] = [
            np.zeros((len(one.keys), plan.width), np.int64) if isinstance(one, PublicKeys) else None
            for one in groupings
        ]
        prefixes: set[bytes] = set()
        for grouping, message in totals:
            if grouping == KEY_PREFIXES:
                prefixes.update(unpacked(message)["prefix"].to_pylist())
                continue
            known = self._public[grouping]
            if known is None:
                self._next = grouping, message
                break
            batch = unpacked(message)
            known.reshape(-1)[batch["place"].to_numpy()] += batch["total"].to_numpy()
        if len(prefixes) > 1:
            raise InvalidData(
                f"The privacy unit is encrypted under {len(prefixes)} or more keys, so one unit can pass for several.",
                place=place,
                remedy="Write the table anew under the keyset's primary key, then release.",
            )
        for known in self._public:
            if known is not None:
                self._check(known)

    def __repr__(self) -> str:
        return f"<Aggregates of {len(self)} groupings>"

    def __len__(self) -> int:
        return len(self._public)

    @overload
    def __getitem__(self, grouping: int) -> GroupTotals: ...
    @overload
    def __getitem__(self, grouping: slice) -> Sequence[GroupTotals]: ...
    def __getitem__(self, grouping: int | slice) -> GroupTotals | Sequence[GroupTotals]:
        if isinstance(grouping, slice):
            return [self[one] for one in range(len(self))[grouping]]
        totals = self._public[grouping]
        return self._chunks(range(len(self))[grouping]) if totals is None else totals

    def _chunks(self, grouping: int) -> Iterator[Chunk]:
        if grouping <= self._read or (self._next is not None and self._next[0] < grouping):
            raise RuntimeError("Groupings without declared keys are read once, and in their order.")
        self._read = grouping
        while self._next is not None and self._next[0] == grouping:
            message = unpacked(self._next[1])
            keys = message["key"]
            totals = np.zeros((len(keys.dictionary), self._width), np.int64)
            totals[keys.indices.to_numpy(), message["column"].to_numpy()] = message["total"].to_numpy()
            self._check(totals)
            yield keys.dictionary.to_pylist(), totals
            self._next = next(self._totals, None)

    def _check(self, totals: Integers) -> None:
        """The number of rows that count is exact whatever it is; sums are as long as it is small enough."""
        if totals.size and totals[:, ROWS].max() > MAX_ROWS:
            raise InvalidData(
                f"More than {MAX_ROWS} rows count in one group, and sums could overflow 64 bits.",
                place=self._place,
                remedy="Lower max_rows_per_unit_and_group, or release parts of the table.",
            )


def _keyed(places: Integers, totals: Integers, texts: pa.Array, width: int) -> pa.RecordBatch:
    """Totals with the keys that they belong to, and no others."""
    index = places // width
    used, own = np.unique(index, return_inverse=True)
    keys = pa.DictionaryArray.from_arrays(pa.array(own.astype(np.int32)), texts.take(pa.array(used)))
    columns = pa.array((places % width).astype(np.int32))
    return pa.RecordBatch.from_pydict({"key": keys, "column": columns, "total": pa.array(totals)})


def _unified(arrays: Iterable[pa.DictionaryArray]) -> tuple[NDArray[np.int32], pa.Array]:
    """For each row the index of its value, and the different values. Within an array no value is in the dictionary twice."""
    chunked = pa.chunked_array(list(arrays)).unify_dictionaries()
    indices = [chunk.indices.to_numpy() for chunk in chunked.chunks]
    return np.concatenate(indices).astype(np.int32, copy=False), chunked.chunk(0).dictionary
