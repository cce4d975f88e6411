"""The guard: authorise, commit the intent, let the work happen, commit the outcome. The only door to protected data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from lepton_airflow.access.request import PolicyEngine, Request
from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.audit.event import Detail, Event, Phase
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.errors import AccessDenied, AuditUnavailable, LeptonError

_LONGEST_TEXT = 2000


def _now() -> datetime:
    return datetime.now(UTC)


class Operation:
    """One authorised operation while its work runs. What it records goes into its outcome event.

    :param intent: the event id of its intent
    :param rules: ids of the grants that allowed it
    """

    def __init__(self, *, intent: str, rules: tuple[str, ...], policy_digest: str) -> None:
        self.intent = intent
        self.rules = rules
        self.policy_digest = policy_digest
        self.counts: dict[str, int] = {}
        self.digests: dict[str, str] = {}
        self.details: dict[str, Detail] = {}

    def record(
        self,
        *,
        counts: Mapping[str, int] | None = None,
        digests: Mapping[str, str] | None = None,
        details: Mapping[str, Detail] | None = None,
    ) -> None:
        """Add to the outcome event: numbers and names, never a data value.

        :raises InvalidData: something is not JSON (a NaN, a NumPy number)
        """
        canonical_json([dict(counts or {}), dict(digests or {}), dict(details or {})])
        self.counts.update(counts or {})
        self.digests.update(digests or {})
        self.details.update(details or {})


class Guard:
    """Lets one job's operations through, each between two durable events.

    :param log: where the events go
    :param policy: decides; default deny
    :param principal: whose identity the job runs under
    :param spec_digest: of the job's spec, in every event
    :param environment: where the job runs, as the settings name it
    :param clock: what conditions on the time are held against
    """

    def __init__(
        self,
        *,
        log: AuditLog,
        policy: PolicyEngine,
        principal: str,
        spec_digest: str,
        environment: str | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._log = log
        self._policy = policy
        self._principal = principal
        self._spec_digest = spec_digest
        self._environment = environment or None
        self._clock = clock
        self._recorded: list[BaseException] = []

    def has_recorded(self, error: BaseException) -> bool:
        """Whether the audit already says that this very error ended an operation."""
        return any(known is error for known in self._recorded)

    @contextmanager
    def operation(
        self,
        *,
        action: str,
        dataset: str,
        columns: Sequence[str],
        purpose: str,
        epsilon: float | None = None,
        needs_approval: bool = False,
        details: Mapping[str, Detail] | None = None,
    ) -> Iterator[Operation]:
        """Run the body of the ``with`` statement if the policy allows it and the intent is committed.

        A job with several actions nests several operations.

        :param columns: what the operation reads or writes; none means the dataset as a whole
        :param epsilon: the privacy cost of a release
        :param needs_approval: the release waits for somebody's approval before it is published
        :param details: for the intent and denial events
        :raises AccessDenied: the policy says no; the denial is in the audit
        :raises AuditUnavailable: the intent could not be committed, and nothing was done; or the outcome could not be
        """
        request = Request(
            self._principal, action, dataset, tuple(columns), purpose, epsilon, needs_approval, self._environment
        )
        decision = self._policy.decide(request, at=self._clock())

        def event(phase: Phase, **fields: object) -> Event:
            return Event(
                action=action,
                phase=phase,
                dataset=dataset,
                columns=request.columns,
                purpose=purpose,
                rules=decision.rules,
                policy_digest=decision.policy_digest,
                spec_digest=self._spec_digest,
                **fields,  # type: ignore[arg-type]
            )

        stated = {"epsilon": epsilon, "needs_approval": needs_approval or None, "environment": self._environment}
        asked: dict[str, Detail] = {
            **(details or {}),
            **{name: value for name, value in stated.items() if value is not None},
        }
        if not decision.allow:
            denial = _denial(request, decision.reason)
            self._log.append(event("denied", details={**asked, "reason": decision.reason}))
            self._recorded.append(denial)
            raise denial
        intent = self._log.append(event("intent", details=asked))
        operation = Operation(intent=intent, rules=decision.rules, policy_digest=decision.policy_digest)

        def outcome(phase: Phase, more: Mapping[str, Detail]) -> Event:
            return event(
                phase,
                intent=intent,
                counts=operation.counts,
                digests=operation.digests,
                details={**operation.details, **more},
            )

        try:
            yield operation
        # An interrupt or a killed task ends the operation too, and must not look unfinished.
        except BaseException as error:
            self._record_failure(error, outcome("failure", _failure_details(error)))
            raise
        self._log.append(outcome("success", {}))

    def _record_failure(self, error: BaseException, event: Event) -> None:
        try:
            self._log.append(event)
        except AuditUnavailable as unavailable:
            error.add_note(f"The failure could not be recorded in the audit: {unavailable}")
        else:
            self._recorded.append(error)


def _failure_details(error: BaseException) -> dict[str, Detail]:
    """The text of an error that is not ours may quote data, so only its type is kept."""
    if isinstance(error, LeptonError):
        return {"error": error.code, "text": str(error)[:_LONGEST_TEXT]}
    return {"error": type(error).__name__, "text": type(error).__name__}


def _denial(request: Request, reason: str) -> AccessDenied:
    columns = f" columns {', '.join(request.columns)}" if request.columns else ""
    return AccessDenied(
        f"{request.principal} may not {request.action} for the purpose {request.purpose}: {reason}.",
        place=f"{request.dataset}{columns}",
        remedy="Ask the owner of the policy for a grant, or use an identity and a purpose that have one.",
    )
