"""Labelled examples of a table, checked, and split by privacy unit."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lepton_airflow.errors import EmptyTable, InvalidData, UnsupportedType

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]

_LABEL_TYPES = {
    bool: ("boolean", pa.types.is_boolean),
    int: ("integer", pa.types.is_integer),
    str: ("string", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind)),
}


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Distinct examples, in an order that depends on their values only.

    :param features: [n, d], raw units, finite
    :param labels: [n], positions in the declared classes
    :param units: [n], positions in ``unit_ids``
    :param unit_ids: the privacy units as bytes, sorted
    """

    features: Features
    labels: Labels
    units: npt.NDArray[np.int64]
    unit_ids: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def unit_count(self) -> int:
        """How many privacy units these examples belong to."""
        return len(np.unique(self.units))

    def take(self, chosen: npt.NDArray[np.bool_]) -> Examples:
        return Examples(
            features=self.features[chosen],
            labels=self.labels[chosen],
            units=self.units[chosen],
            unit_ids=self.unit_ids,
        )

    def digest(self) -> str:
        """SHA-256 of the examples and their units, however the table's rows were ordered or repeated."""
        state = hashlib.sha256(b"lepton.examples/1")
        state.update(np.array(self.features.shape, "<u8").tobytes())
        state.update(self.features.astype("<f4").tobytes())
        state.update(self.labels.astype("<i4").tobytes())
        for unit in self.units:
            identity = self.unit_ids[unit]
            state.update(len(identity).to_bytes(8, "big") + identity)
        return f"sha256:{state.hexdigest()}"


def examples_from_arrow(
    table: pa.Table,
    *,
    dataset: str,
    features: Sequence[str],
    label: str,
    classes: Sequence[str | int | bool],
    unit: str,
) -> Examples:
    """Check a table and turn it into examples.

    A row that repeats another's unit, features and label adds nothing and is dropped: somebody measured once who came
    ten times is one example, not ten.

    :param table: the columns ``features`` (numbers), ``label`` and ``unit``
    :param dataset: the table's name, for errors
    :param classes: the declared labels
    :param unit: the privacy unit; it may be a deterministic ciphertext
    :raises EmptyTable: there are no rows
    :raises UnsupportedType: a feature is no number, the label is not of the classes' type, the unit cannot be compared
    :raises InvalidData: nulls, NaN, infinite or too large features, labels that are not declared, one class only
    """
    if table.num_rows == 0:
        raise EmptyTable("The table has no rows.", place=dataset, remedy="Check that the table before it was written.")
    columns = [_feature(table[name], place=f"{dataset}.{name}") for name in features]
    labels = _labels(table[label], classes, place=f"{dataset}.{label}")
    units, unit_ids = _units(table[unit], place=f"{dataset}.{unit}")
    # Positions of units are exact in float64 up to 2^53, so that one sort finds the repeated rows.
    rows = np.unique(np.column_stack([units, labels, *columns]).astype(np.float64), axis=0)
    return Examples(
        features=rows[:, 2:].astype(np.float32),
        labels=rows[:, 1].astype(np.int32),
        units=rows[:, 0].astype(np.int64),
        unit_ids=unit_ids,
    )


def split_by_unit(examples: Examples, *, test_fraction: float, key: bytes) -> tuple[Examples, Examples]:
    """Split into training and test examples so that all examples of a unit are on one side.

    A unit is held out when HMAC-SHA-256 of its id, as a fraction of 2^64, is below ``test_fraction``: under the same
    key a unit stays on its side whatever other units come or go, and who does not know the key cannot tell which side
    a person is on.

    :param key: 32 random bytes
    :returns: training examples, test examples
    :raises EmptyTable: one side is empty
    """
    held_out = np.array([_fraction(key, identity) < test_fraction for identity in examples.unit_ids])
    in_test = held_out[examples.units]
    train, test = examples.take(~in_test), examples.take(in_test)
    if not len(train) or not len(test):
        raise EmptyTable(
            f"{len(examples.unit_ids)} privacy units are too few to be split into training and test.",
            place="evaluation.test_fraction",
            remedy="Train on more units, or hold out another share of them.",
        )
    return train, test


def require_disjoint(train: Examples, test: Examples, *, place: str) -> None:
    """Refuse splits that share a unit: what was learned by heart would count as understood.

    :raises InvalidData: naming how many units are on both sides
    """
    shared = {train.unit_ids[unit] for unit in np.unique(train.units)} & {
        test.unit_ids[unit] for unit in np.unique(test.units)
    }
    if shared:
        raise InvalidData(
            f"{len(shared)} privacy units are in the training split and in the test split.",
            place=place,
            remedy="Split by privacy unit.",
        )


def require_classes(examples: Examples, classes: Sequence[str | int | bool], *, place: str) -> None:
    """Refuse examples in which a declared class does not occur.

    :raises InvalidData: naming the class
    """
    present = np.unique(examples.labels)
    absent = [repr(name) for position, name in enumerate(classes) if position not in present]
    if absent:
        raise InvalidData(
            f"No example has the class {', '.join(absent)}.",
            place=place,
            remedy="Train on data that hold every declared class, or declare fewer classes.",
        )


def _fraction(key: bytes, identity: bytes) -> float:
    return int.from_bytes(hmac.digest(key, identity, "sha256")[:8], "big") / 2**64


def _feature(column: pa.ChunkedArray, *, place: str) -> npt.NDArray[np.float64]:
    kind = column.type
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    if not any(is_kind(kind) for is_kind in numeric):
        raise UnsupportedType(
            f"A feature must be a number, this column is {kind}.", place=place, remedy="Leave it out, or encode it."
        )
    _require_no_nulls(column, place=place)
    values: npt.NDArray[np.float64] = pc.cast(column, pa.float64(), safe=False).to_numpy().astype(np.float64)
    with np.errstate(over="ignore"):
        unusable = int(np.count_nonzero(~np.isfinite(values.astype(np.float32))))
    if unusable:
        raise InvalidData(
            f"{unusable} values are NaN, infinite or beyond single precision.",
            place=place,
            remedy="Clean the column before training.",
        )
    return values


def _labels(column: pa.ChunkedArray, classes: Sequence[str | int | bool], *, place: str) -> npt.NDArray[np.int32]:
    name, is_type = _LABEL_TYPES[type(classes[0])]
    if not is_type(column.type):
        raise UnsupportedType(
            f"The declared classes are {name} values, this column is {column.type}.",
            place=place,
            remedy="Declare the classes as the column holds them.",
        )
    _require_no_nulls(column, place=place)
    try:
        declared = pa.array(classes, type=column.type)
    except (pa.ArrowInvalid, OverflowError):
        raise UnsupportedType(
            f"A declared class does not fit the column's type {column.type}.",
            place=place,
            remedy="Declare the classes as the column holds them.",
        ) from None
    positions = pc.index_in(column, value_set=declared)
    if positions.null_count:
        raise InvalidData(
            f"{positions.null_count} labels are none of the {len(classes)} declared classes.",
            place=place,
            remedy="Declare every class that occurs, or remove those rows.",
        )
    labels: npt.NDArray[np.int32] = positions.to_numpy().astype(np.int32)
    if len(np.unique(labels)) < 2:
        raise InvalidData(
            "All examples have the same class.", place=place, remedy="A classifier needs examples of two classes."
        )
    return labels


def _units(column: pa.ChunkedArray, *, place: str) -> tuple[npt.NDArray[np.int64], tuple[bytes, ...]]:
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_nested(kind):
        raise UnsupportedType(
            f"A privacy unit must be an identifier, this column is {kind}.",
            place=place,
            remedy="Name the column that identifies the person.",
        )
    _require_no_nulls(column, place=place)
    if not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
        column = pc.cast(pc.cast(column, pa.large_string()), pa.large_binary())
    distinct = pc.unique(column)
    distinct = distinct.take(pc.sort_indices(distinct))
    units: npt.NDArray[np.int64] = pc.index_in(column, value_set=distinct).to_numpy().astype(np.int64)
    return units, tuple(distinct.to_pylist())


def _require_no_nulls(column: pa.ChunkedArray, *, place: str) -> None:
    if column.null_count:
        raise InvalidData(
            f"{column.null_count} values are null.",
            place=place,
            remedy="Fill them or remove those rows before training.",
        )
