"""Square: strength without gradients, the budget, the schedule, the windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lepton_airflow.models.attacks.square import Square, two_bumps, window_share
from lepton_airflow.models.examples import Examples, Features
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.prediction import Logits, correct
from lepton_airflow.models.threat_model import Norm

WEIGHTS = np.random.default_rng(4).normal(size=48).astype(np.float32)


def space(norm: Norm, *, image: bool) -> InputSpace:
    """48 pixels of one unit between -10 and 10, or as many features of a table."""
    ones = np.ones(48, np.float32)
    free = InputSpace.free(
        norm=norm, names=[f"feature {position}" for position in range(48)], mean=0 * ones, scale=ones
    )
    return replace(free, shape=(4, 4, 3), low=-10 * ones, high=10 * ones) if image else free


def linear(features: Features) -> Logits:
    """Two classes, told apart by a plane."""
    margin = features @ WEIGHTS
    return np.stack([margin, -margin], axis=1).astype(np.float32) / 2


def clear_examples(margin: float) -> Examples:
    """60 examples of class 0 at that distance from the plane, in L2."""
    draw = np.random.default_rng(7).normal(size=(60, 48))
    unit = WEIGHTS / np.linalg.norm(WEIGHTS)
    on_plane = draw - np.outer(draw @ unit, unit)
    return Examples(
        features=(on_plane / 10 + margin * unit).astype(np.float32),
        labels=np.zeros(60, np.int32),
        units=np.arange(60),
        unit_ids=tuple(b"%d" % unit for unit in range(60)),
    )


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_comes_near_the_worst_case_and_not_beyond(norm: Norm, image: bool) -> None:
    # Moving along the plane's normal by epsilon in L2, or every feature by epsilon, is the worst that can be done.
    perturbation = Perturbation(space(norm, image=image))
    reach = 1.0 if norm == "l2" else float(np.abs(WEIGHTS).sum() / np.linalg.norm(WEIGHTS))
    # The best of 300 random points of the sphere would reach 0.4. Its windows of at least 3x3 pixels are coarse for 4x4.
    share = {("linf", True): 0.85, ("linf", False): 0.85, ("l2", True): 0.5, ("l2", False): 0.55}[norm, image]
    attack = Square(linear, perturbation=perturbation, queries=300, seed=1)
    near, far = attack.run(clear_examples(share * reach), 1.0), attack.run(clear_examples(1.01 * reach), 1.0)
    assert near.misled.mean() > 0.9
    assert not far.misled.any()
    for outcome, distance in ((near, share * reach), (far, 1.01 * reach)):
        assert not perturbation.violations(clear_examples(distance).features, outcome.features, 1.0).any()
        assert np.array_equal(~correct(linear(outcome.features), np.zeros(60, np.int32)), outcome.misled)


def test_it_asks_no_more_than_its_budget_and_nothing_about_those_it_misled() -> None:
    asked: list[int] = []

    def counting(features: Features) -> Logits:
        asked.append(len(features))
        return linear(features)

    Square(counting, perturbation=Perturbation(space("linf", image=True)), queries=37, seed=1).run(
        clear_examples(2.5), 1.0
    )
    assert len(asked) == 37
    assert asked[0] == 60
    assert asked[-1] < 30
    assert asked == sorted(asked, reverse=True)


def test_the_same_seed_finds_the_same() -> None:
    perturbation = Perturbation(space("l2", image=True))
    first, again, other = (
        Square(linear, perturbation=perturbation, queries=20, seed=seed).run(clear_examples(0.5), 1.0).features
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_constraints_hold_during_the_search(blobs: Callable[..., Examples]) -> None:
    free = space("linf", image=False)
    increasing = np.arange(48) < 10
    immutable = np.where(np.arange(48) > 40, 0, 1).astype(np.float32)
    constrained = replace(free, increasing=increasing, unit=free.unit * immutable)
    examples = clear_examples(1.0)
    seen: list[Features] = []

    def watched(features: Features) -> Logits:
        seen.append(features)
        return linear(features)

    perturbation = Perturbation(constrained)
    Square(watched, perturbation=perturbation, queries=10, seed=1).run(replace(examples, labels=examples.labels), 0.01)
    assert len(seen) == 10
    for features in seen:
        assert not perturbation.violations(examples.features, features, 0.01).any()


def test_windows_shrink_on_the_papers_schedule() -> None:
    shares = [window_share(query, 10_000) for query in (1, 10, 11, 51, 201, 8001)]
    assert shares == [0.8, 0.8, 0.4, 0.2, 0.1, 0.8 / 512]
    assert window_share(2, 1000) == window_share(20, 10_000) == 0.4


def test_a_bump_is_a_hill_and_a_pit_of_length_one() -> None:
    for side in (1, 3, 4, 7):
        assert np.linalg.norm(two_bumps(side)) == pytest.approx(1)
    seven = two_bumps(7)
    assert (seven[:3] > 0).all()
    assert (seven[3:] < 0).all()
    # Around its middle the hill falls as sums of 1 / k^2: over three rings to 1 + 1/4 + 1/9 + 1/16 of the outermost 1/16.
    middle, outermost = seven[1, 3], seven[1, 0]
    assert middle / outermost == pytest.approx((1 + 1 / 4 + 1 / 9 + 1 / 16) / (1 / 16), rel=1e-4)
