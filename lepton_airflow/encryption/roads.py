"""What a job does to the columns of a table, said once for both roads: Arrow UDFs on DataFrames, and batches of Parquet files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.sql.types import ArrayType, DataType, StructType

from lepton_airflow.columnar.dataset import ParquetTable
from lepton_airflow.columnar.parquet_encryption import FileKeys
from lepton_airflow.columnar.rewrite import Layout
from lepton_airflow.encryption.ciphers import tink_prefix
from lepton_airflow.encryption.columns import (
    ColumnProtector,
    OnError,
    Protectors,
    protect_batch,
    protected_schema,
    reveal_batch,
    revealed_schema,
    rotate_batch,
    rotated_schema,
)
from lepton_airflow.encryption.dataframe import protect_columns, reveal_columns, rotate_columns
from lepton_airflow.encryption.planning import protections_of

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

#: By path.
Counts = Mapping[str, int]


class TableChange(ABC):
    """A change of some columns of a table.

    Called with a batch, it gives the changed batch and counts: the direct road's part, for which it travels to the workers. It
    holds no key, as its protectors do not.

    :ivar protectors: of the columns that change, by path
    :ivar counted: the name of what is counted for each column, if anything is
    """

    counted: str | None = None

    def __init__(self, protectors: Protectors) -> None:
        self.protectors = protectors

    @abstractmethod
    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Counts]:
        """Change one batch."""

    @abstractmethod
    def schema(self, before: StructType) -> StructType:
        """Spark's schema of the result."""

    @abstractmethod
    def frame(self, frame: DataFrame) -> tuple[DataFrame, Callable[[], Counts]]:
        """The DataFrame road's part: the changed DataFrame, and what gives the counts once it was written."""

    def layout(
        self, table: ParquetTable, *, compression: str, version: str, file_keys: FileKeys | None = None
    ) -> Layout:
        """How the direct road writes the result."""
        schema = self.schema(table.schema)
        protected = protections_of(schema)
        random = {found.path or (found.column,) for found in protected.values() if found.cipher == "AES256_GCM"}
        # In clear again, a column may repeat itself; the writer gives its dictionary up where it does not.
        revealed = {one.path for text, one in self.protectors.items() if text not in protected}
        return Layout(
            schema=schema,
            opaque=frozenset(random),
            dictionaries=table.dictionaries | revealed,
            compression=compression,
            version=version,
            file_keys=file_keys,
        )


class Protect(TableChange):
    """Encrypt columns. Nothing is counted: every value that is not null is encrypted."""

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Counts]:
        return protect_batch(batch, self.protectors), {}

    def schema(self, before: StructType) -> StructType:
        return protected_schema(before, self.protectors)

    def frame(self, frame: DataFrame) -> tuple[DataFrame, Callable[[], Counts]]:
        return protect_columns(frame, self.protectors), dict


class Reveal(TableChange):
    """Decrypt columns. Counted are values that became null as they could not be decrypted.

    :param on_error: ``fail``, or ``null``
    """

    counted = "failed"

    def __init__(self, protectors: Protectors, *, on_error: OnError = "fail") -> None:
        super().__init__(protectors)
        self._on_error: OnError = on_error

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Counts]:
        return reveal_batch(batch, self.protectors, on_error=self._on_error)

    def schema(self, before: StructType) -> StructType:
        return revealed_schema(before, self.protectors, on_error=self._on_error)

    def frame(self, frame: DataFrame) -> tuple[DataFrame, Callable[[], Counts]]:
        if self._on_error == "fail":
            return reveal_columns(frame, self.protectors), dict

        def present(_: ColumnProtector, value: Column) -> Column:
            return value.isNotNull()

        before, count_before = _observed(frame, self.protectors, present)
        after, count_after = _observed(
            reveal_columns(before, self.protectors, on_error=self._on_error), self.protectors, present
        )

        def failed() -> Counts:
            left = count_after()
            return {text: count - left[text] for text, count in count_before().items()}

        return after, failed


class Rotate(TableChange):
    """Encrypt again, under the primary keys, what is under others. Counted are the values encrypted again."""

    counted = "rotated"

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Counts]:
        return rotate_batch(batch, self.protectors)

    def schema(self, before: StructType) -> StructType:
        return rotated_schema(before, self.protectors)

    def frame(self, frame: DataFrame) -> tuple[DataFrame, Callable[[], Counts]]:
        from pyspark.sql import functions as F

        def old(protector: ColumnProtector, value: Column) -> Column:
            if protector.protected.cipher == "FF1":
                # Its values name no key: the column's metadata does, for all of them.
                return value.isNotNull() & F.lit(protector.rotated() != protector.protected)
            prefix = tink_prefix(protector.pinned().primary_key_id or 0)
            return value.isNotNull() & (F.substring(value, 1, len(prefix)) != F.lit(prefix))

        counted, count = _observed(frame, self.protectors, old)
        return rotate_columns(counted, self.protectors), count


def most_values(protectors: Protectors, source: DataFrame | None, table: ParquetTable | None) -> dict[str, int]:
    """How many values there are at most at the path of each protector: as many as rows, or more below arrays.

    :param source: of the DataFrame road, which counts what is not null
    :param table: of the direct road, which knows from the files' footers
    """
    if table is None and source is not None:
        from pyspark.sql import functions as F

        def present(_: ColumnProtector, value: Column) -> Column:
            return value.isNotNull()

        sums = [F.sum(_count(source, protector, present)) for protector in protectors.values()]
        (counts,) = source.agg(*sums).collect() if sums else [()]
        return {text: count or 0 for text, count in zip(protectors, counts, strict=True)}
    counted = {}
    assert table is not None  # noqa: S101 - one of the two roads
    for text, protector in protectors.items():
        path = protector.path
        below = [count for leaf, count in table.values.items() if leaf[: len(path)] == path]
        counted[text] = min(below, default=table.rows) if len(path) > 1 else table.rows
    return counted


def _observed(
    frame: DataFrame, protectors: Protectors, condition: Callable[[ColumnProtector, Column], Column]
) -> tuple[DataFrame, Callable[[], Counts]]:
    """``frame``, and what gives for each protector the number of values that met a condition as it was written."""
    from pyspark.sql import Observation
    from pyspark.sql import functions as F

    observation = Observation()
    names = {text: f"column_{position}" for position, text in enumerate(protectors)}
    sums = [
        F.coalesce(F.sum(_count(frame, protector, condition)), F.lit(0)).alias(names[text])
        for text, protector in protectors.items()
    ]
    if not sums:
        return frame, dict
    observed = frame.observe(observation, *sums)
    return observed, lambda: {text: int(observation.get[name]) for text, name in names.items()}


def _count(
    frame: DataFrame, protector: ColumnProtector, condition: Callable[[ColumnProtector, Column], Column]
) -> Column:
    """How many values of a row at the protector's path meet the condition: several where the path goes through arrays."""
    from pyspark.sql import functions as F

    def below(column: Column, kind: DataType, parts: tuple[str, ...]) -> Column:
        if not parts:
            return F.when(condition(protector, column), 1).otherwise(0)
        if isinstance(kind, ArrayType):
            total = F.aggregate(column, F.lit(0), lambda sum_, item: sum_ + below(item, kind.elementType, parts))
            return F.coalesce(total, F.lit(0))
        assert isinstance(kind, StructType)  # noqa: S101 - paths go through structs and arrays only
        return below(column.getField(parts[0]), kind[parts[0]].dataType, parts[1:])

    first, *others = protector.path
    return below(frame["`" + first.replace("`", "``") + "`"], frame.schema[first].dataType, tuple(others))
