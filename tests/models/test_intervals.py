"""Proportions and their intervals."""

from __future__ import annotations

import pytest

from lepton_airflow.models.intervals import Proportion, wilson_interval


# Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_those_published_for_wilsons_score(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes / trials, trials) == pytest.approx((low, high), abs=5e-5)


def test_repeated_rows_of_a_unit_do_not_narrow_the_interval() -> None:
    once = Proportion(successes=80, examples=100, units=100)
    five_times = Proportion(successes=400, examples=500, units=100)
    assert five_times.share == once.share
    assert five_times.interval == once.interval
