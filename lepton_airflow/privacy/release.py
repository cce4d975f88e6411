"""The life of one release: reserve, aggregate, add noise, store, publish; in this order, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lepton_airflow.errors import LeptonError
from lepton_airflow.privacy.document import MECHANISM, build_document
from lepton_airflow.privacy.groups import KeyValue
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.plan import BoundedAggregates, ReleasePlan
from lepton_airflow.privacy.records import RESERVED, MechanismEvent, Release
from lepton_airflow.privacy.release_file import Mode, check_release_file, write_release_file

#: Aggregates the data when it is called; making one reads the schema at most.
Aggregation = Callable[[], BoundedAggregates]


@dataclass(frozen=True, kw_only=True)
class ReleaseOrder:
    """What is to be released, for whom and from which budget; all of it public.

    :param dataset: whose numbers these are
    :param budget: the dataset whose budget pays
    :param unit: the privacy unit's column
    :param principal: the identity under which the job runs
    :param file: the release file
    """

    run_key: str
    spec_digest: str
    dataset: str
    budget: str
    unit: str
    group_by: Sequence[str]
    groups: Sequence[Sequence[KeyValue]]
    plan: ReleasePlan
    principal: str
    file: Path
    mode: Mode


@dataclass(frozen=True, kw_only=True)
class Released:
    """A published release.

    :param replayed: its numbers are those of an earlier try
    :param digest: ``sha256:<hex>`` of the release file
    """

    release: Release
    replayed: bool
    digest: str


def perform(order: ReleaseOrder, *, ledger: Ledger, open_source: Callable[[], Aggregation]) -> Released:
    """Make the release, or go on from where an earlier try of the same run stopped.

    Budget is reserved before ``open_source`` is called. If that fails, no data was read and the reservation is given back; if the
    aggregation fails, it is kept for the next try. Noise is drawn here, in one process, and only stored numbers are published:
    a retry publishes the numbers that are stored, and draws none.

    :raises BudgetExhausted: before anything is read
    :raises RunKeyConflict: the run key holds another spec
    :raises TargetExists: the release file is another release's and the mode is ``errorifexists``; nothing is spent
    """
    check_release_file(order.file, mode=order.mode, run_key=order.run_key, spec_digest=order.spec_digest)
    release = ledger.reserve(
        run_key=order.run_key,
        spec_digest=order.spec_digest,
        dataset=order.budget,
        unit=order.unit,
        epsilon=order.plan.epsilon,
        principal=order.principal,
    )
    replayed = release.state != RESERVED
    if not replayed:
        try:
            aggregation = open_source()
        except LeptonError:
            ledger.cancel(run_key=order.run_key, spec_digest=order.spec_digest)
            raise
        release = _draw(order, ledger=ledger, aggregates=aggregation())
    document = build_document(
        release=release,
        numbers=ledger.numbers(order.run_key),
        plan=order.plan,
        dataset=order.dataset,
        group_by=order.group_by,
        groups=order.groups,
    )
    digest = write_release_file(order.file, document, mode=order.mode)
    release = ledger.publish(run_key=order.run_key, spec_digest=order.spec_digest)
    return Released(release=release, replayed=replayed, digest=digest)


def _draw(order: ReleaseOrder, *, ledger: Ledger, aggregates: BoundedAggregates) -> Release:
    plan = order.plan
    return ledger.draw(
        run_key=order.run_key,
        spec_digest=order.spec_digest,
        vectors={query.name: query.mechanism.add_noise(plan.vector(query, aggregates)) for query in plan.queries},
        mechanisms=[
            MechanismEvent(
                query=query.name,
                mechanism=MECHANISM,
                sensitivity=query.sensitivity.l1,
                scale=query.mechanism.scale,
                epsilon=query.epsilon,
            )
            for query in plan.queries
        ],
    )
