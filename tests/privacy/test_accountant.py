"""diffprivlib's accountant and the ledger's exact sums agree, and a changed ledger is noticed."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_airflow.errors import BudgetError
from lepton_airflow.privacy.accountant import basic_composition, cross_check
from lepton_airflow.privacy.records import MechanismEvent


def event(epsilon: Fraction) -> MechanismEvent:
    return MechanismEvent(query="q", mechanism="discrete Laplace", sensitivity=1, scale=1.0, epsilon=epsilon)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.fractions(min_value=Fraction(1, 1000), max_value=10, max_denominator=1000), max_size=30))
def test_both_accountants_agree(epsilons: list[Fraction]) -> None:
    events = [event(epsilon) for epsilon in epsilons]
    assert basic_composition(events) == sum(epsilons)
    cross_check(events, spent=sum(epsilons, Fraction(0)), place="budget")


def test_a_ledger_that_says_less_than_its_events_is_noticed() -> None:
    with pytest.raises(BudgetError, match=r"budget of clinic.*epsilon 0\.1 is spent.*add up to 0\.3"):
        cross_check([event(Fraction(1, 10)), event(Fraction(1, 5))], spent=Fraction(1, 10), place="budget of clinic")
