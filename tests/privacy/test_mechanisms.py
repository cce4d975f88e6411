"""The noise has the exact distribution that is claimed, and a wrong scale would be noticed."""

import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lepton_airflow.privacy.mechanisms import DiscreteLaplace

DRAWS = 40_000
SCALE = 3.3


def chi_square_p_value(noise: list[int], claimed: DiscreteLaplace) -> float:
    """The p-value of ``noise`` against the exact probabilities of ``claimed``; each side's tail is one bin."""
    beyond = claimed.half_width(0.999)
    counts = Counter(max(-beyond, min(beyond, k)) for k in noise)
    tail = (1 - sum(claimed.probability(k) for k in range(1 - beyond, beyond))) / 2
    expected = [tail, *(claimed.probability(k) for k in range(1 - beyond, beyond)), tail]
    observed = [counts[k] for k in range(-beyond, beyond + 1)]
    return float(stats.chisquare(observed, [p * len(noise) for p in expected]).pvalue)


@pytest.mark.parametrize("scale", [0.5, SCALE])
def test_noise_follows_the_exact_probabilities(scale: float) -> None:
    mechanism = DiscreteLaplace(scale)
    # One test in a million fails by chance.
    assert chi_square_p_value(mechanism.add_noise([0] * DRAWS), mechanism) > 1e-6


@pytest.mark.parametrize("wrong", [SCALE * 0.92, SCALE * 1.08])
def test_the_same_test_notices_a_scale_that_is_wrong_by_eight_percent(wrong: float) -> None:
    noise = DiscreteLaplace(wrong).add_noise([0] * DRAWS)
    assert chi_square_p_value(noise, DiscreteLaplace(SCALE)) < 1e-6


def test_noise_is_added_to_the_vector_in_64_bits() -> None:
    large = 2**61
    assert all(abs(entry - large) < 1000 for entry in DiscreteLaplace(2.0).add_noise([large] * 100))
    assert all(abs(entry + large) < 1000 for entry in DiscreteLaplace(2.0).add_noise([-large] * 100))


def test_noise_of_a_large_scale_has_no_favourite_low_bits() -> None:
    noise = DiscreteLaplace(2.0**40).add_noise([0] * 8000)
    counts = Counter(entry % 16 for entry in noise)
    assert stats.chisquare([counts[i] for i in range(16)]).pvalue > 1e-6


def test_two_draws_differ() -> None:
    mechanism = DiscreteLaplace(1e6)
    assert mechanism.add_noise([0] * 20) != mechanism.add_noise([0] * 20)


def test_an_empty_vector_stays_empty() -> None:
    assert DiscreteLaplace(1.0).add_noise([]) == []


@given(
    st.integers(1, 2**40),
    st.fractions(min_value=Fraction(1, 10**6), max_value=100, max_denominator=10**6),
)
def test_the_calibrated_scale_never_costs_more_than_asked_and_hardly_less(l1: int, epsilon: Fraction) -> None:
    mechanism = DiscreteLaplace.calibrated(l1=l1, epsilon=epsilon)
    assert mechanism.epsilon(l1) <= epsilon
    assert mechanism.epsilon(l1) >= epsilon * (1 - Fraction(1, 2**50))


def test_opendp_agrees_about_the_cost() -> None:
    import opendp.prelude as dp

    dp.enable_features("contrib")
    mechanism = DiscreteLaplace.calibrated(l1=7, epsilon=Fraction(1, 3))
    domain = dp.vector_domain(dp.atom_domain(T="i64"))
    theirs = dp.m.make_laplace(domain, dp.l1_distance(T="i64"), scale=mechanism.scale).map(7)
    assert math.isclose(theirs, float(mechanism.epsilon(7)), rel_tol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 0.4, 1.0, 7.5, 250.0])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.975])
def test_the_half_width_is_the_smallest_that_covers(scale: float, confidence: float) -> None:
    mechanism = DiscreteLaplace(scale)
    width = mechanism.half_width(confidence)

    def covered(t: int) -> float:
        return sum(mechanism.probability(k) for k in range(-t, t + 1))

    assert covered(width) >= confidence - 1e-12
    assert width == 0 or covered(width - 1) < confidence
