"""Paired differences and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_airflow.models.comparison import paired


def answers(*, both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    champion = np.repeat([True, False, True, False], [both, gained, lost, neither])
    challenger = np.repeat([True, True, False, False], [both, gained, lost, neither])
    return champion, challenger, np.arange(len(champion))


# Newcombe, Statistics in Medicine 17 (1998), table III, method 10; its e, f, g, h are ours in this order.
@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((36, 14, 0, 0), 0.1528, 0.4167),
        ((18, 14, 0, 18), 0.1441, 0.3963),
        ((2, 97, 1, 0), 0.8721, 0.9854),
        ((0, 2, 12, 36), -0.3404, -0.0569),
    ],
)
def test_intervals_are_those_published_as_method_10(table: tuple[int, int, int, int], low: float, high: float) -> None:
    both, gained, lost, neither = table
    found = paired(*answers(both=both, gained=gained, lost=lost, neither=neither))
    assert (found.lower, found.upper) == pytest.approx((low, high), abs=5e-5)


counts = st.integers(0, 60)


@given(both=counts, gained=counts, lost=counts, neither=st.integers(1, 60))
def test_the_interval_holds_the_mean_and_swapping_the_models_mirrors_it(
    both: int, gained: int, lost: int, neither: int
) -> None:
    champion, challenger, units = answers(both=both, gained=gained, lost=lost, neither=neither)
    found, mirrored = paired(champion, challenger, units), paired(challenger, champion, units)
    assert -1 <= found.lower <= found.mean <= found.upper <= 1
    assert found.mean == pytest.approx(challenger.mean() - champion.mean(), abs=1e-12)
    assert (mirrored.mean, mirrored.lower, mirrored.upper) == pytest.approx(
        (-found.mean, -found.upper, -found.lower), abs=1e-12
    )


@given(st.lists(st.booleans(), min_size=1, max_size=80))
def test_a_model_does_not_differ_from_itself_and_more_examples_say_so_more_firmly(correct: list[bool]) -> None:
    once = np.array(correct)
    found = paired(once, once, np.arange(len(once)))
    assert found.mean == found.gained == found.lost == 0
    assert found.lower <= 0 <= found.upper
    often = np.tile(once, 20)
    assert paired(often, often, np.arange(len(often))).lower > found.lower


@pytest.mark.parametrize(
    ("units", "per_unit", "cells"),
    [
        (170, 1, (0.85, 0.02, 0.04, 0.09)),
        (500, 1, (0.55, 0.05, 0.10, 0.30)),
        (100, 3, (0.70, 0.10, 0.05, 0.15)),
    ],
)
def test_nineteen_of_twenty_intervals_hold_the_true_difference(
    units: int, per_unit: int, cells: tuple[float, float, float, float]
) -> None:
    """Over 2,000 samples the share of covering intervals has a standard error of 0.005; the nominal 0.95 less four of
    them is 0.93. All examples of a unit agree here, the worst that the units can do to an interval."""
    draw = np.random.default_rng(3)
    owners = np.repeat(np.arange(units), per_unit)
    truth = cells[1] - cells[2]
    covered = fooled = 0
    for _ in range(2000):
        cell = draw.choice(4, size=units, p=cells)[owners]
        champion, challenger = (cell == 0) | (cell == 2), (cell == 0) | (cell == 1)
        found = paired(champion, challenger, owners)
        covered += found.lower <= truth <= found.upper
        naive = paired(champion, challenger, np.arange(len(owners)))
        fooled += not naive.lower <= truth <= naive.upper
    assert 0.93 <= covered / 2000 <= 0.985
    if per_unit > 1:
        assert fooled / 2000 > 0.15, "without regard to units the interval would be far too narrow"
