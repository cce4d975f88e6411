"""The rows of a task's row groups, as Arrow batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from lepton_airflow.columnar.dataset import READ_AS_SPARK
from lepton_airflow.columnar.files import open_place
from lepton_airflow.columnar.parquet_encryption import FileKeys, reading
from lepton_airflow.columnar.tasks import Task

# What bounds a worker's memory: decoded bytes of a batch.
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 128 << 10
_PROBE_ROWS = 1 << 10
_READ_BUFFER = 1 << 20


def read_batches(
    task: Task,
    file_keys: FileKeys | None,
    *,
    columns: Sequence[str] | None = None,
    dictionaries: Sequence[str] = (),
) -> Iterator[pa.RecordBatch]:
    """Read a task's row groups, in the order of the table.

    :param file_keys: what opens the files, if they are encrypted
    :param columns: the names of those to read, by default all. A column whose name begins with one of them and a dot is read too
    :param dictionaries: text columns that are wanted as dictionary arrays, which saves decoding them
    :raises pyarrow.ArrowException: a file is damaged
    """
    for uri, row_groups in task.pieces:
        files, path = open_place(uri)
        with files.open_input_file(path) as file:
            opened = pq.ParquetFile(
                file,
                pre_buffer=False,
                buffer_size=_READ_BUFFER,
                read_dictionary=list(dictionaries),
                decryption_properties=reading(file_keys),
                **READ_AS_SPARK,
            )
            chosen = None if columns is None else list(columns)
            rows = _batch_rows(opened, row_groups, chosen)
            # The tasks take all cores; threads of Arrow's would only get in their way.
            yield from opened.iter_batches(
                batch_size=rows, row_groups=list(row_groups), columns=chosen, use_threads=False
            )


def _batch_rows(file: pq.ParquetFile, row_groups: tuple[int, ...], columns: list[str] | None) -> int:
    """Rows of a batch of about :data:`_BATCH_BYTES`. How much a row takes is measured: encoded, long texts can look short."""
    probe = next(
        file.iter_batches(batch_size=_PROBE_ROWS, row_groups=list(row_groups), columns=columns, use_threads=False), None
    )
    if probe is None or not probe.num_rows:
        return _BATCH_ROWS
    return int(min(max(_BATCH_BYTES * probe.num_rows // max(probe.nbytes, 1), 1), _BATCH_ROWS))
