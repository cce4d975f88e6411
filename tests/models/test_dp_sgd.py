"""Differentially private training: what one unit can move, what is added, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from lepton_airflow.errors import SpecError
from lepton_airflow.models import dp_sgd
from lepton_airflow.models.architectures import tabular_classifier
from lepton_airflow.models.dp_sgd import (
    RENYI,
    NoiseSchedule,
    compile_clipped_sum,
    composed_epsilon,
    gaussian_noise,
    poisson_sample,
    rows_of_units,
    schedule,
    train_privately,
)
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.objectives import standard_objective
from lepton_airflow.models.plan import DifferentialPrivacyPlan, TrainingPlan

ONES, ZEROS = np.ones(5, np.float32), np.zeros(5, np.float32)
NORM = 0.7
PLAN = DifferentialPrivacyPlan(
    epsilon=Decimal(4), delta=Decimal("1e-5"), sampling_rate=0.2, steps=30, clipping_norm=NORM
)


def classifier(seed: int = 1) -> Any:
    return tabular_classifier(mean=ZEROS, scale=ONES, hidden=(8,), classes=2, seed=seed)


@pytest.fixture(scope="module")
def clipped_sum() -> Callable[[list[Any], list[Any]], Any]:
    """The clipped sum over units, each given by its features [n, 5] and labels [n]."""
    compiled = compile_clipped_sum(classifier(), objective=standard_objective(), batch_size=16, clipping_norm=NORM)

    def over(features: list[Any], labels: list[Any]) -> Any:
        units = np.repeat(np.arange(len(features)), [len(part) for part in features])
        examples = Examples(
            features=np.concatenate(features).astype(np.float32),
            labels=np.concatenate(labels).astype(np.int32),
            units=units,
            unit_ids=tuple(str(unit).encode() for unit in range(len(features))),
        )
        rows = rows_of_units(examples, most=16)
        batches = dp_sgd._batches(examples, rows, np.arange(len(rows)), size=16)
        return sum(compiled(*batch).numpy() for batch in batches)

    return over


sizes = st.lists(st.integers(1, 7), min_size=2, max_size=9)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=sizes, magnitude=st.sampled_from([1e-6, 1.0, 1e4, 1e30]), seed=st.integers(0, 2**16))
def test_a_unit_moves_the_sum_by_at_most_the_clipping_norm(
    clipped_sum: Callable[[list[Any], list[Any]], Any], sizes: list[int], magnitude: float, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    features = [draw.normal(size=(size, 5)) * magnitude for size in sizes]
    labels = [draw.integers(0, 2, size) for size in sizes]
    without = int(draw.integers(len(sizes)))
    rest = [part for number, part in enumerate(features) if number != without]
    rest_labels = [part for number, part in enumerate(labels) if number != without]
    moved = np.linalg.norm(clipped_sum(features, labels) - clipped_sum(rest, rest_labels))
    assert np.isfinite(moved)
    assert moved <= NORM


def test_without_clipping_a_unit_moves_the_sum_further() -> None:
    unclipped = compile_clipped_sum(classifier(), objective=standard_objective(), batch_size=16, clipping_norm=1e30)
    features = np.full((16, 5), 50.0, np.float32)
    membership = np.zeros((16, 16), np.float32)
    membership[0, 0] = 1
    gradient = unclipped(features, np.zeros(16, np.int32), membership).numpy()
    wrong = unclipped(features, np.ones(16, np.int32), membership).numpy()
    assert max(np.linalg.norm(gradient), np.linalg.norm(wrong)) > 10 * NORM, "the test above can fail"


def test_a_unit_counts_once_however_many_examples_it_has(clipped_sum: Callable[[list[Any], list[Any]], Any]) -> None:
    one = clipped_sum([np.ones((1, 5)), -np.ones((1, 5))], [[0], [1]])
    many = clipped_sum([np.ones((9, 5)), -np.ones((1, 5))], [[0] * 9, [1]])
    assert many == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_small_gradients_are_the_mean_over_the_units_examples() -> None:
    model = classifier()
    wide = compile_clipped_sum(model, objective=standard_objective(), batch_size=4, clipping_norm=1e6)
    x = np.arange(20, dtype=np.float32).reshape(4, 5) / 10
    labels = np.array([0, 1, 1, 0], np.int32)
    membership = np.array([[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0] * 4, [0] * 4], np.float32)
    with tf.GradientTape() as tape:
        losses, _ = standard_objective()(model, tf.constant(x), tf.constant(labels))
        loss = (losses[0] + losses[1]) / 2 + losses[2]
    expected = np.concatenate([np.ravel(part) for part in tape.gradient(loss, model.trainable_variables)])
    assert wide(x, labels, membership).numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_noise_is_standard_normal_and_a_wrong_scale_shows() -> None:
    values = gaussian_noise(40_001)
    assert len(values) == 40_001
    assert stats.kstest(values, "norm").pvalue > 1e-6
    # The variance of so many has a standard deviation of 0.007.
    assert abs(values.var() - 1) < 0.05
    assert abs((values * 1.05).var() - 1) > 0.05
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03


def test_noise_and_samples_have_no_seed() -> None:
    found = []
    for _ in range(2):
        np.random.seed(1)
        tf.random.set_seed(1)
        found.append((gaussian_noise(4).tolist(), poisson_sample(1000, 0.5).tolist()))
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


def test_every_unit_takes_part_by_itself() -> None:
    taken = np.array([np.bincount(poisson_sample(50, 0.3), minlength=50) for _ in range(2000)])
    counts = taken.sum(axis=1)
    # A binomial number of units, not a fixed one: mean 15, variance 10.5.
    assert counts.mean() == pytest.approx(15, abs=0.5)
    assert counts.var() == pytest.approx(10.5, abs=1.8)
    assert taken.mean(axis=0) == pytest.approx(np.full(50, 0.3), abs=0.06)
    assert poisson_sample(7, 1.0).tolist() == list(range(7))


def test_the_cost_is_that_of_a_published_setting() -> None:
    # TensorFlow Privacy's tutorial on MNIST: 60 epochs of 60,000 units, 256 a step; by distributions 2.38.
    setting = {"noise_multiplier": 1.1, "sampling_rate": 256 / 60_000, "steps": 60 * 234}
    assert composed_epsilon(**setting, delta=1e-5) == pytest.approx(2.38, abs=0.02)
    assert 2.38 < composed_epsilon(**setting, delta=1e-5, accounting=RENYI) < 2.7


def test_the_cost_lies_between_two_independent_bounds() -> None:
    noise = schedule(PLAN)
    assert 0.97 * 4 < noise.epsilon <= 4
    steps = {"noise_multiplier": noise.noise_multiplier, "sampling_rate": 0.2, "steps": 30}
    assert noise.epsilon < composed_epsilon(**steps, delta=1e-5, accounting=RENYI) < 1.3 * noise.epsilon
    # One step, everybody: the Gaussian mechanism, whose exact curve is known (Balle, Wang 2018).
    sigma, epsilon = 2.0, composed_epsilon(noise_multiplier=2.0, sampling_rate=1.0, steps=1, delta=1e-5)
    exact = stats.norm.cdf(0.5 / sigma - epsilon * sigma) - np.exp(epsilon) * stats.norm.cdf(
        -0.5 / sigma - epsilon * sigma
    )
    assert exact == pytest.approx(1e-5, rel=0.01)


def test_a_budget_that_no_noise_can_keep_is_refused() -> None:
    plan = PLAN.model_copy(update={"epsilon": Decimal("1e-9"), "steps": 10**6})
    with pytest.raises(SpecError, match="No noise"):
        schedule(plan)


def test_private_training_learns(blobs: Callable[..., Examples]) -> None:
    examples = blobs(600)
    model, steps = classifier(), []
    plan = TrainingPlan(batch_size=64, learning_rate=0.05, differential_privacy=PLAN)
    train_privately(
        model,
        examples,
        plan=plan,
        objective=standard_objective(),
        noise=schedule(PLAN),
        report=lambda step, every: steps.append((step, every)),
    )
    assert steps == [(step, 30) for step in range(1, 31)]
    correct = model.predict(examples.features, verbose=0).argmax(axis=1) == examples.labels
    assert correct.mean() > 0.8


def test_the_noise_that_was_paid_for_reaches_the_weights(blobs: Callable[..., Examples]) -> None:
    # Without data the steps are noise alone: Adam's first step then moves every weight by the learning rate, either way.
    nobody = replace(blobs(10), units=np.arange(10))
    noise = NoiseSchedule(noise_multiplier=1.0, sampling_rate=1e-12, steps=1, epsilon=1.0, delta=1e-5)
    plan = TrainingPlan(batch_size=16, learning_rate=0.05, differential_privacy=PLAN)
    moves = []
    for _ in range(2):
        model = classifier()
        before = np.concatenate([np.ravel(variable) for variable in model.trainable_variables])
        train_privately(
            model, nobody, plan=plan, objective=standard_objective(), noise=noise, report=lambda _step, _steps: None
        )
        moves.append(np.concatenate([np.ravel(variable) for variable in model.trainable_variables]) - before)
    assert np.abs(moves[0]) == pytest.approx(np.full(len(moves[0]), 0.05), rel=0.01)
    assert 0.2 < np.mean(np.sign(moves[0]) == np.sign(moves[1])) < 0.8
