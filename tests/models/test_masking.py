"""Masked models are refused and honest ones are not: on seeds on which no threshold was set (those were 1, 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest

from lepton_airflow.models.attacks.suite import AttackSuite, Stage, SuiteResult
from lepton_airflow.models.evaluation import Evaluation, evaluate
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.gate import judge
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.masking import Suspect, black_box_excess, covering_radius, diagnose, outside_threat_model
from lepton_airflow.models.plan import EvaluationPlan, GatePlan

SEED = 17
PLAN = EvaluationPlan(epsilons=(0.25, 1.0), steps=20, restarts=2, apgd_steps=30, square_queries=80)
MASKS = (
    "scaled logits",
    "quantised input",
    "random layer",
    "non-differentiable preprocessing",
    "saturated sigmoid",
)


@pytest.fixture(scope="module")
def cancer(corpus: ModuleType) -> Any:
    return corpus.breast_cancer(SEED)


@pytest.fixture(scope="module")
def honest(corpus: ModuleType, cancer: Any) -> dict[str, Any]:
    names = ["standard, dense", "PGD, dense", "TRADES, dense"]
    models: dict[str, Any] = corpus.honest_models(cancer, SEED, epochs=30, names=names)
    return models


@pytest.fixture(scope="module")
def masked(corpus: ModuleType, cancer: Any, honest: dict[str, Any]) -> dict[str, Any]:
    models: dict[str, Any] = corpus.masked_models(cancer, honest["standard, dense"])
    return models


def attacked(case: Any, model: Any, plan: EvaluationPlan = PLAN) -> Evaluation:
    return evaluate(model, case.held_out, space=case.space, epsilon=case.epsilon, plan=plan, seed=SEED)


def codes(evaluation: Evaluation) -> set[str]:
    return {refusal.code for refusal in evaluation.refusals}


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
def test_a_masked_model_is_refused(mask: str, cancer: Any, masked: dict[str, Any]) -> None:
    found = attacked(cancer, masked[mask])
    assert found.clean.share > 0.85, "a mask costs little accuracy"
    expected = {"random layer": "randomness"}.get(mask, "zero-gradients")
    assert expected in codes(found)
    gate = GatePlan(minimum_clean_accuracy=0, minimum_robust_accuracy=0)
    verdict = judge(gate, evaluation=found)
    assert not verdict.passed
    assert all(len(reason) > 60 and any(digit in reason for digit in "0123456789") for reason in verdict.reasons)


@pytest.mark.slow
@pytest.mark.parametrize("position", range(3))
def test_an_honest_model_is_not_refused(position: int, cancer: Any, honest: dict[str, Any]) -> None:
    name, model = list(honest.items())[position]
    assert attacked(cancer, model).refusals == (), name


@pytest.mark.slow
def test_a_convolutional_model_is_told_from_its_mask(corpus: ModuleType) -> None:
    """The whole corpus, on tables and on digits, is the benchmark's: `benchmarks/robustness.py`."""
    case = corpus.digits(SEED)
    case = replace(case, held_out=case.held_out.take(np.arange(len(case.held_out)) % 4 == 0))
    plan = PLAN.model_copy(update={"epsilons": (0.05, 0.2)})
    (model,) = corpus.honest_models(case, SEED, epochs=6, names=["PGD, convolutional"]).values()
    assert attacked(case, model, plan).refusals == ()
    assert {"zero-gradients", "ce-dlr-gap"} <= codes(attacked(case, corpus.masked(case, model, "scaled logits"), plan))


@pytest.mark.slow
def test_a_masked_model_passes_pgd_and_neither_the_suite_nor_the_diagnosis(cancer: Any, masked: dict[str, Any]) -> None:
    """The standard model with logits of 200 times the size: its cross-entropy is flat."""
    found = attacked(cancer, masked["scaled logits"])
    by_pgd = found.curve[cancer.epsilon].share
    assert by_pgd > 0.85, "PGD alone takes it for robust"
    assert found.robust.share < by_pgd - 0.3
    assert {"zero-gradients", "ce-dlr-gap", "not-at-chance-at-large-epsilon"} <= codes(found)
    assert "the logits are so far apart that the loss is flat" in found.refusals[0].reason


def test_probabilities_declared_as_logits_are_refused(cancer: Any, honest: dict[str, Any]) -> None:
    model = honest["PGD, dense"]
    probabilities = keras.Sequential([keras.Input((30,)), model, keras.layers.Softmax()])
    assert "wrong-logits" in codes(attacked(cancer, probabilities))


def test_a_model_that_looks_at_its_neighbours_is_refused(cancer: Any, honest: dict[str, Any]) -> None:
    class Centred(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x - keras.ops.mean(x, axis=0, keepdims=True)

    model = keras.Sequential([keras.Input((30,)), honest["PGD, dense"], Centred()])
    assert "randomness" in codes(attacked(cancer, model))


def test_randomness_is_allowed_where_attacks_average_over_it(cancer: Any, masked: dict[str, Any]) -> None:
    averaged = PLAN.model_copy(update={"expectation_samples": 4, "apgd_steps": 10, "steps": 5})
    found = attacked(cancer, masked["random layer"], averaged)
    assert "randomness" not in codes(found)
    assert found.robust.share < 0.6, "noise does not make the standard model robust"


def test_attacks_that_are_too_weak_are_refused(cancer: Any, honest: dict[str, Any]) -> None:
    """One short step of a search that would need many."""
    weak = PLAN.model_copy(update={"steps": 1, "restarts": 1, "apgd_steps": 10})
    suite = AttackSuite(honest["standard, dense"], space=cancer.space, plan=weak, seed=SEED)
    clean = suite.run(cancer.held_out, 1e-6).robust
    pretended = result_of(cancer.held_out, clean, clean)
    found = diagnosed(cancer, honest["standard, dense"], weak, suite, pretended)
    assert "not-converged" in {refusal.code for refusal in found}


@pytest.mark.parametrize(("ridges", "refused"), [(2, False), (12, True)])
def test_attacks_that_would_go_on_gaining_are_refused_although_they_break_nothing(
    ridges: int, refused: bool, cancer: Any
) -> None:
    """The margin has ridges in every direction, too narrow for the attack's steps, and is never below 9."""

    class Ridges(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            waves = keras.ops.cos(ridges * x / cancer.space.unit.astype("float32"))
            return 10 + keras.ops.mean(waves, axis=1, keepdims=True) * keras.ops.array([[0.0, 1.0]]) - [[10.0, 0.0]]

    model = keras.Sequential([keras.Input((30,)), Ridges()])
    plan = PLAN.model_copy(update={"steps": 5, "restarts": 1, "apgd_steps": 10})
    suite = AttackSuite(model, space=cancer.space, plan=plan, seed=SEED)
    clean = suite.run(cancer.held_out, 1e-6).robust
    found = diagnosed(cancer, model, plan, suite, result_of(cancer.held_out, clean, clean))
    reasons = [refusal.reason for refusal in found if refusal.code == "not-converged"]
    assert ["mean margin falls" in reason for reason in reasons] == [True] * refused


def test_an_accuracy_that_rises_with_epsilon_is_refused(cancer: Any, honest: dict[str, Any]) -> None:
    model = honest["PGD, dense"]
    suite = AttackSuite(model, space=cancer.space, plan=PLAN, seed=SEED)
    result = suite.run(cancer.held_out, cancer.epsilon)
    n = len(cancer.held_out)
    falling = {0.0: result.clean, 0.25: np.arange(n) < 100, 0.5: np.arange(n) < 60}
    rising = {**falling, 1.0: np.arange(n) < 75}
    noise = {**falling, 1.0: np.arange(n) < 62}

    def named(curve: dict[float, Any]) -> set[str]:
        return {refusal.code for refusal in diagnosed(cancer, model, PLAN, suite, result, curve)}

    assert named(rising) == {"rises-with-epsilon"}
    assert named(falling) == named(noise) == set(), "two examples more are chance"


def result_of(examples: Examples, *survivors: Any, kinds: tuple[Any, ...] = ("none", "white-box")) -> SuiteResult:
    names = {"none": "clean", "white-box": "pgd", "black-box": "square", "transfer": "transfer"}
    return SuiteResult(
        epsilon=0.5,
        stages=tuple(
            Stage(name=names[kind], kind=kind, survivors=alive) for kind, alive in zip(kinds, survivors, strict=True)
        ),
        adversarial=examples.features,
        violations=0,
    )


def diagnosed(
    case: Any,
    model: Any,
    plan: EvaluationPlan,
    suite: AttackSuite,
    result: SuiteResult,
    curve: dict[float, Any] | None = None,
) -> tuple[Any, ...]:
    return diagnose(
        Suspect(
            model=model,
            examples=case.held_out,
            space=case.space,
            plan=plan,
            seed=SEED,
            suite=suite,
            result=result,
            curve=curve or {0.0: result.clean},
        )
    )


@pytest.mark.parametrize("kind", ["black-box", "transfer"])
def test_a_black_box_that_beats_the_white_box_is_refused(kind: str, blobs: Callable[..., Examples]) -> None:
    examples = blobs(400)
    order = np.arange(400)

    def refused(broken: int) -> bool:
        result = result_of(examples, order < 380, order < 200, order < 200 - broken, kinds=("none", "white-box", kind))
        return bool(black_box_excess(result, examples))

    assert [refused(broken) for broken in (0, 1, 3, 20, 100)] == [False, False, False, True, True]


def test_examples_outside_the_ball_are_refused(blobs: Callable[..., Examples]) -> None:
    examples = blobs(40)
    result = result_of(examples, np.ones(40, bool), np.ones(40, bool))
    assert outside_threat_model(result) == ()
    (refusal,) = outside_threat_model(replace(result, violations=3))
    assert refusal.code == "outside-threat-model"
    assert "3 of 40" in refusal.reason


@pytest.mark.parametrize(("norm", "radius"), [("linf", 3.0), ("l2", 5.0)])
def test_the_covering_ball_reaches_from_any_example_to_any_other(norm: Any, radius: float) -> None:
    space = InputSpace.free(
        norm=norm, names=("x", "y"), mean=np.zeros(2, np.float32), scale=np.array([1, 2], np.float32)
    )
    corners = np.array([[0, 0], [3 if norm == "l2" else 1, 0], [0, 8 if norm == "l2" else 6]], np.float32)
    examples = Examples(features=corners, labels=np.zeros(3, np.int32), units=np.arange(3), unit_ids=(b"a", b"b", b"c"))
    assert covering_radius(examples, space) == pytest.approx(radius)
