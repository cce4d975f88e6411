"""Wait until a champion is no longer good enough on fresh rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from lepton_airflow.errors import LeptonError
from lepton_airflow.hooks.lepton import LeptonHook
from lepton_airflow.hooks.lineage import LineageMixin, run_key_of
from lepton_airflow.hooks.submission import SparkSubmission, caller_of

if TYPE_CHECKING:
    from airflow.sdk import Context


class ModelScoreSensor(LineageMixin, BaseSensorOperator):
    """Score a model on fresh rows of a protected table, again and again, and succeed once it is worse than it may be: the tasks
    after it retrain it.

    .. code-block:: python

        worse = ModelScoreSensor(
            task_id="worse",
            source={"name": "clinic.visits", "path": "/data/protected/visits"},
            newer_than={"column": "day", "value": "{{ macros.ds_add(ds, -30) }}"},
            model="/models/diagnosis",
            minimum_clean_accuracy=0.9,
            minimum_robust_accuracy=0.6,
            purpose="diagnosis model",
        )
        worse >> retrain

    A bound is broken when the whole 95% interval of an accuracy lies below it; the attack is projected gradient descent, short.
    The model's file is checked against its card before it is loaded. Each look is a Spark application, an authorised operation
    (``evaluate``) and its events in the audit. What waiting cannot cure (a denial, a tampered model, rows with labels that the
    model does not know) fails the task without a retry.

    :param source: the protected table; encrypted columns are decrypted in memory only (templated)
    :param newer_than: score only rows whose ``column``, in the clear, is greater than ``value`` (templated)
    :param model: the folder of the model; columns, classes and threat model are those of its card (templated)
    :param minimum_clean_accuracy: share of the rows classified correctly
    :param minimum_robust_accuracy: share still classified correctly under attack at the epsilon of the model's threat model
    :param minimum_units: with fewer privacy units nothing is decided, and the sensor waits on; 100 by default
    :param steps: gradient steps of the attack
    :param restarts: attacks on each example
    :param seed: of the attack's random starts
    :param purpose: why; the policy grants the action ``evaluate`` for purposes (templated)
    :param lepton_conn_id: the Lepton connection: audit database, keyring, identity, policy
    :param spark_conn_id: the Spark connection: master, deploy mode, queue, namespace
    :param spark_conf: further Spark properties. They are logged; none may be a secret
    :param executor_memory: memory of each executor, such as ``4g``
    :param driver_memory: memory of the driver
    :param num_executors: number of executors (YARN, Kubernetes)
    :param py_files: archives or files to add to the Python path of driver and executors
    :param poke_interval: how long between two looks
    :param mode: ``reschedule`` keeps no worker slot while it waits
    :returns: of the look that found it worse: ``reasons``, ``clean_accuracy``, ``robust_accuracy``, their intervals, ``n``,
        ``units``, ``epsilon``, ``sha256``, ``path``
    """

    job: ClassVar[str] = "score_model"
    spec_fields: ClassVar[tuple[str, ...]] = (
        "source",
        "newer_than",
        "model",
        "minimum_clean_accuracy",
        "minimum_robust_accuracy",
        "minimum_units",
        "steps",
        "restarts",
        "seed",
        "purpose",
    )
    template_fields: Sequence[str] = ("source", "newer_than", "model", "purpose")

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        model: str,
        minimum_clean_accuracy: float,
        minimum_robust_accuracy: float,
        purpose: str,
        newer_than: Mapping[str, str] | None = None,
        minimum_units: int | None = None,
        steps: int | None = None,
        restarts: int | None = None,
        seed: int | None = None,
        lepton_conn_id: str = LeptonHook.default_conn_name,
        spark_conn_id: str = "spark_default",
        spark_conf: Mapping[str, str] | None = None,
        executor_memory: str | None = None,
        driver_memory: str | None = None,
        num_executors: int | None = None,
        py_files: Sequence[str] | None = None,
        poke_interval: timedelta | float = timedelta(days=1),
        mode: str = "reschedule",
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, mode=mode, **kwargs)
        self.source = source
        self.newer_than = newer_than
        self.model = model
        self.minimum_clean_accuracy = minimum_clean_accuracy
        self.minimum_robust_accuracy = minimum_robust_accuracy
        self.minimum_units = minimum_units
        self.steps = steps
        self.restarts = restarts
        self.seed = seed
        self.purpose = purpose
        self.lepton_conn_id = lepton_conn_id
        self.spark_conn_id = spark_conn_id
        self.spark_conf = spark_conf
        self.executor_memory = executor_memory
        self.driver_memory = driver_memory
        self.num_executors = num_executors
        self.py_files = py_files
        self._submission: SparkSubmission | None = None

    def poke(self, context: Context) -> PokeReturnValue:
        """Score the model once.

        :raises AirflowFailException: waiting cannot help
        :raises AirflowException: an error that a retry may cure
        """
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
            summary = self._submission.run(self.job, self._spec(), caller_of(context), run_key_of(context["ti"]))
        except LeptonError as error:
            raised = AirflowFailException if error.final else AirflowException
            raise raised(f"[{error.code}] {error}") from None
        finally:
            self._observed = self._submission.observed
        self._summary = summary
        for reason in summary["reasons"]:
            self.log.info("%s", reason)
        self.log.info("The model %s.", "is worse than it may be" if summary["below"] else "stays")
        return PokeReturnValue(is_done=summary["below"], xcom_value=summary)

    def on_kill(self) -> None:
        """Stop the Spark application when the task is stopped."""
        if self._submission is not None:
            self._submission.kill()

    def _spec(self) -> dict[str, Any]:
        """The spec; arguments that were left out are left to the spec model's own defaults."""
        fields = {name: getattr(self, name) for name in self.spec_fields}
        return {name: value for name, value in fields.items() if value is not None}
