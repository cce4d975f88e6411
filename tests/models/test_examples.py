"""From a table to examples, and from examples to splits."""

from __future__ import annotations

import decimal
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lepton_airflow.errors import EmptyTable, InvalidData, LeptonError, UnsupportedType
from lepton_airflow.models.examples import (
    ExampleReader,
    Examples,
    examples_from_arrow,
    require_classes,
    require_disjoint,
    split_by_unit,
)
from lepton_airflow.models.plan import ImageColumn

GOOD: dict[str, Any] = {
    "size": [1.0, 2.0, 3.0, 4.0],
    "weight": [1, 2, 3, 4],
    "label": ["no", "yes", "no", "yes"],
    "person": ["a", "b", "c", "d"],
}


def build(columns: dict[str, Any], classes: tuple[str | int | bool, ...] = ("no", "yes")) -> Examples:
    return examples_from_arrow(
        pa.table(columns),
        dataset="clinic.visits",
        features=("size", "weight"),
        label="label",
        classes=classes,
        unit="person",
    )


def test_columns_become_features_labels_and_units() -> None:
    examples = build(GOOD)
    assert examples.features.tolist() == [[1, 1], [2, 2], [3, 3], [4, 4]]
    assert examples.labels.tolist() == [0, 1, 0, 1]
    assert examples.unit_ids == (b"a", b"b", b"c", b"d")
    assert (examples.features.dtype, examples.labels.dtype) == (np.float32, np.int32)


def test_rows_that_repeat_an_example_count_once(visits: pa.Table, examples: Examples) -> None:
    assert visits.num_rows > 1000
    assert len(examples) == examples.unit_count == 569


def test_a_unit_keeps_all_its_distinct_examples() -> None:
    examples = build(GOOD | {"person": ["a", "a", "b", "b"]})
    assert len(examples) == 4
    assert examples.unit_count == 2


def test_the_order_of_the_rows_changes_nothing(visits: pa.Table, features: tuple[str, ...], examples: Examples) -> None:
    shuffled = visits.take(np.random.default_rng(3).permutation(visits.num_rows))
    again = examples_from_arrow(
        shuffled,
        dataset="clinic.visits",
        features=features,
        label="diagnosis",
        classes=("benign", "malignant"),
        unit="patient_id",
    )
    assert np.array_equal(again.features, examples.features)
    assert again.digest() == examples.digest()


def test_the_digest_sees_every_part() -> None:
    digests = {
        build(GOOD).digest(),
        build(GOOD | {"size": [1.0, 2.0, 3.0, 5.0]}).digest(),
        build(GOOD | {"label": ["no", "yes", "no", "no"]}).digest(),
        build(GOOD | {"person": ["a", "b", "c", "e"]}).digest(),
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (pa.array([0, 1, 0, 1], pa.int16()), (0, 1)),
        (pa.array([False, True, False, True]), (False, True)),
        (pa.array(["no", "yes", "no", "yes"], pa.large_string()), ("no", "yes")),
    ],
)
def test_labels_may_be_strings_integers_or_booleans(values: pa.Array, classes: tuple[Any, ...]) -> None:
    assert build(GOOD | {"label": values}, classes).labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "units",
    [pa.array([7, 8, 9, 10]), pa.array([b"\x01\x02", b"\x01\x03", b"a", b"b"]), pa.array([7, 8, 9, 10], pa.date32())],
)
def test_units_may_be_any_identifier(units: pa.Array) -> None:
    assert build(GOOD | {"person": units}).unit_count == 4


def test_decimals_and_booleans_are_numbers() -> None:
    columns = GOOD | {"size": [decimal.Decimal("1.5")] * 4, "weight": [True, False, True, False]}
    assert build(columns).features[:, 0].tolist() == [1.5] * 4


BAD: list[tuple[dict[str, Any], tuple[Any, ...], type[LeptonError], str]] = [
    ({"size": [1.0, float("nan"), 3.0, 4.0]}, ("no", "yes"), InvalidData, "clinic.visits.size"),
    ({"size": [1.0, float("inf"), 3.0, 4.0]}, ("no", "yes"), InvalidData, "clinic.visits.size"),
    ({"size": [1.0, 1e300, 3.0, 4.0]}, ("no", "yes"), InvalidData, "single precision"),
    ({"size": [1.0, None, 3.0, 4.0]}, ("no", "yes"), InvalidData, "clinic.visits.size"),
    ({"size": ["1", "2", "3", "4"]}, ("no", "yes"), UnsupportedType, "clinic.visits.size"),
    ({"label": ["no"] * 4}, ("no", "yes"), InvalidData, "same class"),
    ({"label": ["no", "yes", "no", "perhaps"]}, ("no", "yes"), InvalidData, "1 labels"),
    ({"label": ["no", "yes", "no", None]}, ("no", "yes"), InvalidData, "clinic.visits.label"),
    ({"label": [0, 1, 0, 1]}, ("no", "yes"), UnsupportedType, "clinic.visits.label"),
    ({"label": [0, 1, 0, 1]}, (False, True), UnsupportedType, "clinic.visits.label"),
    ({"label": pa.array([0, 1, 0, 1], pa.int8())}, (0, 1000), UnsupportedType, "clinic.visits.label"),
    ({"person": ["a", "b", None, "d"]}, ("no", "yes"), InvalidData, "clinic.visits.person"),
    ({"person": [1.0, 2.0, 3.0, 4.0]}, ("no", "yes"), UnsupportedType, "clinic.visits.person"),
    ({"person": [[1], [2], [3], [4]]}, ("no", "yes"), UnsupportedType, "clinic.visits.person"),
]


@pytest.mark.parametrize(("changes", "classes", "error", "names"), BAD)
def test_bad_data_is_a_typed_error_that_names_the_column_and_no_value(
    changes: dict[str, Any], classes: tuple[Any, ...], error: type[LeptonError], names: str
) -> None:
    with pytest.raises(error) as caught:
        build(GOOD | changes, classes)
    assert names in str(caught.value)
    assert "perhaps" not in str(caught.value)
    assert caught.value.remedy


def test_no_rows_is_an_empty_table() -> None:
    with pytest.raises(EmptyTable, match=r"clinic\.visits"):
        examples_from_arrow(
            pa.table(GOOD).slice(0, 0),
            dataset="clinic.visits",
            features=("size", "weight"),
            label="label",
            classes=("no", "yes"),
            unit="person",
        )


def several_examples_a_unit(units: int) -> Examples:
    count = 3 * units
    return Examples(
        features=np.arange(count, dtype=np.float32)[:, None],
        labels=(np.arange(count) % 2).astype(np.int32),
        units=np.repeat(np.arange(units), 3),
        unit_ids=tuple(f"person {unit:05}".encode() for unit in range(units)),
    )


def test_no_unit_is_on_both_sides_of_a_split() -> None:
    examples = several_examples_a_unit(1000)
    train, test = split_by_unit(examples, test_fraction=0.3, key=secrets.token_bytes(32))
    assert not set(train.units) & set(test.units)
    require_disjoint(train, test, place="clinic.visits")
    assert len(train) + len(test) == len(examples)
    assert 0.2 < test.unit_count / 1000 < 0.4


def test_a_split_that_shares_a_unit_is_refused() -> None:
    examples = several_examples_a_unit(10)
    first = np.arange(30) < 10  # ends in the middle of the fourth unit
    with pytest.raises(InvalidData, match="1 privacy units are in the training split and in the test split"):
        require_disjoint(examples.take(first), examples.take(~first), place="clinic.visits")


def test_a_unit_stays_on_its_side_when_others_come() -> None:
    key = secrets.token_bytes(32)
    few, many = several_examples_a_unit(200), several_examples_a_unit(1000)
    _, test_of_few = split_by_unit(few, test_fraction=0.3, key=key)
    _, test_of_many = split_by_unit(many, test_fraction=0.3, key=key)
    assert set(test_of_few.units) == {unit for unit in test_of_many.units if unit < 200}


def test_another_key_makes_another_split() -> None:
    examples = several_examples_a_unit(200)
    sides = [set(split_by_unit(examples, test_fraction=0.3, key=bytes([key] * 32))[1].units) for key in (1, 2)]
    assert sides[0] != sides[1]


def test_too_few_units_to_split_is_refused(blobs: Callable[..., Examples]) -> None:
    with pytest.raises(EmptyTable, match="1 privacy units are too few"):
        split_by_unit(blobs(1), test_fraction=0.3, key=bytes(32))


def test_a_declared_class_without_an_example_is_named(blobs: Callable[..., Examples]) -> None:
    with pytest.raises(InvalidData, match="'rare'"):
        require_classes(blobs(10), ("no", "yes", "rare"), place="clinic.visits.label")


def image_table(pixels: list[Any], kind: pa.DataType) -> pa.Table:
    return pa.table(
        {
            "picture": pa.array(pixels, kind),
            "label": ["no", "yes", "no"],
            "person": ["a", "b", "c"],
        }
    )


def images(table: pa.Table) -> Examples:
    return examples_from_arrow(
        table,
        dataset="clinic.pictures",
        image=ImageColumn(column="picture", shape=(2, 1, 2), high=255),
        label="label",
        classes=("no", "yes"),
        unit="person",
    )


@pytest.mark.parametrize("kind", [pa.list_(pa.int16()), pa.large_list(pa.float64()), pa.binary(), pa.large_binary()])
def test_an_image_is_a_row_of_its_pixels(kind: pa.DataType) -> None:
    rows = [[0, 1, 2, 3], [255, 4, 5, 6], [7, 8, 9, 10]]
    table = image_table([bytes(row) for row in rows] if "binary" in str(kind) else rows, kind)
    assert images(table).features.tolist() == rows
    assert images(table.slice(1)).features.tolist() == rows[1:]


@pytest.mark.parametrize(
    ("pixels", "kind", "error", "names"),
    [
        ([[0, 1, 2, 3], [0, 1, 2], [0] * 5], pa.list_(pa.int16()), InvalidData, "2 images do not have 4 numbers"),
        ([b"1234", b"1234", b"123"], pa.binary(), InvalidData, "1 images do not have 4 numbers"),
        ([[0, 1, 2, 3], None, [0] * 4], pa.list_(pa.int16()), InvalidData, "1 values are null"),
        ([[0, 1, None, 3], [0] * 4, [0] * 4], pa.list_(pa.int16()), InvalidData, "1 values are null"),
        ([[0.0, float("nan"), 2, 3], [0] * 4, [0] * 4], pa.list_(pa.float64()), InvalidData, "1 values are NaN"),
        ([["a"] * 4] * 3, pa.list_(pa.string()), UnsupportedType, "must be a number"),
        ([1.0, 2.0, 3.0], pa.float64(), UnsupportedType, "array of numbers or bytes"),
    ],
)
def test_a_bad_image_is_a_typed_error_that_names_the_column(
    pixels: list[Any], kind: pa.DataType, error: type[LeptonError], names: str
) -> None:
    with pytest.raises(error, match=r"clinic\.pictures\.picture") as caught:
        images(image_table(pixels, kind))
    assert names in str(caught.value)


def test_how_a_table_is_cut_into_batches_changes_nothing(visits: pa.Table, examples: Examples) -> None:
    features = visits.column_names[:30]
    for size in (1, 100, 5000):
        reader = ExampleReader(
            dataset="clinic.visits",
            features=features,
            label="diagnosis",
            classes=("benign", "malignant"),
            unit="patient_id",
        )
        for batch in visits.to_batches(max_chunksize=size):
            reader.add(batch)
        assert reader.rows == visits.num_rows
        assert reader.finish().digest() == examples.digest()


def test_what_is_wrong_is_counted_over_all_batches() -> None:
    table = pa.table(GOOD | {"weight": [float("nan"), 2.0, float("inf"), 4.0]})
    reader = ExampleReader(
        dataset="clinic.visits", features=("size", "weight"), label="label", classes=("no", "yes"), unit="person"
    )
    for batch in table.to_batches(max_chunksize=1):
        reader.add(batch)
    with pytest.raises(InvalidData, match=r"clinic\.visits\.weight: 2 values are NaN"):
        reader.finish()


def test_zero_and_minus_zero_are_one_example() -> None:
    same = {"size": [0.0, -0.0, 1.0], "weight": [1, 1, 1], "label": ["no", "no", "yes"], "person": ["a", "a", "a"]}
    assert build(same).features.tolist() == [[0, 1], [1, 1]]


def test_reading_needs_little_more_than_the_examples_themselves() -> None:
    import tracemalloc

    rows, width = 20_000, 64
    draw = np.random.default_rng(3)
    tracemalloc.start()
    reader = ExampleReader(
        dataset="clinic.pictures",
        image=ImageColumn(column="picture", shape=(8, 8, 1), high=255),
        label="label",
        classes=(0, 1),
        unit="person",
    )
    for start in range(0, rows, 1000):
        reader.add(
            pa.record_batch(
                {
                    "picture": [row.tobytes() for row in draw.integers(0, 255, (1000, width), np.uint8)],
                    "label": pa.array(np.arange(1000) % 2),
                    "person": pa.array(np.arange(start, start + 1000)),
                }
            )
        )
    examples = reader.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(examples) == rows
    assert peak < 2.8 * examples.features.nbytes
