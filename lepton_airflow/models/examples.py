"""Labelled examples of a table, checked, and split by privacy unit."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lepton_airflow.errors import EmptyTable, InvalidData, UnsupportedType
from lepton_airflow.models.plan import ImageColumn

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]

_LABEL_TYPES = {
    bool: ("boolean", pa.types.is_boolean),
    int: ("integer", pa.types.is_integer),
    str: ("string", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind)),
}

_NUMBER_TYPES = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
#: What is wrong with values, as it follows their number, and what to do about it, by the first word.
_NULLS = "values are null"
_UNUSABLE = "values are NaN, infinite or beyond single precision"
_REMEDIES = {
    "values": "Fill or clean them, or remove those rows before training.",
    "images": "Give the shape that the images have, or make them all of one size.",
    "labels": "Declare every class that occurs, or remove those rows.",
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


class ExampleReader:
    """Checks batches of a table one by one and gathers them as examples.

    What is kept of a batch is single precision: beside the batch at hand, memory holds the examples twice at most, while they
    are sorted.

    :param dataset: the table's name, for errors
    :param features: columns of numbers; empty for images
    :param label: the column of the class
    :param classes: the declared labels
    :param unit: the privacy unit; it may be a deterministic ciphertext
    :param image: the column that holds an example's features as one array of numbers, or as bytes, one for each number
    """

    def __init__(
        self,
        *,
        dataset: str,
        features: Sequence[str] = (),
        label: str,
        classes: Sequence[str | int | bool],
        unit: str,
        image: ImageColumn | None = None,
    ) -> None:
        self._dataset = dataset
        self._columns = tuple(features)
        self._label = label
        self._classes = classes
        self._unit = unit
        self._image = image
        self._features: list[Features] = []
        self._labels: list[Labels] = []
        self._units: list[pa.Array] = []
        self._wrong = Counter[tuple[int, str]]()
        #: Rows that were read, whether or not they repeat others.
        self.rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Read one batch.

        :raises UnsupportedType: a feature is no number, the label is not of the classes' type, the unit cannot be compared
        """
        features = self._features_of(batch)
        labels = self._labels_of(batch[self._label])
        units = self._units_of(batch[self._unit])
        self.rows += batch.num_rows
        if self._wrong:
            # Nothing will come of it; what is left to learn is how many values are wrong.
            self._features, self._labels, self._units = [], [], []
        elif batch.num_rows:
            self._features.append(features)
            self._labels.append(labels)
            self._units.append(units)

    def finish(self, *, one_class_is_enough: bool = False) -> Examples:
        """The distinct examples of all batches.

        A row that repeats another's unit, features and label adds nothing and is dropped: somebody measured once who came ten
        times is one example, not ten.

        :param one_class_is_enough: for examples that are not trained on
        :raises EmptyTable: there are no rows
        :raises InvalidData: nulls, NaN, infinite or too large features, images of another size, labels that are not declared, one
            class only
        """
        if self._wrong:
            (column, rule), count = min(self._wrong.items())
            raise InvalidData(
                f"{count} {rule}.", place=f"{self._dataset}.{self._place(column)}", remedy=_REMEDIES[rule.split()[0]]
            )
        if not self.rows:
            raise EmptyTable(
                "The table has no rows.", place=self._dataset, remedy="Check that the table before it was written."
            )
        units, unit_ids = _numbered(self._units)
        labels = np.concatenate(self._labels)
        self._units, self._labels = [], []
        if not one_class_is_enough and len(np.unique(labels)) < 2:
            raise InvalidData(
                "All examples have the same class.",
                place=f"{self._dataset}.{self._label}",
                remedy="A classifier needs examples of two classes.",
            )
        chosen = _first_of_each(units, labels, self._features)
        return Examples(
            features=_taken(self._features, chosen), labels=labels[chosen], units=units[chosen], unit_ids=unit_ids
        )

    def _features_of(self, batch: pa.RecordBatch) -> Features:
        """[rows, d]; what is wrong is counted."""
        if self._image is None:
            columns = [self._numbers(batch[name], position) for position, name in enumerate(self._columns)]
            return np.column_stack(columns)
        column = batch[self._image.column]
        kind, size = column.type, self._image.pixels
        place = f"{self._dataset}.{self._image.column}"
        self._count(column.null_count, 0, _NULLS)
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            lengths = pc.binary_length(column)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            lengths = pc.list_value_length(column)
        else:
            raise UnsupportedType(
                f"An image is an array of numbers or bytes, this column is {kind}.",
                place=place,
                remedy="Name the column that holds the pixels.",
            )
        others = pc.sum(pc.not_equal(lengths, size)).as_py() or 0
        self._count(others, 0, f"images do not have {size} numbers")
        if column.null_count or others:
            return np.empty((0, size), np.float32)
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            pixels = np.frombuffer(b"".join(column.to_pylist()), np.uint8).astype(np.float32)
        else:
            pixels = self._numbers(column.flatten(), 0)
        return pixels.reshape(-1, size)

    def _numbers(self, column: pa.Array, position: int) -> Features:
        kind = column.type
        if not any(is_type(kind) for is_type in _NUMBER_TYPES):
            raise UnsupportedType(
                f"A feature must be a number, this column is {kind}.",
                place=f"{self._dataset}.{self._place(position)}",
                remedy="Leave it out, or encode it.",
            )
        self._count(column.null_count, position, _NULLS)
        values = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):
            # Minus zero becomes zero, so that equal examples have equal bytes.
            single: Features = values.astype(np.float32) + np.float32(0)
        unusable = int(np.count_nonzero(~np.isfinite(single)))
        self._count(unusable - column.null_count, position, _UNUSABLE)
        return single

    def _labels_of(self, column: pa.Array) -> Labels:
        place = f"{self._dataset}.{self._label}"
        name, is_type = _LABEL_TYPES[type(self._classes[0])]
        if not is_type(column.type):
            raise UnsupportedType(
                f"The declared classes are {name} values, this column is {column.type}.",
                place=place,
                remedy="Declare the classes as the column holds them.",
            )
        try:
            declared = pa.array(self._classes, type=column.type)
        except (pa.ArrowInvalid, OverflowError):
            raise UnsupportedType(
                f"A declared class does not fit the column's type {column.type}.",
                place=place,
                remedy="Declare the classes as the column holds them.",
            ) from None
        at = max(len(self._columns), 1)
        self._count(column.null_count, at, _NULLS)
        positions = pc.index_in(column, value_set=declared)
        unknown = positions.null_count - column.null_count
        self._count(unknown, at, f"labels are none of the {len(self._classes)} declared classes")
        labels: Labels = pc.fill_null(positions, 0).to_numpy(zero_copy_only=False).astype(np.int32)
        return labels

    def _units_of(self, column: pa.Array) -> pa.Array:
        kind = column.type
        if pa.types.is_floating(kind) or pa.types.is_nested(kind):
            raise UnsupportedType(
                f"A privacy unit must be an identifier, this column is {kind}.",
                place=f"{self._dataset}.{self._unit}",
                remedy="Name the column that identifies the person.",
            )
        self._count(column.null_count, max(len(self._columns), 1) + 1, _NULLS)
        if not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
            column = pc.cast(column, pa.large_string())
        return pc.cast(column, pa.large_binary())

    def _count(self, values: int, position: int, rule: str) -> None:
        if values:
            self._wrong[position, rule] += values

    def _place(self, position: int) -> str:
        features = self._columns if self._image is None else (self._image.column,)
        return (*features, self._label, self._unit)[position]


def examples_from_arrow(
    table: pa.Table,
    *,
    dataset: str,
    features: Sequence[str] = (),
    label: str,
    classes: Sequence[str | int | bool],
    unit: str,
    image: ImageColumn | None = None,
) -> Examples:
    """The examples of a table that is in memory as a whole; see :class:`ExampleReader`.

    :raises EmptyTable: see :meth:`ExampleReader.finish`
    :raises UnsupportedType: see :meth:`ExampleReader.add`
    :raises InvalidData: see :meth:`ExampleReader.finish`
    """
    reader = ExampleReader(dataset=dataset, features=features, label=label, classes=classes, unit=unit, image=image)
    for batch in table.to_batches():
        reader.add(batch)
    return reader.finish()


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


def _numbered(chunks: Sequence[pa.Array]) -> tuple[npt.NDArray[np.int64], tuple[bytes, ...]]:
    """The position of each row's unit among the sorted units, and these."""
    column = pa.chunked_array(chunks, pa.large_binary())
    distinct = pc.unique(column)
    distinct = distinct.take(pc.sort_indices(distinct))
    units: npt.NDArray[np.int64] = pc.index_in(column, value_set=distinct).to_numpy().astype(np.int64)
    return units, tuple(distinct.to_pylist())


def _first_of_each(units: npt.NDArray[np.int64], labels: Labels, chunks: Sequence[Features]) -> npt.NDArray[np.int64]:
    """The rows that repeat no other, by unit, label and a hash of the features."""
    hashed = np.empty((len(labels), 2), np.uint64)
    row = 0
    for chunk in chunks:
        for features in chunk:
            hashed[row] = np.frombuffer(hashlib.blake2b(features, digest_size=16).digest(), np.uint64)
            row += 1
    order = np.lexsort((hashed[:, 1], hashed[:, 0], labels, units))
    kept = np.ones(len(order), np.bool_)
    one, other = order[1:], order[:-1]
    kept[1:] = (
        (units[one] != units[other]) | (labels[one] != labels[other]) | (hashed[one] != hashed[other]).any(axis=1)
    )
    return order[kept]


def _taken(chunks: list[Features], chosen: npt.NDArray[np.int64]) -> Features:
    """[len(chosen), d]: the chosen rows of all chunks, which are emptied on the way."""
    taken = np.empty((len(chosen), chunks[0].shape[1]), np.float32)
    by_row = np.argsort(chosen)
    rows = chosen[by_row]
    before, chunks[:] = 0, chunks[::-1]
    while chunks:
        chunk = chunks.pop()
        first, last = np.searchsorted(rows, (before, before + len(chunk)))
        taken[by_row[first:last]] = chunk[rows[first:last] - before]
        before += len(chunk)
    return taken
