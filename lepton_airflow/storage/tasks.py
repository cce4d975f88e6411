"""One way to share out files to Spark tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from lepton_airflow.columnar.failures import errors_for_the_driver

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Tasks for each that runs at once: files differ in size.
_TASKS_EACH = 4


def in_tasks(
    session: SparkSession, items: Sequence[Item], work: Callable[[Item], Result], *, place: str
) -> list[Result]:
    """Do ``work`` for each item in Spark tasks; it and what it holds travel to the workers, so it holds no secret.

    :param place: the dataset and version, for errors
    :returns: the results, in the order of the items
    :raises Exception: as Spark wraps it, with a :class:`LeptonError` on the wire inside
    """

    def guarded(item: Item) -> Result:
        with errors_for_the_driver(place):
            return work(item)

    context = session.sparkContext
    tasks = min(len(items), _TASKS_EACH * context.defaultParallelism)
    results: list[Result] = context.parallelize(items, tasks).map(guarded).collect()
    return results
