"""Verify the audit log. It needs no Spark session; the operator runs it in the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lepton_airflow.errors import AuditTampered
from lepton_airflow.jobs.spec import JobSpec

if TYPE_CHECKING:
    from lepton_airflow.jobs.runner import Job


class VerifyAuditSpec(JobSpec):
    """Verify the whole audit log against its signed and exported checkpoints.

    :param minimum_events: fewer sealed events than this is a failure, so that an emptied or unsealed log does not pass
    """

    minimum_events: int = 1


def run(spec: VerifyAuditSpec, job: Job) -> dict[str, Any]:
    """Recompute the log's tree and hold it against every checkpoint.

    :returns: ``events`` (sealed), ``unsealed``, ``root``
    :raises AuditTampered: naming the first findings
    """
    from lepton_airflow.audit.checkpoint import Verifier
    from lepton_airflow.audit.quorum import Quorum
    from lepton_airflow.audit.verify import verify

    with job.guard.operation(action="verify", dataset="audit", columns=(), purpose=spec.purpose) as operation:
        report = verify(
            job.engine,
            verifier=Verifier.load(job.settings.checkpoint_verifier),
            exports=job.settings.checkpoint_exports,
            quorum=Quorum.of(job.settings),
        )
        if not report.ok:
            shown = "; ".join(f"{finding.position}: {finding.text}" for finding in report.findings[:5])
            raise AuditTampered(
                f"The audit log does not verify, {len(report.findings)} findings: {shown}.",
                place="audit log",
                remedy="Keep the database as it is and run `lepton audit verify` for the whole list.",
            )
        if report.tree_size < spec.minimum_events:
            raise AuditTampered(
                f"The audit log has {report.tree_size} sealed events, at least {spec.minimum_events} were expected.",
                place="audit log",
                remedy="Run `lepton audit seal`; if events are missing after that, they were removed before sealing.",
            )
        operation.record(
            counts={"events": report.tree_size, "unsealed": report.unsealed}, digests={"root": report.root}
        )
    return {"events": report.tree_size, "unsealed": report.unsealed, "root": report.root}
