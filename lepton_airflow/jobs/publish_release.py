"""Show, approve and publish a release that was drawn and waits; no Spark, no data: the ledger has the numbers and the spec.

The command line and :class:`lepton_airflow.operators.publish.PublishReleaseOperator` call these functions in their own process.
Their audit events carry the run key of the release, which is how its receipt finds them. Seeing numbers that nobody approved, and
approving them, is the policy's action ``approve``; publishing is ``release``, as drawing was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lepton_airflow.audit.canonical import digest
from lepton_airflow.audit.database import connect
from lepton_airflow.audit.event import Event
from lepton_airflow.errors import AccessDenied, AuditTampered, BudgetError, LeptonError
from lepton_airflow.jobs.release_aggregates import ReleaseAggregatesSpec, record
from lepton_airflow.jobs.runner import Caller, audit_log_of, guard_of
from lepton_airflow.jobs.spec import parse_spec
from lepton_airflow.privacy.document import build_document
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.receipt import APPROVE, RELEASE, is_same_person
from lepton_airflow.privacy.release import Released, publish, stored_keys

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from lepton_airflow.access.guard import Operation
    from lepton_airflow.audit.event import Detail
    from lepton_airflow.audit.log import AuditLog
    from lepton_airflow.privacy.plan import ReleasePlan
    from lepton_airflow.privacy.records import Release
    from lepton_airflow.settings import Settings

#: How an approver's name is known: by the private key of an identity, or because Airflow says who responded.
KnownBy = Literal["identity", "airflow"]


@dataclass(frozen=True, kw_only=True)
class DrawnRelease:
    """A drawn release, with all that an approver may want to know; the numbers only if they are asked for.

    :param plan: its mechanisms and groupings
    :param groups: how many groups each grouping has
    """

    release: Release
    spec: ReleaseAggregatesSpec
    plan: ReleasePlan
    groups: tuple[int, ...]


def drawn_release(engine: Engine, run_key: str) -> DrawnRelease:
    """Find a release that has its numbers.

    :raises BudgetError: there is none under this run key, nothing is drawn yet, or its spec is not stored
    :raises AuditTampered: the stored spec is not the one that was released
    """
    ledger = Ledger(engine)
    release = ledger.find(run_key)
    if release is None:
        raise BudgetError("No release has this run key.", place=f"run {run_key}", remedy="See `lepton budget show`.")
    result = ledger.result(run_key)
    spec = parse_spec(ReleaseAggregatesSpec, ledger.spec(run_key))
    if digest(spec.model_dump(mode="json")) != release.spec_digest:
        raise AuditTampered(
            "The stored spec is not the one that was released: its digest differs.",
            place=f"run {run_key}",
            remedy="Run the release's job again, under the same run key: it publishes the stored numbers.",
        )
    keys = stored_keys(spec, result)
    return DrawnRelease(
        release=release, spec=spec, plan=spec.plan_for(keys), groups=tuple(len(group_keys) for group_keys in keys)
    )


def released_spec(run_key: str, *, settings: Settings) -> dict[str, Any]:
    """The fields of the spec of a drawn release, for its lineage; none where there is no such release: publishing it says so."""
    try:
        engine = connect(settings)
        try:
            return drawn_release(engine, run_key).spec.model_dump(mode="json")
        finally:
            engine.dispose()
    except LeptonError:
        return {}


def show_release(run_key: str, *, settings: Settings, caller: Caller | None = None) -> dict[str, Any]:
    """The release document with its noisy numbers, as it would be published now, for who is to approve it.

    :raises AccessDenied: the policy does not let this identity approve releases of the dataset
    :raises BudgetError: there is no such release, or nothing is drawn yet
    """
    with _approving(run_key, settings=settings, caller=caller, asked={"step": "show"}) as (ledger, drawn, _):
        return build_document(
            design=drawn.spec,
            plan=drawn.plan,
            result=ledger.result(run_key),
            release=drawn.release,
            dataset=drawn.spec.source.name,
        )


def approve_release(
    run_key: str,
    *,
    settings: Settings,
    approver: str,
    known_by: KnownBy,
    aliases: Sequence[str] = (),
    requesters: Sequence[str | None] = (),
    caller: Caller | None = None,
) -> Release:
    """Let a drawn release be published; again by the same person is no error.

    The policy is asked about the approver, not about the identity that records it: Airflow's users have none of their own.

    :param approver: the name of the person; neither the requester's nor that of the identity that ran the job
    :param aliases: other names of the same person
    :param requesters: who else is known to have asked for it
    :param caller: on whose behalf this identity records it
    :raises AccessDenied: the policy does not let the approver approve, or the approver asked for it or ran it; the refusal is in
        the audit
    :raises BudgetError: there is no such release, it needs no approval, or somebody else approved it
    """
    asked: dict[str, Detail] = {"step": "approve", "approver": approver, "known_by": known_by}
    opened = _approving(run_key, settings=settings, caller=caller, asked=asked, principal=approver)
    with opened as (ledger, drawn, operation):
        involved = (drawn.release.principal, drawn.release.requested_by, *requesters)
        if any(is_same_person(name, *involved) for name in (approver, *aliases)):
            raise AccessDenied(
                f"A release is not approved by who asked for it or ran it, {approver!r}.",
                place=f"run {run_key}",
                remedy="Have somebody else approve it.",
            )
        release = ledger.approve(run_key=run_key, approver=approver)
        operation.record(details={"approved_at": release.approved_at})
    return release


def publish_release(run_key: str, *, settings: Settings, caller: Caller | None = None) -> dict[str, Any]:
    """Write the file of a drawn release, and of its plot if the spec has one; again writes the same.

    :returns: ``cells``, ``epsilon_spent``, ``release`` (the file), ``digest`` (its ``sha256:<hex>``), ``published``, ``approver``
    :raises ApprovalMissing: it waits for approval; nothing is written
    :raises AccessDenied: the policy does not allow this identity to release from the dataset
    :raises BudgetError: there is no such release, or nothing is drawn yet
    :raises TargetExists: the file is another release's, and the spec's mode is ``errorifexists``
    """
    with audit_log_of(settings, run_key, caller) as (engine, principal, audit):
        with _failure_recorded(audit, RELEASE, {"step": "publish"}):
            drawn = drawn_release(engine, run_key)
            guard = guard_of(settings, audit, principal=principal, spec_digest=drawn.release.spec_digest)
        release, spec = drawn.release, drawn.spec
        file = Path(spec.target).absolute()
        with guard.operation(
            action=RELEASE,
            dataset=spec.source.name,
            columns=sorted(spec.columns),
            purpose=spec.purpose,
            epsilon=float(spec.epsilon),
            needs_approval=release.needs_approval,
            details={"budget": spec.payer, "privacy_unit": spec.privacy_unit, "step": "publish"},
        ) as operation:
            ledger = Ledger(engine)
            release, file_digest = publish(
                spec,
                release,
                ledger.result(run_key),
                ledger=ledger,
                dataset=spec.source.name,
                file=file,
                mode=spec.mode,
            )
            released = Released(
                release=release, plan=drawn.plan, groups=drawn.groups, replayed=True, digest=file_digest
            )
            record(operation, released, step="publish")
            summary = {
                **operation.counts,
                "epsilon_spent": operation.details["epsilon_spent"],
                "release": str(file),
                "digest": file_digest,
                "published": True,
                "approver": release.approver,
            }
    if spec.plot is not None:
        _plot(file, Path(spec.plot).absolute())
    return summary


@contextmanager
def _approving(
    run_key: str,
    *,
    settings: Settings,
    caller: Caller | None,
    asked: Mapping[str, Detail],
    principal: str | None = None,
) -> Iterator[tuple[Ledger, DrawnRelease, Operation]]:
    """An operation of the action ``approve`` on a drawn release, if the policy lets ``principal``, by default this identity."""
    with audit_log_of(settings, run_key, caller) as (engine, identity, audit):
        with _failure_recorded(audit, APPROVE, asked):
            drawn = drawn_release(engine, run_key)
            asker = identity if principal is None else principal
            guard = guard_of(settings, audit, principal=asker, spec_digest=drawn.release.spec_digest)
        with guard.operation(
            action=APPROVE,
            dataset=drawn.spec.source.name,
            columns=sorted(drawn.spec.columns),
            purpose=drawn.spec.purpose,
            details=asked,
        ) as operation:
            operation.record(details=asked)
            yield Ledger(engine), drawn, operation


@contextmanager
def _failure_recorded(audit: AuditLog, action: str, details: Mapping[str, Detail]) -> Iterator[None]:
    """Append the failure of what comes before a guard."""
    try:
        yield
    except LeptonError as error:
        failure = {**details, "error": error.code, "text": str(error)}
        audit.append(Event(action=action, phase="failure", details=failure))
        raise


def _plot(file: Path, picture: Path) -> None:
    import json

    from lepton_airflow.privacy.plot import draw

    draw(json.loads(file.read_text(encoding="utf-8")), picture)
