"""What the gate lets through."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_airflow.models.attacks.suite import Stage, SuiteResult
from lepton_airflow.models.comparison import paired
from lepton_airflow.models.evaluation import Comparison, Evaluation, compare
from lepton_airflow.models.gate import judge
from lepton_airflow.models.plan import GatePlan
from lepton_airflow.models.refusals import Refusal

PLAN = GatePlan(minimum_clean_accuracy=0.9, minimum_robust_accuracy=0.6)
DOUBT = Refusal(code="zero-gradients", reason="the loss has no gradient", measured={"without_gradient": 90})


def evaluation(*, clean: int, robust: int, n: int = 100, refusals: tuple[Refusal, ...] = ()) -> Evaluation:
    """Of a model that answers the first examples correctly and keeps the first of those under attack."""
    order = np.arange(n)
    return Evaluation(
        suite=SuiteResult(
            epsilon=0.5,
            stages=(
                Stage(name="clean", kind="none", survivors=order < clean),
                Stage(name="pgd", kind="white-box", parameters={"steps": 40}, survivors=order < robust),
            ),
            adversarial=np.zeros((n, 2), np.float32),
            violations=0,
        ),
        curve={},
        refusals=refusals,
        units=order,
    )


def test_a_model_at_both_thresholds_passes() -> None:
    assert judge(PLAN, evaluation=evaluation(clean=90, robust=60)).passed


@pytest.mark.parametrize(
    ("clean", "robust", "named"), [(89, 60, ["clean"]), (90, 59, ["robust"]), (50, 0, ["clean", "robust"])]
)
def test_each_missed_threshold_is_a_reason(clean: int, robust: int, named: list[str]) -> None:
    verdict = judge(PLAN, evaluation=evaluation(clean=clean, robust=robust))
    assert not verdict.passed
    assert [reason.split()[0] for reason in verdict.reasons] == named
    assert all("below" in reason and "of 100" in reason for reason in verdict.reasons)


def test_a_high_score_that_is_not_believed_does_not_pass() -> None:
    doubted = judge(PLAN, evaluation=evaluation(clean=100, robust=100, refusals=(DOUBT,)))
    assert doubted.reasons == ("zero-gradients: the loss has no gradient",)
    elsewhere = judge(PLAN, evaluation=evaluation(clean=100, robust=100), refusals=(DOUBT,))
    assert not elsewhere.passed


@pytest.mark.parametrize(
    ("clean", "robust", "reasons"),
    [
        (940, 700, []),
        (960, 760, []),
        (920, 700, ["clean"]),
        (940, 640, ["robust"]),
        (900, 600, ["clean", "robust"]),
    ],
)
def test_the_lower_ends_of_the_differences_to_the_champion_count(clean: int, robust: int, reasons: list[str]) -> None:
    """The champion keeps 940 and 700 of 1,000; 20 and 50 may be lost, less what chance could hide."""
    champion, challenger = evaluation(clean=940, robust=700, n=1000), evaluation(clean=clean, robust=robust, n=1000)
    verdict = judge(PLAN, evaluation=challenger, comparison=compare(champion, challenger))
    assert [reason.split()[0] for reason in verdict.reasons] == reasons
    assert all("the champion's" in reason and "95% from" in reason for reason in verdict.reasons)


def test_a_loss_within_the_allowed_one_is_refused_if_chance_could_hide_a_greater() -> None:
    champion, challenger = evaluation(clean=940, robust=700, n=1000), evaluation(clean=930, robust=690, n=1000)
    difference = compare(champion, challenger).clean
    assert difference.mean == pytest.approx(-0.01)
    at_the_end = PLAN.model_copy(update={"allowed_clean_loss": -difference.lower})
    just_above = PLAN.model_copy(update={"allowed_clean_loss": -difference.lower - 1e-9})
    both = compare(champion, challenger)
    assert judge(at_the_end, evaluation=challenger, comparison=both).passed
    assert not judge(just_above, evaluation=challenger, comparison=both).passed


def test_too_few_examples_to_show_that_a_model_is_no_worse_are_said_to_be_too_few() -> None:
    same = evaluation(clean=47, robust=40, n=50)
    (reason,) = judge(
        PLAN.model_copy(update={"allowed_robust_loss": 1.0}), evaluation=same, comparison=compare(same, same)
    ).reasons
    assert "too few to show it" in reason
    assert "0 examples gained and 0 lost of 50" in reason


def test_differences_are_taken_example_by_example() -> None:
    """Two models of one accuracy that err on different examples differ in every error."""
    order = np.arange(100)
    found = Comparison(clean=paired(order >= 10, order < 90, order), robust=paired(order >= 10, order >= 10, order))
    assert (found.clean.mean, found.clean.gained, found.clean.lost) == (0, 10, 10)
    assert found.robust.gained == found.robust.lost == 0
    assert found.clean.lower < found.robust.lower
