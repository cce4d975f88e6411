"""What Airflow's OpenLineage provider asks operators: it sends START, COMPLETE and FAIL events with what these methods return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage


class LineageMixin:
    """Lineage of an operator whose arguments are its job's spec.

    The provider calls the methods in the task's process and survives their errors, so that lineage never fails a task.
    """

    job: ClassVar[str]

    #: Left by the run for what is said after it: the job's summary, and what it observed.
    _summary: Mapping[str, Any] | None = None
    _observed: Mapping[str, Any] | None = None

    if TYPE_CHECKING:

        def _spec(self) -> dict[str, Any]: ...

    def get_openlineage_facets_on_start(self) -> OperatorLineage[Any, Any]:
        """What the spec says will be read and written."""
        return self._lineage()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """What was read and written, with what only the run could know."""
        return self._lineage(task_instance)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """What was to be read and written; after a denial or a failure the target is as it was."""
        return self._lineage(task_instance)

    def _lineage(self, task_instance: Any = None) -> OperatorLineage[Any, Any]:
        from airflow.providers.openlineage.extractors import OperatorLineage

        from lepton_airflow.lineage import facets
        from lepton_airflow.lineage.jobs import job_lineage

        lineage = job_lineage(
            self.job,
            self._spec(),
            observed=self._observed,
            result=self._summary,
            run_key=None if task_instance is None else run_key_of(task_instance),
        )
        return OperatorLineage(
            inputs=facets.inputs(lineage), outputs=facets.outputs(lineage), run_facets=facets.run_facets(lineage)
        )


def run_key_of(task_instance: Any) -> str:
    """The run key of a task: not the try number, so that a retry has the same effect once."""
    ti = task_instance
    return f"{ti.dag_id}/{ti.task_id}/{ti.run_id}/{ti.map_index}"
