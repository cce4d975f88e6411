"""diffprivlib's small private models, where their bounds hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from lepton_airflow.models import baselines
from lepton_airflow.models.baselines import Baseline, baseline_accuracy
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.input_space import InputSpace


@pytest.fixture
def space() -> InputSpace:
    free = InputSpace.free(norm="linf", names=list("abcde"), mean=np.zeros(5), scale=np.ones(5))
    return replace(free, low=np.full(5, -3, np.float32), high=np.full(5, 3, np.float32))


@pytest.mark.parametrize("kind", ["linear_regression", "gaussian_naive_bayes"])
def test_a_baseline_learns_when_much_is_spent(
    kind: Baseline, blobs: Callable[..., Examples], space: InputSpace
) -> None:
    train, test = blobs(600), blobs(300, seed=1)
    rich = baseline_accuracy(kind, train, test, space=space, classes=2, epsilon=Decimal(1000))
    assert rich.share > 0.83
    assert rich.examples == 300


def test_one_row_of_each_unit_is_learned_from(
    blobs: Callable[..., Examples], space: InputSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        baselines, "_linear_regression", lambda x, labels, unseen, **_rest: seen.append(len(x)) or labels
    )
    train = replace(blobs(100), units=np.arange(100) // 4)
    with pytest.raises(ValueError, match="broadcast"):
        baseline_accuracy("linear_regression", train, blobs(30), space=space, classes=2, epsilon=Decimal(1))
    assert seen == [25]


def test_features_stay_within_the_declared_bounds(space: InputSpace) -> None:
    far = np.array([[-9, -3, 0, 3, 9]], np.float32)
    assert baselines._scaled(far, space).tolist() == [[-1, -1, 0, 1, 1]]


def test_linear_regression_is_called_as_its_bound_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    # diffprivlib takes the sensitivity of a square from the lower bound alone, and does not pay for several targets.
    calls: list[dict[str, Any]] = []
    real = baselines._library().LinearRegression

    class Recorded(real):  # type: ignore[misc, valid-type]
        def fit(self, x: Any, y: Any) -> Any:
            calls.append({**self.get_params(), "x": x, "y": y})
            return super().fit(x, y)

    monkeypatch.setattr(baselines._library(), "LinearRegression", Recorded)
    x = np.random.default_rng(1).uniform(-1, 1, (90, 2))
    baselines._linear_regression(x, np.arange(90, dtype=np.int32) % 3, x, classes=3, epsilon=3.0)
    assert [call["epsilon"] for call in calls] == [1.0, 1.0, 1.0]
    for call in calls:
        assert (call["bounds_X"], call["bounds_y"], call["fit_intercept"]) == ((-1.0, 1.0), (-1.0, 1.0), False)
        assert np.abs(call["x"]).max() <= 1
        assert call["y"].ndim == 1
