"""What all Lepton operators share: the run key, the spec, the result channel and how errors reach Airflow."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseHook, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from lepton_airflow.errors import ConfigurationError, JobFailed, LeptonError, MissingDependency, SpecError, from_dict
from lepton_airflow.hooks.lepton import LeptonHook
from lepton_airflow.jobs.session import check_java
from lepton_airflow.operators.lineage import LineageMixin, run_key_of
from lepton_airflow.settings import DATABASE_PASSWORD_VARIABLE

if TYPE_CHECKING:
    from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook
    from airflow.sdk import Context

    from lepton_airflow.jobs.runner import Caller


def job_script(job: str) -> str:
    """The path of the script for spark-submit, inside the installed package or in a checkout.

    :raises ConfigurationError: the package was installed without its scripts
    """
    package = Path(str(files("lepton_airflow")))
    for folder in (package / "spark_jobs", package.parent / "spark_jobs"):
        script = folder / f"{job}.py"
        if script.is_file():
            return str(script)
    raise ConfigurationError(
        "The script of the job is not installed.",
        place=f"spark_jobs/{job}.py",
        remedy="Install lepton-airflow from its wheel.",
    )


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
            summary = self._run(self._spec(), _caller(context), run_key_of(context["ti"]))
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
        self._submit_hook: SparkSubmitHook | None = None

    def _run(self, spec: dict[str, Any], caller: Caller, run_key: str) -> dict[str, Any]:
        from lepton_airflow.jobs.runner import record_failure

        hook = LeptonHook(self.lepton_conn_id)
        attempt = str(uuid.uuid4())
        try:
            self._submit(hook, spec, caller, run_key, attempt)
            # The driver's exit status is not the result: in cluster mode spark-submit may not know it.
            return self._stored_result(hook, run_key, attempt)
        except LeptonError as error:
            if not error.stored:
                try:
                    record_failure(self.job, spec, error, settings=hook.settings, run_key=run_key, caller=caller)
                except LeptonError as unrecorded:
                    # What went wrong first is what people must see; that the audit lacks it comes second.
                    self.log.error("The failure is not in the audit: %s", unrecorded)
            raise

    def _submit(self, hook: LeptonHook, spec: dict[str, Any], caller: Caller, run_key: str, attempt: str) -> None:
        from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook

        arguments = ["--spec-json", _as_json(spec), "--run-key", run_key, "--attempt", attempt]
        for option, value in (
            ("--on-behalf-of", caller.on_behalf_of),
            ("--owner", caller.owner),
            ("--bundle-version", caller.bundle_version),
        ):
            if value:
                arguments += [option, value]
        self._submit_hook = SparkSubmitHook(
            conf=dict(self.spark_conf or {}),
            conn_id=self.spark_conn_id,
            name=f"lepton {run_key}",
            application_args=arguments,
            env_vars=self._driver_environment(hook),
            executor_memory=self.executor_memory,
            driver_memory=self.driver_memory,
            num_executors=self.num_executors,
            py_files=",".join(self.py_files) if self.py_files else None,
        )
        try:
            self._submit_hook.submit(job_script(self.job))
        except AirflowException:
            # Its text is the end of the driver's output. What went wrong is stored under the run key.
            self._stored_result(hook, run_key, attempt)
            raise

    def _driver_environment(self, hook: LeptonHook) -> dict[str, str]:
        """The environment variables of the driver. In cluster mode the Spark hook turns them into conf, which is logged."""
        connection = BaseHook.get_connection(self.spark_conn_id)
        variables = hook.environment()
        master = connection.host or ""
        managed = connection.conn_type in ("yarn", "k8s") or master.startswith(("yarn", "k8s"))
        cluster = connection.extra_dejson.get("deploy-mode") == "cluster"
        if hook.password and (managed or cluster):
            raise ConfigurationError(
                "The audit database's password cannot reach this driver safely: for YARN, Kubernetes and cluster mode "
                "the Spark hook turns variables into conf, which is logged and shown among process arguments.",
                place=f"connection {self.lepton_conn_id}",
                remedy=f"Leave the password empty and give the driver {DATABASE_PASSWORD_VARIABLE} through your "
                "cluster's secret store, or use a passfile or client certificate in the database URL.",
            )
        if cluster and not managed:
            raise ConfigurationError(
                "Spark's standalone cluster mode takes no Python applications.",
                place=f"connection {self.spark_conn_id}",
                remedy="Set its deploy mode to client.",
            )
        if connection.conn_type == "k8s" or master.startswith("k8s"):
            self._check_kubernetes(cluster=cluster)
        if cluster:
            return variables
        check_java()
        if hook.password:
            variables[DATABASE_PASSWORD_VARIABLE] = hook.password
        if master.startswith("local"):
            # One machine, one environment: the driver runs on this interpreter unless the administrator chose another.
            variables["PYSPARK_PYTHON"] = os.environ.get("PYSPARK_PYTHON", sys.executable)
        return variables

    def _check_kubernetes(self, *, cluster: bool) -> None:
        place = f"connection {self.spark_conn_id}"
        if not cluster:
            raise ConfigurationError(
                "In client mode on Kubernetes the Spark hook gives its variables to pods and not to the local driver.",
                place=place,
                remedy="Set its deploy mode to cluster.",
            )
        if importlib.util.find_spec("airflow.providers.cncf.kubernetes") is None:
            raise MissingDependency(
                "The Spark hook needs Airflow's Kubernetes provider for this master.",
                place=place,
                remedy="Install apache-airflow-providers-cncf-kubernetes.",
            )

    def _stored_result(self, hook: LeptonHook, run_key: str, attempt: str) -> dict[str, Any]:
        record = hook.result(run_key)
        if record is None or record.payload.get("attempt") != attempt:
            raise JobFailed(
                "The Spark driver ended without storing a result: it did not start, was killed, or ran out of memory.",
                place=run_key,
                remedy="See the output of spark-submit above; the target is as it was, and running the task again is safe.",
            )
        self._observed = record.payload.get("observed")
        if record.status != "success":
            error = from_dict(record.payload["error"])
            error.stored = True
            raise error
        result: dict[str, Any] = record.payload["result"]
        return result

    def on_kill(self) -> None:
        """Stop the Spark application when the task is stopped."""
        if self._submit_hook is not None:
            self._submit_hook.on_kill()


def _caller(context: Context) -> Caller:
    from lepton_airflow.jobs.runner import Caller

    bundle = getattr(context["ti"], "bundle_instance", None)
    return Caller(
        on_behalf_of=context["dag_run"].triggering_user_name,
        owner=context["task"].owner,
        bundle_version=getattr(bundle, "version", None),
    )


def _as_json(spec: dict[str, Any]) -> str:
    for name, value in spec.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise SpecError(
                f"A {type(value).__name__} cannot be written as JSON.",
                place=name,
                remedy="Use strings, numbers, lists and mappings.",
            ) from None
    return json.dumps(spec)
