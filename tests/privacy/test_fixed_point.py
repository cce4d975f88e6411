"""Fixed-point grids come from the declared bounds alone and keep every value within them."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_airflow.errors import SpecError
from lepton_airflow.privacy.bounds import MAX_ROWS, MAX_STEPS
from lepton_airflow.privacy.fixed_point import FixedPoint

bound = st.decimals(min_value=-(10**12), max_value=10**12, allow_nan=False, allow_infinity=False, places=4)


def apart(a: Decimal, b: Decimal) -> tuple[Decimal, Decimal]:
    """Bounds in order, with some room between them."""
    return min(a, b), max(a, b) + 1 + abs(a) / 1000


def grid_of(lower: object, upper: object, granularity: object = None) -> FixedPoint:
    return FixedPoint.from_bounds(
        lower=Decimal(str(lower)),
        upper=Decimal(str(upper)),
        granularity=None if granularity is None else Decimal(str(granularity)),
        place="metric m",
    )


@given(bound, bound, st.one_of(st.floats(), st.none()))
def test_every_value_is_within_the_bounds_or_missing(a: Decimal, b: Decimal, value: float | None) -> None:
    grid = grid_of(*apart(a, b))
    steps = grid.steps(value)
    if value is None or math.isnan(value):
        assert steps is None
    else:
        assert steps is not None
        assert grid.lower <= steps <= grid.upper


@given(bound, bound)
def test_the_default_granularity_is_the_finest_power_of_two_that_cannot_overflow(a: Decimal, b: Decimal) -> None:
    grid = grid_of(*apart(a, b))
    exponent = math.log2(grid.granularity)
    assert exponent == int(exponent)
    assert MAX_STEPS // 2 <= grid.magnitude <= MAX_STEPS
    assert grid.magnitude * MAX_ROWS <= 2**62


def test_whole_numbers_within_small_bounds_are_exact() -> None:
    grid = grid_of(0, 120)
    assert [grid.value(grid.steps(float(age)) or 0) for age in (0, 1, 119, 120)] == [0, 1, 119, 120]


def test_infinities_are_clipped_like_any_other_value() -> None:
    grid = grid_of(-2, 5, 1)
    assert [grid.steps(value) for value in (-math.inf, math.inf, -3.0, 6.0)] == [-2, 5, -2, 5]


def test_the_midpoint_halves_what_one_value_can_add() -> None:
    grid = grid_of(100, 110, 1)
    assert (grid.magnitude, grid.midpoint, grid.half_range) == (110, 105, 5)
    assert grid_of(0, 5, 1).half_range == 3


def test_a_declared_granularity_is_taken_exactly() -> None:
    assert grid_of(0, 1, "0.1").granularity == Fraction(1, 10)


@pytest.mark.parametrize(
    ("lower", "upper", "granularity"),
    [(5, 5, None), (6, 5, None), (0, 1, 10), (0, 1000, "0.00001")],
    ids=["equal", "reversed", "too coarse", "could overflow"],
)
def test_bounds_that_cannot_work_are_refused(lower: int, upper: int, granularity: object) -> None:
    with pytest.raises(SpecError, match="metric m"):
        grid_of(lower, upper, granularity)
