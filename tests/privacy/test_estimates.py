"""Estimates: intervals that hold what they claim, by exact arithmetic where it is possible and by simulation where it is not."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_airflow.privacy.design import ReleaseDesign
from lepton_airflow.privacy.estimates import Estimates, estimates_of
from lepton_airflow.privacy.intervals import chernoff, down, half_width_of_sum, up
from lepton_airflow.privacy.mechanisms import DiscreteGaussian, DiscreteLaplace, Mechanism
from lepton_airflow.privacy.plan import ReleasePlan
from lepton_airflow.privacy.quantiles import _coefficients, _pulls, _ranks, tolerances

#: Draws of a simulation. An interval of exactly 95% fails below `LEAST` with a probability under 1e-7 (exact binomial tail).
DRAWS, LEAST = 600, 535
BOUNDS = {"column": "x", "lower": 0, "upper": 100}
METRICS = [
    {"name": "n", "type": "count"},
    {"name": "s", "type": "sum", **BOUNDS},
    {"name": "m", "type": "mean", **BOUNDS},
    {"name": "v", "type": "variance", **BOUNDS},
    {"name": "d", "type": "standard_deviation", **BOUNDS},
    {"name": "q", "type": "quantiles", "bins": 16, "quantiles": ["0.1", "0.5", "0.9"], **BOUNDS},
    {"name": "h", "type": "histogram", "bins": 4, **BOUNDS},
]


def plan_of(metrics: list[dict[str, Any]], **fields: Any) -> ReleasePlan:
    declared = {"privacy_unit": "u", "max_groups_per_unit": 1, "max_rows_per_unit_and_group": 2, "epsilon": 7}
    return ReleaseDesign.model_validate({**declared, "metrics": metrics, **fields}).plan([1])


def totals_of(plan: ReleasePlan, values: np.ndarray) -> np.ndarray:
    """What the bounding kernel makes of one group whose units have a row each."""
    totals = np.zeros((1, plan.width), dtype=np.int64)
    totals[:, :2] = len(values)
    for measure in plan.measures:
        own = totals[0, measure.offset : measure.offset + measure.width]
        if measure.bins is not None:
            own[:] = np.bincount(measure.bins.indexes(values), minlength=measure.width)
            continue
        steps = np.array([measure.grid.steps(value) for value in values], dtype=np.int64)
        own[:2] = len(steps), steps.sum()
        if measure.squares:
            own[2] = ((steps - measure.grid.midpoint) ** 2).sum()
    return totals


def drawn(plan: ReleasePlan, totals: np.ndarray, draws: int) -> dict[str, Estimates]:
    """The estimates of ``draws`` independent releases of the same group."""
    (grouping,) = plan.groupings
    vectors = {}
    for query in grouping.queries:
        exact = plan.vector(query, totals)[0].tolist()
        noisy = query.mechanism.add_noise(exact * draws)
        vectors[query.name] = [noisy[i * len(exact) : (i + 1) * len(exact)] for i in range(draws)]
    return {metric.name: estimates_of(metric, plan=plan, grouping=grouping, vectors=vectors) for metric in plan.metrics}


def truths(values: np.ndarray) -> dict[str, list[float]]:
    return {
        "n": [len(values)],
        "s": [values.sum()],
        "m": [values.mean()],
        "v": [values.var()],
        "d": [values.std()],
        "q": np.quantile(values, [0.1, 0.5, 0.9], method="inverted_cdf").tolist(),
        "h": np.histogram(values, bins=4, range=(0, 100))[0].tolist(),
    }


@pytest.mark.parametrize(("noise", "delta"), [("laplace", "0"), ("gaussian", "1e-6")])
@pytest.mark.parametrize("size", [40, 400])
def test_every_interval_holds_the_exact_number_in_95_of_100_draws(noise: str, delta: str, size: int) -> None:
    plan = plan_of(METRICS, noise=noise, delta=delta)
    # On the grid of every measure, so that rounding to it changes nothing; skewed, some at a bound.
    values = np.round(np.random.default_rng(4).beta(1, 3, size) * 128) / 128 * 100
    values = np.round(values * 64) / 64
    for name, groups in drawn(plan, totals_of(plan, values), DRAWS).items():
        for place, truth in enumerate(truths(values)[name]):
            slack = 1e-9 * (1 + abs(truth))
            entries = [group[place] for group in groups]
            assert all(entry.low <= entry.value <= entry.high for entry in entries), name
            assert sum(entry.low - slack <= truth <= entry.high + slack for entry in entries) > LEAST, (name, place)


def test_estimates_without_noise_are_exact() -> None:
    plan = plan_of(METRICS, epsilon=10**7)
    values = np.random.default_rng(5).integers(0, 101, 500).astype(float)
    found = drawn(plan, totals_of(plan, values), 1)
    for name, expected in truths(values).items():
        for entry, truth in zip(found[name][0], expected, strict=True):
            width = 100 / 16 if name == "q" else 0.01 * (1 + abs(truth))
            assert float(entry.value) == pytest.approx(truth, abs=width), name
            assert float(entry.high - entry.low) < 2.01 * width, name


NUMBERS = st.integers(-4000, 4000)


@given(distance=NUMBERS, values=st.integers(-50, 300), squares=st.integers(-10_000, 200_000), corner=st.data())
def test_intervals_of_variances_hold_all_that_their_parts_allow(
    distance: int, values: int, squares: int, corner: st.DataObject
) -> None:
    """Any point of the box of the parts' intervals, not only its corners: there the variance can be larger."""
    plan = plan_of([{"name": "v", "type": "variance", "granularity": "1", **BOUNDS}])
    (grouping,) = plan.groupings
    numbers = dict(zip([query.name for query in grouping.queries], (distance, values, squares), strict=True))
    vectors = {name: [[number]] for name, number in numbers.items()}
    ((entry,),) = estimates_of(plan.metrics[0], plan=plan, grouping=grouping, vectors=vectors)
    each = 1 - 0.05 / 3
    for _ in range(5):
        inside = [
            numbers[query.name] + corner.draw(st.integers(-(w := query.mechanism.half_width(each)), w))
            for query in grouping.queries
        ]
        count = max(inside[1], 1)
        variance = Fraction(inside[2], count) - Fraction(inside[0], count) ** 2
        assert entry.low <= min(max(variance, 0), 2500) <= entry.high


def test_the_largest_variance_can_lie_between_the_ends_of_its_parts() -> None:
    plan = plan_of([{"name": "v", "type": "variance", "granularity": "1", **BOUNDS}], epsilon=20)
    (grouping,) = plan.groupings
    far, uncertain, rough = (query.mechanism.half_width(1 - 0.05 / 3) for query in grouping.queries)
    assert uncertain
    # squares / count - (distance / count)**2 is largest where count = 2 distance**2 / squares: in the middle, at 100.
    distance, squares = 2000 - far, (2000 - far) ** 2 // 50
    vectors = {"v.sum": [[2000]], "v.count": [[100]], "v.squares": [[squares - rough]]}
    ((entry,),) = estimates_of(plan.metrics[0], plan=plan, grouping=grouping, vectors=vectors)
    at = {n: Fraction(squares, n) - Fraction(distance, n) ** 2 for n in (100 - uncertain, 100, 100 + uncertain)}
    assert at[100] > max(at[100 - uncertain], at[100 + uncertain])
    assert entry.high >= at[100]


def test_a_variance_is_at_most_what_its_bounds_allow() -> None:
    plan = plan_of([{"name": "v", "type": "variance", "lower": 0, "upper": 3, "column": "x", "granularity": "1"}])
    (grouping,) = plan.groupings
    vectors = {"v.sum": [[0]], "v.count": [[1]], "v.squares": [[10**6]]}
    ((entry,),) = estimates_of(plan.metrics[0], plan=plan, grouping=grouping, vectors=vectors)
    assert (entry.value, entry.high) == (Fraction(9, 4), Fraction(9, 4))


def test_groups_without_values_still_have_quantiles_within_their_bounds() -> None:
    plan = plan_of([METRICS[5]])
    (grouping,) = plan.groupings
    for level in ([0] * 16, [-(10**6)] * 16, [-(10**6)] + [0] * 14 + [10**6]):
        (entries,) = estimates_of(plan.metrics[0], plan=plan, grouping=grouping, vectors={"q.level16": [level]})
        assert all(0 <= entry.low <= entry.value <= entry.high <= 100 for entry in entries)
    # Nothing is known of them: the interval says so.
    (entries,) = estimates_of(plan.metrics[0], plan=plan, grouping=grouping, vectors={"q.level16": [[0] * 16]})
    assert [(entry.low, entry.high) for entry in entries] == [(0, 100)] * 3


def test_quantiles_rise_with_their_probability() -> None:
    plan = plan_of([{**METRICS[5], "bins": 256}], epsilon="0.1")
    values = np.random.default_rng(6).uniform(0, 100, 50)
    for entries in drawn(plan, totals_of(plan, values), 20)["q"]:
        assert entries[0].value <= entries[1].value <= entries[2].value


@pytest.mark.parametrize("scales", [(3.0,), (3.0, 3.0), (2.0, 5.0), (4.0, 4.0, 1.5)])
def test_ranks_have_the_coefficients_that_their_intervals_rest_on(scales: tuple[float, ...]) -> None:
    mechanisms = [DiscreteLaplace(scale) for scale in scales]
    pulls = _pulls(mechanisms)
    bins = 16 ** len(scales)
    rng = np.random.default_rng(7)
    levels = [rng.integers(-50, 50, (1, 16 ** (level + 1))).astype(float) for level in range(len(scales))]
    ranks = _ranks(levels, pulls)[0]
    edges = range(bins + 1) if bins < 1000 else rng.integers(0, bins + 1, 300)
    for edge in edges:
        total = 0.0
        for level, coefficients in enumerate(_coefficients(int(edge), pulls)):
            # The nodes of this level among which the edge is: all of the coarsest; else the children of one node.
            parent = int(edge) // 16 ** (len(scales) - level) if level else 0
            if any(coefficients):
                total += float(np.dot(coefficients, levels[level][0, 16 * parent : 16 * parent + 16]))
        assert ranks[edge] == pytest.approx(total, abs=1e-6)


def test_ranks_without_noise_are_counts() -> None:
    leaves = np.random.default_rng(8).integers(0, 9, (2, 256))
    levels = [leaves.reshape(2, 16, 16).sum(axis=2).astype(float), leaves.astype(float)]
    ranks = _ranks(levels, _pulls([DiscreteLaplace(1.0)] * 2))
    assert np.array_equal(ranks[:, 1:], np.cumsum(leaves, axis=1))
    assert not ranks[:, 0].any()


@pytest.mark.parametrize("mechanism", [DiscreteLaplace(3.7), DiscreteGaussian(2.9)])
def test_a_sum_of_noises_stays_within_its_half_width(mechanism: Mechanism) -> None:
    coefficients = [Fraction(1, 2)] * 4 + [Fraction(-2)] + [Fraction(1)] * 15
    terms = [(mechanism, Fraction(1, 2), 4), (mechanism, Fraction(-2), 1), (mechanism, Fraction(1), 15)]
    width = half_width_of_sum(terms, 0.95)
    noise = np.array(mechanism.add_noise([0] * (20 * DRAWS))).reshape(DRAWS, 20)
    sums = noise @ np.array([float(c) for c in coefficients])
    assert (abs(sums) <= width).sum() > LEAST
    # Less than if each noise took its worst at once, and not absurdly more than what it takes.
    union = sum(abs(c) * mechanism.half_width(1 - 0.05 / 20) for c in coefficients)
    assert width < 0.6 * union
    assert width < 2.2 * np.quantile(abs(sums), 0.95)


def test_the_width_of_one_noise_is_its_own() -> None:
    mechanism = DiscreteLaplace(10.0)
    assert half_width_of_sum([(mechanism, 1, 1), (mechanism, 0, 5)], 0.95) == mechanism.half_width(0.95)
    assert half_width_of_sum([(mechanism, 0, 5)], 0.95) == 0


def test_chernoff_bounds_the_exact_tail() -> None:
    """Against the exact distribution of the sum of two discrete Laplace noises."""
    mechanism = DiscreteLaplace(2.5)
    mass = np.array([mechanism.probability(k) for k in range(-200, 201)])
    exact = np.convolve(mass, mass)
    for probability in (0.2, 0.025, 1e-4):
        bound = math.ceil(chernoff([(mechanism, 1, 2)], probability))
        assert exact[400 + bound :].sum() <= probability
        assert exact[400 + bound // 3 :].sum() > probability


def test_tolerances_split_the_error_over_both_directions() -> None:
    """The one-sided error of each end must be half of 5%: with one level, no more nodes than 16 and q = 1/2 it is exact enough
    to tell."""
    mechanism = DiscreteGaussian(30.0)
    (tolerance,) = {tolerances((mechanism,), Fraction(1, 2))[8]}
    deviation = 30 * math.sqrt(16 / 4)
    # Sub-Gaussian at 2.5%: sqrt(2 log 40) = 2.72 deviations; at 5% it would be 2.45.
    assert 2.7 * deviation < tolerance < 2.75 * deviation


@given(st.fractions(), st.sampled_from([down, up]))
def test_ends_are_rounded_outward(number: Fraction, rounded: Any) -> None:
    end = rounded(number)
    outside = Fraction(end) <= number if rounded is down else Fraction(end) >= number
    assert outside or Fraction(repr(end)) == number
    assert math.isclose(end, number, rel_tol=1e-15, abs_tol=1e-300)


def test_decimals_stay_as_they_are_written() -> None:
    assert [down(Fraction(n, 10)) for n in (1, 3, 7)] == [0.1, 0.3, 0.7]
    assert [up(Fraction(n, 10)) for n in (1, 3, 7)] == [0.1, 0.3, 0.7]
    for low, high in product((7, -7), repeat=2):
        assert (down(low), up(high)) == (low, high)
