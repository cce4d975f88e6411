"""A student learns its teacher's answers, softened, and to keep them under attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from lepton_airflow.models.architectures import tabular_classifier
from lepton_airflow.models.attacks.pgd import ProjectedGradientDescent
from lepton_airflow.models.distillation import distillation_objective
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.objectives import pgd_objective
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import TrainingPlan
from lepton_airflow.models.training import train

ZERO, ONE = np.zeros(5, np.float32), np.ones(5, np.float32)
PERTURBATION = Perturbation(InputSpace.free(norm="linf", names=[f"f{n}" for n in range(5)], mean=ZERO, scale=ONE))
PLAN = TrainingPlan(epochs=15, batch_size=64, learning_rate=0.01, steps=4)


def classifier(seed: int, *, hidden: tuple[int, ...] = (16,)) -> Any:
    return tabular_classifier(mean=ZERO, scale=ONE, hidden=hidden, classes=2, seed=seed)


def fit(model: Any, examples: Examples, objective: Any) -> Any:
    train(model, examples, name="m", plan=PLAN, objective=objective, seed=0, report=lambda _: None)
    return model


def distilled(teacher: Any, examples: Examples, *, epsilon: float, **options: float) -> Any:
    objective = distillation_objective(
        teacher, plan=PLAN, perturbation=PERTURBATION, epsilon=epsilon, seed=1, **options
    )
    return fit(classifier(9), examples, objective)


def probabilities(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def test_without_an_attack_the_loss_is_what_the_formula_says(blobs: Callable[..., Examples]) -> None:
    examples, teacher, student = blobs(32), classifier(1), classifier(2)
    objective = distillation_objective(
        teacher, plan=PLAN, perturbation=PERTURBATION, epsilon=0.0, seed=1, temperature=3.0, teacher_weight=0.7
    )
    losses, logits = objective(student, tf.constant(examples.features), tf.constant(examples.labels))
    taught, learned = (model(examples.features).numpy().astype(np.float64) for model in (teacher, student))
    p, q = probabilities(taught / 3), probabilities(learned / 3)
    divergence = (p * np.log(p / q)).sum(axis=1)
    own = -np.log(probabilities(learned)[np.arange(32), examples.labels])
    np.testing.assert_allclose(losses, 0.7 * 9 * divergence + 0.3 * own, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(logits, learned, rtol=1e-4, atol=1e-5)


def test_an_attack_raises_the_loss_of_the_labels_and_training_sees_it(blobs: Callable[..., Examples]) -> None:
    examples, teacher, student = blobs(64), classifier(1), classifier(2)
    x, labels = tf.constant(examples.features), tf.constant(examples.labels)

    def answers(epsilon: float) -> Any:
        objective = distillation_objective(teacher, plan=PLAN, perturbation=PERTURBATION, epsilon=epsilon, seed=1)
        return objective(student, x, labels)[1]

    entropy = [
        float(tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, answers(radius))))
        for radius in (0.0, 0.5)
    ]
    assert entropy[1] > entropy[0] + 0.1


def test_a_student_learns_from_its_teacher_and_not_from_the_labels(blobs: Callable[..., Examples]) -> None:
    examples = blobs(400)
    teacher = fit(classifier(1), examples, pgd_objective(perturbation=PERTURBATION, epsilon=0.1, steps=2, seed=0))
    before = teacher.get_weights()
    wrong = replace(examples, labels=1 - examples.labels)
    student = distilled(teacher, wrong, epsilon=0.0, teacher_weight=1.0)
    agreement = np.mean(np.argmax(student(examples.features), 1) == np.argmax(teacher(examples.features), 1))
    assert agreement > 0.95
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_distilling_under_attack_hands_down_the_robustness_of_the_teacher() -> None:
    """On features of which one is a faithful but fragile copy of the label, as in Tsipras et al. 2019."""
    draw = np.random.default_rng(3)
    labels = np.arange(600) % 2
    sign = (2 * labels - 1)[:, np.newaxis]
    strong = sign * np.where(draw.random((600, 1)) < 0.9, 1.0, -1.0)
    weak = sign * 0.3 + 0.1 * draw.normal(size=(600, 4))
    examples = Examples(
        features=np.concatenate([strong, weak], axis=1).astype(np.float32),
        labels=labels.astype(np.int32),
        units=np.arange(600),
        unit_ids=tuple(f"{unit:06}".encode() for unit in range(600)),
    )
    teacher = fit(classifier(1), examples, pgd_objective(perturbation=PERTURBATION, epsilon=0.6, steps=4, seed=0))

    def robust(model: Any) -> float:
        attack = ProjectedGradientDescent(
            model, perturbation=PERTURBATION, steps=10, restarts=1, batch_size=200, seed=4
        )
        return float(np.mean(attack.survivors(examples, 0.6)))

    plain, ours = (distilled(teacher, examples, epsilon=radius) for radius in (0.0, 0.6))
    assert robust(teacher) > 0.85
    assert robust(ours) > 0.85
    assert robust(plain) < robust(ours) - 0.1
