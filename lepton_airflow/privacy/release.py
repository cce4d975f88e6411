"""The life of one release: reserve, aggregate, add noise, store, perhaps have it approved, publish; in this order, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepton_airflow.errors import ApprovalMissing, LeptonError
from lepton_airflow.privacy.design import Key, ReleaseDesign
from lepton_airflow.privacy.document import build_document
from lepton_airflow.privacy.draw import draw
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.plan import ReleasePlan
from lepton_airflow.privacy.records import RELEASED, RESERVED, Release
from lepton_airflow.privacy.release_file import Mode, check_release_file, write_release_file

if TYPE_CHECKING:
    from lepton_airflow.privacy.totals import GroupTotals

#: For each grouping its keys; None where groups are chosen privately.
GroupKeys = Sequence[Sequence[Key] | None]
#: Aggregates the data when it is called; making one reads the schema at most.
Aggregation = Callable[[], "Sequence[GroupTotals]"]


@dataclass(frozen=True, kw_only=True)
class ReleaseOrder:
    """What is to be released, for whom and from which budget; all of it public.

    :param spec: of the job, as JSON: it is stored, for whoever publishes later
    :param dataset: whose numbers these are
    :param budget: the dataset whose budget pays
    :param principal: the identity under which the job runs
    :param requested_by: the user for whom it runs, if that is known
    :param file: the release file
    """

    run_key: str
    spec_digest: str
    spec: Mapping[str, Any]
    design: ReleaseDesign
    dataset: str
    budget: str
    principal: str
    requested_by: str | None
    file: Path
    mode: Mode


@dataclass(frozen=True, kw_only=True)
class Released:
    """A release that was drawn.

    :param plan: how
    :param groups: how many groups each grouping has
    :param replayed: its numbers are those of an earlier try
    :param digest: ``sha256:<hex>`` of the release file; None if it waits for approval
    """

    release: Release
    plan: ReleasePlan
    groups: Sequence[int]
    replayed: bool
    digest: str | None


def perform(
    order: ReleaseOrder,
    *,
    ledger: Ledger,
    read_keys: Callable[[], GroupKeys],
    open_source: Callable[[ReleasePlan, GroupKeys], Aggregation],
) -> Released:
    """Make the release, or go on from where an earlier try of the same run stopped.

    Budget is reserved before ``open_source`` is called. If that fails, no data was read and the reservation is given back; if the
    aggregation fails, it is kept for the next try. Noise is drawn here, in one process, and only stored numbers are published:
    a retry publishes the numbers that are stored, and draws none.

    :param read_keys: the keys of every grouping, from public tables where they are not declared
    :raises BudgetExhausted: before anything is read
    :raises RunKeyConflict: the run key holds another spec
    :raises TargetExists: the release file is another release's and the mode is ``errorifexists``; nothing is spent
    """
    check_release_file(order.file, mode=order.mode, run_key=order.run_key, spec_digest=order.spec_digest)
    earlier = ledger.find(order.run_key)
    # What is drawn was drawn for the keys that are stored with it, whatever the tables of keys hold by now.
    drawn = (
        earlier is not None and earlier.state not in (RESERVED, RELEASED) and earlier.spec_digest == order.spec_digest
    )
    result = ledger.result(order.run_key) if drawn else None
    keys = read_keys() if result is None else stored_keys(order.design, result)
    plan = order.design.plan_for(keys)
    release = ledger.reserve(
        run_key=order.run_key,
        spec_digest=order.spec_digest,
        spec=order.spec,
        dataset=order.budget,
        unit=order.design.privacy_unit,
        epsilon=plan.epsilon,
        delta=plan.delta,
        mechanisms=plan.events(),
        principal=order.principal,
        requested_by=order.requested_by,
        needs_approval=order.design.approval == "required",
    )
    replayed = release.state != RESERVED
    if not replayed:
        try:
            aggregation = open_source(plan, keys)
        except LeptonError:
            ledger.cancel(run_key=order.run_key, spec_digest=order.spec_digest)
            raise
        declared = [grouping.declared is not None for grouping in order.design.sets]
        numbers = draw(plan, aggregation(), keys=keys, declared=declared)
        release = ledger.draw(run_key=order.run_key, spec_digest=order.spec_digest, result=numbers)
    # What is published is what is stored: another process of this run may have been the one that drew.
    if result is None:
        result = ledger.result(order.run_key)
    groups = [len(group_keys) for group_keys in stored_keys(order.design, result)]
    digest = None
    if not release.needs_approval or release.approver is not None:
        release, digest = publish(
            order.design, release, result, ledger=ledger, dataset=order.dataset, file=order.file, mode=order.mode
        )
    return Released(release=release, plan=plan, groups=groups, replayed=replayed, digest=digest)


def publish(
    design: ReleaseDesign,
    release: Release,
    result: Mapping[str, Any],
    *,
    ledger: Ledger,
    dataset: str,
    file: Path,
    mode: Mode,
) -> tuple[Release, str]:
    """Write the release file from the stored numbers, and note that it is there. Reads no data and costs nothing.

    :param result: the numbers that the ledger has stored for the release

    :returns: the release, and ``sha256:<hex>`` of its file
    :raises ApprovalMissing: it waits for approval; nothing is written
    :raises TargetExists: see :func:`perform`
    :raises AuditUnavailable: that it was published could not be noted; nothing is written
    """
    if release.needs_approval and release.approver is None:
        raise ApprovalMissing(
            "The release waits for approval.",
            place=f"run {release.run_key}",
            remedy="Somebody other than who asked for it approves: `lepton release approve`, or an ApprovalOperator in the DAG.",
        )
    plan = design.plan_for(stored_keys(design, result))
    document = build_document(design=design, plan=plan, result=result, release=release, dataset=dataset)
    ledger.require_reachable()
    digest = write_release_file(file, document, mode=mode)
    return ledger.publish(run_key=release.run_key, spec_digest=release.spec_digest), digest


def stored_keys(design: ReleaseDesign, result: Mapping[str, Any]) -> list[Sequence[Key]]:
    """The keys of every grouping of a drawn release."""
    keys: list[Sequence[Key]] = []
    for grouping in design.sets:
        stored = result["groupings"][grouping.name]["keys"]
        keys.append(grouping.declared or () if stored is None else [tuple(key) for key in stored])
    return keys
