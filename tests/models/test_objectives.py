"""What each training method exposes the classifier to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from lepton_airflow.models.architectures import classifier_for
from lepton_airflow.models.attacks.losses import cross_entropy
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.generator import Adversary
from lepton_airflow.models.input_space import InputSpace, image_space
from lepton_airflow.models.objectives import (
    augmented,
    divergence,
    objective_for,
    standard_objective,
)
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import ImageColumn, TrainingPlan
from lepton_airflow.models.threat_model import ThreatModel
from lepton_airflow.models.training import compile_step

EPSILON = 0.3
METHODS = ("pgd", "trades", "fast", "generator")


def table(norm: Any = "linf", *, low: float = -np.inf) -> InputSpace:
    ones = np.ones(5, np.float32)
    space = InputSpace.free(norm=norm, names=[f"f{position}" for position in range(5)], mean=0 * ones, scale=ones)
    space.low[:] = low
    return space


def pictures(side: int = 4) -> InputSpace:
    threat_model = ThreatModel(norm="linf", epsilon=EPSILON, units="pixel range")
    return image_space(ImageColumn(column="p", shape=(side, side, 1), low=2, high=18), threat_model=threat_model)


def watched(space: InputSpace, plan: TrainingPlan) -> tuple[Any, list[Any]]:
    """A classifier, and a list that is filled with the inputs it is trained on."""
    classifier = classifier_for(space, plan=plan, classes=2, seed=1)
    seen: list[Any] = []

    class Watched:
        input_shape = classifier.input_shape

        def __call__(self, x: Any, training: bool = False) -> Any:
            if training:
                seen.append(x.numpy())
            return classifier(x, training=training)

    return Watched(), seen


def exposed(method: Any, space: InputSpace, examples: Examples) -> list[Any]:
    plan = TrainingPlan(method=method, hidden=(8,), filters=2, steps=3)
    objective = objective_for(plan, perturbation=Perturbation(space), epsilon=EPSILON, classes=2, seed=3)
    model, seen = watched(space, plan)
    objective(model, tf.constant(examples.features), tf.constant(examples.labels))
    return seen


def inside(space: InputSpace, count: int = 8) -> Examples:
    draw = np.random.default_rng(1)
    low = np.where(np.isfinite(space.low), space.low, -1)
    high = np.where(np.isfinite(space.high), space.high, 1)
    return Examples(
        features=(low + draw.random((count, len(space))) * (high - low)).astype(np.float32),
        labels=np.arange(count, dtype=np.int32) % 2,
        units=np.arange(count),
        unit_ids=tuple(unit.to_bytes(2) for unit in range(count)),
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", [table(), table("l2", low=-1), pictures()], ids=["linf", "l2 with bounds", "images"])
def test_every_method_trains_on_examples_that_the_attacker_could_present(method: str, space: InputSpace) -> None:
    examples = inside(space)
    perturbation = Perturbation(space)
    seen = exposed(method, space, examples)
    attacked = [x for x in seen if not np.array_equal(x, examples.features)]
    assert len(attacked) == (2 if method == "generator" else 1)
    assert len(seen) == (2 if method in ("generator", "trades") else 1), "trades sees the examples as they are too"
    for x in attacked:
        assert not perturbation.violations(examples.features, x, EPSILON).any()
    assert perturbation.violations(examples.features, attacked[-1], EPSILON / 3).all(), (
        "gradients lead far from the example"
    )


def test_the_fast_step_reaches_the_faces_of_the_ball_as_often_as_its_length_says() -> None:
    examples = inside(table(), 200)
    moves = np.abs(exposed("fast", table(), examples)[0] - examples.features)
    # From a uniform start a step of 1.25 epsilon ends inside the ball for 3 of 8 features.
    assert np.isclose(moves, EPSILON, rtol=1e-4).mean() == pytest.approx(5 / 8, abs=0.08)


def test_divergence_is_that_of_kullback_and_leibler() -> None:
    p, q = np.array([[0.7, 0.2, 0.1]]), np.array([[0.3, 0.3, 0.4]])
    expected = (p * np.log(p / q)).sum()
    assert float(divergence(np.log(q), np.log(p) + 3)[0]) == pytest.approx(expected)
    assert float(divergence(np.log(p), np.log(p))[0]) == pytest.approx(0)


def test_trades_weighs_the_divergence_by_beta(blobs: Callable[..., Examples]) -> None:
    examples = blobs(16)
    model = classifier_for(table(), plan=TrainingPlan(hidden=(8,)), classes=2, seed=1)
    found = {}
    for beta in (1e-9, 1.0, 6.0):
        plan = TrainingPlan(method="trades", trades_beta=beta)
        objective = objective_for(plan, perturbation=Perturbation(table()), epsilon=EPSILON, classes=2, seed=3)
        found[beta], _ = objective(model, tf.constant(examples.features), tf.constant(examples.labels))
    standard, _ = standard_objective()(model, tf.constant(examples.features), tf.constant(examples.labels))
    np.testing.assert_allclose(found[1e-9], standard, rtol=1e-5)
    np.testing.assert_allclose(found[6.0] - standard, 6 * (found[1.0] - standard), rtol=1e-3)
    assert (found[1.0] > standard).numpy().all()


def test_the_adversary_learns_to_mislead_a_classifier_better_than_chance(blobs: Callable[..., Examples]) -> None:
    examples = blobs(64)
    x, labels = tf.constant(examples.features), tf.constant(examples.labels)
    plan = TrainingPlan(method="generator", hidden=(16,))
    model = classifier_for(table(), plan=plan, classes=2, seed=1)
    perturbation = Perturbation(table())
    adversary = Adversary(perturbation=perturbation, epsilon=EPSILON, plan=plan, classes=2, seed=2)

    def loss(d: Any) -> float:
        moved = perturbation.apply(x, d, EPSILON)
        return float(tf.reduce_mean(cross_entropy(model(moved), labels)))

    before = loss(adversary.perturbations(x, labels))
    learn = tf.function(lambda: adversary.learn(model, x, labels))
    for _ in range(60):
        learn()
    after = loss(adversary.perturbations(x, labels))
    at_random = loss(perturbation.random(tf.random.Generator.from_seed(1), x, EPSILON))
    assert after > before + 0.05
    assert after > at_random + 0.02


def test_one_step_teaches_both_networks_and_traces_once(blobs: Callable[..., Examples]) -> None:
    examples = blobs(32)
    plan = TrainingPlan(method="generator", hidden=(8,), steps=2)
    model = classifier_for(table(), plan=plan, classes=2, seed=1)
    objective = objective_for(plan, perturbation=Perturbation(table()), epsilon=EPSILON, classes=2, seed=3)
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    step = compile_step(model, optimizer, objective=objective, batch_size=32)
    before = [variable.numpy() for variable in (*model.variables, *objective.state)]
    for _ in range(2):
        step(examples.features, examples.labels, np.ones(32, np.float32))
    after = [variable.numpy() for variable in (*model.variables, *objective.state)]
    changed = [not np.array_equal(left, right) for left, right in zip(before, after, strict=True)]
    fixed = 3  # mean, variance and count of the classifier's standardisation
    assert sum(changed) >= len(changed) - 2 * fixed - 1
    assert step.experimental_get_tracing_count() == 1


def test_shifts_move_whole_images_and_let_the_dark_in() -> None:
    space = pictures(side=3)
    image = np.full((3, 3), 2, np.float32)
    image[1, 1] = 18
    seen = []
    base = standard_objective()
    recording = type(base)(losses=lambda model, x, labels: (seen.append(x.numpy()), base(model, x, labels))[1])
    plan = TrainingPlan(shift=1)
    objective = augmented(recording, plan=plan, perturbation=Perturbation(space), seed=1)
    model = classifier_for(space, plan=TrainingPlan(filters=2, hidden=()), classes=2, seed=1)
    objective(model, tf.constant(np.tile(image.ravel(), (200, 1))), tf.zeros(200, tf.int32))
    bright = np.argwhere(seen[0].reshape(-1, 3, 3) == 18)
    assert len(bright) == 200, "every image keeps its one bright pixel, wherever that went"
    assert {tuple(position) for position in bright[:, 1:].tolist()} == {(r, c) for r in range(3) for c in range(3)}
    assert set(np.unique(seen[0])) == {2.0, 18.0}
    assert augmented(base, plan=TrainingPlan(), perturbation=Perturbation(space), seed=1) is base


def test_the_image_classifier_rescales_raw_pixels_and_takes_its_weights_from_the_seed() -> None:
    space = pictures(side=8)
    plan = TrainingPlan(filters=3, hidden=(7,))
    first, second, other = (classifier_for(space, plan=plan, classes=4, seed=seed) for seed in (1, 1, 2))
    pixels = np.array([[2.0, 18.0] * 32], np.float32)
    image = first.get_layer("standardise")(first.get_layer("image")(pixels)).numpy()
    assert image.shape == (1, 8, 8, 1)
    np.testing.assert_allclose(image.ravel(), [0.0, 1.0] * 32, atol=1e-6)
    assert first(pixels).shape == (1, 4)
    assert first.get_layer("convolution_2").get_weights()[0].shape == (3, 3, 3, 6)
    np.testing.assert_array_equal(first(pixels), second(pixels))
    assert not np.array_equal(first(pixels), other(pixels))
    equal = [first.get_layer(f"convolution_{position}").get_weights()[0] for position in (0, 1)]
    assert not np.array_equal(equal[0][:, :, :1], equal[1][:, :, :1]), "layers do not share their first weights"
