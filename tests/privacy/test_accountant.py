"""What releases cost together: never less than the exact divergence, never more than the exact sum."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_airflow.errors import BudgetError, MissingDependency
from lepton_airflow.privacy import accountant
from lepton_airflow.privacy.accountant import basic_composition, charged, check_event, cross_check, spending
from lepton_airflow.privacy.records import GAUSSIAN, LAPLACE, MechanismEvent

DELTA = Fraction(1, 10**6)


def laplace(l1: int, scale: float, *, groups: int = 1, delta: Fraction = Fraction(0)) -> MechanismEvent:
    epsilon = Fraction(groups * l1) / Fraction(scale)
    fields = {"groups": groups, "per_group": l1, "width": 1, "scale": scale, "epsilon": epsilon, "delta": delta}
    return MechanismEvent(query="q", mechanism=LAPLACE, **fields)


def gaussian(per_group: int, sigma: float, *, groups: int = 1, width: int = 1) -> MechanismEvent:
    rho = Fraction(groups * per_group**2) / (2 * Fraction(sigma) ** 2)
    fields = {"groups": groups, "per_group": per_group, "width": width, "scale": sigma, "rho": rho}
    return MechanismEvent(query="q", mechanism=GAUSSIAN, epsilon=Fraction(0), **fields)


def pure(epsilon: Fraction, delta: Fraction = Fraction(0)) -> MechanismEvent:
    fields = {"groups": 1, "per_group": 1, "width": 1, "scale": 1e9, "epsilon": epsilon, "delta": delta}
    return MechanismEvent(query="q", mechanism=LAPLACE, **fields)


def divergence(event: MechanismEvent, shift: int, epsilon: float) -> float:
    """The hockey-stick divergence of one noisy number and the same moved by ``shift``, summed over the noise's probabilities."""
    tail = math.ceil(event.scale * (40 if event.mechanism == GAUSSIAN else 60)) + shift
    if event.mechanism == GAUSSIAN:
        weight = {k: math.exp(-((k / event.scale) ** 2) / 2) for k in range(-tail, tail + 1)}
    else:
        weight = {k: math.exp(-abs(k) / event.scale) for k in range(-tail, tail + 1)}
    whole = math.fsum(weight.values())
    both = ((weight.get(k, 0.0), weight.get(k - shift, 0.0)) for k in range(-tail, tail + shift + 1))
    return math.fsum(max(here - math.exp(epsilon) * there, 0.0) for here, there in both) / whole


@pytest.mark.parametrize("delta", [Fraction(1, 100), DELTA, Fraction(1, 10**9)])
@pytest.mark.parametrize(
    "event",
    [
        laplace(1, 1.0),
        laplace(1, 0.4),
        laplace(7, 20.0),
        laplace(8, 3.3),
        gaussian(1, 0.7),
        gaussian(1, 30.0),
        gaussian(9, 12.5),
    ],
)
def test_no_bound_is_below_the_exact_divergence_of_one_mechanism(event: MechanismEvent, delta: Fraction) -> None:
    cost = spending([event], epsilon=Fraction(100), delta=delta)
    assert cost.zcdp is not None
    assert cost.pld is not None
    assert cost.charged is not None
    for bound in (cost.zcdp, cost.pld, float(cost.charged)):
        assert divergence(event, event.l1, bound) <= float(delta) * (1 + 1e-9)
    # Nor is PLD far above it: one part in a thousand less would not be enough.
    if cost.pld > 0.01:
        assert divergence(event, event.l1, cost.pld * 0.999 - 1e-3) > float(delta)


@pytest.mark.parametrize("sigma", [50.0, 1e5, 1e9])
def test_pld_of_gaussian_noise_is_that_of_the_analytic_mechanism(sigma: float) -> None:
    """Balle, Wang: Improving the Gaussian Mechanism for Differential Privacy (2018), theorem 8, for ten groups."""
    per_group = round(sigma / 5)
    ratio = math.sqrt(10) * per_group / sigma

    def delta_at(epsilon: float) -> float:
        def cdf(x: float) -> float:
            return math.erfc(-x / math.sqrt(2)) / 2

        return cdf(ratio / 2 - epsilon / ratio) - math.exp(epsilon) * cdf(-ratio / 2 - epsilon / ratio)

    pld = spending([gaussian(per_group, sigma, groups=10)], epsilon=Fraction(9), delta=DELTA).pld
    assert pld is not None
    assert delta_at(pld * 1.002) < float(DELTA)
    assert delta_at(pld * 0.998) > float(DELTA)


def test_a_large_sigma_is_accounted_like_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounding by integrals instead of adding up costs next to nothing, and is never below."""
    from lepton_airflow.privacy import loss

    event = gaussian(300, 15_000.0, groups=50)
    summed = loss.composed_epsilon([(event, 1)], 1e-6)
    loss._distribution.cache_clear()
    monkeypatch.setattr(loss, "_MAX_SUMMED_SIGMA", 0.0)
    bounded = loss.composed_epsilon([(event, 1)], 1e-6)
    assert summed is not None
    assert bounded is not None
    assert summed * (1 - 1e-6) <= bounded <= summed * 1.001
    loss._distribution.cache_clear()


def test_a_year_of_daily_releases_costs_about_ten() -> None:
    daily = spending([laplace(10**6, 1e7)] * 365, epsilon=Fraction(20), delta=DELTA)
    assert daily.basic == Fraction(365, 10)
    assert daily.pld == pytest.approx(10.1, abs=0.05)
    assert daily.zcdp == pytest.approx(11.07, abs=0.05)
    assert daily.charged is not None
    assert daily.pld <= daily.charged <= daily.pld + 1e-6
    assert daily.left == 20 - daily.charged


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 10**6), st.fractions(Fraction(1, 100), Fraction(3), max_denominator=100), st.integers(1, 30)
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([Fraction(1, 100), DELTA, Fraction(1, 10**9)]),
)
def test_the_charge_is_the_smallest_bound_and_never_above_the_sum(
    parts: list[tuple[int, Fraction, int]], delta: Fraction
) -> None:
    events = [laplace(l1, float(l1 / epsilon)) for l1, epsilon, times in parts for _ in range(times)]
    cost = spending(events, epsilon=Fraction(1), delta=delta)
    assert cost.basic == sum(event.epsilon for event in events)
    assert cost.charged is not None
    bounds = [bound for bound in (cost.basic, cost.zcdp, cost.pld) if bound is not None]
    assert cost.charged >= min(bounds)
    assert float(cost.charged) <= min(bounds) + 1e-6
    if cost.pld is not None:
        assert cost.pld <= float(cost.basic) * (1 + 1e-4) + 1e-4
    fewer = charged(events[:-1], delta)
    assert fewer is not None
    assert float(fewer) <= float(cost.charged) * 1.001 + 1e-4


def test_without_a_delta_the_charge_is_the_exact_sum() -> None:
    events = [pure(Fraction(1, 3)), pure(Fraction(1, 10**20))]
    cost = spending(events, epsilon=Fraction(1), delta=Fraction(0))
    assert (cost.charged, cost.zcdp, cost.pld) == (Fraction(1, 3) + Fraction(1, 10**20), None, None)
    assert charged([gaussian(1, 5.0)], Fraction(0)) is None
    assert charged([], Fraction(0)) == charged([], DELTA) == 0


def test_a_selection_of_groups_takes_its_delta_from_the_rest() -> None:
    costs = [
        charged([laplace(1, 10.0, delta=Fraction(part) * DELTA)] * 100, DELTA)
        for part in ("0", "0.005", "0.0099", "0.02")
    ]
    assert costs[0] is not None
    assert costs[1] is not None
    assert costs[2] is not None
    assert costs[0] < costs[1] < costs[2] <= 10
    # Beyond the budget's delta no bound is left.
    assert costs[3] is None


def test_a_histogram_with_gaussian_noise_is_accounted_by_zcdp_beside_the_rest() -> None:
    wide = gaussian(3, 60.0, width=8)
    others = [laplace(1, 10.0)] * 20
    cost = spending([wide, *others], epsilon=Fraction(9), delta=DELTA)
    apart = spending(others, epsilon=Fraction(9), delta=DELTA / 2)
    assert cost.pld is not None
    assert apart.pld is not None
    assert cost.pld == pytest.approx(apart.pld + accountant.zcdp_epsilon(wide.rho, DELTA / 2))
    assert spending([wide], epsilon=Fraction(9), delta=DELTA).pld is None


def test_a_mechanism_that_is_only_known_by_its_epsilon_is_taken_at_its_worst() -> None:
    """Randomised response: of all mechanisms with an epsilon it loses most (Kairouz, Oh, Viswanath, 2017)."""
    unknown = MechanismEvent(
        query="q", mechanism="other", groups=1, per_group=1, width=1, scale=10.0, epsilon=Fraction(1, 10)
    )
    worst, known = charged([unknown] * 365, DELTA), charged([laplace(10**6, 1e7)] * 365, DELTA)
    assert worst is not None
    assert known is not None
    assert known < worst < 12


@pytest.mark.parametrize("epsilon", ["600", "1e20"])
def test_losses_without_measure_are_still_added_up(epsilon: str) -> None:
    assert charged([pure(Fraction(epsilon))], DELTA) == Fraction(epsilon)


def test_a_thousand_events_are_composed_once() -> None:
    events = [laplace(5, 500.0), gaussian(2, 200.0)] * 500
    accountant._bounds.cache_clear()
    first = charged(events, DELTA)
    assert charged(list(reversed(events)), DELTA) == first
    assert (accountant._bounds.cache_info().misses, accountant._bounds.cache_info().hits) == (1, 1)


def test_budgets_without_a_delta_need_no_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    accountant._bounds.cache_clear()
    monkeypatch.setitem(sys.modules, "dp_accounting.pld", None)
    assert charged([laplace(1, 10.0)], Fraction(0)) == Fraction(1, 10)
    with pytest.raises(MissingDependency, match=r"lepton-airflow\[privacy\]"):
        charged([laplace(1, 10.0)], DELTA)


@pytest.mark.parametrize(
    ("event", "change"),
    [
        (laplace(3, 10.0, groups=2), {"epsilon": Fraction(599, 1000)}),
        (laplace(3, 10.0), {"scale": 9.9}),
        (laplace(3, 10.0), {"scale": math.nan}),
        (laplace(3, 10.0), {"groups": 2}),
        (laplace(3, 10.0), {"delta": Fraction(-1)}),
        (gaussian(3, 10.0), {"scale": 9.9}),
        (gaussian(3, 10.0), {"per_group": 4}),
        (gaussian(3, 10.0), {"groups": 2}),
    ],
)
def test_too_little_noise_for_the_charge_is_refused(event: MechanismEvent, change: dict[str, object]) -> None:
    from dataclasses import replace

    check_event(event, place="run")
    with pytest.raises(BudgetError, match="too little noise"):
        check_event(replace(event, **change), place="run")  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.fractions(min_value=Fraction(1, 1000), max_value=10, max_denominator=1000),
            st.sampled_from([Fraction(0), Fraction(1, 10**6), Fraction(1, 1000)]),
        ),
        max_size=30,
    )
)
def test_both_accountants_agree(amounts: list[tuple[Fraction, Fraction]]) -> None:
    events = [pure(epsilon, delta) for epsilon, delta in amounts]
    sums = tuple(sum(column, Fraction(0)) for column in zip(*amounts, strict=True)) or (Fraction(0), Fraction(0))
    assert basic_composition(events) == sums
    cross_check(events, spent=sums[0], delta=sums[1], place="budget")


def test_a_ledger_that_says_less_than_its_events_is_noticed() -> None:
    events = [pure(Fraction(1, 10)), pure(Fraction(1, 5), DELTA)]
    with pytest.raises(
        BudgetError, match=r"budget of clinic.*epsilon 0\.1 at delta 0 is spent.*add up to 0\.3 at delta 1e-06"
    ):
        cross_check(events, spent=Fraction(1, 10), place="budget of clinic")
    with pytest.raises(BudgetError):
        cross_check(events, spent=Fraction(3, 10), delta=Fraction(0), place="budget of clinic")
