"""Group keys: declared ones in the types of their columns, where each row falls among them, and the canonical text of any key.

Declared keys are public, so that which groups appear in a release says nothing about the data. Keys that are not declared leave
the workers as canonical text alone: a JSON list without spaces, see :func:`lepton_airflow.privacy.design.key_text`.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import types as T

from lepton_airflow.columnar.types import arrow_type
from lepton_airflow.errors import SpecError
from lepton_airflow.privacy.design import KeyValue

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Types of columns to group by.
GROUP_TYPES = (T.StringType, T.ByteType, T.ShortType, T.IntegerType, T.LongType, T.BooleanType, T.DateType)
#: Of a row that is in no declared group.
NO_GROUP = -1
#: Characters that JSON escapes.
_ESCAPED = r'[\x00-\x1f"\\]'
#: Combinations of values up to which positions of keys are looked up in a table.
_TABLE = 1 << 22


@dataclass(frozen=True)
class DeclaredKeys:
    """The declared keys of a grouping. Travels to the workers.

    :ivar texts: canonical, by position
    :ivar values: for each column its distinct values, without null
    :ivar combinations: of codes of values (see :meth:`_combined`), rising
    :ivar positions: of the keys with these combinations
    """

    texts: pa.Array
    values: tuple[pa.Array, ...]
    combinations: NDArray[np.int64]
    positions: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.texts)

    def positions_of(self, columns: Sequence[pa.Array], rows: int) -> NDArray[np.int32]:
        """The position of each row's key among the declared ones; :data:`NO_GROUP` if it is not declared.

        :param columns: that are grouped by
        """
        if not columns:
            return np.zeros(rows, np.int32)
        combined, known = self._combined(
            [_codes_among(column, own) for column, own in zip(columns, self.values, strict=True)]
        )
        total = self._combination_count()
        if total <= _TABLE:
            table = np.full(total, NO_GROUP, np.int32)
            table[self.combinations] = self.positions
            found = table[combined]
        else:
            place = np.minimum(np.searchsorted(self.combinations, combined), len(self.combinations) - 1)
            found = np.where(self.combinations[place] == combined, self.positions[place], NO_GROUP)
        return found if known is None else np.where(known, found, NO_GROUP).astype(np.int32)

    def _combination_count(self) -> int:
        count = 1
        for own in self.values:
            count *= len(own) + 1
        return count

    def _combined(self, codes: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
        """One number for the codes of a row, and whether all its values are declared for their columns (None: in all rows)."""
        combined, known = None, None
        for own, code in zip(self.values, codes, strict=True):
            if len(code) and code.min() < 0:
                present = code >= 0
                known = present if known is None else known & present
                code = np.maximum(code, 0)
            combined = code if combined is None else combined * (len(own) + 1) + code
        assert combined is not None  # noqa: S101 - there are columns
        return combined, known


def declared_keys(
    schema: T.StructType, *, by: Sequence[str], keys: Sequence[Sequence[KeyValue]], dataset: str
) -> DeclaredKeys:
    """Check the declared keys against the types of the columns that they stand for.

    :param schema: of the table, with columns to group by in clear
    :raises SpecError: a key is of another type than its column, or two keys are equal in that type: a row would then count twice
    """
    kinds = [schema[name].dataType for name in by]
    seen: set[tuple[Any, ...]] = set()
    typed: list[tuple[Any, ...]] = []
    for index, key in enumerate(keys):
        values = []
        for name, kind, value in zip(by, kinds, key, strict=True):
            try:
                values.append(_in_type(value, kind))
            except ValueError:
                raise SpecError(
                    f"Group {index + 1} has a key of type {type(value).__name__}, the column is {kind.simpleString()}.",
                    place=f"{dataset}.{name}",
                    remedy="Write each key in the column's type; dates as YYYY-MM-DD.",
                ) from None
        if tuple(values) in seen:
            raise SpecError(
                f"Group {index + 1} is declared twice.", place=f"{dataset}: groups", remedy="Declare every group once."
            )
        seen.add(tuple(values))
        typed.append(tuple(values))
    columns = [pa.array(column, arrow_type(kind)) for column, kind in zip(zip(*typed, strict=True), kinds, strict=True)]
    distinct = tuple(pc.drop_null(column.unique()) for column in columns)
    if not by:
        return DeclaredKeys(pa.array([b"[]"] * len(typed)), (), np.zeros(1, np.int64), np.zeros(1, np.int32))
    combinations = np.zeros(len(typed), np.int64)
    limit = 1
    for column, own in zip(columns, distinct, strict=True):
        limit *= len(own) + 1
        combinations = combinations * (len(own) + 1) + _codes_among(column, own)
    if limit >= 2**63:
        raise SpecError(
            "The declared keys combine too many different values.",
            place=f"{dataset}: groups",
            remedy="Group by fewer columns at once.",
        )
    order = np.argsort(combinations)
    return DeclaredKeys(key_texts(columns), distinct, combinations[order], order.astype(np.int32))


def key_texts(columns: Sequence[pa.Array]) -> pa.Array:
    """The canonical texts of keys, as bytes.

    :param columns: one array for each column, all of one length
    """
    texts = [_json_texts(column) for column in columns]
    parts = [texts[0], *(part for text in texts[1:] for part in (",", text))]
    return pc.binary_join_element_wise("[", *parts, "]", "").cast(pa.binary())


def keys_of_rows(columns: Sequence[pa.Array]) -> tuple[NDArray[np.int32], pa.Array]:
    """The key of each row.

    :returns: for each row the index of its key, and the different keys as canonical texts; some may be the key of no row
    """
    codes, values = zip(*(encoded(column) for column in columns), strict=True)
    combined, count = np.zeros(len(columns[0]), np.int64), 1
    for code, own in zip(codes, values, strict=True):
        if count * (len(own) + 1) >= 2**62:
            _, combined = np.unique(combined, return_inverse=True)
            count = len(combined)
        combined = combined * (len(own) + 1) + (code + 1)
        count *= len(own) + 1
    if count <= max(_TABLE >> 2, len(combined)):
        used = np.zeros(count, bool)
        used[combined] = True
        first = np.zeros(count, np.int64)
        first[combined] = np.arange(len(combined))
        keys = first[used]
        indexes = (np.cumsum(used) - 1)[combined]
    else:
        _, keys, indexes = np.unique(combined, return_index=True, return_inverse=True)
    texts = key_texts(
        [own.take(pa.array(code[keys], mask=code[keys] < 0)) for code, own in zip(codes, values, strict=True)]
    )
    # Texts that are not valid UTF-8 can fall together.
    code, texts = encoded(texts)
    return code[indexes], texts


def encoded(column: pa.Array) -> tuple[NDArray[np.int32], pa.Array]:
    """For each row the index of its value, -1 for null; and the different values, none of them null."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    indices = column.indices.fill_null(-1) if column.indices.null_count else column.indices
    codes = indices.to_numpy().astype(np.int32, copy=False)
    values = column.dictionary
    unique = values.dictionary_encode()
    if len(unique.dictionary) == len(values) and not values.null_count:
        return codes, values
    # A writer can have put null, or one value twice, into a dictionary.
    again = np.append(unique.indices.fill_null(-1).to_numpy(), -1).astype(np.int32)
    return again[codes], unique.dictionary


def _codes_among(column: pa.Array, declared: pa.Array) -> NDArray[np.int64]:
    """For each row the index of its value among ``declared``, their number for null, and -1 for others."""
    if pa.types.is_dictionary(column.type):
        table = np.append(_codes_among(column.dictionary, declared), len(declared))
        indices = column.indices.fill_null(-1) if column.indices.null_count else column.indices
        return np.asarray(table[indices.to_numpy()])
    if column.type != declared.type:
        column = column.cast(declared.type)
    found: NDArray[np.int64] = pc.index_in(column, declared).fill_null(-1).to_numpy().astype(np.int64)
    if column.null_count:
        found[column.is_null().to_numpy(zero_copy_only=False)] = len(declared)
    return found


def _json_texts(values: pa.Array) -> pa.Array:
    """Each value as JSON."""
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        texts = values.cast(pa.string())
        return (pc.binary_join_element_wise('"', texts, '"', "") if pa.types.is_date(values.type) else texts).fill_null(
            "null"
        )
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        raw = values.cast(pa.large_binary()).to_pylist()
        values = pa.array([None if text is None else text.decode("utf-8", "replace") for text in raw])
    escaped = pc.fill_null(pc.match_substring_regex(values, _ESCAPED), False)
    texts = pc.binary_join_element_wise('"', values, '"', "").cast(pa.string())
    if pc.any(escaped).as_py():
        written = [json.dumps(text, ensure_ascii=False) for text in values.filter(escaped).to_pylist()]
        texts = pc.replace_with_mask(texts, escaped, pa.array(written, pa.string()))
    return texts.fill_null("null")


def _in_type(value: KeyValue, kind: T.DataType) -> str | int | bool | datetime.date | None:
    """The Python value of a key in a column of type ``kind``.

    :raises ValueError: it is none
    """
    bits: dict[type[T.DataType], int] = {T.ByteType: 8, T.ShortType: 16, T.IntegerType: 32, T.LongType: 64}
    if value is None:
        return None
    if isinstance(kind, T.StringType) and isinstance(value, str):
        return value
    if isinstance(kind, T.BooleanType) and isinstance(value, bool):
        return value
    if type(kind) in bits and isinstance(value, int) and not isinstance(value, bool):
        limit = 1 << (bits[type(kind)] - 1)
        if -limit <= value < limit:
            return value
    if isinstance(kind, T.DateType) and isinstance(value, str):
        return datetime.date.fromisoformat(value)
    raise ValueError
