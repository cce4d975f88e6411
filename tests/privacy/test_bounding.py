"""The bounding kernel, without Spark: it computes what a plain model does, and no unit moves a vector further than is claimed."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import random
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import types as T

from lepton_airflow.privacy.aggregation import new_salt
from lepton_airflow.privacy.bounding import MISSING, Groups, Units, bounded_totals, scaled, steps, summed
from lepton_airflow.privacy.bounds import MAX_ROWS, MAX_ROWS_PER_UNIT_AND_GROUP, MAX_STEPS, ContributionBounds
from lepton_airflow.privacy.fixed_point import FixedPoint
from lepton_airflow.privacy.groups import declared_keys, key_texts
from lepton_airflow.privacy.metrics import Metric
from lepton_airflow.privacy.plan import Grouping, ReleasePlan, plan_release
from lepton_airflow.privacy.salted_hash import SaltedHash
from lepton_airflow.privacy.scatter import PrivateKeys, PublicKeys, Scatter
from lepton_airflow.privacy.totals import Aggregates, Merge, PartitionTotals, packed, unpacked

SALT = 20_261_122
REGIONS = ("north", "south", 'ea"st\n', "west")
WARDS = (1, 30, -7)
KEYS: list[list[tuple[Any, ...]] | None] = [
    [(region,) for region in REGIONS],
    [(region, ward) for ward in WARDS for region in REGIONS] + [(None, 30), ("north", None)],
    None,
    None,
    [()],
]
BY: list[tuple[str, ...]] = [("region",), ("region", "ward"), ("ward",), ("ward", "region"), ()]
SCHEMA = T.StructType(
    [
        T.StructField("region", T.StringType()),
        T.StructField("ward", T.LongType()),
        T.StructField("unit", T.StringType()),
    ]
)


class Row(NamedTuple):
    unit: str | int | None
    region: str | None
    ward: int | None
    value: float | None


def plan_of(*, max_groups: int, max_rows: int, lower: float = -5, upper: float = 20) -> ReleasePlan:
    """All types of metrics over all kinds of groupings."""
    bounds: dict[str, Any] = {"column": "value", "lower": Decimal(str(lower)), "upper": Decimal(str(upper))}
    return plan_release(
        metrics=[
            Metric(name="rows", type="count"),
            Metric(name="units", type="count_units"),
            Metric(name="total", type="sum", **bounds),
            Metric(name="average", type="mean", **bounds),
            Metric(name="spread", type="variance", **bounds),
            Metric(name="deviation", type="standard_deviation", **bounds),
            Metric(name="median", type="quantiles", quantiles=["0.5"], bins=16, **bounds),
            Metric(name="shape", type="histogram", column="value", edges=["-1", "0", "0.5", "7", "8"]),
        ],
        groupings=[
            Grouping(
                name=f"g{place}",
                by=by,
                groups=None if keys is None else len(keys),
                bounds=ContributionBounds(groups=max_groups, rows=max_rows),
            )
            for place, (by, keys) in enumerate(zip(BY, KEYS, strict=True))
        ],
        epsilon=Fraction(1),
        delta=Fraction(1, 10**9),
    )


Totals = list[dict[str, list[int]]]


# The model: one unit at a time, in Python's integers.


def mixed(number: int) -> int:
    number ^= number >> 30
    number = number * 0xBF58476D1CE4E5B9 % 2**64
    number ^= number >> 27
    number = number * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


def model_hash(value: int | bytes, salt: int) -> int:
    table = hashlib.shake_256(b"lepton release salt" + salt.to_bytes(16, "big")).digest(8 * 68)
    words = [int.from_bytes(table[i : i + 8], "little") for i in range(0, len(table), 8)]
    if isinstance(value, int):
        return (value % 2**64 ^ words[0]) * (words[1] | 1) % 2**64
    if len(value) > 256:
        return int.from_bytes(hashlib.blake2b(value, digest_size=8, key=table[:32]).digest(), "little")
    parts = [int.from_bytes(value[i : i + 4], "little") for i in range(0, len(value), 4)]
    return mixed((len(value) * words[3] + sum(a * b for a, b in zip(parts, words[4:], strict=False))) % 2**64)


def model(rows: Sequence[Row], plan: ReleasePlan, *, salt: int = SALT, bits: int = 64) -> Totals:
    found: Totals = []
    offset_word = int.from_bytes(
        hashlib.shake_256(b"lepton release salt" + salt.to_bytes(16, "big")).digest(24)[16:], "little"
    )
    for by, keys, grouping in zip(BY, KEYS, plan.groupings, strict=True):
        declared = None if keys is None else {json.dumps(k, ensure_ascii=False, separators=(",", ":")) for k in keys}
        totals = {} if declared is None else {text: [0] * plan.width for text in declared}
        by_unit: dict[Any, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            text = json.dumps([getattr(row, name) for name in by], ensure_ascii=False, separators=(",", ":"))
            if row.unit is not None and (declared is None or text in declared):
                by_unit[row.unit][text].append(row.value)
        for unit, groups in by_unit.items():
            unit_hash = model_hash(unit if isinstance(unit, int) else unit.encode(), salt)
            hashes = {
                text: mixed(unit_hash ^ model_hash(text.encode(), salt)) >> 64 - bits << 64 - bits for text in groups
            }
            order = sorted(groups, key=lambda text: (hashes[text], text.encode()))
            for text in order[: grouping.bounds.groups]:
                total = totals.setdefault(text, [0] * plan.width)
                limit = grouping.bounds.rows
                total[0] += 1
                total[1] += min(len(groups[text]), limit)
                values = [v for v in groups[text] if v is not None and not math.isnan(v)]
                for measure in plan.measures:
                    at = measure.offset
                    if measure.grid is not None:
                        stepped = [measure.grid.steps(v) for v in values]
                        sums = [stepped] + [[(s - measure.grid.midpoint) ** 2 for s in stepped]] * measure.squares
                        total[at] += min(len(values), limit)
                        for place, summands in enumerate(sums, 1):
                            n = len(summands)
                            total[at + place] += (
                                math.floor(Fraction(sum(summands) * limit, n)) if n > limit else sum(summands)
                            )
                        continue
                    edges = [float(edge) for edge in measure.bins.edges]
                    bins = sorted(sum(v >= edge for edge in edges[1:-1]) for v in values)
                    n = len(bins)
                    start = mixed(hashes[text] ^ offset_word) % n if n else 0
                    for i, number in enumerate(bins):
                        if n <= limit or ((i + 1) * limit + start) // n > (i * limit + start) // n:
                            total[at + number] += 1
        found.append(totals)
    return found


# The kernel, with what Spark does between its two sides.


def kernel(
    rows: Sequence[Row],
    plan: ReleasePlan,
    *,
    salt: int = SALT,
    bits: int = 64,
    partitions: int = 1,
    cuts: Sequence[int] = (),
    dictionaries: bool = False,
) -> Totals:
    whole = any(isinstance(row.unit, int) for row in rows)
    types = {
        "unit": pa.int64() if whole else pa.string(),
        "region": pa.string(),
        "ward": pa.int64(),
        "value": pa.float64(),
    }
    batch = pa.RecordBatch.from_arrays(
        [pa.array([getattr(row, name) for row in rows], kind) for name, kind in types.items()], names=list(types)
    )
    if dictionaries:
        encoded = [a.dictionary_encode() if pa.types.is_string(a.type) else a for a in batch.columns]
        batch = pa.RecordBatch.from_arrays(encoded, names=list(types))
    groupings = tuple(
        PrivateKeys(by)
        if keys is None
        else PublicKeys(by, declared_keys(SCHEMA, by=by, keys=keys, dataset="clinic.visits"))
        for by, keys in zip(BY, KEYS, strict=True)
    )
    hashed = SaltedHash(salt, bits=bits)
    scatter = Scatter(
        unit="unit", groupings=groupings, measures=plan.measures, types=types, hashed=hashed, partitions=partitions
    )
    ends = [0, *sorted(cut % (len(rows) + 1) for cut in cuts), len(rows)]
    sent = defaultdict(list)
    for first, last in pairwise(ends):
        for number, message in pickle.loads(pickle.dumps(scatter)).messages([batch.slice(first, last - first)]):
            sent[number].append(unpacked(packed(message)))
    work = PartitionTotals(
        plan=plan, groupings=groupings, hashed=hashed, unit_is_encrypted=False, buckets=(1, 2, 3, 1, 1)
    )
    gathered = defaultdict(list)
    for messages in sent.values():
        for bucket, grouping, message in work.of(messages):
            gathered[bucket, grouping].append(message)
    merge = Merge(plan=plan, groupings=groupings)
    merged = iter(
        [
            (grouping, packed(message))
            for (_, grouping), messages in sorted(gathered.items())
            for message in merge.of(grouping, messages)
        ]
    )
    found: Totals = []
    for keys, own in zip(KEYS, Aggregates(merged, plan=plan, groupings=groupings, place="unit"), strict=True):
        if keys is None:
            found.append({k.decode(): t for chunk, totals in own for k, t in zip(chunk, totals.tolist(), strict=True)})
        else:
            texts = [json.dumps(key, ensure_ascii=False, separators=(",", ":")) for key in keys]
            found.append(dict(zip(texts, own.tolist(), strict=True)))
    return found


def check_sensitivity(plan: ReleasePlan, with_unit: Totals, without: Totals) -> None:
    """Assert what ``plan`` claims of two neighbours, for every query."""
    for grouping, one, other in zip(plan.groupings, with_unit, without, strict=True):
        keys = sorted(one.keys() | other.keys())
        nothing = [0] * plan.width
        first, second = (np.array([t.get(k, nothing) for k in keys] or [nothing], np.int64) for t in (one, other))
        selected = [grouping.selection.query] if grouping.selection else []
        for query in [*selected, *grouping.queries]:
            moved = np.abs(plan.vector(query, first) - plan.vector(query, second)).tolist()
            sums = [sum(entries) for entries in moved]
            claimed = query.sensitivity
            assert sum(total > 0 for total in sums) <= claimed.groups, query.name
            assert max(sums) <= claimed.per_group, query.name
            assert max(max(entries) for entries in moved) <= claimed.linf, query.name
            assert sum(sums) <= claimed.l1, query.name
            assert sum(step**2 for entries in moved for step in entries) <= claimed.l2_squared, query.name


texts = st.sampled_from([*"abc", "", "ü" * 5, "a unit of more than eight bytes", "long " * 60])
units = st.one_of(st.lists(st.one_of(st.none(), texts), min_size=1, max_size=40)) | st.lists(
    st.one_of(st.none(), st.integers(0, 3), st.sampled_from([-(2**63), 2**63 - 1, 2**40])), min_size=1, max_size=40
)
rests = st.tuples(
    st.sampled_from([*REGIONS, "elsewhere", None]),
    st.sampled_from([*WARDS, 99, None]),
    st.one_of(st.floats(), st.none(), st.sampled_from([-1.0, 0.0, 0.5, 7.0, 8.0, -5.0, 20.0])),
)
tables = units.flatmap(
    lambda own: st.lists(rests, min_size=len(own), max_size=len(own)).map(
        lambda others: [Row(unit, *other) for unit, other in zip(own, others, strict=True)]
    )
)


@settings(max_examples=150, deadline=None)
@given(tables, st.integers(1, 5), st.integers(1, 4), st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_removing_any_unit_moves_each_vector_by_at_most_its_sensitivity(
    rows: list[Row], max_groups: int, max_rows: int, lower: int, width: int
) -> None:
    plan = plan_of(max_groups=max_groups, max_rows=max_rows, lower=lower / 1000, upper=(lower + width) / 1000)
    everything = kernel(rows, plan)
    for unit in {row.unit for row in rows}:
        check_sensitivity(plan, everything, kernel([row for row in rows if row.unit != unit], plan))


@settings(max_examples=150, deadline=None)
@given(tables, st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**63 - 1), st.sampled_from([64, 64, 3, 1]))
def test_the_kernel_computes_what_the_model_does(
    rows: list[Row], max_groups: int, max_rows: int, salt: int, bits: int
) -> None:
    """With few bits most hashes of pairs are equal, and the keys decide."""
    plan = plan_of(max_groups=max_groups, max_rows=max_rows)
    assert kernel(rows, plan, salt=salt, bits=bits) == model(rows, plan, salt=salt, bits=bits)


@settings(max_examples=100, deadline=None)
@given(tables, st.randoms(), st.integers(2, 9), st.lists(st.integers(0, 40), max_size=4), st.booleans())
def test_the_result_does_not_depend_on_order_batches_partitions_or_dictionaries(
    rows: list[Row], chance: random.Random, partitions: int, cuts: list[int], dictionaries: bool
) -> None:
    plan = plan_of(max_groups=2, max_rows=2)
    shuffled = chance.sample(rows, len(rows))
    assert kernel(shuffled, plan, partitions=partitions, cuts=cuts, dictionaries=dictionaries) == kernel(rows, plan)


def worst_case(*, groups: int = 4, rows: int = 5, value: float = math.inf) -> list[Row]:
    """A unit that contributes as much as it can."""
    return [Row("a", region, 1, value) for region in REGIONS[:groups] for _ in range(rows)]


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_the_claimed_sensitivity_is_reached(value: float) -> None:
    plan = plan_of(max_groups=2, max_rows=3, lower=-20, upper=20)
    (somebody, *_) = kernel(worst_case(value=value), plan)
    totals = np.array(list(somebody.values()))
    for query in plan.groupings[0].queries:
        assert np.abs(plan.vector(query, totals)).sum() == query.sensitivity.l1, query.name


MUTATIONS = {
    "no bound on groups": {"max_groups": 4, "max_rows": 3},
    "no bound on rows": {"max_groups": 2, "max_rows": 5},
    "bounds swapped": {"max_groups": 3, "max_rows": 2},
    "no clipping": {"max_groups": 2, "max_rows": 3, "lower": -100, "upper": 100},
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_an_aggregation_that_does_not_keep_the_bounds_is_caught(mutation: str) -> None:
    claimed = plan_of(max_groups=2, max_rows=3, lower=-20, upper=20)
    broken = plan_of(**{"lower": -20, "upper": 20, **MUTATIONS[mutation]})
    rows, empty = worst_case(value=1000.0), kernel([], claimed)
    check_sensitivity(claimed, kernel(rows, claimed), empty)
    with pytest.raises(AssertionError):
        check_sensitivity(claimed, kernel(rows, broken), empty)


def test_every_release_draws_a_salt_of_its_own() -> None:
    """A fixed salt would lose the same groups of a unit in every release."""
    assert len({new_salt() for _ in range(8)}) == 8


def test_another_salt_keeps_other_groups_of_a_unit() -> None:
    plan = plan_of(max_groups=1, max_rows=1)
    rows = [Row(f"unit {i}", region, 1, 0.0) for i in range(200) for region in REGIONS]
    first, second = (kernel(rows, plan, salt=salt)[0] for salt in (1, 2))
    counts = [totals[0] for totals in first.values()]
    assert sum(counts) == 200
    # Each group is as likely as another: 50 of 200 on average, and 20 or 80 are five standard deviations off.
    assert all(20 < count < 80 for count in counts)
    assert first != second


@pytest.mark.parametrize("bits", [64, 6])
@pytest.mark.parametrize("spacing", [1, 2**40 + 1], ids=["close", "far apart"])
def test_units_are_told_apart_by_value_in_large_partitions(spacing: int, bits: int) -> None:
    """So many units that short codes and short hashes collide many times."""
    random_numbers = np.random.default_rng(5)
    unit = random_numbers.integers(0, 40_000, 300_000) * spacing - 2**50
    ward = random_numbers.integers(0, 200, 300_000)
    plan = plan_release(
        metrics=[Metric(name="rows", type="count")],
        groupings=[Grouping(name="g", by=("ward",), groups=200, bounds=ContributionBounds(groups=200, rows=10**6))],
        epsilon=Fraction(1),
    )
    keys = declared_keys(SCHEMA, by=("ward",), keys=[(i,) for i in range(200)], dataset="clinic.visits")
    groupings = (PublicKeys(("ward",), keys),)
    scatter = Scatter(
        unit="unit",
        groupings=groupings,
        measures=(),
        types={"unit": pa.int64(), "ward": pa.int64()},
        hashed=SaltedHash(SALT, bits=bits),
        partitions=1,
    )
    batch = pa.RecordBatch.from_pydict({"unit": pa.array(unit), "ward": pa.array(ward)})
    work = PartitionTotals(
        plan=plan, groupings=groupings, hashed=SaltedHash(SALT, bits=bits), unit_is_encrypted=False, buckets=(1,)
    )
    ((_, _, message),) = work.of([message for _, message in scatter.messages([batch])])
    totals = np.zeros(200 * plan.width, np.int64)
    totals[message["place"].to_numpy()] = message["total"].to_numpy()
    pairs = np.unique(np.stack([unit, ward]), axis=1)
    assert totals.reshape(200, -1)[:, 0].tolist() == np.bincount(pairs[1], minlength=200).tolist()
    assert totals.reshape(200, -1)[:, 1].tolist() == np.bincount(ward, minlength=200).tolist()


def test_the_largest_sums_do_not_overflow() -> None:
    cases = [
        (sign * MAX_ROWS * MAX_STEPS - off, MAX_ROWS, limit)
        for sign in (1, -1)
        for off in (0, 1, 12345)
        for limit in (1, 7, MAX_ROWS_PER_UNIT_AND_GROUP)
    ] + [(-7, 3, 2), (7, 3, 2), (-7, 3, 3), (-1, 5, 2)]
    for total, count, limit in cases:
        (found,) = scaled(np.array([total]), np.array([count]), limit).tolist()
        assert found == (total * limit // count if count > limit else total)


def test_sums_are_exact_beyond_what_doubles_hold() -> None:
    places, totals = summed(np.array([3, 1, 3]), np.array([2**62, 5, 1]))
    assert (places.tolist(), totals.tolist()) == ([1, 3], [5, 2**62 + 1])


def test_totals_of_units_are_exact_beyond_what_doubles_hold() -> None:
    """Squares so large that a double, in any step of the kernel, would lose their lowest bits; no grid lets them occur."""
    plan = plan_release(
        metrics=[Metric(name="spread", type="variance", column="amount", lower=Decimal(0), upper=Decimal(100))],
        groupings=[Grouping(name="g", by=("ward",), groups=1, bounds=ContributionBounds(groups=1, rows=1))],
        epsilon=Fraction(1),
    )
    (measure,) = plan.measures
    assert measure.grid is not None
    assert measure.squares
    texts, hashed = pa.array([b"[1]"]), SaltedHash(SALT)
    roots = [2**30 + 1, 2**29 + 3]
    values = np.array([measure.grid.midpoint + root for root in roots], np.int32)
    places, totals = bounded_totals(
        Units.of_integers(np.array([1, 2]), hashed),
        Groups(np.zeros(2, np.int32), hashed.of_bytes(texts), texts),
        [(measure, values)],
        width=plan.width,
        bounds=ContributionBounds(groups=1, rows=1),
        hashed=hashed,
    )
    found = dict(zip(places.tolist(), totals.tolist(), strict=True))
    assert found[measure.offset + measure.width - 1] == sum(root**2 for root in roots)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.floats()), max_size=20), st.decimals(-100, 100, places=2), st.integers(1, 10**4)
)
def test_steps_are_those_of_the_grid(values: list[float | None], lower: Decimal, width: int) -> None:
    for granularity in (None, Decimal("0.01")):
        grid = FixedPoint.from_bounds(lower=lower, upper=lower + width, granularity=granularity, place="total")
        floats = np.array([math.nan if value is None else value for value in values], np.float64)
        expected = [grid.steps(value) for value in values]
        assert steps(floats, grid).tolist() == [int(MISSING) if step is None else step for step in expected]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"x" * 255, b"x" * 256, b"x" * 257]), max_size=8))
def test_hashes_of_bytes_do_not_depend_on_their_neighbours(values: list[bytes]) -> None:
    array = pa.array([b"before", *values], pa.binary()).slice(1)
    assert SaltedHash(SALT).of_bytes(array).tolist() == [model_hash(value, SALT) for value in values]


def test_integers_never_share_a_hash() -> None:
    values = np.append(np.arange(-50_000, 50_000), [-(2**63), 2**63 - 1])
    assert len(np.unique(SaltedHash(SALT).of_integers(values))) == len(values)
    assert len(Units.of_integers(values, SaltedHash(SALT)).identity) == len(values)


def test_keys_as_text_are_canonical_json() -> None:
    columns = [
        pa.array(['a"\\\t\u001f', "ü€", None, "plain"]),
        pa.array([1, None, -3, 2**62]),
        pa.array([True, False, None, True]),
    ]
    texts = [text.decode() for text in key_texts(columns).to_pylist()]
    expected = [
        json.dumps(list(key), ensure_ascii=False, separators=(",", ":"))
        for key in zip(*(column.to_pylist() for column in columns), strict=True)
    ]
    assert texts == expected
    assert key_texts([pa.array([0, None], pa.date32())]).to_pylist() == [b'["1970-01-01"]', b"[null]"]


def test_text_that_is_not_unicode_becomes_a_key_that_can_be_read() -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffb")]
    )
    assert key_texts([broken]).to_pylist() == ['["a\ufffd"]'.encode(), b'["b"]']


def test_unnoised_aggregates_have_no_text_form() -> None:
    plan = plan_of(max_groups=1, max_rows=1)
    groupings = [PrivateKeys(("ward",))] * 5
    secret = Aggregates(iter([]), plan=plan, groupings=groupings, place="unit")
    assert f"{secret!r} {secret}" == "<Aggregates of 5 groupings> <Aggregates of 5 groupings>"
    assert list(secret[0]) == []
    with pytest.raises(RuntimeError, match="read once"):
        next(iter(secret[0]))
