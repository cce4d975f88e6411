"""The noise has the exact distribution that is claimed, and a wrong scale would be noticed."""

import functools
import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lepton_airflow.errors import InvalidData
from lepton_airflow.privacy.mechanisms import (
    DIFFPRIVLIB_MAX_SIGMA,
    Backend,
    DiscreteGaussian,
    DiscreteLaplace,
    Mechanism,
    rho_of,
    threshold_for,
)

DRAWS = 40_000
SCALE = 3.3


def weight(mechanism: Mechanism, x: int) -> float:
    if isinstance(mechanism, DiscreteLaplace):
        return math.exp(-abs(x) / mechanism.scale)
    return math.exp(-(x**2) / (2 * mechanism.scale**2))


@functools.cache
def normaliser(mechanism: Mechanism) -> float:
    far = math.ceil(60 * mechanism.scale) + 10
    return math.fsum(weight(mechanism, x) for x in range(-far, far + 1))


def probability(mechanism: Mechanism, k: int) -> float:
    """P(X = k) by the textbook: the weight of k over the sum of all weights."""
    return weight(mechanism, k) / normaliser(mechanism)


def chi_square_p_value(noise: list[int], claimed: Mechanism) -> float:
    """The p-value of ``noise`` against the exact probabilities of ``claimed``; each side's tail is one bin."""
    beyond = claimed.half_width(0.999)
    counts = Counter(max(-beyond, min(beyond, k)) for k in noise)
    inner = [probability(claimed, k) for k in range(1 - beyond, beyond)]
    tail = (1 - math.fsum(inner)) / 2
    observed = [counts[k] for k in range(-beyond, beyond + 1)]
    return float(stats.chisquare(observed, [p * len(noise) for p in [tail, *inner, tail]]).pvalue)


MECHANISMS = [DiscreteLaplace(0.5), DiscreteLaplace(SCALE), DiscreteGaussian(0.7), DiscreteGaussian(SCALE)]


@pytest.mark.parametrize("backend", ["opendp", "diffprivlib"])
@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_noise_follows_the_exact_probabilities(mechanism: Mechanism, backend: Backend) -> None:
    # One test in a million fails by chance.
    assert chi_square_p_value(mechanism.add_noise([0] * DRAWS, backend=backend), mechanism) > 1e-6


@pytest.mark.parametrize("backend", ["opendp", "diffprivlib"])
@pytest.mark.parametrize("factor", [0.92, 1.08])
@pytest.mark.parametrize("mechanism", [DiscreteLaplace, DiscreteGaussian])
def test_the_same_test_notices_a_scale_that_is_wrong_by_eight_percent(
    mechanism: type[Mechanism], factor: float, backend: Backend
) -> None:
    noise = mechanism(SCALE * factor).add_noise([0] * DRAWS, backend=backend)
    assert chi_square_p_value(noise, mechanism(SCALE)) < 1e-6


def test_diffprivlib_is_given_nothing_that_its_doubles_cannot_hold() -> None:
    with pytest.raises(InvalidData, match="double precision"):
        DiscreteLaplace(2.0).add_noise([2**52], backend="diffprivlib")
    with pytest.raises(InvalidData, match="double precision"):
        DiscreteGaussian(DIFFPRIVLIB_MAX_SIGMA * 2).add_noise([0], backend="diffprivlib")


def test_noise_is_added_to_the_vector_in_64_bits() -> None:
    large = 2**61
    assert all(abs(entry - large) < 1000 for entry in DiscreteLaplace(2.0).add_noise([large] * 100))
    assert all(abs(entry + large) < 1000 for entry in DiscreteLaplace(2.0).add_noise([-large] * 100))


def test_noise_of_a_large_scale_has_no_favourite_low_bits() -> None:
    noise = DiscreteLaplace(2.0**40).add_noise([0] * 8000)
    counts = Counter(entry % 16 for entry in noise)
    assert stats.chisquare([counts[i] for i in range(16)]).pvalue > 1e-6


def test_two_draws_differ() -> None:
    """A fixed seed would show here."""
    for mechanism in (DiscreteLaplace(1e6), DiscreteGaussian(1e3)):
        for backend in ("opendp", "diffprivlib"):
            first, second = (mechanism.add_noise([0] * 20, backend=backend) for _ in range(2))
            assert first != second


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


@given(
    st.integers(1, 2**60),
    st.fractions(min_value=Fraction(1, 10**9), max_value=10, max_denominator=10**9),
)
def test_a_calibrated_gaussian_never_costs_more_than_asked_and_hardly_less(l2_squared: int, rho: Fraction) -> None:
    mechanism = DiscreteGaussian.calibrated(l2_squared=l2_squared, rho=rho)
    assert mechanism.rho(l2_squared) <= rho
    assert mechanism.rho(l2_squared) >= rho * (1 - Fraction(1, 2**48))


@given(
    st.fractions(min_value=Fraction(1, 1000), max_value=50, max_denominator=1000),
    st.fractions(min_value=Fraction(1, 10**12), max_value=Fraction(1, 10), max_denominator=10**12),
)
def test_the_rho_of_an_epsilon_implies_it(epsilon: Fraction, delta: Fraction) -> None:
    rho = float(rho_of(epsilon, delta))
    assert rho + 2 * math.sqrt(rho * math.log(1 / delta)) <= epsilon


@pytest.mark.parametrize("groups", [1, 7])
@pytest.mark.parametrize("scale", [0.3, 2.0, 40.0])
def test_a_group_of_one_unit_is_shown_with_at_most_delta(groups: int, scale: float) -> None:
    delta = Fraction(1, 10**7)
    threshold = threshold_for(groups=groups, scale=scale, delta=delta)
    noise = DiscreteLaplace(scale)

    def shown(limit: int) -> float:
        return math.fsum(noise.probability(k) for k in range(limit - 1, limit + math.ceil(100 * scale)))

    assert groups * shown(threshold) <= delta
    assert groups * shown(threshold - 2) > delta or threshold <= 3


@pytest.mark.parametrize("scale", [0.4, 1.0, 7.5, 250.0])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.975])
def test_the_half_width_of_gaussian_noise_covers(scale: float, confidence: float) -> None:
    mechanism = DiscreteGaussian(scale)
    width = mechanism.half_width(confidence)
    inside = [probability(mechanism, k) for k in range(-width, width + 1)]
    assert math.fsum(inside) >= confidence - 1e-12
    assert math.fsum(inside[2:-2]) < confidence


@pytest.mark.parametrize("mechanism", [DiscreteLaplace(0.4), DiscreteLaplace(7.5), DiscreteGaussian(3.0)], ids=str)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_moments_bound_the_noise(mechanism: Mechanism, share: float) -> None:
    t = share * min(mechanism.largest_moment, 1.0)
    far = math.ceil(40 * mechanism.scale / (1 - share))
    exact = math.log(math.fsum(probability(mechanism, k) * math.exp(min(t * k, 700)) for k in range(-far, far + 1)))
    assert mechanism.log_moment(t) >= exact - 1e-9
    assert mechanism.log_moment(t) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("scale", [1e-3, 0.4, 1.0, 7.5, 250.0])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.975])
def test_the_half_width_is_the_smallest_that_covers(scale: float, confidence: float) -> None:
    mechanism = DiscreteLaplace(scale)
    width = mechanism.half_width(confidence)

    def covered(t: int) -> float:
        return sum(mechanism.probability(k) for k in range(-t, t + 1))

    assert covered(width) >= confidence - 1e-12
    assert width == 0 or covered(width - 1) < confidence
