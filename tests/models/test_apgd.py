"""Auto-PGD: the schedule, the losses, the halving of steps, strength where plain gradients fail, expectation over randomness."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from lepton_airflow.models.architectures import tabular_classifier
from lepton_airflow.models.attacks.apgd import AutoProjectedGradientDescent, checkpoints
from lepton_airflow.models.attacks.losses import LossName, attack_loss, misled
from lepton_airflow.models.attacks.pgd import ProjectedGradientDescent
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.prediction import correct, margins, prediction_of


def ball(features: int = 5) -> Perturbation:
    ones = np.ones(features, np.float32)
    names = [f"feature {position}" for position in range(features)]
    return Perturbation(InputSpace.free(norm="linf", names=names, mean=0 * ones, scale=ones))


def classifier(*, classes: int = 2, hidden: tuple[int, ...] = (16,), seed: int = 1) -> Any:
    ones = np.ones(5, np.float32)
    return tabular_classifier(mean=0 * ones, scale=ones, hidden=hidden, classes=classes, seed=seed)


def apgd(model: Any, loss: LossName, **options: Any) -> AutoProjectedGradientDescent:
    options = {"perturbation": ball(), "steps": 30, "attempts": 1, "batch_size": 64, "seed": 3, **options}
    return AutoProjectedGradientDescent(model, loss=loss, **options)


def answered(model: Any, examples: Examples) -> Examples:
    """The examples with the model's own answers for labels: all are correct."""
    labels = model.predict(examples.features, verbose=0).argmax(axis=1).astype(np.int32)
    return Examples(features=examples.features, labels=labels, units=examples.units, unit_ids=examples.unit_ids)


def test_checkpoints_are_those_of_the_paper() -> None:
    # p = 0, .22, .41, .57, .70, .80, .87, .93, .99: each step .03 shorter than the last, never shorter than .06.
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(10) == (3, 5, 6, 7, 8, 9, 10)


LOGITS = np.array([[4.0, 1, 3, -2], [1, 4, 3, -2], [0, 0, 0, 5]], np.float32)
LABELS = np.array([0, 0, 3], np.int32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("margin", [-1, 3, -5]),
        ("dlr", [-1 / (4 - 1), (4 - 1) / (4 - 1), -5 / 5]),
        ("targeted-dlr", [-(4 - 1) / (4 - (1 - 2) / 2), -(1 - -2) / (4 - (1 - 2) / 2), -5 / 5]),
    ],
)
def test_losses_are_those_of_the_paper(name: LossName, expected: list[float]) -> None:
    targets = np.array([1, 3, 0], np.int32)
    losses = attack_loss(name, tf.constant(LOGITS), tf.constant(LABELS), tf.constant(targets)).numpy()
    assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["dlr", "targeted-dlr"])
def test_the_ratio_does_not_see_scale_or_shift(name: LossName) -> None:
    def loss(logits: Any) -> Any:
        return attack_loss(name, tf.constant(logits), tf.constant(LABELS), tf.constant([1, 1, 0])).numpy()

    assert loss(1000 * LOGITS - 50) == pytest.approx(loss(LOGITS), rel=1e-4)


def test_logits_that_are_no_numbers_mislead() -> None:
    logits = tf.constant([[1.0, 0], [np.nan, 0], [np.inf, 0], [0, 1]])
    labels = tf.constant([0, 0, 0, 0])
    assert misled(logits, labels).numpy().tolist() == [False, True, True, True]
    assert correct(logits.numpy(), labels.numpy()).tolist() == [True, False, False, False]


@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
def test_on_a_linear_model_it_is_the_closed_form_worst_case(loss: LossName, blobs: Callable[..., Examples]) -> None:
    examples, model = blobs(150), classifier(hidden=())
    kernel, bias = (values.astype(np.float64) for values in model.get_layer("logits").get_weights())
    weights = kernel[:, 1] - kernel[:, 0]
    margin = (2 * examples.labels - 1) * (examples.features @ weights + bias[1] - bias[0])
    worst = margin - 0.3 * np.abs(weights).sum()
    clear = np.abs(worst) > 1e-3
    outcome = apgd(model, loss).run(examples, 0.3)
    assert np.array_equal(~outcome.misled[clear], worst[clear] > 0)
    assert np.array_equal(outcome.misled, ~correct(prediction_of(model)(outcome.features), examples.labels))
    assert np.abs(outcome.features - examples.features).max() <= 0.3 + 1e-6


def test_what_comes_back_is_the_strongest_where_nothing_misled(blobs: Callable[..., Examples]) -> None:
    model = classifier(classes=4)
    examples = answered(model, blobs(100))
    outcome = apgd(model, "margin").run(examples, 0.05)
    kept = ~outcome.misled
    assert kept.sum() > 20
    predict = prediction_of(model)
    before, after = (margins(predict(features), examples.labels) for features in (examples.features, outcome.features))
    assert (after[kept] < before[kept]).all()


def test_the_targeted_attack_tries_more_classes_with_more_attempts(blobs: Callable[..., Examples]) -> None:
    model = classifier(classes=4)
    examples = answered(model, blobs(150))
    lost = {
        attempts: apgd(model, "targeted-dlr", attempts=attempts, steps=15).run(examples, 0.25).misled
        for attempts in (1, 3)
    }
    assert not (lost[1] & ~lost[3]).any()
    untargeted = apgd(model, "dlr", steps=15).run(examples, 0.25).misled
    assert np.count_nonzero(lost[3]) >= np.count_nonzero(untargeted)


class Narrow(keras.layers.Layer):  # type: ignore[misc]
    """A margin that is negative only within 0.002 of 0.314: who does not halve his step goes back and forth over it."""

    def call(self, x: Any) -> Any:
        margin = tf.abs(x[:, 0] - 0.314) - 0.002
        return tf.stack([margin, tf.zeros_like(margin)], axis=-1)


def test_steps_are_halved_until_narrow_places_are_found() -> None:
    inputs = keras.Input((1,))
    model = keras.Model(inputs, Narrow()(inputs))
    examples = Examples(
        features=np.zeros((50, 1), np.float32),
        labels=np.zeros(50, np.int32),
        units=np.arange(50),
        unit_ids=tuple(b"%02d" % unit for unit in range(50)),
    )
    common = {"perturbation": ball(1), "batch_size": 50, "seed": 1}
    automatic = AutoProjectedGradientDescent(model, loss="margin", steps=100, attempts=1, **common)
    plain = ProjectedGradientDescent(model, steps=20, restarts=5, **common)
    assert automatic.run(examples, 1.0).misled.all()
    assert plain.run(examples, 1.0).misled.sum() < 25


class Louder(keras.layers.Layer):  # type: ignore[misc]
    """Logits so large that the cross-entropy saturates."""

    def call(self, x: Any) -> Any:
        return 1e4 * x


def test_the_ratio_sees_through_logits_that_are_scaled_up(blobs: Callable[..., Examples]) -> None:
    plain = classifier(classes=3)
    examples = answered(plain, blobs(150))
    loud = keras.Sequential([plain, Louder()])
    honest = ~apgd(plain, "dlr").run(examples, 0.4).misled
    fooled = ~apgd(loud, "cross-entropy").run(examples, 0.4).misled
    seeing = ~apgd(loud, "dlr").run(examples, 0.4).misled
    assert fooled.sum() > honest.sum() + 5, "the gradient of the cross-entropy is 0 for what is classified surely"
    assert abs(int(seeing.sum()) - int(honest.sum())) <= 2


class Shaken(keras.layers.Layer):  # type: ignore[misc]
    """A plane that each prediction shifts by one random number, far more than the ball reaches."""

    def call(self, x: Any) -> Any:
        margin = x[:, 0] - 0.25 + 3 * tf.random.normal(())
        return tf.stack([margin, tf.zeros_like(margin)], axis=-1)


def test_randomness_is_averaged_over_as_many_predictions_as_asked() -> None:
    inputs = keras.Input((2,))
    model = keras.Model(inputs, Shaken()(inputs))
    count = 40
    # Half of them 0.5 away from the plane on its good side, which a radius of 0.3 never reaches.
    examples = Examples(
        features=np.full((count, 2), 0.75, np.float32),
        labels=np.zeros(count, np.int32),
        units=np.arange(count),
        unit_ids=tuple(b"%02d" % unit for unit in range(count)),
    )
    tf.random.set_seed(1)
    logits = {samples: prediction_of(model, batch_size=1, samples=samples)(examples.features) for samples in (1, 400)}
    spread = {samples: values[:, 0].std() for samples, values in logits.items()}
    assert spread[1] == pytest.approx(3, rel=0.4)
    assert spread[400] == pytest.approx(3 / math.sqrt(400), rel=0.4)
    common = {"perturbation": ball(2), "batch_size": count, "seed": 1}
    for samples, lost in ((1, True), (4000, False)):
        for attack in (
            ProjectedGradientDescent(model, steps=8, restarts=1, samples=samples, **common),
            AutoProjectedGradientDescent(model, loss="margin", steps=8, attempts=1, samples=samples, **common),
        ):
            # A single bad draw counts against a model whose predictions are not averaged.
            assert attack.run(examples, 0.3).misled.all() == lost, samples


def test_all_radii_batches_and_attempts_share_one_trace(blobs: Callable[..., Examples]) -> None:
    attack = apgd(classifier(classes=4), "targeted-dlr", attempts=3, steps=10)
    for epsilon in (0.0, 0.1, 0.5):
        first = attack.run(blobs(150), epsilon)
        again = attack.run(blobs(150), epsilon)
        assert np.array_equal(first.features, again.features), "the starts come from the seed alone"
    assert attack.attack.experimental_get_tracing_count() == 1
