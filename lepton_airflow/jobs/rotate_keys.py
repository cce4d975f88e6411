"""Encrypt again, under the primary keys, what a protected table still holds under older ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from lepton_airflow.columnar.publish import Written
from lepton_airflow.jobs.roads import Road, Route, Source, record, summary
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

    :returns: see :func:`lepton_airflow.jobs.roads.summary`; ``rotated`` has by column the values that were encrypted again
    """
    from lepton_airflow.encryption.planning import protectors_of
    from lepton_airflow.encryption.roads import Rotate
    from lepton_airflow.encryption.selection import choose_protected

    # Only the schema can tell which columns are meant. The policy is asked about those, before any row is read.
    columns = choose_protected(Source(job, spec.source).schema, spec.columns, dataset=spec.source.name)
    with job.guard.operation(
        action="rotate", dataset=spec.source.name, columns=columns, purpose=spec.purpose
    ) as operation:
        commit = job.committed(spec.target)
        if commit is not None:
            written = Written(commit.rows, commit.details)
        else:
            source = Source(job, spec.source, columns=columns)
            protectors = protectors_of(
                source.schema,
                keyring=job.settings.keyring,
                identity_file=job.settings.identity_file,
                columns=columns,
                dataset=spec.source.name,
            )
            # Files that are encrypted as a whole stay so, each under a new key.
            file_keyset = source.table.file_keys.keyset if source.table and source.table.file_keys else None
            route = Route(job, source, target=spec.target, road=spec.road, file_keyset=file_keyset)
            route.reserve(protectors)
            written = route.walk(Rotate(protectors))
        record(operation, written)
    return summary(written, columns=columns, target=spec.target, replayed=commit is not None)
