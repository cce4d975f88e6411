"""The training loop and the hardening that it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import keras
import numpy as np
import pytest

from lepton_airflow.models.architectures import tabular_classifier
from lepton_airflow.models.attacks.pgd import ProjectedGradientDescent
from lepton_airflow.models.examples import Examples, Features
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.objectives import Objective, pgd_objective, standard_objective
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import TrainingPlan
from lepton_airflow.models.training import EpochReport, compile_step, optimizer_for, train
from lepton_airflow.models.validation import Standing, Validation

ONES, ZEROS = np.ones(5, np.float32), np.zeros(5, np.float32)


def ball(scale: Features) -> Perturbation:
    """Perturbations without constraints, measured in ``scale``."""
    names = [f"feature {position}" for position in range(len(scale))]
    return Perturbation(InputSpace.free(norm="linf", names=names, mean=np.zeros_like(scale), scale=scale))


def classifier(seed: int = 1, hidden: tuple[int, ...] = (16,)) -> Any:
    return tabular_classifier(mean=ZEROS, scale=ONES, hidden=hidden, classes=2, seed=seed)


def hardening(epsilon: float = 0.3) -> Objective:
    return pgd_objective(perturbation=ball(ONES), epsilon=epsilon, steps=5, seed=2)


def trained(examples: Examples, objective: Objective, *, seed: int = 1, epochs: int = 20) -> Any:
    model = classifier()
    plan = TrainingPlan(epochs=epochs, batch_size=32, learning_rate=0.01)
    train(model, examples, name="model", plan=plan, objective=objective, seed=seed, report=lambda _report: None)
    return model


def adam(model: Any) -> Any:
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    return optimizer


def test_a_step_with_its_inner_attack_is_traced_once(blobs: Callable[..., Examples]) -> None:
    model = classifier()
    step = compile_step(model, adam(model), objective=hardening(), batch_size=32)
    for seed in range(3):
        examples = blobs(32, seed=seed)
        step(examples.features, examples.labels, np.ones(32, np.float32))
    assert step.experimental_get_tracing_count() == 1


def test_filling_does_not_touch_the_step(blobs: Callable[..., Examples]) -> None:
    examples = blobs(32)
    weights = np.where(np.arange(32) < 20, 1, 0).astype(np.float32)
    after = []
    for filling in (0.0, 50.0):
        features = examples.features.copy()
        features[20:] = filling
        model = classifier()
        step = compile_step(model, adam(model), objective=standard_objective(), batch_size=32)
        loss, correct = step(features, examples.labels, weights)
        after.append((float(loss), float(correct), [array.tolist() for array in model.get_weights()]))
    assert after[0] == after[1]


def test_training_learns_and_reports_every_epoch(blobs: Callable[..., Examples]) -> None:
    reports: list[EpochReport] = []
    model = classifier()
    plan = TrainingPlan(epochs=15, batch_size=32, learning_rate=0.01)
    examples = blobs(500)
    train(model, examples, name="m", plan=plan, objective=standard_objective(), seed=1, report=reports.append)
    assert [report.epoch for report in reports] == list(range(1, 16))
    assert reports[-1].loss < 0.7 * reports[0].loss
    correct = model.predict(examples.features, verbose=0).argmax(axis=1) == examples.labels
    assert reports[-1].accuracy == pytest.approx(correct.mean(), abs=0.02)


def test_hardening_makes_the_model_harder_to_mislead(examples: Examples) -> None:
    mean, scale = examples.features.mean(axis=0), examples.features.std(axis=0)
    perturbation = ball(scale)
    robust = {}
    for name, objective in (
        ("standard", standard_objective()),
        ("hardened", pgd_objective(perturbation=perturbation, epsilon=0.5, steps=7, seed=2)),
    ):
        model = tabular_classifier(mean=mean, scale=scale, hidden=(32,), classes=2, seed=1)
        plan = TrainingPlan(epochs=20, hidden=(32,))
        train(model, examples, name=name, plan=plan, objective=objective, seed=1, report=lambda _report: None)
        attack = ProjectedGradientDescent(
            model, perturbation=perturbation, steps=20, restarts=2, batch_size=len(examples), seed=1
        )
        robust[name] = attack.survivors(examples, 0.5).mean()
    assert robust["hardened"] > robust["standard"] + 0.2


def test_the_same_seeds_give_the_same_model(blobs: Callable[..., Examples]) -> None:
    examples = blobs(100)
    first, second = (trained(examples, hardening(), epochs=3).get_weights() for _ in range(2))
    assert all(np.array_equal(left, right) for left, right in zip(first, second, strict=True))


def test_another_seed_gives_another_order_and_other_weights(blobs: Callable[..., Examples]) -> None:
    examples = blobs(100)
    first, second = (trained(examples, standard_objective(), seed=seed, epochs=3).get_weights() for seed in (1, 2))
    assert not np.array_equal(first[0], second[0])
    assert not np.array_equal(classifier(seed=1).get_weights()[0], classifier(seed=2).get_weights()[0])


def test_layers_do_not_start_with_the_same_weights() -> None:
    model = classifier(hidden=(5, 5))
    first, second = (model.get_layer(f"hidden_{position}").get_weights()[0] for position in (0, 1))
    assert not np.array_equal(first, second)


class Rigged:
    """Gives epochs standings as if they had been measured, and remembers the weights it measured."""

    chooses = True

    def __init__(self, *standings: tuple[float, float]) -> None:
        self._standings = iter(standings)
        self.measured: list[Any] = []

    def measure_of(self, model: Any) -> Callable[[], Standing]:
        def measure() -> Standing:
            self.measured.append(model.get_weights())
            robust, clean = next(self._standings)
            return Standing(robust=robust, clean=clean)

        return measure


@pytest.mark.parametrize(
    ("standings", "kept"),
    [
        ([(0.5, 0.9), (0.7, 0.8), (0.6, 0.99), (0.5, 0.99)], 2),
        ([(0.5, 0.8), (0.5, 0.9), (0.5, 0.85), (0.4, 1.0)], 2),
        ([(0.5, 0.9), (0.5, 0.9), (0.5, 0.9), (0.4, 0.9)], 3),
    ],
    ids=["robust first", "then clean", "then the later one"],
)
def test_the_epoch_that_stands_best_on_the_validation_examples_is_kept(
    blobs: Callable[..., Examples], standings: list[tuple[float, float]], kept: int
) -> None:
    model, validation = classifier(), Rigged(*standings)
    reports: list[EpochReport] = []
    record = train(
        model,
        blobs(64),
        name="m",
        plan=TrainingPlan(epochs=4, batch_size=32),
        objective=standard_objective(),
        seed=1,
        report=reports.append,
        validation=cast("Validation", validation),
    )
    assert record.kept_epoch == kept
    assert record.standing == reports[kept - 1].standing
    for ours, theirs in zip(model.get_weights(), validation.measured[kept - 1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_progress_on_training_examples_chooses_no_epoch(blobs: Callable[..., Examples]) -> None:
    validation = Rigged((0.9, 0.9), (0.1, 0.1))
    validation.chooses = False
    plan = TrainingPlan(epochs=2, batch_size=32)
    record = train(
        classifier(),
        blobs(64),
        name="m",
        plan=plan,
        objective=standard_objective(),
        seed=1,
        report=lambda _report: None,
        validation=cast("Validation", validation),
    )
    assert record.kept_epoch == 2
    sample = Validation.of_training(blobs(400), perturbation=ball(ONES), epsilon=0.3, seed=1)
    assert not sample.chooses
    assert len(sample.examples) == 256


def test_a_standing_is_that_of_predictions_and_of_a_short_attack(blobs: Callable[..., Examples]) -> None:
    examples = blobs(300)
    model = trained(examples, standard_objective())
    perturbation = ball(ONES)
    standing = Validation(examples=examples, perturbation=perturbation, epsilon=0.3).measure_of(model)()
    correct = model.predict(examples.features, verbose=0).argmax(axis=1) == examples.labels
    attack = ProjectedGradientDescent(model, perturbation=perturbation, steps=10, restarts=1, batch_size=300, seed=0)
    assert standing.clean == pytest.approx(correct.mean())
    assert standing.robust == pytest.approx(attack.survivors(examples, 0.3).mean())
    assert standing.robust < standing.clean
    unattacked = Validation(examples=examples, perturbation=perturbation, epsilon=0).measure_of(model)()
    assert unattacked == Standing(robust=standing.clean, clean=standing.clean)


def test_averaged_weights_are_the_moving_average_of_the_steps(blobs: Callable[..., Examples]) -> None:
    examples = blobs(32)

    def weights(averaging: float, epochs: int) -> Any:
        # One batch an epoch, and a learning rate that does not fall in so few steps: the weights after each step.
        model = classifier(hidden=())
        schedule = TrainingPlan(epochs=1000, batch_size=32, averaging=averaging)
        optimizer = optimizer_for(schedule, steps=1000)
        optimizer.build(model.trainable_variables)
        step = compile_step(model, optimizer, objective=standard_objective(), batch_size=32)
        for _ in range(epochs):
            step(examples.features, examples.labels, np.ones(32, np.float32))
        last = model.get_layer("logits").get_weights()[0]
        if averaging:
            optimizer.finalize_variable_values(model.trainable_variables)
        return last, model.get_layer("logits").get_weights()[0]

    first, second, third = (weights(0, epochs)[0] for epochs in (1, 2, 3))
    last, averaged = weights(0.6, 3)
    np.testing.assert_allclose(last, third, rtol=1e-6)
    np.testing.assert_allclose(averaged, 0.6 * (0.6 * first + 0.4 * second) + 0.4 * third, rtol=1e-5)


def test_what_is_measured_and_kept_are_the_averaged_weights(blobs: Callable[..., Examples]) -> None:
    examples = blobs(64)
    results = {}
    for averaging in (0.0, 0.9):
        model, validation = classifier(), Rigged((0.1, 0.1), (0.2, 0.2))
        train(
            model,
            examples,
            name="m",
            plan=TrainingPlan(epochs=2, batch_size=32, averaging=averaging),
            objective=standard_objective(),
            seed=1,
            report=lambda _report: None,
            validation=cast("Validation", validation),
        )
        assert all(np.array_equal(*pair) for pair in zip(model.get_weights(), validation.measured[1], strict=True))
        results[averaging] = np.concatenate([array.ravel() for array in model.get_weights()])
    start = np.concatenate([array.ravel() for array in classifier().get_weights()])
    travelled = {averaging: np.linalg.norm(end - start) for averaging, end in results.items()}
    assert 0 < travelled[0.9] < 0.8 * travelled[0.0], "an average lags behind"
