"""What all Lepton operators share: the run key, the spec, the result channel and how errors reach Airflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from lepton_airflow.errors import LeptonError
from lepton_airflow.hooks.lepton import LeptonHook
from lepton_airflow.hooks.lineage import LineageMixin, run_key_of
from lepton_airflow.hooks.submission import SparkSubmission, caller_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from lepton_airflow.jobs.runner import Caller


class LeptonOperator(LineageMixin, BaseOperator):
    """Base of all Lepton operators; it runs its job in the worker.

    The operator's spec arguments are the fields of the job's spec model; they are validated when the task runs, after their
    templates are rendered. The run key is ``dag_id/task_id/run_id/map_index``: a retry or a cleared task has the same effect
    once. A final error (denied, budget exhausted, tampered, bad input) fails the task without a retry.

    :param lepton_conn_id: the Lepton connection: audit database, keyring, identity, policy
    """

    #: The job's name and the names of its spec fields, set by each operator.
    job: ClassVar[str]
    spec_fields: ClassVar[tuple[str, ...]]

    def __init__(self, *, lepton_conn_id: str = LeptonHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lepton_conn_id = lepton_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the job and return its summary.

        :raises AirflowFailException: with the text of a final error
        :raises AirflowException: with the text of an error that a retry may cure
        """
        try:
            summary = self._run(self._spec(), caller_of(context), run_key_of(context["ti"]))
        except LeptonError as error:
            raised = AirflowFailException if error.final else AirflowException
            raise raised(f"[{error.code}] {error}") from None
        self._summary = summary
        for outlet in self.outlets:
            context["outlet_events"][outlet].extra = summary
        return summary

    def _spec(self) -> dict[str, Any]:
        """The spec; arguments that were left out are left to the spec model's own defaults."""
        fields = {name: getattr(self, name) for name in self.spec_fields}
        return {name: value for name, value in fields.items() if value is not None}

    def _run(self, spec: dict[str, Any], caller: Caller, run_key: str) -> dict[str, Any]:
        from lepton_airflow.jobs.runner import run_job

        settings = LeptonHook(self.lepton_conn_id).settings
        return run_job(self.job, spec, settings=settings, run_key=run_key, caller=caller)


class LeptonSparkOperator(LeptonOperator):
    """Base of the operators whose job is a Spark application, submitted with the Spark provider's hook.

    :param spark_conn_id: the Spark connection: master, deploy mode, queue, namespace
    :param spark_conf: further Spark properties. They are logged; none may be a secret
    :param executor_memory: memory of each executor, such as ``4g``
    :param driver_memory: memory of the driver
    :param num_executors: number of executors (YARN, Kubernetes)
    :param py_files: archives or files to add to the Python path of driver and executors
    """

    def __init__(
        self,
        *,
        spark_conn_id: str = "spark_default",
        spark_conf: Mapping[str, str] | None = None,
        executor_memory: str | None = None,
        driver_memory: str | None = None,
        num_executors: int | None = None,
        py_files: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spark_conn_id = spark_conn_id
        self.spark_conf = spark_conf
        self.executor_memory = executor_memory
        self.driver_memory = driver_memory
        self.num_executors = num_executors
        self.py_files = py_files
        self._submission: SparkSubmission | None = None

    def _run(self, spec: dict[str, Any], caller: Caller, run_key: str) -> dict[str, Any]:
        self._submission = SparkSubmission(
            lepton_conn_id=self.lepton_conn_id,
            spark_conn_id=self.spark_conn_id,
            spark_conf=self.spark_conf,
            executor_memory=self.executor_memory,
            driver_memory=self.driver_memory,
            num_executors=self.num_executors,
            py_files=self.py_files,
        )
        try:
            return self._submission.run(self.job, spec, caller, run_key)
        finally:
            self._observed = self._submission.observed

    def on_kill(self) -> None:
        """Stop the Spark application when the task is stopped."""
        if self._submission is not None:
            self._submission.kill()
