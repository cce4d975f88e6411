"""Proportions and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_airflow.models.intervals import Proportion, effective_size, wilson_interval


# Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_those_published_for_wilsons_score(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes / trials, trials) == pytest.approx((low, high), abs=5e-5)


def test_repeated_rows_of_a_unit_do_not_narrow_the_interval() -> None:
    correct = np.arange(100) < 80
    once = Proportion.of(correct, np.arange(100))
    five_times = Proportion.of(np.repeat(correct, 5), np.repeat(np.arange(100), 5))
    assert (five_times.share, five_times.examples, five_times.units) == (once.share, 500, 100)
    assert five_times.interval == pytest.approx(once.interval)


def test_one_unit_with_most_of_the_rows_widens_the_interval() -> None:
    """A person with 100 of 199 rows decides the share alone: 100 people are then worth four."""
    units = np.concatenate([np.zeros(100, np.int64), np.arange(1, 100)])
    assert effective_size(units) == pytest.approx(199**2 / (100**2 + 99))
    correct = units == 0
    low, high = Proportion.of(correct, units).interval
    assert high - low > 0.6


def test_intervals_hold_their_level_when_units_have_unequal_numbers_of_rows() -> None:
    """2,000 samples: a standard error of 0.005 below the nominal 0.95, so 0.93 is four of them away."""
    draw = np.random.default_rng(8)
    units = np.repeat(np.arange(120), 1 + 9 * (np.arange(120) % 6 == 0))
    covered = by_rows = 0
    for _ in range(2000):
        correct = (draw.random(120) < 0.8)[units]
        low, high = Proportion.of(correct, units).interval
        covered += low <= 0.8 <= high
        low, high = Proportion.of(correct, np.arange(len(units))).interval
        by_rows += low <= 0.8 <= high
    assert covered / 2000 >= 0.93
    assert by_rows / 2000 < 0.85
