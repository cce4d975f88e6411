"""The map side of a release: batches of a table become messages, in which all rows of a unit go to the same partition.

A message is a few small columns of one partition's rows: the unit, for each grouping the row's group, for each measure its steps
or bin. Spark shuffles messages, not rows; of values it never sees more than they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lepton_airflow.privacy.bounding import MISSING, steps
from lepton_airflow.privacy.groups import NO_GROUP, DeclaredKeys, encoded, keys_of_rows
from lepton_airflow.privacy.measures import Measure
from lepton_airflow.privacy.salted_hash import SaltedHash

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Changes a batch before it is looked at: decrypts columns. What it counts beside is not used.
Reveal = Callable[[pa.RecordBatch], tuple[pa.RecordBatch, Mapping[str, int]]]

#: Rows of small batches that are gathered before they are split.
_GATHERED_ROWS = 128 << 10


@dataclass(frozen=True)
class PrivateKeys:
    """A grouping by columns whose keys are not declared."""

    by: tuple[str, ...]


@dataclass(frozen=True)
class PublicKeys:
    """A grouping by columns whose keys are declared."""

    by: tuple[str, ...]
    keys: DeclaredKeys


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Turns batches into messages. Travels to the workers; holds nothing secret.

    :ivar types: of the unit, of measures and of columns to group by, in clear: what other layouts of the same values become
    :ivar partitions: over how many units are spread
    """

    unit: str
    groupings: tuple[PrivateKeys | PublicKeys, ...]
    measures: tuple[Measure, ...]
    types: Mapping[str, pa.DataType]
    hashed: SaltedHash
    partitions: int
    reveal: Reveal | None = None

    def messages(self, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The messages of some batches, each with the number of its partition."""
        for batch in _gathered(batches):
            yield from self._split(batch)

    def _split(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        if self.reveal is not None:
            batch, _ = self.reveal(batch)
        columns = {name: _plain(batch.column(name), kind) for name, kind in self.types.items()}
        kept: NDArray[np.bool_] | None = None
        groups: list[tuple[NDArray[np.int32], pa.Array | None]] = []
        for grouping in self.groupings:
            grouped = [columns[name] for name in grouping.by]
            if isinstance(grouping, PublicKeys):
                index = grouping.keys.positions_of(grouped, batch.num_rows)
                groups.append((index, None))
                inside = index != NO_GROUP
                kept = inside if kept is None else kept | inside
            else:
                groups.append(keys_of_rows(grouped))
        if any(texts is not None for _, texts in groups):
            kept = None
        codes, units = self._units(columns[self.unit])
        values = [_values(columns[measure.column], measure) for measure in self.measures]
        if units is None:
            present = (
                columns[self.unit].is_valid().to_numpy(zero_copy_only=False) if columns[self.unit].null_count else None
            )
            hashes = self.hashed.of_integers(codes)
        else:
            present = codes >= 0 if len(codes) and codes.min() < 0 else None
            hashes = self.hashed.of_bytes(units)
        partition = self.hashed.partitions(hashes, self.partitions)
        if units is not None:
            # A unit's values stand together by partition, so that each message takes its part of them.
            by_partition = np.argsort(partition, kind="stable")
            rank = np.empty(len(by_partition) + 1, np.int32)
            rank[by_partition] = np.arange(len(by_partition), dtype=np.int32)
            ends = np.searchsorted(partition[by_partition], np.arange(self.partitions + 1))
            units = units.take(pa.array(by_partition))
            partition, codes = np.append(partition, 0)[codes], rank[codes]
        wanted = present if kept is None else kept if present is None else kept & present
        for number, rows in enumerate(_rows_of(partition, wanted, self.partitions)):
            if not len(rows):
                continue
            names = {"unit": pa.array(_narrowed(codes[rows]) if units is None else codes[rows])}
            if units is not None:
                first, last = ends[number], ends[number + 1]
                indices = pa.array(codes[rows] - np.int32(first))
                names["unit"] = pa.DictionaryArray.from_arrays(indices, units.slice(first, last - first))
            for place, (index, texts) in enumerate(groups):
                own = index[rows]
                names[f"group{place}"] = pa.array(_narrowed(own)) if texts is None else _compact(own, texts)
            for place, column in enumerate(values):
                names[f"measure{place}"] = pa.array(column[rows])
            yield number, pa.RecordBatch.from_pydict(names)

    def _units(self, column: pa.Array) -> tuple[NDArray[Any], pa.Array | None]:
        """Whole numbers; or the index of each row's unit, and the different units as bytes."""
        types = pa.types
        kind = column.type
        if types.is_dictionary(kind) or types.is_string(kind) or types.is_binary(kind):
            codes, values = encoded(column)
            return codes, values.cast(pa.binary())
        if types.is_decimal(kind):
            size = kind.byte_width
            raw = pa.Array.from_buffers(
                pa.binary(size), len(column), [column.buffers()[0], column.buffers()[1]], offset=column.offset
            )
            codes, values = encoded(raw)
            return codes, values.cast(pa.binary())
        if types.is_date(kind):
            column = column.cast(pa.int32())
        column = column.cast(pa.int64())
        return (column.fill_null(0) if column.null_count else column).to_numpy().astype(np.int64, copy=False), None


def _plain(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The values in the layout that the kernels know; text may stay a dictionary."""
    stored = column.type
    if pa.types.is_dictionary(stored):
        return column if stored.value_type == kind else column.cast(pa.dictionary(pa.int32(), kind))
    return column if stored == kind else column.cast(kind)


def _values(column: pa.Array, measure: Measure) -> NDArray[np.int32]:
    """Steps or bins; null and NaN are missing."""
    floats = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if measure.bins is None:
        assert measure.grid is not None  # noqa: S101 - a measure has bins or a grid
        return steps(floats, measure.grid)
    bins = measure.bins.indexes(floats).astype(np.int32)
    bins[np.isnan(floats)] = MISSING
    return bins


def _narrowed(numbers: NDArray[Any]) -> NDArray[Any]:
    """The same in the smallest type that holds them."""
    low, high = int(numbers.min()), int(numbers.max())
    for kind in (np.int8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return numbers.astype(kind, copy=False)
    return numbers


def _rows_of(
    partition: NDArray[np.uint16], wanted: NDArray[np.bool_] | None, partitions: int
) -> Iterator[NDArray[np.int64]]:
    """The rows of each partition, in their order."""
    if partitions <= 4:
        for number in range(partitions):
            yield np.flatnonzero(partition == number if wanted is None else (partition == number) & wanted)
        return
    rows = None if wanted is None else np.flatnonzero(wanted)
    own = partition if rows is None else partition[rows]
    order = np.argsort(own, kind="stable")
    ends = np.searchsorted(own[order], np.arange(partitions + 1))
    rows = order if rows is None else rows[order]
    for number in range(partitions):
        yield rows[ends[number] : ends[number + 1]]


def _compact(index: NDArray[np.int32], texts: pa.Array) -> pa.DictionaryArray:
    """The keys of some rows, with no others beside."""
    used = np.zeros(len(texts), bool)
    used[index] = True
    places = (np.cumsum(used) - 1).astype(np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(places[index]), texts.filter(pa.array(used)))


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches that are not small."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= _GATHERED_ROWS:
            yield _joined(waiting)
            waiting, rows = [], 0
    if rows:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    table = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
    return pa.RecordBatch.from_arrays(
        [column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in table.columns],
        schema=table.schema,
    )
