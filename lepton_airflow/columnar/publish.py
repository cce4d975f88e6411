"""Atomic publishing of datasets: written beside the target, then renamed into place.

A dataset is a folder. It is first written into a hidden staging folder next to the target, together with a commit record, and
then renamed; a job that dies before the rename leaves the target as it was, and one that is run again with the same run key and
spec finds its own commit record and does nothing. Replacing a dataset takes two renames; a crash between them leaves the old
dataset under a known hidden name, from which the next publication restores it first.

File systems: everything that Hadoop's FileContext opens. The rename is atomic on local file systems and on HDFS; object stores
copy instead, so there a reader can see a part of the new dataset while it is being published.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepton_airflow.errors import TargetExists

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

COMMIT_FILE = "_lepton_commit.json"


@dataclass(frozen=True)
class Written:
    """What was written: the number of rows, None if nobody counted them, and what else is worth telling: small, JSON, free of
    data values."""

    rows: int | None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Commit:
    """Who committed a dataset: the run, the digest of its spec, and what it wrote."""

    run_key: str
    spec_digest: str
    rows: int | None
    details: Mapping[str, Any] = field(default_factory=dict)


class Publication:
    """The commit of one dataset folder.

    :param path: the target folder, a path or URI
    :param run_key: the run that writes it
    :param spec_digest: the digest of the spec that describes the work
    """

    def __init__(self, spark: SparkSession, path: str, *, run_key: str, spec_digest: str) -> None:
        jvm: Any = spark.sparkContext._jvm
        hadoop: Any = spark.sparkContext._jsc.hadoopConfiguration()
        self._jvm = jvm
        unqualified = jvm.org.apache.hadoop.fs.Path(path)
        self._files = jvm.org.apache.hadoop.fs.FileContext.getFileContext(
            unqualified.getFileSystem(hadoop).getUri(), hadoop
        )
        self.path: str = self._files.makeQualified(unqualified).toString()
        self._run_key = run_key
        self._spec_digest = spec_digest
        parent, name = self.path.rstrip("/").rsplit("/", 1)
        # The run's own name: the rerun clears what its killed predecessor left, and nobody else's work in progress.
        mark = hashlib.sha256(f"{run_key}\n{spec_digest}".encode()).hexdigest()[:16]
        self.staging = f"{parent}/.{name}.staging-{mark}"
        self._previous = f"{parent}/.{name}.previous"

    def committed(self) -> Commit | None:
        """The commit record of what is at the target now; None when there is none (or it was not written by this package)."""
        self._restore()
        file = f"{self.path}/{COMMIT_FILE}"
        if not self._exists(file):
            return None
        stream = self._files.open(self._hadoop_path(file))
        try:
            text = self._jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8")
        finally:
            stream.close()
        return Commit(**json.loads(text))

    def is_mine(self, commit: Commit | None) -> bool:
        return commit is not None and (commit.run_key, commit.spec_digest) == (self._run_key, self._spec_digest)

    def check_target(self, mode: str) -> None:
        """Refuse early, before any work, what :meth:`publish` would refuse at the end.

        :raises TargetExists: in mode ``errorifexists``
        """
        self._restore()
        if mode == "errorifexists" and self._exists(self.path):
            raise TargetExists(
                "The target exists and mode is errorifexists.",
                place=self.path,
                remedy="Choose another target, or set mode: overwrite to replace it.",
            )

    def publish(self, write: Callable[[str], Written], *, mode: str) -> Commit:
        """Write the dataset with ``write(staging folder)`` and put it at the target.

        :raises TargetExists: the target appeared meanwhile
        """
        self._delete(self.staging)
        try:
            written = write(self.staging)
            commit = Commit(
                run_key=self._run_key, spec_digest=self._spec_digest, rows=written.rows, details=written.details
            )
            self._write_text(f"{self.staging}/{COMMIT_FILE}", json.dumps(asdict(commit), sort_keys=True))
            self._flush(self.staging)
            self.check_target(mode)
            replaced = self._exists(self.path)
            if replaced:
                self._delete(self._previous)
                self._rename(self.path, self._previous)
            self._rename(self.staging, self.path)
        finally:
            self._delete(self.staging)
        if replaced:
            self._delete(self._previous)
        return commit

    def _restore(self) -> None:
        if not self._exists(self.path) and self._exists(self._previous):
            self._rename(self._previous, self.path)

    def _hadoop_path(self, path: str) -> Any:
        return self._jvm.org.apache.hadoop.fs.Path(path)

    def _local(self, path: str) -> Path | None:
        return Path(path.removeprefix("file:")) if path.startswith("file:") else None

    def _exists(self, path: str) -> bool:
        return bool(self._files.util().exists(self._hadoop_path(path)))

    def _delete(self, path: str) -> None:
        if self._exists(path):
            self._files.delete(self._hadoop_path(path), True)

    def _write_text(self, path: str, text: str) -> None:
        flags = self._jvm.java.util.EnumSet.of(self._jvm.org.apache.hadoop.fs.CreateFlag.CREATE)
        options = self._jvm.java.lang.reflect.Array.newInstance(
            self._jvm.org.apache.hadoop.fs.Options.CreateOpts._java_lang_class, 0
        )
        stream = self._files.create(self._hadoop_path(path), flags, options)
        try:
            stream.write(bytearray(text.encode()))
        finally:
            stream.close()

    def _flush(self, folder: str) -> None:
        """Make a local dataset durable before anything that it replaces is deleted. HDFS and object stores do so on close."""
        local = self._local(folder)
        if local is None:
            return
        for base, _, names in os.walk(local):
            for path in (base, *(os.path.join(base, name) for name in names)):  # noqa: PTH118
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def _rename(self, source: str, target: str) -> None:
        local = self._local(source)
        if local is not None:
            # rename(2) refuses a target folder that is not empty; Hadoop's local file system would merge the two.
            local.rename(str(self._local(target)))
            descriptor = os.open(local.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            return
        options = self._jvm.java.lang.reflect.Array.newInstance(
            self._jvm.org.apache.hadoop.fs.Options.Rename._java_lang_class, 0
        )
        self._files.rename(self._hadoop_path(source), self._hadoop_path(target), options)
