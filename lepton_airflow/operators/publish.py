"""Publish a release that waited for approval, and write its receipt. Both run in the worker; neither needs Spark or the data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from lepton_airflow.errors import ApprovalMissing, LeptonError
from lepton_airflow.hooks.lepton import LeptonHook
from lepton_airflow.hooks.lineage import LineageMixin
from lepton_airflow.hooks.submission import caller_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from lepton_airflow.settings import Settings

#: What Airflow's ApprovalOperator calls a yes.
_APPROVE = "Approve"


class _AfterReleaseOperator(LineageMixin, BaseOperator):
    """Base of the operators that go on from a release task of the same DAG run."""

    #: What the lineage is told from.
    _told: Mapping[str, Any] = {}

    def __init__(
        self, *, release_task_id: str, lepton_conn_id: str = LeptonHook.default_conn_name, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.release_task_id = release_task_id
        self.lepton_conn_id = lepton_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Go on from the release, and return the summary.

        :raises AirflowFailException: with the text of a final error
        :raises AirflowException: with the text of an error that a retry may cure
        """
        instance = context["ti"]
        run_key = f"{instance.dag_id}/{self.release_task_id}/{instance.run_id}/{instance.map_index}"
        try:
            summary = self._go_on(run_key, context, LeptonHook(self.lepton_conn_id).settings)
        except LeptonError as error:
            raised = AirflowFailException if error.final else AirflowException
            raise raised(f"[{error.code}] {error}") from None
        self._summary = summary
        for outlet in self.outlets:
            context["outlet_events"][outlet].extra = summary
        return summary

    def _spec(self) -> dict[str, Any]:
        return dict(self._told)

    @abstractmethod
    def _go_on(self, run_key: str, context: Context, settings: Settings) -> dict[str, Any]:
        """What each of them does with the release."""


class PublishReleaseOperator(_AfterReleaseOperator):
    """Publish a release that was drawn with ``approval: required``, once somebody approved it.

    .. code-block:: python

        release = ReleaseAggregatesOperator(task_id="release", approval="required", ...)
        approve = ApprovalOperator(task_id="approve", subject="Publish the visits of {{ ds }}?")
        publish = PublishReleaseOperator(
            task_id="publish",
            release_task_id="release",
            approval_task_id="approve",
            outlets=[Asset("clinic.visits_release")],
        )
        release >> approve >> publish

    Airflow's ``ApprovalOperator`` lets anybody respond who may, also the person who triggered the run; this operator refuses
    them, and whom the policy does not grant the action ``approve``, by the name that they have in Airflow. Who responded is
    Airflow's word: the audit and the receipt say so (``known_by: airflow``). A response that a timeout
    gave is nobody's approval. Publishing costs nothing; the policy decides it and the audit has it as a release. A retry writes
    the same file. In a mapped task group it belongs to the tasks of its own map index.

    :param release_task_id: the :class:`~lepton_airflow.operators.release.ReleaseAggregatesOperator` task, in the same DAG run
    :param approval_task_id: the ``ApprovalOperator`` task; without one, somebody approves with `lepton release approve` first
    :param lepton_conn_id: the Lepton connection: audit database, identity, policy
    :returns: ``cells``, ``epsilon_spent``, ``release`` (the file), ``digest`` (of it), ``published``, ``approver``
    """

    job: ClassVar[str] = "publish_release"
    template_fields = ()

    def __init__(self, *, approval_task_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.approval_task_id = approval_task_id

    def _go_on(self, run_key: str, context: Context, settings: Settings) -> dict[str, Any]:
        from lepton_airflow.jobs.publish_release import approve_release, publish_release, released_spec

        # What is published only the ledger knows, so the start is told without it.
        self._told = released_spec(run_key, settings=settings)
        caller = caller_of(context)
        if self.approval_task_id is not None:
            person = self._responder(self.approval_task_id, context)
            approve_release(
                run_key,
                settings=settings,
                approver=str(person["name"]),
                known_by="airflow",
                aliases=[str(person["id"])],
                requesters=[context["dag_run"].triggering_user_name],
                caller=caller,
            )
        return publish_release(run_key, settings=settings, caller=caller)

    def _responder(self, task_id: str, context: Context) -> Mapping[str, Any]:
        """The person who approved, by ``id`` and ``name``.

        :raises ApprovalMissing: nobody did
        """
        instance = context["ti"]
        response = instance.xcom_pull(task_ids=task_id, map_indexes=instance.map_index)
        response = response if isinstance(response, dict) else {}
        person = response.get("responded_by_user")
        if response.get("chosen_options") != [_APPROVE] or not isinstance(person, dict):
            raise ApprovalMissing(
                "Nobody approved: there is no response, it says something else, or a timeout gave it.",
                place=f"task {task_id}",
                remedy="Clear that task and have somebody respond, or use `lepton release approve`.",
            )
        return person


class ReleaseReceiptOperator(_AfterReleaseOperator):
    """Write the receipt of a published release, which proves offline what the sealed audit log says about it.

    It comes after a :class:`~lepton_airflow.operators.audit.SealAuditOperator`; as long as the release's events are not sealed it
    fails, and a retry may cure that. A retry replaces the receipt by one for the latest checkpoint.

    :param release_task_id: the :class:`~lepton_airflow.operators.release.ReleaseAggregatesOperator` task, in the same DAG run
    :param receipt: the file to write, JSON (templated)
    :param lepton_conn_id: the Lepton connection: audit database, sealer's public key
    :returns: ``receipt`` (the file), ``run_key``
    """

    job: ClassVar[str] = "issue_receipt"
    template_fields = ("receipt",)

    def __init__(self, *, receipt: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.receipt = receipt

    def _spec(self) -> dict[str, Any]:
        return {"receipt": self.receipt}

    def _go_on(self, run_key: str, context: Context, settings: Settings) -> dict[str, Any]:  # noqa: ARG002 - as the base
        from lepton_airflow.audit.checkpoint import Verifier
        from lepton_airflow.audit.database import connect
        from lepton_airflow.privacy.receipt_issue import issue_receipt

        engine = connect(settings)
        try:
            content = issue_receipt(engine, run_key, verifier=Verifier.load(settings.checkpoint_verifier))
        finally:
            engine.dispose()
        file = Path(self.receipt).absolute()
        file.parent.mkdir(parents=True, exist_ok=True)
        staging = file.with_name(f".{file.name}.staging")
        staging.write_bytes(content)
        staging.replace(file)
        return {"receipt": str(file), "run_key": run_key}
