"""Amounts are exact, and every number has one form."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_airflow.privacy.amount import amount_text, exact_decimal, round_up


@pytest.mark.parametrize("written", ["0.5", "0.50", 0.5, Decimal("0.500"), "5e-1", ".5"])
def test_equal_numbers_get_one_form(written: object) -> None:
    assert str(exact_decimal(written)) == "0.5"


def test_a_float_means_what_was_written() -> None:
    assert Fraction(exact_decimal(0.1)) == Fraction(1, 10)


@pytest.mark.parametrize(
    "bad", [True, None, "", "half", "nan", "inf", float("nan"), float("inf"), "1e31", "1e-31", "0." + "1" * 35]
)
def test_what_is_no_plain_finite_number_is_refused(bad: object) -> None:
    with pytest.raises(ValueError):
        exact_decimal(bad)


@given(st.fractions())
def test_the_text_of_a_rational_is_exact(amount: Fraction) -> None:
    assert Fraction(amount_text(amount)) == amount


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-1000, max_value=1000, places=6))
def test_a_decimal_is_written_without_exponent_or_fraction(amount: Decimal) -> None:
    text = amount_text(amount)
    assert "/" not in text
    assert "E" not in text
    assert Decimal(text) == amount


@given(st.fractions(min_value=0, max_value=10**9))
def test_costs_are_rounded_up_by_less_than_a_millionth(amount: Fraction) -> None:
    rounded = round_up(amount)
    assert 0 <= rounded - amount < Fraction(1, 10**6)
    assert rounded * 10**6 == int(rounded * 10**6)
    assert round_up(rounded) == rounded
