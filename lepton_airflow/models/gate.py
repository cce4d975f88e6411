"""The gate between a trained model and the champion's place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lepton_airflow.models.comparison import Difference
from lepton_airflow.models.plan import GatePlan
from lepton_airflow.models.refusals import Refusal

if TYPE_CHECKING:
    from lepton_airflow.models.evaluation import Comparison, Evaluation


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """``reasons`` says why a model was refused; none means that it passed."""

    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.reasons


def judge(
    plan: GatePlan,
    *,
    evaluation: Evaluation,
    refusals: Sequence[Refusal] = (),
    comparison: Comparison | None = None,
) -> Verdict:
    """Hold a model against the thresholds and against the champion, and refuse a measurement that is not to be believed.

    The measured shares (not their intervals) must reach the minima; against the champion the lower ends of the differences'
    intervals count.

    :param evaluation: of the model on the test examples, with what speaks against it
    :param refusals: further ones, of the splits and the model's file
    :param comparison: with the champion, if there is one
    """
    return Verdict(
        reasons=(
            *_below_minimum(plan, evaluation),
            *(f"{refusal.code}: {refusal.reason}" for refusal in (*evaluation.refusals, *refusals)),
            *(_worse_than_champion(plan, comparison) if comparison else ()),
        )
    )


def _below_minimum(plan: GatePlan, evaluation: Evaluation) -> Iterator[str]:
    for name, measured, minimum in (
        ("clean", evaluation.clean, plan.minimum_clean_accuracy),
        ("robust", evaluation.robust, plan.minimum_robust_accuracy),
    ):
        if measured.share < minimum:
            yield f"{name} accuracy {measured.share:.3f} ({measured.successes} of {measured.examples}) is below {minimum:g}"


def _worse_than_champion(plan: GatePlan, comparison: Comparison) -> Iterator[str]:
    for name, difference, allowed in (
        ("clean", comparison.clean, plan.allowed_clean_loss),
        ("robust", comparison.robust, plan.allowed_robust_loss),
    ):
        if difference.lower < -allowed:
            yield (
                f"{name} accuracy may be {-difference.lower:.3f} below the champion's, more than the allowed {allowed:g}: "
                f"{_told(difference)}"
            )


def _told(difference: Difference) -> str:
    """The difference in words; where the models hardly differ, the test examples are too few to show it."""
    text = (
        f"{difference.gained} examples gained and {difference.lost} lost of {difference.n}, a difference of "
        f"{difference.mean:+.3f} (95% from {difference.lower:+.3f} to {difference.upper:+.3f})"
    )
    if difference.lost <= difference.gained:
        text += "; the model is no worse on these examples, but they are too few to show it"
    return text
