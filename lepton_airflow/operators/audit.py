"""Seal and verify the audit log. Both run in the worker; neither needs Spark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from lepton_airflow.errors import LeptonError
from lepton_airflow.hooks.lepton import LeptonHook
from lepton_airflow.hooks.lineage import LineageMixin
from lepton_airflow.operators.base import LeptonOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class VerifyAuditOperator(LeptonOperator):
    """Verify the audit log against its signed and exported checkpoints; a log that does not verify fails without a retry.

    :param purpose: why; the policy grants actions for purposes (templated)
    :param minimum_events: fewer sealed events are a failure
    :returns: ``events``, ``unsealed``, ``root``
    """

    job: ClassVar[str] = "verify_audit"
    spec_fields: ClassVar[tuple[str, ...]] = ("purpose", "minimum_events")
    template_fields = ("purpose",)

    def __init__(self, *, purpose: str, minimum_events: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.purpose = purpose
        self.minimum_events = minimum_events


class SealAuditOperator(LineageMixin, BaseOperator):
    """Seal the events that are not sealed yet: order them into the tree and sign and export a checkpoint.

    The worker that runs it must be able to read the sealer's key, which the writers of events must not hold.

    :param lepton_conn_id: the Lepton connection of the sealer
    :returns: ``events`` (sealed so far), ``root``
    """

    job: ClassVar[str] = "seal_audit"
    template_fields = ()

    def __init__(self, *, lepton_conn_id: str = LeptonHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lepton_conn_id = lepton_conn_id

    def _spec(self) -> dict[str, Any]:
        return {}

    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002 - Airflow calls it so
        from lepton_airflow.audit.checkpoint import Signer
        from lepton_airflow.audit.database import connect
        from lepton_airflow.audit.quorum import Quorum
        from lepton_airflow.audit.sealer import seal

        try:
            settings = LeptonHook(self.lepton_conn_id).settings
            engine = connect(settings)
            try:
                checkpoint = seal(
                    engine,
                    signer=Signer.load(settings.checkpoint_signer),
                    exports=settings.checkpoint_exports,
                    quorum=Quorum.of(settings),
                )
            finally:
                engine.dispose()
        except LeptonError as error:
            raised = AirflowFailException if error.final else AirflowException
            raise raised(f"[{error.code}] {error}") from None
        return {"events": checkpoint.tree_size, "root": checkpoint.root_hash.hex()}
