"""The gate between a trained model and the champion's place."""

from __future__ import annotations

from dataclasses import dataclass

from lepton_airflow.models.intervals import Proportion
from lepton_airflow.models.plan import GatePlan


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """``reasons`` says why a model was refused; none means that it passed."""

    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.reasons


def judge(plan: GatePlan, *, clean: Proportion, robust: Proportion) -> Verdict:
    """Hold the measured shares (not their intervals) against the thresholds.

    :param clean: correct test examples
    :param robust: test examples that are correct and survive every attack at the threat model's epsilon
    """
    reasons = [
        f"{name} accuracy {measured.share:.3f} ({measured.successes} of {measured.examples}) is below {minimum:g}"
        for name, measured, minimum in (
            ("clean", clean, plan.minimum_clean_accuracy),
            ("robust", robust, plan.minimum_robust_accuracy),
        )
        if measured.share < minimum
    ]
    return Verdict(reasons=tuple(reasons))
