"""Errors of Spark's Python workers, in a form in which the driver finds them again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lepton_airflow.errors import JobFailed, LeptonError


@contextmanager
def errors_for_the_driver(place: str) -> Iterator[None]:
    """Carry a worker's error through Spark's stack traces; texts of other libraries may quote values and stay here.

    :param place: where it happened, for errors that do not know
    :raises RuntimeError: whose text is a :class:`LeptonError` on the wire
    """
    try:
        yield
    except LeptonError as error:
        raise RuntimeError(error.to_wire()) from None
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
        failed = JobFailed(
            f"A Spark worker failed with {type(error).__name__} at {where}.",
            place=place,
            remedy="Try again; if it comes back, report it with this line.",
        )
        raise RuntimeError(failed.to_wire()) from None
