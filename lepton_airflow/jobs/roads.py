"""Which road a table takes from source to target, and the walk along it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lepton_airflow.columnar.publish import Written
from lepton_airflow.errors import SpecError, UnreadableSource
from lepton_airflow.jobs.runner import require_rows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

    from lepton_airflow.access.guard import Operation
    from lepton_airflow.audit.event import Detail
    from lepton_airflow.columnar.dataset import ParquetTable
    from lepton_airflow.encryption.columns import ColumnProtector, Protectors
    from lepton_airflow.encryption.roads import TableChange
    from lepton_airflow.jobs.runner import Job
    from lepton_airflow.jobs.spec import TableReference, TargetReference

#: ``dataframe``: any source and sink, through Spark. ``direct``: Parquet to Parquet, read and written by pyarrow inside Spark
#: tasks. ``auto``: direct where it leads.
Road = Literal["auto", "dataframe", "direct"]

#: Spark's names of Parquet codecs, and Arrow's.
_CODECS = {
    "none": "none",
    "uncompressed": "none",
    "snappy": "snappy",
    "gzip": "gzip",
    "brotli": "brotli",
    "lz4_raw": "lz4",
    "zstd": "zstd",
}


class Source:
    """A table that is opened, of which no row is read yet.

    :param columns: that must be there
    :ivar schema: Spark's
    :ivar frame: for Spark; None if only the direct road opens the table: its Parquet files are encrypted as a whole
    :ivar table: those files
    :raises UnreadableSource: Spark cannot open it
    :raises MissingColumn: a column is not there
    :raises KeyUnavailable: its files are encrypted, and the identity does not open their keyset
    """

    def __init__(self, job: Job, reference: TableReference, *, columns: Sequence[str] = ()) -> None:
        self.reference = reference
        self.frame: DataFrame | None = None
        self.table = self._encrypted(job)
        if self.table is None:
            self.frame = job.read(reference, columns=columns)
            self.schema: StructType = self.frame.schema
        else:
            self.schema = self.table.schema

    def _encrypted(self, job: Job) -> ParquetTable | None:
        from py4j.protocol import Py4JJavaError

        from lepton_airflow.columnar.dataset import NotOnDirectRoad, open_encrypted_table
        from lepton_airflow.columnar.files import uri_of

        if self.reference.format.lower() != "parquet" or self.reference.path is None or self.reference.options:
            return None
        try:
            place = uri_of(job.qualified(self.reference.path))
        except Py4JJavaError:
            # No such file system: Spark says so when it reads.
            return None
        try:
            return open_encrypted_table(place, job.file_keys())
        except NotOnDirectRoad as reason:
            raise UnreadableSource(
                f"The table cannot be read: {reason}.",
                place=self.reference.name,
                remedy="Files of one table are encrypted under one keyset, by one job.",
            ) from None


class Route:
    """The road that a job takes with one table.

    :param road: what the spec asks for
    :param file_keyset: the keyset under which the target's files are encrypted as a whole, if they are to be; only the direct
        road does so
    :ivar road: what is taken
    :ivar reason: why it is not the direct one, if that was left open
    :raises SpecError: the spec asks for the direct road, or for what only that one does, and it does not lead there
    """

    def __init__(
        self, job: Job, source: Source, *, target: TargetReference, road: Road, file_keyset: str | None = None
    ) -> None:
        from lepton_airflow.columnar.dataset import NotOnDirectRoad

        self._job = job
        self._frame = source.frame
        self._target = target
        self._file_keyset = file_keyset
        if file_keyset is not None or source.table is not None:
            if road == "dataframe":
                raise SpecError(
                    "Only the direct road reads and writes files that are encrypted as a whole.",
                    place=source.reference.name,
                    remedy="Leave `road` at auto.",
                )
            road = "direct"
        self._table: ParquetTable | None = None
        self._warnings: list[str] = []
        self.reason: str | None = None
        if road != "dataframe":
            try:
                self._table, self._codec = self._open(source)
            except NotOnDirectRoad as reason:
                if road == "direct":
                    raise SpecError(
                        f"The direct road does not lead there: {reason}.",
                        place=source.reference.name,
                        remedy="Leave `road` at auto, and the table goes through Spark; files that are encrypted as a whole need "
                        "Parquet on a file system that pyarrow opens.",
                    ) from None
                self.reason = str(reason)
        self.road = "dataframe" if self._table is None else "direct"

    def reserve(self, protectors: Protectors) -> None:
        """Count the values that are to be encrypted under AES-GCM keys, before the first of them is.

        What is counted is at least what will be: nulls may be among them, and as many as could be encrypted again, by tasks that
        are tried again.

        :raises KeyExhausted: a key would encrypt more values than is safe
        """
        from lepton_airflow.encryption.roads import most_values
        from lepton_airflow.keys.usage import reserve_usage

        counted = {text: one for text, one in protectors.items() if one.protected.cipher == "AES256_GCM"}
        totals = Counter[tuple[str, int]]()
        for text, values in most_values(counted, self._frame, self._table).items():
            keyset = counted[text].keyset
            totals[keyset.name, counted[text].primary_key_id or keyset.open().primary_key_id] += values
        if self._file_keyset is not None and self._table is not None:
            # One key is wrapped for each file, and there are no more files than row groups.
            opened = self._job.keysets(self._file_keyset, {"AES256_GCM"})["AES256_GCM"].open()
            totals[self._file_keyset, opened.primary_key_id] += len(self._table.row_groups)
        for (name, key_id), values in totals.items():
            warning = reserve_usage(self._job.engine, name, key_id, values * self._tries)
            if warning:
                self._warnings.append(warning)

    @property
    def _tries(self) -> int:
        context = self._job.spark.sparkContext
        return most_tries(str(context.master), dict(context.getConf().getAll()))

    def walk(self, change: TableChange) -> Written:
        """Change the source into the target and publish it.

        :returns: rows, and in ``details`` the road, the reason, and what the change counts, and warnings
        :raises EmptyTable: there is no row
        :raises TargetExists: the target appeared meanwhile
        """

        def write(folder: str | None) -> Written:
            if self._table is None or folder is None:
                assert self._frame is not None  # noqa: S101 - without one the direct road is the only one
                changed, count = change.frame(self._frame)
                rows, counts = self._job.write(changed, self._target, folder), count()
            else:
                rows, counts = self._write_directly(self._table, folder, change)
            details: dict[str, Any] = {"road": self.road}
            if self._file_keyset is not None:
                details["files_encrypted_under"] = self._file_keyset
            if self.reason:
                details["road_reason"] = self.reason
            if self._warnings:
                details["warnings"] = self._warnings
            if change.counted:
                details[change.counted] = {text: counts.get(text, 0) for text in sorted(change.protectors)}
            return Written(rows, details)

        return self._job.publish(write, self._target)

    def _write_directly(self, table: ParquetTable, folder: str, change: TableChange) -> tuple[int, dict[str, int]]:
        from lepton_airflow.columnar.files import uri_of
        from lepton_airflow.columnar.rewrite import rewrite

        require_rows(table.rows, self._target)
        layout = change.layout(
            table,
            compression=self._codec,
            version=self._job.spark.version,
            file_keys=self._job.file_keys(self._file_keyset) if self._file_keyset else None,
        )
        written = rewrite(self._job.spark, table, uri_of(folder), change=change, layout=layout, place=self._target.name)
        return written.rows, dict(written.counts)

    def _open(self, source: Source) -> tuple[ParquetTable, str]:
        from lepton_airflow.columnar.dataset import NotOnDirectRoad, open_table
        from lepton_airflow.columnar.files import CannotOpen, open_place, uri_of

        target = self._target
        reference = source.reference
        for table, role in ((reference, "source"), (target, "target")):
            if table.path is None:
                raise NotOnDirectRoad(f"the {role} has no path")
            if table.format.lower() != "parquet":
                raise NotOnDirectRoad(f"the {role} is not Parquet")
        secret = reference.secret_options or target.secret_options
        if reference.options or secret or target.options.keys() - {"compression"}:
            raise NotOnDirectRoad("options of a data source are for Spark")
        default = self._job.spark.conf.get("spark.sql.parquet.compression.codec", "snappy")
        codec = (target.options.get("compression") or default or "snappy").lower()
        if codec not in _CODECS:
            raise NotOnDirectRoad(f"the codec {codec} is written by Spark only")
        try:
            open_place(uri_of(self._job.qualified(target.path or "")))
        except CannotOpen as reason:
            raise NotOnDirectRoad(str(reason)) from None
        if source.frame is not None:
            return open_table(source.frame), _CODECS[codec]
        assert source.table is not None  # noqa: S101 - what Spark does not open, its footers opened
        return source.table, _CODECS[codec]


def most_tries(master: str, conf: Mapping[str, str]) -> int:
    """How often Spark runs a task at most that fails or is slow: so often each of its values may be encrypted.

    Not among them: tries that the cluster's manager ends together with their executor, for which Spark has no limit.

    :param master: as Spark writes it; ``local[4]`` tries once, ``local[4, 3]`` three times
    :param conf: Spark's
    """
    if local := re.fullmatch(r"local(?:\[\s*(?:\d+|\*)\s*(?:,\s*(\d+)\s*)?\])?", master):
        return int(local[1] or 1)
    tries = int(conf.get("spark.task.maxFailures") or 4)
    return 2 * tries if conf.get("spark.speculation", "").strip().lower() == "true" else tries


def needs_schema(columns: Iterable[str]) -> bool:
    """Whether only the schema can tell which columns are meant: by patterns and tags, and by names between backticks, which
    rules of the policy about the plain names would not meet."""
    from lepton_airflow.encryption.selection import is_pattern

    return any(is_pattern(text) or "`" in text for text in columns)


def protected_columns(job: Job, reference: TableReference, columns: tuple[str, ...]) -> tuple[str, ...]:
    """The protected columns that are meant, to ask the policy about. No row is read yet.

    :raises MissingColumn: a name is not in the table
    :raises SpecError: a pattern matches no protected column
    """
    from lepton_airflow.encryption.selection import choose_protected

    if not needs_schema(columns):
        return columns
    return choose_protected(Source(job, reference).schema, columns, dataset=reference.name)


def open_protected(
    job: Job, reference: TableReference, columns: tuple[str, ...]
) -> tuple[Source, dict[str, ColumnProtector]]:
    """A protected table, and the protectors of some of its columns.

    :raises LeptonError: as :class:`Source` and :func:`lepton_airflow.encryption.planning.protectors_of`
    """
    from lepton_airflow.encryption.planning import protectors_of

    source = Source(job, reference, columns=columns)
    protectors = protectors_of(
        source.schema,
        keyring=job.settings.keyring,
        identity_file=job.settings.identity_file,
        columns=columns,
        dataset=reference.name,
    )
    return source, protectors


def write_once(
    job: Job, operation: Operation, target: TargetReference, write: Callable[[], Written], *, columns: Sequence[str]
) -> dict[str, Any]:
    """Let ``write`` make the target, unless an earlier try of this run committed it; put into the outcome event what was
    written, and return the job's summary.

    :returns: ``rows``, ``columns``, ``target``, ``road`` (and ``road_reason``, if the direct one does not lead there), what was
        counted by column, ``warnings`` if there are any, and ``replayed``: an earlier try had committed the target
    :raises TargetExists: the target is not this run's and may not be replaced
    """
    commit = job.committed(target)
    written = write() if commit is None else Written(commit.rows, commit.details)
    _record(operation, written)
    return {
        "rows": written.rows,
        "columns": list(columns),
        "target": target.path or target.table or target.name,
        **written.details,
        "replayed": commit is not None,
    }


def _record(operation: Operation, written: Written) -> None:
    """Rows, the road, and what was counted, in all columns together."""
    counts = {} if written.rows is None else {"rows": written.rows}
    details: dict[str, Detail] = {}
    for name, value in written.details.items():
        if isinstance(value, dict):
            counts[name] = sum(value.values())
        else:
            details[name] = " ".join(value) if isinstance(value, list) else value
    operation.record(counts=counts, details=details)


def table_to_read(source: Source, road: Road) -> tuple[ParquetTable | None, str | None]:
    """The files of a table that is only read, if the direct road leads to them; and the reason if it does not.

    :raises SpecError: the spec asks for a road that does not lead there
    """
    from lepton_airflow.columnar.dataset import NotOnDirectRoad, open_table

    reference = source.reference
    if source.frame is None:
        if road == "dataframe":
            raise SpecError(
                "Only the direct road reads files that are encrypted as a whole.",
                place=reference.name,
                remedy="Leave `road` at auto.",
            )
        return source.table, None
    if road == "dataframe":
        return None, None
    try:
        if reference.path is None or reference.format.lower() != "parquet":
            raise NotOnDirectRoad("the source is no folder of Parquet files")
        if reference.options or reference.secret_options:
            raise NotOnDirectRoad("options of a data source are for Spark")
        return open_table(source.frame), None
    except NotOnDirectRoad as reason:
        if road == "direct":
            raise SpecError(
                f"The direct road does not lead there: {reason}.",
                place=reference.name,
                remedy="Leave `road` at auto, and Spark reads the table.",
            ) from None
        return None, str(reason)
