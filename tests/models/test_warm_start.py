"""A training that begins with the champion's weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lepton_airflow.errors import InvalidData
from lepton_airflow.models.architectures import classifier_for, tabular_classifier
from lepton_airflow.models.input_space import image_space
from lepton_airflow.models.plan import ImageColumn, TrainingPlan
from lepton_airflow.models.threat_model import ThreatModel
from lepton_airflow.models.warm_start import start_from

NAMES = ("age", "dose", "weight")
CLASSES = ("benign", "malignant")


def network(seed: int, *, mean: float = 0.0, width: int = 4) -> Any:
    ones = np.ones(3, np.float32)
    return tabular_classifier(mean=mean * ones, scale=ones, hidden=(width,), classes=2, seed=seed)


def begin(model: Any, champion: Any, **other: Any) -> None:
    facts: dict[str, Any] = {
        "features": NAMES,
        "champion_features": list(NAMES),
        "classes": CLASSES,
        "champion_classes": list(CLASSES),
        **other,
    }
    start_from(model, champion, **facts, place="/models/diagnosis")


def test_weights_are_the_champions_and_the_scaling_is_the_new_splits() -> None:
    champion, model = network(1, mean=5.0), network(2, mean=7.0)
    begin(model, champion)
    standardised = np.array([[1.0, -1.0, 0.5]], np.float32)
    np.testing.assert_allclose(model(standardised + 7), champion(standardised + 5), rtol=1e-6)
    champion.get_layer("logits").set_weights([0 * array for array in champion.get_layer("logits").get_weights()])
    assert np.abs(model(standardised)).max() > 0, "the weights are copied, not shared"


def test_image_models_begin_with_the_champions_weights_too() -> None:
    space = image_space(
        ImageColumn(column="p", shape=(4, 4, 1), high=16),
        threat_model=ThreatModel(norm="linf", epsilon=0.1, units="pixel range"),
    )
    champion, model = (
        classifier_for(space, plan=TrainingPlan(filters=2, hidden=(3,)), classes=2, seed=seed) for seed in (1, 2)
    )
    begin(model, champion)
    np.testing.assert_array_equal(model(np.ones((1, 16))), champion(np.ones((1, 16))))


@pytest.mark.parametrize(
    ("other", "champion", "rule"),
    [
        ({"champion_features": ["dose", "age", "weight"]}, network(1), "other features"),
        ({"champion_features": ["age", "dose"]}, network(1), "other features"),
        ({"champion_classes": ["malignant", "benign"]}, network(1), "other classes"),
        ({"champion_classes": [False, True], "classes": [0, 1]}, network(1), "other classes"),
        ({}, network(1, width=5), "another form: hidden_0, logits"),
    ],
)
def test_a_champion_that_does_not_fit_is_refused_and_nothing_is_copied(
    other: dict[str, Any], champion: Any, rule: str
) -> None:
    model = network(2)
    before = model.get_weights()
    with pytest.raises(InvalidData, match=rf"/models/diagnosis: The champion.*{rule}"):
        begin(model, champion, **other)
    assert all(np.array_equal(left, right) for left, right in zip(before, model.get_weights(), strict=True))
