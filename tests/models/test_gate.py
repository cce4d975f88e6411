"""What the gate lets through."""

from __future__ import annotations

import pytest

from lepton_airflow.models.gate import judge
from lepton_airflow.models.intervals import Proportion
from lepton_airflow.models.plan import GatePlan

PLAN = GatePlan(minimum_clean_accuracy=0.9, minimum_robust_accuracy=0.6)


def share(successes: int) -> Proportion:
    return Proportion(successes=successes, examples=100, units=100, effective=100)


def test_a_model_at_both_thresholds_passes() -> None:
    assert judge(PLAN, clean=share(90), robust=share(60)).passed


@pytest.mark.parametrize(
    ("clean", "robust", "named"), [(89, 60, ["clean"]), (90, 59, ["robust"]), (50, 0, ["clean", "robust"])]
)
def test_each_missed_threshold_is_a_reason(clean: int, robust: int, named: list[str]) -> None:
    verdict = judge(PLAN, clean=share(clean), robust=share(robust))
    assert not verdict.passed
    assert [reason.split()[0] for reason in verdict.reasons] == named
    assert all("below" in reason and "of 100" in reason for reason in verdict.reasons)
