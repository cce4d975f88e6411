"""The attack suite: a cascade whose survivors withstood everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lepton_airflow.models.architectures import tabular_classifier
from lepton_airflow.models.attacks.outcome import Outcome
from lepton_airflow.models.attacks.suite import AttackSuite
from lepton_airflow.models.attacks.transfer import Transfer
from lepton_airflow.models.examples import Examples, Features
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.plan import EvaluationPlan
from lepton_airflow.models.prediction import Logits, correct, prediction_of

PLAN = EvaluationPlan(steps=10, restarts=2, apgd_steps=20, square_queries=50)
SPACE = InputSpace.free(norm="linf", names=list("abcde"), mean=np.zeros(5), scale=np.ones(5))


def classifier(*, seed: int, classes: int = 2) -> Any:
    return tabular_classifier(mean=SPACE.mean, scale=SPACE.scale, hidden=(16,), classes=classes, seed=seed)


def answered(model: Any, examples: Examples) -> Examples:
    """The examples with the model's own answers for labels: all are correct."""
    return replace(examples, labels=prediction_of(model)(examples.features).argmax(axis=1).astype(np.int32))


def test_each_attack_is_given_what_survived_those_before_it(blobs: Callable[..., Examples]) -> None:
    examples = blobs(150)
    suite = AttackSuite(classifier(seed=1), space=SPACE, plan=PLAN, seed=1, champion=classifier(seed=2), batch_size=64)
    assert [planned.name for planned in suite.attacks] == ["pgd", "apgd-ce", "apgd-dlr", "square", "transfer"]
    result = suite.run(examples, 0.3)
    assert result.violations == 0
    for earlier, later in zip(result.stages, result.stages[1:], strict=False):
        assert not (later.survivors & ~earlier.survivors).any()
    logits = suite.predict(result.adversarial)
    assert np.array_equal(logits.argmax(axis=1) == examples.labels, result.robust)
    assert 0 < result.robust.sum() < result.clean.sum() < len(examples)


@pytest.mark.parametrize(
    ("classes", "losses"),
    [
        (2, ["cross-entropy", "cross-entropy", "margin"]),
        (3, ["cross-entropy", "cross-entropy", "dlr"]),
        (4, ["cross-entropy", "cross-entropy", "dlr", "targeted-dlr"]),
    ],
)
def test_the_ratio_fits_the_number_of_classes(classes: int, losses: list[str]) -> None:
    suite = AttackSuite(classifier(seed=1, classes=classes), space=SPACE, plan=PLAN, seed=1)
    assert [planned.parameters.get("loss") for planned in suite.attacks if planned.kind == "white-box"] == losses


def test_a_model_without_gradients_falls_to_what_misleads_its_parent(blobs: Callable[..., Examples]) -> None:
    parent = classifier(seed=1)
    examples = answered(parent, blobs(100))
    asked: list[int] = []
    exact = prediction_of(parent)

    def rounded(features: Features) -> Logits:
        asked.append(len(features))
        return np.round(exact(features), 2)

    suite = AttackSuite.black_box(
        rounded, parents={"float parent": parent, "stranger": classifier(seed=2)}, space=SPACE, plan=PLAN, seed=1
    )
    result = suite.run(examples, 0.3)
    by_gradients = AttackSuite(parent, space=SPACE, plan=PLAN, seed=1).run(examples, 0.3)
    assert [stage.name for stage in result.stages] == ["clean", "transfer", "transfer", "square"]
    assert [stage.parameters.get("from") for stage in result.stages[1:3]] == ["float parent", "stranger"]
    assert result.violations == 0
    assert abs(int(result.robust.sum()) - int(by_gradients.robust.sum())) <= 2
    assert 0 < result.robust.sum() < 100
    assert np.array_equal(correct(rounded(result.adversarial), examples.labels), result.robust)


def test_transfer_tries_what_did_not_mislead_the_other_model_too(blobs: Callable[..., Examples]) -> None:
    target = classifier(seed=1)
    examples = answered(target, blobs(100))

    class Stubborn:
        """An attack that thinks it failed, and left examples that mislead the target."""

        def run(self, attacked: Examples, epsilon: float) -> Outcome:
            return replace(strong.run(attacked, epsilon), misled=np.zeros(len(attacked), np.bool_))

    strong = AttackSuite(target, space=SPACE, plan=PLAN, seed=1).attacks[0].attack
    lost = strong.run(examples, 0.3).misled
    assert 0 < lost.sum() < 100
    assert np.array_equal(Transfer([Stubborn()], predict=prediction_of(target)).run(examples, 0.3).misled, lost)


def test_the_same_seed_gives_the_same_result_whatever_came_before(blobs: Callable[..., Examples]) -> None:
    model, examples = classifier(seed=1), blobs(80)
    suite = AttackSuite(model, space=SPACE, plan=PLAN, seed=1)
    suite.run(examples, 0.1)
    first = suite.run(examples, 0.3)
    again = AttackSuite(model, space=SPACE, plan=PLAN, seed=1).run(examples, 0.3)
    assert np.array_equal(first.adversarial, again.adversarial)


def test_predictions_are_the_models_own_for_any_number_of_examples(blobs: Callable[..., Examples]) -> None:
    model = classifier(seed=1, classes=3)
    predict = prediction_of(model, batch_size=16)
    for count in (0, 1, 15, 16, 40):
        features = blobs(40).features[:count]
        expected = model(features, training=False).numpy().reshape(count, 3)
        assert predict(features) == pytest.approx(expected, rel=1e-5, abs=1e-6)
