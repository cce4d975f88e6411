"""Decrypt columns of a protected table into another table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lepton_airflow.columnar.publish import Written
from lepton_airflow.jobs.roads import Road, Route, open_protected, protected_columns, write_once
from lepton_airflow.jobs.spec import JobSpec, TableReference, TargetReference

if TYPE_CHECKING:
    from lepton_airflow.jobs.runner import Job


class DecryptColumnsSpec(JobSpec):
    """What to decrypt.

    :param source: the protected table. Its name is the dataset under which it was encrypted: the policy is asked about it
    :param target: the table with these columns in clear
    :param columns: names, paths (``address.street``), patterns (``*_id``, ``*`` for all) and tags (``tag:pii``) of protected
        columns; the others stay as they are
    :param on_error: ``fail``: one value that cannot be decrypted fails the job and nothing is published. ``null``: it becomes
        null and is counted
    :param road: ``auto`` takes the direct road where it leads (Parquet to Parquet), ``dataframe`` never, ``direct`` insists on it
    """

    source: TableReference
    target: TargetReference
    columns: tuple[str, ...] = Field(min_length=1)
    on_error: Literal["fail", "null"] = "fail"
    road: Road = "auto"


def run(spec: DecryptColumnsSpec, job: Job) -> dict[str, Any]:
    """Decrypt the columns of the source into the target, atomically.

    :returns: see :func:`lepton_airflow.jobs.roads.write_once`; ``failed`` has by column the values that became null
    """
    from lepton_airflow.encryption.roads import Reveal

    columns = protected_columns(job, spec.source, spec.columns)
    with job.guard.operation(
        action="decrypt",
        dataset=spec.source.name,
        columns=columns,
        purpose=spec.purpose,
        details={"target": spec.target.name},
    ) as operation:

        def write() -> Written:
            source, protectors = open_protected(job, spec.source, columns)
            route = Route(job, source, target=spec.target, road=spec.road)
            return route.walk(Reveal(protectors, on_error=spec.on_error))

        return write_once(job, operation, spec.target, write, columns=columns)
