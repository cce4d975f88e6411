"""Encrypt again, under the primary keys, what a protected table still holds under older ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from lepton_airflow.columnar.publish import Written
from lepton_airflow.jobs.roads import Road, Route, open_protected, protected_columns, write_once
from lepton_airflow.jobs.spec import JobSpec, TableReference, TargetReference

if TYPE_CHECKING:
    from lepton_airflow.jobs.runner import Job


class RotateKeysSpec(JobSpec):
    """What to encrypt again.

    :param source: the protected table. Its name is the dataset to which its values are bound
    :param target: where the table goes: the same ``name``, as values stay bound to it; the same ``path`` with ``mode: overwrite``
        replaces the table once the new one is durable
    :param columns: names, paths, patterns and tags of protected columns; by default all
    :param road: ``auto`` takes the direct road where it leads (Parquet to Parquet), ``dataframe`` never, ``direct`` insists on it
    """

    source: TableReference
    target: TargetReference
    columns: tuple[str, ...] = ("*",)
    road: Road = "auto"

    @model_validator(mode="after")
    def _stays_the_same_dataset(self) -> RotateKeysSpec:
        if self.source.name != self.target.name:
            raise ValueError("source and target have the same name: the values stay bound to it")
        return self


def run(spec: RotateKeysSpec, job: Job) -> dict[str, Any]:
    """Write the source to the target with every value of the columns under its keyset's primary key, atomically.

    :returns: see :func:`lepton_airflow.jobs.roads.write_once`; ``rotated`` has by column the values that were encrypted again
    """
    from lepton_airflow.encryption.roads import Rotate

    columns = protected_columns(job, spec.source, spec.columns)
    with job.guard.operation(
        action="rotate", dataset=spec.source.name, columns=columns, purpose=spec.purpose
    ) as operation:

        def write() -> Written:
            source, protectors = open_protected(job, spec.source, columns)
            # Files that are encrypted as a whole stay so, each under a new key.
            file_keyset = source.table.file_keys.keyset if source.table and source.table.file_keys else None
            route = Route(job, source, target=spec.target, road=spec.road, file_keyset=file_keyset)
            route.reserve(protectors)
            return route.walk(Rotate(protectors))

        return write_once(job, operation, spec.target, write, columns=columns)
