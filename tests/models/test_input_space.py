"""The space of examples: units, bounds and constraints, from data or declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lepton_airflow.errors import InvalidData, SpecError
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.input_space import clipped, declared_space, image_space, require_inside, table_space
from lepton_airflow.models.plan import ImageColumn
from lepton_airflow.models.threat_model import ThreatModel

NAMES = ("age", "visits", "north", "south")


def threat(**fields: Any) -> ThreatModel:
    return ThreatModel.model_validate({"norm": "linf", "epsilon": 0.5, "units": "standard deviations", **fields})


@pytest.fixture
def people() -> Examples:
    draw = np.random.default_rng(1)
    north = draw.integers(0, 2, 50)
    features = np.column_stack([draw.normal(40, 10, 50), draw.integers(0, 9, 50), north, 1 - north])
    return Examples(
        features=features.astype(np.float32),
        labels=(np.arange(50) % 2).astype(np.int32),
        units=np.arange(50),
        unit_ids=tuple(f"{number:03}".encode() for number in range(50)),
    )


def test_one_unit_is_a_standard_deviation_a_given_scale_or_nothing(people: Examples) -> None:
    model = threat(scales={"visits": 2}, constraints={"immutable": ["north", "south"], "integer": ["visits"]})
    space = table_space(people, names=NAMES, threat_model=model, place="people")
    assert space.unit.tolist() == pytest.approx([people.features[:, 0].std(), 2, 0, 0], rel=1e-5)
    assert space.scale[1] == pytest.approx(people.features[:, 1].std(), rel=1e-5), "the model's scale stays the data's"
    assert space.integer.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"constraints": {"integer": ["shoe size"]}}, "shoe size"),
        ({"units": "feature scales", "scales": {"age": 1}}, "visits"),
        ({"units": "pixel range"}, "units"),
    ],
)
def test_a_threat_model_that_does_not_fit_the_table_is_refused(
    people: Examples, fields: dict[str, Any], place: str
) -> None:
    with pytest.raises(SpecError) as refused:
        table_space(people, names=NAMES, threat_model=threat(**fields), place="people")
    assert place in refused.value.place


@pytest.mark.parametrize(
    ("constraints", "column"),
    [
        ({"bounds": {"age": [0, 45]}}, "age"),
        ({"integer": ["age"]}, "age"),
        ({"one_hot": [["visits", "north"]]}, "visits"),
    ],
)
def test_data_that_breaks_a_constraint_before_any_attack_is_refused(
    people: Examples, constraints: dict[str, Any], column: str
) -> None:
    with pytest.raises(InvalidData) as refused:
        table_space(people, names=NAMES, threat_model=threat(constraints=constraints), place="people")
    assert refused.value.place == f"people.{column}"


def test_a_declared_space_knows_nothing_of_the_data(people: Examples) -> None:
    model = threat(
        units="feature scales",
        scales=dict.fromkeys(NAMES, 1.0),
        constraints={"bounds": {"age": [0, 100], "visits": [0, 8], "north": [0, 1], "south": [0, 1]}},
    )
    space = declared_space(names=NAMES, threat_model=model)
    assert space.mean.tolist() == [50, 4, 0.5, 0.5]
    assert space.scale.tolist() == [25, 2, 0.25, 0.25]
    outside = Examples(
        features=people.features + np.array([500, -20, 0, 0], np.float32),
        labels=people.labels,
        units=people.units,
        unit_ids=people.unit_ids,
    )
    with pytest.raises(InvalidData):
        require_inside(outside, space, place="people")
    require_inside(clipped(outside, space), space, place="people")


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({}, "units"),
        (
            {
                "units": "feature scales",
                "scales": dict.fromkeys(NAMES, 1.0),
                "constraints": {"bounds": {"age": [0, 9]}},
            },
            "visits",
        ),
    ],
)
def test_private_training_without_declared_bounds_is_refused(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(SpecError) as refused:
        declared_space(names=NAMES, threat_model=threat(**fields))
    assert place in refused.value.place


def test_an_images_unit_is_its_range_of_values() -> None:
    image = ImageColumn(column="scan", shape=(2, 3, 1), low=-1, high=15)
    space = image_space(image, threat_model=threat(units="pixel range"))
    assert (space.shape, len(space), space.is_image) == ((2, 3, 1), 6, True)
    assert set(space.unit.tolist()) == {16}
    assert space.names[5] == "scan[1,2,0]"
    with pytest.raises(SpecError, match="pixel range"):
        image_space(image, threat_model=threat())


def test_a_feature_that_does_not_vary_has_no_unit(blobs: Callable[..., Examples]) -> None:
    examples = blobs(20)
    examples.features[:, 2] = 7
    with pytest.raises(InvalidData, match="does not vary"):
        table_space(examples, names=tuple("abcde"), threat_model=threat(), place="points")
