"""Consistent totals: least squares on the tree of groups, exactly additive, and never negative where that is asked."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_airflow.privacy.consistency import Level, _round, _spread, consistent_totals
from lepton_airflow.privacy.consistency import _Cell as Cell
from lepton_airflow.privacy.mechanisms import DiscreteLaplace

WARDS = [(ward,) for ward in "abc"]
BEDS = [(bed, ward) for ward in "abc" for bed in range(ord(ward) - ord("a") + 1)]


def levels_of(whole: Any, wards: Any, beds: Any, variances: tuple[int, int, int] = (1, 1, 1)) -> list[Level]:
    return [
        Level(by=(), keys=[()], numbers=whole, variance=Fraction(variances[0])),
        Level(by=("ward",), keys=WARDS, numbers=wards, variance=Fraction(variances[1])),
        Level(by=("bed", "ward"), keys=BEDS, numbers=beds, variance=Fraction(variances[2])),
    ]


NUMBERS = st.lists(st.integers(-1000, 1000), min_size=10, max_size=10)
VARIANCES = st.tuples(*[st.integers(1, 9)] * 3)
#: Which beds and wards add up to each of the ten numbers: the design matrix of the least-squares problem.
DESIGN = np.array(
    [[1] * 6]
    + [[int(bed[1] == ward) for bed in BEDS] for (ward,) in WARDS]
    + [[int(i == j) for i in range(6)] for j in range(6)]
)


@given(numbers=NUMBERS, variances=VARIANCES)
def test_it_is_the_weighted_least_squares_solution(numbers: list[int], variances: tuple[int, int, int]) -> None:
    """Against a general solver, before rounding: the unit is far below the tolerance."""
    unit = Fraction(1, 10**12)
    found = consistent_totals(
        levels_of(numbers[:1], numbers[1:4], numbers[4:], variances), unit=unit, nonnegative=False
    )
    weights = np.sqrt(1 / np.repeat(np.array(variances, dtype=float), [1, 3, 6]))
    expected, *_ = np.linalg.lstsq(DESIGN * weights[:, None], np.array(numbers) * weights, rcond=None)
    assert np.allclose([float(number) for number in found[2]], expected, atol=1e-7)


@given(numbers=NUMBERS, variances=VARIANCES, nonnegative=st.booleans(), unit=st.sampled_from([1, Fraction(1, 128), 7]))
def test_totals_add_up_exactly(
    numbers: list[int], variances: tuple[int, int, int], nonnegative: bool, unit: Fraction
) -> None:
    (whole,), wards, beds = consistent_totals(
        levels_of(numbers[:1], numbers[1:4], numbers[4:], variances), unit=unit, nonnegative=nonnegative
    )
    assert whole == sum(wards)
    for (ward,), total in zip(WARDS, wards, strict=True):
        assert total == sum(number for number, key in zip(beds, BEDS, strict=True) if key[1] == ward)
    assert all((Fraction(number) / unit).denominator == 1 for number in (whole, *wards, *beds))
    assert not nonnegative or min(whole, *wards, *beds) >= 0


@given(numbers=NUMBERS)
def test_what_adds_up_is_left_alone(numbers: list[int]) -> None:
    beds = numbers[4:]
    wards = [sum(n for n, key in zip(beds, BEDS, strict=True) if key[1] == ward) for (ward,) in WARDS]
    expected = [[sum(wards)], wards, beds]
    assert consistent_totals(levels_of(*expected, (3, 1, 2)), unit=1, nonnegative=False) == expected


@given(
    numbers=st.lists(st.fractions(-100, 100), min_size=1, max_size=6),
    total=st.fractions(0, 100),
    variances=st.lists(st.integers(1, 5), min_size=6, max_size=6),
)
def test_children_without_negatives_are_the_nearest_ones(
    numbers: list[Fraction], total: Fraction, variances: list[int]
) -> None:
    """The conditions of Karush, Kuhn and Tucker, which are sufficient here: those above zero all pay the same price, and those
    at zero would gain nothing by leaving it."""
    parent = Cell(total, Fraction(1))
    parent.children = [Cell(number, Fraction(variance)) for number, variance in zip(numbers, variances, strict=False)]
    _spread(parent, nonnegative=True)
    after = [child.estimate for child in parent.children]
    assert sum(after) == total
    assert min(after) >= 0
    prices = [
        (own - number) / child.variance for own, number, child in zip(after, numbers, parent.children, strict=True)
    ]
    paid = {price for price, own in zip(prices, after, strict=True) if own > 0}
    assert len(paid) <= 1
    if paid:
        (price,) = paid
        assert all(other >= price for other, own in zip(prices, after, strict=True) if own == 0)


@given(numbers=st.lists(st.fractions(-50, 50), min_size=1, max_size=9), up=st.booleans())
def test_rounding_moves_no_number_by_a_unit(numbers: list[Fraction], up: bool) -> None:
    cells = [Cell(number, Fraction(1)) for number in numbers]
    total = sum(numbers)
    whole = -(-total.numerator // total.denominator) if up else total.numerator // total.denominator
    _round(whole, cells, 1)
    assert sum(cell.whole for cell in cells) == whole
    assert all(
        abs(cell.whole - number) < 1 or cell.whole == number for cell, number in zip(cells, numbers, strict=True)
    )


def test_cells_without_a_counterpart_are_left_to_themselves() -> None:
    levels = [
        Level(by=("ward",), keys=[("a",), ("z",)], numbers=[10, 7], variance=Fraction(1)),
        Level(by=("ward", "bed"), keys=[("a", 1), ("y", 1)], numbers=[20, 3], variance=Fraction(1)),
    ]
    # a: both numbers measure the same; z has no bed; y has no ward.
    assert consistent_totals(levels, unit=1, nonnegative=False) == [[15, 7], [15, 3]]


def test_keys_of_other_types_are_other_keys() -> None:
    levels = [
        Level(by=("k",), keys=[(1,), ("1",), (True,), (None,)], numbers=[1, 2, 3, 4], variance=Fraction(1)),
        Level(by=("k", "i"), keys=[(1, 0), ("1", 0), (True, 0), (None, 0)], numbers=[5, 6, 7, 8], variance=Fraction(1)),
    ]
    assert consistent_totals(levels, unit=1, nonnegative=False) == [[3, 4, 5, 6]] * 2


def test_consistent_numbers_are_nearer_to_the_truth() -> None:
    """Their mean squared error against that of the noisy ones: for one total and ten parts of equal noise, 11 noises are
    projected on 10 dimensions; the total alone goes from v to v * 10 / 11."""
    mechanism, rounds = DiscreteLaplace(20.0), 2000
    noise = np.array(mechanism.add_noise([0] * (11 * rounds))).reshape(rounds, 11)
    keys = [(i,) for i in range(10)]
    before, after = 0, 0
    for whole, *parts in noise.tolist():
        levels = [
            Level(by=(), keys=[()], numbers=[whole], variance=Fraction(400)),
            Level(by=("k",), keys=keys, numbers=parts, variance=Fraction(400)),
        ]
        (total,), fine = consistent_totals(levels, unit=1, nonnegative=False)
        before += whole**2 + sum(part**2 for part in parts)
        after += int(total) ** 2 + sum(int(number) ** 2 for number in fine)
    # A projection: never further from a truth that adds up, but for rounding.
    assert after / before == pytest.approx(10 / 11, abs=0.05)
