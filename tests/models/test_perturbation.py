"""Perturbations: whatever an attack tries, what it presents lies in the ball and keeps the constraints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_airflow.models.architectures import tabular_classifier
from lepton_airflow.models.attacks.apgd import AutoProjectedGradientDescent
from lepton_airflow.models.attacks.pgd import ProjectedGradientDescent
from lepton_airflow.models.examples import Examples, Features
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.threat_model import Norm


def array(values: Any) -> Features:
    return np.asarray(values, np.float32)


def space(width: int, *, norm: Norm = "linf", **given_: Any) -> InputSpace:
    ones = np.ones(width, np.float32)
    free = InputSpace.free(norm=norm, names=[f"feature {place}" for place in range(width)], mean=0 * ones, scale=ones)
    return replace(free, **given_)


def mask(width: int, *places: int) -> npt.NDArray[np.bool_]:
    return np.isin(np.arange(width), places)


@dataclass(frozen=True)
class Situation:
    """Examples of a space, and perturbations that an attack would like to make of them."""

    space: InputSpace
    x: Features
    wanted: Features
    epsilon: float


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """All constraints in any combination, with numbers of very different sizes."""
    groups = draw(st.lists(st.integers(2, 3), max_size=2))
    members = sum(groups)
    width = members + draw(st.integers(0 if members else 1, 4))
    rows = draw(st.integers(1, 3))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=width, max_size=width))

    integer = np.array(column(st.booleans()))
    direction = np.array(column(st.sampled_from([-1, 0, 0, 1])))
    unit = array(column(st.one_of(st.sampled_from([0.0, 1e-4, 1.0, 10.0]), st.floats(2**-10, 1e4, width=32))))
    sizes = st.one_of(st.sampled_from([0.0, 1.0, -3.0, 16777217.0]), st.floats(-1e6, 1e6, width=32))
    x = array([column(sizes) for _ in range(rows)])
    x = np.where(integer, np.rint(x), x).astype(np.float32)
    room = st.one_of(st.sampled_from([0.0, np.inf, np.inf]), st.floats(0, 1e3, width=32))
    low = (x.min(axis=0) - array(column(room))).astype(np.float32)
    high = (x.max(axis=0) + array(column(room))).astype(np.float32)
    one_hot, start = [], 0
    for size in groups:
        group = tuple(range(start, start + size))
        x[:, group] = np.eye(size, dtype=np.float32)[[draw(st.integers(0, size - 1)) for _ in range(rows)]]
        bounds = draw(st.sampled_from([(-np.inf, np.inf), (0.0, 1.0)]))
        low[list(group)], high[list(group)] = bounds
        one_hot.append(group)
        start += size
    steps = st.one_of(st.sampled_from([0.0, 1e30, -1e30, 1e-38]), st.floats(-20, 20, width=32))
    return Situation(
        space=space(
            width,
            norm=draw(st.sampled_from(["linf", "l2"])),
            unit=unit,
            low=low,
            high=high,
            integer=integer,
            increasing=direction > 0,
            decreasing=direction < 0,
            one_hot=tuple(one_hot),
        ),
        x=x,
        wanted=array([column(steps) for _ in range(rows)]),
        epsilon=draw(st.one_of(st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0, 2.0]), st.floats(0, 20, width=32))),
    )


@settings(max_examples=150, deadline=None)
@given(situations())
def test_what_is_presented_never_breaks_the_threat_model(situation: Situation) -> None:
    perturbation = Perturbation(situation.space)
    assert not perturbation.violations(situation.x, situation.x, 0.0).any(), "unmoved examples are allowed"
    d = perturbation.project(situation.x, situation.wanted, situation.epsilon)
    assert perturbation.size(d).numpy().max() <= situation.epsilon * (1 + 1e-5)
    presented = perturbation.apply(situation.x, d, situation.epsilon).numpy()
    assert not perturbation.violations(situation.x, presented, situation.epsilon).any()


@settings(max_examples=40, deadline=None)
@given(situations(), st.integers(0, 1000))
def test_random_perturbations_are_inside_too(situation: Situation, seed: int) -> None:
    perturbation = Perturbation(situation.space)
    generator = tf.random.Generator.from_seed(seed)
    d = perturbation.random(generator, tf.constant(situation.x), situation.epsilon)
    presented = perturbation.apply(situation.x, d, situation.epsilon).numpy()
    assert not perturbation.violations(situation.x, presented, situation.epsilon).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_numbers_that_tensorflow_takes_for_0_are_0(norm: Norm) -> None:
    least = array([[9.5e-44, 1]])
    perturbation = Perturbation(
        space(2, norm=norm, low=array([9.5e-44, 0]), high=array([9.5e-44, 1]), decreasing=mask(2, 0))
    )
    presented = perturbation.apply(least, tf.zeros((1, 2)), 0.0).numpy()
    assert not perturbation.violations(least, presented, 0.0).any()
    assert perturbation.violations(least, array([[2e-38, 1]]), 0.0).all(), "a normal number is none of them"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_whole_numbers_stay_whole_at_bounds_that_are_not(norm: Norm) -> None:
    perturbation = Perturbation(space(1, norm=norm, low=array([-0.5]), high=array([549725.5]), integer=mask(1, 0)))
    for x, wanted, expected in ((549724.0, 2.0, 549725.0), (1.0, -2.0, 0.0)):
        d = perturbation.project(array([[x]]), array([[wanted]]), 2.0)
        assert perturbation.apply(array([[x]]), d, 2.0).numpy().tolist() == [[expected]]


ORIGINAL = array([[0.5, 3, 0, 1, 0, 2, 2]])
EVERYTHING = space(
    7,
    unit=array([1, 1, 1, 1, 1, 1, 0]),
    low=array([0, -9, 0, 0, 0, -9, -9]),
    high=array([1, 9, 1, 1, 1, 9, 9]),
    integer=mask(7, 1),
    increasing=mask(7, 5),
    one_hot=((2, 3, 4),),
)


@pytest.mark.parametrize(
    ("broken", "moved"),
    {
        "nothing": (False, [0.7, 4, 0, 1, 0, 2.5, 2]),
        "nothing, another member": (False, [0.5, 3, 1, 0, 0, 2, 2]),
        "the ball": (True, [0.5, 5, 0, 1, 0, 2, 2]),
        "a bound": (True, [1.0001, 3, 0, 1, 0, 2, 2]),
        "a whole number": (True, [0.5, 3.001, 0, 1, 0, 2, 2]),
        "a direction": (True, [0.5, 3, 0, 1, 0, 1.9999, 2]),
        "an immutable feature": (True, [0.5, 3, 0, 1, 0, 2, 2.0001]),
        "two members": (True, [0.5, 3, 1, 1, 0, 2, 2]),
        "no member": (True, [0.5, 3, 0, 0, 0, 2, 2]),
        "half a member": (True, [0.5, 3, 0.5, 1, 0, 2, 2]),
        "half a member each": (True, [0.5, 3, 0.5, 0.5, 0, 2, 2]),
        "not a number": (True, [np.nan, 3, 0, 1, 0, 2, 2]),
        "infinity": (True, [np.inf, 3, 0, 1, 0, 2, 2]),
    }.values(),
)
def test_every_kind_of_violation_is_found(broken: bool, moved: list[float]) -> None:
    assert Perturbation(EVERYTHING).violations(ORIGINAL, array([moved]), 1.0).tolist() == [broken]


def test_the_l2_ball_counts_all_features_together() -> None:
    moved = array([[0.9, 0.9]])
    assert not Perturbation(space(2)).violations(array([[0, 0]]), moved, 1.0).any()
    assert Perturbation(space(2, norm="l2")).violations(array([[0, 0]]), moved, 1.0).all()
    assert not Perturbation(space(2, norm="l2")).violations(array([[0, 0]]), moved, 1.28).any()


def test_violations_are_told_for_each_example() -> None:
    moved = array([[0.5], [1.5], [-1.5], [1.0]])
    assert Perturbation(space(1)).violations(0 * moved, moved, 1.0).tolist() == [False, True, True, False]


def test_numbers_at_which_an_attack_stands_keep_their_gradient() -> None:
    # A gradient that vanished at bounds or between whole numbers would hold features there for good.
    perturbation = Perturbation(space(3, low=array([0, -9, -9]), high=array([1, 9, 9]), integer=mask(3, 1)))
    x, d = array([[1.0, 2, 0]]), tf.constant([[1e-8, 0.4, 0.1]])
    with tf.GradientTape() as tape:
        tape.watch(d)
        presented = perturbation.apply(x, d, 1.0)
    assert presented.numpy().tolist() == array([[1, 2, 0.1]]).tolist()
    assert tape.gradient(presented, d).numpy().tolist() == [[1, 1, 1]]


def test_whole_numbers_go_as_far_as_the_ball_allows_and_no_farther() -> None:
    perturbation = Perturbation(space(3, unit=array([10, 10, 10]), integer=mask(3, 0, 1, 2)))
    # 0.7 * 10 is 6.9999999 in single precision.
    d = perturbation.project(array([[5, 5, 5]]), array([[0.7, -0.7, 0.69]]), 0.7)
    assert perturbation.apply(array([[5, 5, 5]]), d, 0.7).numpy().tolist() == [[12, -2, 11]]


def test_a_group_turns_to_its_largest_member_when_the_ball_has_room() -> None:
    perturbation = Perturbation(space(3, unit=array([2, 2, 2]), one_hot=((0, 1, 2),)))
    x, towards_third = array([[1, 0, 0]]), array([[-0.5, 0.0, 0.5]])
    assert perturbation.apply(x, towards_third, 0.5).numpy().tolist() == [[0, 0, 1]]
    assert perturbation.apply(x, 0.9 * towards_third, 0.45).numpy().tolist() == [[1, 0, 0]], "it costs half a unit"
    fixed = Perturbation(space(3, unit=array([2, 2, 0]), one_hot=((0, 1, 2),)))
    assert fixed.apply(x, towards_third * [1, 1, 0], 0.5).numpy().tolist() == [[1, 0, 0]]


def test_in_l2_other_features_share_what_a_turned_group_leaves() -> None:
    perturbation = Perturbation(space(3, norm="l2", one_hot=((0, 1),)))
    d = array([[-1, 1, 1]]) * np.float32(1.5 / np.sqrt(3))
    presented = perturbation.apply(array([[1, 0, 0]]), d, 1.5).numpy()[0]
    assert presented[:2].tolist() == [0, 1], "which costs the square root of 2"
    assert presented[2] == pytest.approx(np.sqrt(1.5**2 - 2), rel=1e-5)


def test_gradients_that_are_no_numbers_or_almost_nothing_do_not_stop_the_search() -> None:
    start = tf.zeros((1, 3))
    for norm in ("linf", "l2"):
        moved = Perturbation(space(3, norm=norm)).ascend(start, tf.constant([[np.nan, 1.0, np.inf]]), 0.5).numpy()
        assert moved.tolist() == [[0, 0.5, 0]]
    # Their squares are 0 in single precision.
    faint = Perturbation(space(3, norm="l2")).ascend(start, tf.constant([[3e-25, 0.0, -4e-25]]), 0.5).numpy()
    assert faint[0] == pytest.approx([0.3, 0, -0.4])
    assert Perturbation(space(3, norm="l2")).ascend(start, start, 0.5).numpy().tolist() == [[0, 0, 0]]


def test_random_perturbations_fill_the_ball() -> None:
    x = tf.zeros((4000, 3))
    radius = {
        norm: Perturbation(space(3, norm=norm)).size(
            Perturbation(space(3, norm=norm)).random(tf.random.Generator.from_seed(1), x, 2.0)
        )
        for norm in ("linf", "l2")
    }
    for lengths in radius.values():
        # Half the volume of a three-dimensional ball lies beyond 2^(-1/3) of its radius.
        assert np.mean(lengths.numpy() > 2 * 0.5 ** (1 / 3)) == pytest.approx(0.5, abs=0.03)


def linear_worst_case(weights: Features, low: Features, high: Features, epsilon: float) -> float:
    """How far a linear function falls at most over an L2 ball and bounds: along its weights, cut at the bounds, as far as the
    ball reaches (the Karush-Kuhn-Tucker conditions), by bisection."""
    shortest, longest = 0.0, 1e6
    for _ in range(200):
        length = (shortest + longest) / 2
        d = np.clip(-length * weights.astype(np.float64), low, high)
        shortest, longest = (length, longest) if np.linalg.norm(d) < epsilon else (shortest, length)
    return float(weights @ d)


@pytest.mark.parametrize("bounded", [False, True])
def test_on_a_linear_model_the_l2_attack_is_the_closed_form_worst_case(bounded: bool) -> None:
    width, epsilon, count = 6, 0.8, 20
    ones = np.ones(width, np.float32)
    model = tabular_classifier(mean=0 * ones, scale=ones, hidden=(), classes=2, seed=3)
    kernel, _ = model.get_layer("logits").get_weights()
    # A lead that no perturbation makes up for, so that the search goes on to its end.
    model.get_layer("logits").set_weights([kernel, array([5, 0])])
    weights = (kernel[:, 0] - kernel[:, 1]).astype(np.float64)
    limit = np.where(np.arange(width) % 2 == 0, 0.6, 1.0) if bounded else np.full(width, 1e5)
    x = array(np.random.default_rng(1).uniform(-0.5, 0.5, (count, width)))
    examples = Examples(
        features=x,
        labels=np.zeros(count, np.int32),
        units=np.arange(count),
        unit_ids=tuple(b"%02d" % unit for unit in range(count)),
    )
    worst = np.array([linear_worst_case(weights, -limit - row, limit - row, epsilon) for row in x])
    perturbation = Perturbation(space(width, norm="l2", low=array(-limit), high=array(limit)))
    common: dict[str, Any] = {"perturbation": perturbation, "batch_size": count, "seed": 1}
    for attack in (
        ProjectedGradientDescent(model, steps=40, restarts=1, **common),
        AutoProjectedGradientDescent(model, loss="margin", steps=40, attempts=1, **common),
    ):
        outcome = attack.run(examples, epsilon)
        assert not outcome.misled.any()
        reached = (outcome.features.astype(np.float64) - x) @ weights
        assert reached == pytest.approx(worst, rel=0.005)
        assert (reached > worst * (1 + 1e-4)).all(), "nothing is worse than the worst case"
