"""The attack suite: a cascade whose survivors withstood everything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lepton_airflow.models.architectures import tabular_classifier
from lepton_airflow.models.attacks.suite import AttackSuite
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.plan import EvaluationPlan

PLAN = EvaluationPlan(steps=10, restarts=2, apgd_steps=20, square_queries=50)


def test_each_attack_is_given_what_survived_those_before_it(blobs: Callable[..., Examples]) -> None:
    examples = blobs(150)
    ones = np.ones(5, np.float32)
    space = InputSpace.free(norm="linf", names=list("abcde"), mean=0 * ones, scale=ones)
    model, champion = (
        tabular_classifier(mean=0 * ones, scale=ones, hidden=(16,), classes=2, seed=seed) for seed in (1, 2)
    )
    suite = AttackSuite(model, space=space, plan=PLAN, seed=1, champion=champion, batch_size=64)
    result = suite.run(examples, 0.3)
    assert result.violations == 0
    for earlier, later in zip(result.stages, result.stages[1:], strict=False):
        assert not (later.survivors & ~earlier.survivors).any()
    logits = suite.predict(result.adversarial)
    assert np.array_equal(logits.argmax(axis=1) == examples.labels, result.robust)
    assert 0 < result.robust.sum() < result.clean.sum() < len(examples)
