"""What went wrong, as one typed error: nobody should read a JVM's stack trace to learn that a path is missing."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from typing import Any

from lepton_airflow.audit.event import Event
from lepton_airflow.errors import JobFailed, LeptonError, UnreadableSource, from_wire
from lepton_airflow.lineage.jobs import OPERATIONS

#: Set to 1 to print the full trace behind a typed error. Traces can quote data: for development only.
TRACEBACK_VARIABLE = "LEPTON_TRACEBACK"


def as_typed_error(error: BaseException, *, place: str) -> LeptonError:
    """Turn any exception of a job into a typed error.

    The text of an unknown exception is left out, since Spark quotes data values in some of its messages: what is kept is its
    class and, where Spark gives one, its error condition.

    :param place: where it happened, for errors that do not know
    """
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        traceback.print_exception(error)
    if isinstance(error, LeptonError):
        return error
    # An error raised inside a Python worker comes back as text in the middle of Spark's own exception.
    from_worker = from_wire(str(error))
    if from_worker is not None:
        return from_worker
    condition = _spark_condition(error)
    name = type(error).__name__ + (f" {condition}" if condition else "")
    return JobFailed(
        f"The job failed with {name}.",
        place=place,
        remedy=f"Run it again; if it fails again, set {TRACEBACK_VARIABLE}=1 to see the trace, which can quote data.",
    )


def unreadable_source(error: BaseException, *, place: str, where: str) -> UnreadableSource:
    """The typed error for a table that Spark could not open."""
    condition = _spark_condition(error) or type(error).__name__
    return UnreadableSource(
        f"The table cannot be read from {where} ({condition}).",
        place=place,
        remedy="Check that it exists, is readable for this user, and is in the stated format.",
    )


def failure_event(name: str, fields: Mapping[str, Any], spec_digest: str, error: LeptonError) -> Event:
    """The outcome of a job that did not get as far as its intent; of a spec that may be wrong it tells what is there."""
    table = fields.get("target" if name == "encrypt_columns" else "source")
    dataset = table.get("name") if isinstance(table, Mapping) else None
    columns, purpose = fields.get("columns"), fields.get("purpose")
    named = columns if isinstance(columns, (list, tuple, Mapping)) else ()
    return Event(
        action=OPERATIONS.get(name, name),
        phase="failure",
        dataset=dataset if isinstance(dataset, str) else None,
        columns=tuple(column for column in named if isinstance(column, str)),
        purpose=purpose if isinstance(purpose, str) else None,
        spec_digest=spec_digest,
        details={"job": name, "error": error.code, "text": str(error)},
    )


def _spark_condition(error: BaseException) -> str | None:
    from pyspark.errors import PySparkException

    if isinstance(error, PySparkException):
        return error.getCondition()
    java = getattr(error, "java_exception", None)
    if java is None:
        return None
    while java.getCause() is not None:
        java = java.getCause()
    return str(java.getClass().getName())
