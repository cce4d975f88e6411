"""Events of a job that runs under plain spark-submit or ``lepton run``.

They go where OpenLineage's standard environment variables say (``OPENLINEAGE_URL``, ``OPENLINEAGE__TRANSPORT__...``,
``OPENLINEAGE_CONFIG``); without them, or without openlineage-python, nothing is sent. Under Airflow the provider sends them,
and the job that an operator submitted keeps silent.

Lineage is told, not proved: that is the audit's work. An event that cannot be sent is logged once, and the job goes on.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lepton_airflow.errors import LeptonError
from lepton_airflow.lineage.jobs import job_lineage

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import RunState

_log = logging.getLogger(__name__)
_DEFAULT_NAMESPACE = "default"


class Announcement:
    """What a job says of its run before it ends.

    :ivar observed: see :class:`lepton_airflow.lineage.observation.Observation`
    :ivar result: the job's summary
    """

    def __init__(self) -> None:
        self.observed: Mapping[str, Any] | None = None
        self.result: Mapping[str, Any] | None = None


@contextmanager
def announced(job: str, spec: Mapping[str, Any], *, run_key: str, enabled: bool = True) -> Iterator[Announcement]:
    """Send START before the body of the ``with`` statement, and COMPLETE, FAIL or (interrupted) ABORT after it.

    :param spec: the fields of the job's spec
    :param enabled: False where somebody else sends the run's events
    """
    announcement = Announcement()
    if not (enabled and is_configured()):
        yield announcement
        return
    run = _Run(job, spec, run_key, announcement)
    run.emit("START")
    try:
        yield announcement
    except Exception as error:
        run.emit("FAIL", error)
        raise
    except BaseException:
        run.emit("ABORT")
        raise
    else:
        run.emit("COMPLETE")
    finally:
        run.close()


def is_configured(environment: Mapping[str, str] | None = None) -> bool:
    """Whether openlineage-python is installed and the environment says where events go."""
    variables = os.environ if environment is None else environment
    if variables.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    told = variables.get("OPENLINEAGE_URL") or variables.get("OPENLINEAGE_CONFIG")
    if not told and not any(name.startswith("OPENLINEAGE__TRANSPORT") for name in variables):
        return False
    return importlib.util.find_spec("openlineage") is not None


class _Run:
    def __init__(self, job: str, spec: Mapping[str, Any], run_key: str, announcement: Announcement) -> None:
        self._job = job
        self._spec = spec
        self._run_key = run_key
        self._announcement = announcement
        self._client: OpenLineageClient | None = None
        self._run_id = ""
        self._failed = False

    def emit(self, state: str, error: BaseException | None = None) -> None:
        self._attempt(lambda: self._emit(state, error))

    def close(self) -> None:
        client = self._client
        if client is not None:
            self._attempt(lambda: client.close(timeout=10.0))

    def _attempt(self, act: Callable[[], object]) -> None:
        # A collector that did not answer once is not asked again: a job must not wait for it twice.
        if self._failed:
            return
        try:
            act()
        except Exception as error:
            self._failed = True
            # Its text can name the collector's address with a token in it.
            _log.warning("OpenLineage events of this run cannot be sent (%s); the job goes on.", type(error).__name__)

    def _emit(self, state: str, error: BaseException | None) -> None:
        from openlineage.client import OpenLineageClient
        from openlineage.client.event_v2 import RunState
        from openlineage.client.uuid import generate_new_uuid

        if self._client is None:
            self._client = OpenLineageClient()
            self._run_id = str(generate_new_uuid())
        self._client.emit(self._event(RunState(state), error))

    def _event(self, state: RunState, error: BaseException | None) -> Any:
        from openlineage.client.event_v2 import Job, Run, RunEvent
        from openlineage.client.facet_v2 import error_message_run, job_type_job

        from lepton_airflow.lineage import facets

        lineage = job_lineage(
            self._job,
            self._spec,
            observed=self._announcement.observed,
            result=self._announcement.result,
            run_key=self._run_key,
        )
        run_facets = facets.run_facets(lineage)
        if error is not None:
            # The text of an error that is not ours may quote data.
            text = f"[{error.code}] {error}" if isinstance(error, LeptonError) else type(error).__name__
            run_facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
                message=text, programmingLanguage="python", producer=facets.PRODUCER
            )
        job_type = job_type_job.JobTypeJobFacet(
            processingType="BATCH", integration="LEPTON", jobType="JOB", producer=facets.PRODUCER
        )
        return RunEvent(
            eventType=state,
            eventTime=datetime.now(UTC).isoformat(),
            run=Run(runId=self._run_id, facets=run_facets),
            job=Job(
                namespace=os.environ.get("OPENLINEAGE_NAMESPACE") or _DEFAULT_NAMESPACE,
                name=job_name(self._job, self._spec),
                facets={"jobType": job_type},
            ),
            inputs=facets.inputs(lineage),
            outputs=facets.outputs(lineage),
            producer=facets.PRODUCER,
        )


def job_name(job: str, spec: Mapping[str, Any]) -> str:
    """The name of a recurring job: what it does and to which dataset, the same at every run."""
    for role in ("target", "source"):
        table = spec.get(role)
        if isinstance(table, Mapping) and table.get("name"):
            return f"lepton.{job}.{table['name']}"
    return f"lepton.{job}"
