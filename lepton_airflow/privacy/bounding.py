"""Contribution bounding, pure NumPy: what each group's totals are when no unit counts for more than its bounds allow.

Every unit is treated by itself: its rows are gathered by group; in each group at most Linf rows' worth counts; and of its groups
at most L0 are kept. So adding or removing one unit changes nothing about the others. All of it is integer arithmetic: the result
does not depend on the order of rows, on how they are spread over batches and partitions, or on retried tasks.

Which groups of a unit are kept, and which of its values count in bins, is decided by salted hashes of the unit's and the groups'
own values. Unlike ``rand()`` this gives a retried task the same answer. The salt is drawn from the operating system once per
release, so that a unit does not lose the same groups in every release. Privacy does not rest on it: for every fixed salt the
choice is a function of that unit's rows alone, so the sensitivity holds for each salt and whoever knows it; drawing it at random
only mixes mechanisms that each are private. Nor does it rest on the hashes: they order a unit's groups, and equal ones are told
apart by the keys; which rows are of one unit and of one group is found by comparing values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_airflow.privacy.bounds import ContributionBounds
from lepton_airflow.privacy.fixed_point import FixedPoint
from lepton_airflow.privacy.measures import Measure
from lepton_airflow.privacy.plan import ROWS, UNITS
from lepton_airflow.privacy.salted_hash import Hashes, Integers, SaltedHash

#: Measures, each with the steps or bins of all rows.
Measured = Sequence[tuple[Measure, NDArray[np.int32]]]

#: Of a row without a value of a measure. Steps and bins are far above it.
MISSING = np.int32(-(2**31))
#: Rows whose values become steps at a time, so that they stay in a core's cache.
_BLOCK = 1 << 15
#: Rows that are sorted at a time, for the same reason.
_BUCKET_ROWS = 1 << 16
#: Bits of the hash in the sort key at least, beyond what the rows of a unit need.
_SPARE_BITS = 5
#: Bits of the unit in the sort key, where units are integers that lie far apart.
_UNIT_BITS = 32


def steps(values: NDArray[np.float64], grid: FixedPoint) -> NDArray[np.int32]:
    """:meth:`FixedPoint.steps` of each value; null and NaN alike are NaN here and :data:`MISSING` there.

    The clipping is done on the number of steps: the bounds there are whole and at most 2**26, so the result is within them
    whatever the division rounds to.
    """
    found = np.empty(len(values), np.int32)
    for start in range(0, len(values), _BLOCK):
        block = slice(start, start + _BLOCK)
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = values[block] / float(grid.granularity)
            np.clip(rounded, grid.lower, grid.upper, out=rounded)
            np.rint(rounded, out=rounded)
        missing = np.isnan(rounded)
        if missing.any():
            rounded[missing] = MISSING
        found[block] = rounded
    return found


@dataclass(frozen=True)
class Units:
    """The unit of each row of a partition.

    :ivar identity: equal for rows of the same unit, and for no others
    :ivar code: the same in fewer bits, if possible; otherwise rows of other units can have the same
    :ivar bits: of the code
    :ivar hashes: of the unit's value
    """

    identity: Integers
    code: Hashes
    bits: int
    hashes: Hashes

    @classmethod
    def of_integers(cls, values: Integers, hashed: SaltedHash) -> Units:
        """Units that are whole numbers."""
        hashes = hashed.of_integers(values)
        low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
        bits = (high - low).bit_length()
        if bits <= _UNIT_BITS:
            return cls(values, (values - np.int64(low)).view(np.uint64), bits, hashes)
        return cls(values, hashes >> np.uint64(64 - _UNIT_BITS), _UNIT_BITS, hashes)

    @classmethod
    def of_dictionary(cls, codes: NDArray[np.int32], values: pa.Array, hashed: SaltedHash) -> Units:
        """Units that are bytes.

        :param codes: for each row the index of its unit among ``values``
        :param values: all different
        """
        identity = codes.astype(np.int64)
        return cls(
            identity, identity.view(np.uint64), max(len(values) - 1, 0).bit_length(), hashed.of_bytes(values)[codes]
        )

    def take(self, rows: Integers | slice) -> Units:
        return Units(self.identity[rows], self.code[rows], self.bits, self.hashes[rows])


@dataclass(frozen=True)
class Groups:
    """The groups of a partition.

    :ivar index: of each row's group
    :ivar hashes: of each group's key
    :ivar texts: canonical, of each group's key
    """

    index: NDArray[np.integer[Any]]
    hashes: Hashes
    texts: pa.Array

    def ranks(self, rows: Integers) -> Integers:
        """The place of the keys of some rows in the order of keys."""
        used, own = np.unique(self.index[rows], return_inverse=True)
        texts = self.texts.take(pa.array(used)).to_pylist()
        ranks = np.empty(len(texts), np.int64)
        ranks[sorted(range(len(texts)), key=texts.__getitem__)] = np.arange(len(texts))
        found: Integers = ranks[own]
        return found


def bounded_totals(
    units: Units,
    groups: Groups,
    measures: Measured,
    *,
    width: int,
    bounds: ContributionBounds,
    hashed: SaltedHash,
) -> tuple[Integers, Integers]:
    """The totals of each group over all rows of some units.

    A unit that has more than Linf rows, or values of a measure, in a group contributes Linf times its own mean, rounded down:
    what sampling Linf of its rows would give on average, without the sampling. To bins it contributes Linf of its values, sampled
    systematically (Madow, Madow: On the theory of systematic sampling, 1944): its values are sorted by bin, and one is taken at
    equal distances from a start that the hash of unit and group decides.

    :param measures: each with the steps or bins of all rows, or :data:`MISSING`
    :param width: columns of a group's totals, see :attr:`ReleasePlan.width`
    :returns: places (group * width + column), rising and all different, and the totals there; those not named are zero
    """
    # One row for each column of the totals that is not a bin.
    columns = [UNITS, ROWS]
    columns += [m.offset + place for m, _ in measures if m.bins is None for place in range(m.width)]
    scalars = np.zeros((len(columns), len(groups.hashes)), np.int64)
    places, totals = [], []
    for some, own, values in _buckets(units, groups, measures):
        for place, total in _bounded(some, own, values, scalars, width=width, bounds=bounds, hashed=hashed):
            places.append(place)
            totals.append(total)
    row, index = np.nonzero(scalars)
    places.append(index * width + np.array(columns)[row])
    totals.append(scalars[row, index])
    return summed(np.concatenate(places), np.concatenate(totals))


def _buckets(units: Units, groups: Groups, measures: Measured) -> Iterator[tuple[Units, Groups, Measured]]:
    """The rows in buckets, each with all rows of its units and small enough for a core's cache."""
    rows = len(groups.index)
    count = 1 << max((rows // _BUCKET_ROWS).bit_length(), 0)
    if count == 1:
        if rows:
            yield units, groups, measures
        return
    bucket = (units.hashes >> np.uint64(32)).astype(np.uint16) & np.uint16(min(count, 1 << 16) - 1)
    order = np.argsort(bucket, kind="stable")
    ends = np.cumsum(np.bincount(bucket, minlength=1))
    units, index = units.take(order), groups.index[order]
    measures = [(measure, values[order]) for measure, values in measures]
    for first, last in pairwise([0, *ends.tolist()]):
        if last > first:
            part = slice(first, last)
            yield (
                units.take(part),
                replace(groups, index=index[part]),
                [(measure, values[part]) for measure, values in measures],
            )


def _bounded(
    units: Units,
    groups: Groups,
    measures: Measured,
    scalars: Integers,
    *,
    width: int,
    bounds: ContributionBounds,
    hashed: SaltedHash,
) -> Iterator[tuple[Integers, Integers]]:
    """Add what some units contribute to ``scalars``; what they contribute to bins are places and numbers."""
    rows = len(groups.index)
    pairs = hashed.of_pairs(units.hashes, groups.hashes[groups.index])
    order = _order(units, groups, pairs)
    identity, group = units.identity[order], groups.index[order]
    first_of_unit = np.append(True, identity[1:] != identity[:-1])
    starts = np.flatnonzero(first_of_unit | np.append(True, group[1:] != group[:-1]))
    counts = np.diff(np.append(starts, rows))
    group = group[starts].astype(np.int64)
    first_pair = np.flatnonzero(first_of_unit[starts])
    place_in_unit = np.arange(len(starts)) - np.repeat(first_pair, np.diff(np.append(first_pair, len(starts))))
    kept = place_in_unit < bounds.groups
    own = group[kept]
    np.add.at(scalars[0], own, 1)
    np.add.at(scalars[1], own, np.minimum(counts[kept], bounds.rows))
    filled = 2
    for measure, values in measures:
        values = values[order]
        if measure.bins is not None:
            pair_hashes = pairs[order[starts]]
            place, total = _bins(values, starts, counts, kept, measure.bins.count, bounds.rows, hashed, pair_hashes)
            yield group[place // measure.bins.count] * width + measure.offset + place % measure.bins.count, total
            continue
        present, sums = _sums(values, measure, starts, counts)
        for total in (np.minimum(present, bounds.rows), *(scaled(one, present, bounds.rows) for one in sums)):
            np.add.at(scalars[filled], own, total[kept])
            filled += 1


def summed(places: Integers, totals: Integers) -> tuple[Integers, Integers]:
    """The sums of all totals with the same place; places rise and are all different."""
    order = np.argsort(places, kind="stable")
    places, totals = places[order], totals[order]
    starts = np.flatnonzero(np.append(True, places[1:] != places[:-1])) if len(places) else np.empty(0, np.int64)
    return places[starts], np.add.reduceat(totals, starts) if len(starts) else totals


def scaled(totals: Integers, counts: Integers, limit: int) -> Integers:
    """``floor(total * limit / count)`` where a unit has more than ``limit`` values in a group, else ``total``.

    As every value is within [lower, upper], the result is within [limit * lower, limit * upper].

    ``total * limit`` could overflow. With total = q * count + r and 0 <= r < count the same floor is
    q * limit + floor(r * limit / count), where abs(q) <= 2**26 and r * limit < 2**36 * 2**20.
    """
    over = np.flatnonzero(counts > limit)
    if not len(over):
        return totals
    scaled_totals = totals.copy()
    quotients, remainders = np.divmod(totals[over], counts[over])
    scaled_totals[over] = quotients * limit + remainders * limit // counts[over]
    return scaled_totals


def _sums(
    values: NDArray[np.int32], measure: Measure, starts: Integers, counts: Integers
) -> tuple[Integers, list[Integers]]:
    """For each run of rows that begins at ``starts``: the values that are not missing, their sum, perhaps their squares'."""
    grid = measure.grid
    assert grid is not None  # noqa: S101 - a measure has bins or a grid
    missing = values == MISSING
    some = bool(missing.any())
    if some:
        counts = counts - np.add.reduceat(missing, starts, dtype=np.int64)
    wide = values.astype(np.int64)
    summands = [wide]
    if measure.squares:
        summands.append((wide - grid.midpoint) ** 2)
    if some:
        summands = [np.where(missing, 0, one) for one in summands]
    return counts, [np.add.reduceat(one, starts) for one in summands]


def _bins(
    values: NDArray[np.int32],
    starts: Integers,
    counts: Integers,
    kept: NDArray[np.bool_],
    bins: int,
    limit: int,
    hashed: SaltedHash,
    pair_hashes: Hashes,
) -> tuple[Integers, Integers]:
    """How many values of each pair count in each bin: places (pair * bins + bin), and the numbers.

    Value i of n, sorted by bin, is taken if floor(((i + 1) * limit + u) / n) > floor((i * limit + u) / n); so those in a bin that
    begins at value a and ends before b are floor((b * limit + u) / n) - floor((a * limit + u) / n), and in all bins ``limit``.
    """
    chosen = np.repeat(kept, counts) & (values != MISSING)
    pair = np.repeat(np.arange(len(starts)), counts)[chosen]
    places, counted = np.unique(pair * bins + values[chosen], return_counts=True)
    if not len(places):
        return places, counted
    of_pair = places // bins
    firsts = np.flatnonzero(np.append(True, of_pair[1:] != of_pair[:-1]))
    lengths = np.diff(np.append(firsts, len(places)))
    numbers = np.add.reduceat(counted, firsts)
    ends = np.cumsum(counted)
    begins = ends - counted
    base = np.repeat(begins[firsts], lengths)
    n = np.repeat(numbers, lengths)
    u = np.repeat(hashed.offsets(pair_hashes[of_pair[firsts]], numbers), lengths)
    taken = ((ends - base) * limit + u) // n - ((begins - base) * limit + u) // n
    return places, np.where(n > limit, taken, counted)


def _order(units: Units, groups: Groups, pairs: Hashes) -> Integers:
    """The order of rows by unit, by the pair's hash, and by key.

    A radix sort by the unit's code and the highest bits of the hash does it, but for the few units whose code another unit has,
    or that have two groups with the same bits: their rows are then sorted exactly.
    """
    rows = len(pairs)
    per_unit = max(rows >> min(units.bits, 40), 1)
    needed = units.bits + 2 * per_unit.bit_length() + _SPARE_BITS
    size = 64 if needed > 48 else 48 if needed > 32 else 32
    hash_bits = size - units.bits
    key = (units.code << np.uint64(hash_bits)) | (pairs >> np.uint64(64 - hash_bits))
    order = _radix_order(key, size)
    key = key[order]
    code = key >> np.uint64(hash_bits)
    identity, index = units.identity[order], groups.index[order]
    same = key[1:] == key[:-1]
    wrong = same & (index[1:] != index[:-1])
    wrong |= (code[1:] == code[:-1]) & (identity[1:] != identity[:-1])
    if wrong.any():
        # Rows with one code stand together, so they are sorted within their places.
        places = np.flatnonzero(np.isin(code, np.unique(code[1:][wrong])))
        own = order[places]
        order[places] = own[np.lexsort((groups.ranks(own), pairs[own], units.identity[own], units.code[own]))]
    return order


def _radix_order(keys: Hashes, bits: int) -> Integers:
    """The stable order of keys below ``2**bits``. NumPy sorts 16-bit integers by their digits, about four times as fast."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    for shift in range(16, bits, 16):
        digits = (keys >> np.uint64(shift)).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order
