"""Submits a job's Spark application, for operators and sensors, and fetches its result from the audit database."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowException

from lepton_airflow.errors import ConfigurationError, JobFailed, LeptonError, MissingDependency, SpecError, from_dict
from lepton_airflow.hooks.lepton import LeptonHook
from lepton_airflow.jobs.session import check_java
from lepton_airflow.settings import DATABASE_PASSWORD_VARIABLE

if TYPE_CHECKING:
    from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook
    from airflow.sdk import Context

    from lepton_airflow.jobs.runner import Caller

_LOG = logging.getLogger(__name__)


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


def caller_of(context: Context) -> Caller:
    """Who a task runs for, as Airflow knows it."""
    from lepton_airflow.jobs.runner import Caller

    bundle = getattr(context["ti"], "bundle_instance", None)
    return Caller(
        on_behalf_of=context["dag_run"].triggering_user_name,
        owner=context["task"].owner,
        team=getattr(context["dag_run"], "team_name", None),
        bundle_version=getattr(bundle, "version", None),
    )


class SparkSubmission:
    """Runs jobs as Spark applications, submitted with the Spark provider's hook.

    :param lepton_conn_id: the Lepton connection
    :param spark_conn_id: the Spark connection: master, deploy mode, queue, namespace
    :param spark_conf: further Spark properties. They are logged; none may be a secret
    :param executor_memory: memory of each executor, such as ``4g``
    :param driver_memory: memory of the driver
    :param num_executors: number of executors (YARN, Kubernetes)
    :param py_files: archives or files to add to the Python path of driver and executors
    :ivar observed: what the last job noted for its lineage
    """

    def __init__(
        self,
        *,
        lepton_conn_id: str,
        spark_conn_id: str,
        spark_conf: Mapping[str, str] | None = None,
        executor_memory: str | None = None,
        driver_memory: str | None = None,
        num_executors: int | None = None,
        py_files: Sequence[str] | None = None,
    ) -> None:
        self._lepton_conn_id = lepton_conn_id
        self._spark_conn_id = spark_conn_id
        self._spark_conf = spark_conf
        self._executor_memory = executor_memory
        self._driver_memory = driver_memory
        self._num_executors = num_executors
        self._py_files = py_files
        self._submit_hook: SparkSubmitHook | None = None
        self.observed: Mapping[str, Any] | None = None

    def run(self, job: str, spec: dict[str, Any], caller: Caller, run_key: str) -> dict[str, Any]:
        """Run a job to its end and return its summary.

        :raises LeptonError: what went wrong; it is in the audit
        """
        from lepton_airflow.jobs.runner import record_failure

        hook = LeptonHook(self._lepton_conn_id)
        attempt = str(uuid.uuid4())
        try:
            self._submit(hook, job, spec, caller, run_key, attempt)
            # The driver's exit status is not the result: in cluster mode spark-submit may not know it.
            return self._stored_result(hook, run_key, attempt)
        except LeptonError as error:
            if not error.stored:
                try:
                    record_failure(job, spec, error, settings=hook.settings, run_key=run_key, caller=caller)
                except LeptonError as unrecorded:
                    # What went wrong first is what people must see; that the audit lacks it comes second.
                    _LOG.error("The failure is not in the audit: %s", unrecorded)
            raise

    def kill(self) -> None:
        """Stop the Spark application that is running."""
        if self._submit_hook is not None:
            self._submit_hook.on_kill()

    def _submit(
        self, hook: LeptonHook, job: str, spec: dict[str, Any], caller: Caller, run_key: str, attempt: str
    ) -> None:
        from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook

        arguments = ["--spec-json", _as_json(spec), "--run-key", run_key, "--attempt", attempt]
        for option, value in (
            ("--on-behalf-of", caller.on_behalf_of),
            ("--owner", caller.owner),
            ("--team", caller.team),
            ("--bundle-version", caller.bundle_version),
        ):
            if value:
                arguments += [option, value]
        self._submit_hook = SparkSubmitHook(
            conf=dict(self._spark_conf or {}),
            conn_id=self._spark_conn_id,
            name=f"lepton {run_key}",
            application_args=arguments,
            env_vars=self._driver_environment(hook),
            executor_memory=self._executor_memory,
            driver_memory=self._driver_memory,
            num_executors=self._num_executors,
            py_files=",".join(self._py_files) if self._py_files else None,
        )
        try:
            self._submit_hook.submit(job_script(job))
        except AirflowException:
            # Its text is the end of the driver's output. What went wrong is stored under the run key.
            self._stored_result(hook, run_key, attempt)
            raise

    def _driver_environment(self, hook: LeptonHook) -> dict[str, str]:
        """The environment variables of the driver. In cluster mode the Spark hook turns them into conf, which is logged."""
        connection = BaseHook.get_connection(self._spark_conn_id)
        variables = hook.environment()
        master = connection.host or ""
        managed = connection.conn_type in ("yarn", "k8s") or master.startswith(("yarn", "k8s"))
        cluster = connection.extra_dejson.get("deploy-mode") == "cluster"
        if hook.password and (managed or cluster):
            raise ConfigurationError(
                "The audit database's password cannot reach this driver safely: for YARN, Kubernetes and cluster mode "
                "the Spark hook turns variables into conf, which is logged and shown among process arguments.",
                place=f"connection {self._lepton_conn_id}",
                remedy=f"Leave the password empty and give the driver {DATABASE_PASSWORD_VARIABLE} through your "
                "cluster's secret store, or use a passfile or client certificate in the database URL.",
            )
        if cluster and not managed:
            raise ConfigurationError(
                "Spark's standalone cluster mode takes no Python applications.",
                place=f"connection {self._spark_conn_id}",
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
        place = f"connection {self._spark_conn_id}"
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
        self.observed = record.payload.get("observed")
        if record.status != "success":
            error = from_dict(record.payload["error"])
            error.stored = True
            raise error
        result: dict[str, Any] = record.payload["result"]
        return result


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
