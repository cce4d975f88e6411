"""Check the shards of stored datasets, and write those anew that are damaged or missing. It opens no key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from lepton_airflow.errors import NodeUnavailable, ShardsLost
from lepton_airflow.jobs.spec import JobSpec
from lepton_airflow.jobs.storage import purge, storage_nodes, stored_manifest

if TYPE_CHECKING:
    from lepton_airflow.jobs.runner import Job
    from lepton_airflow.storage.catalogue import Catalogue, Entry
    from lepton_airflow.storage.repairing import Health


class RepairStorageSpec(JobSpec):
    """What to check.

    :param dataset: the name under which it was stored
    :param version: by default all versions
    :param repair: write damaged and missing shards anew, and delete what belongs to no version; without, shards are only counted
    :param abandon_after_hours: versions that were begun so long ago and are not complete are given up; by default only the run
        that began one does so, with its next try
    """

    dataset: str = Field(min_length=1)
    version: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")
    repair: bool = True
    abandon_after_hours: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _only_counts_or_changes(self) -> RepairStorageSpec:
        if self.abandon_after_hours is not None and not self.repair:
            raise ValueError("without repair nothing is given up")
        return self


def run(spec: RepairStorageSpec, job: Job) -> dict[str, Any]:
    """Read every shard and hold it against its manifest.

    :returns: ``versions``, ``shards``, how many were ``intact``, ``damaged``, ``missing`` and ``unreachable``, ``manifests``
        (copies that were not intact), ``rebuilt`` shards and manifests, ``leftovers`` that were deleted, ``purged`` versions,
        and ``nodes``: by node, the shards that were not intact
    :raises ShardsLost: of some version too few shards are left; what can be repaired is repaired first
    :raises NodeUnavailable: likewise, but nodes are out of reach that may have them
    """
    from lepton_airflow.storage.catalogue import Catalogue
    from lepton_airflow.storage.repairing import check
    from lepton_airflow.storage.storing import remove

    catalogue = Catalogue(job.engine)
    details = {"version": spec.version, "repair": spec.repair}
    with job.guard.operation(
        action="repair", dataset=spec.dataset, columns=(), purpose=spec.purpose, details=details
    ) as operation:
        if spec.abandon_after_hours is not None:
            catalogue.abandon(spec.dataset, begun_before=datetime.now(UTC) - timedelta(hours=spec.abandon_after_hours))
        purged = purge(job, catalogue, spec.dataset) if spec.repair else 0
        found: list[Health] = []
        errors: list[NodeUnavailable | ShardsLost] = []
        health: Health | NodeUnavailable | ShardsLost
        for entry in _versions(catalogue, spec):
            try:
                manifest = stored_manifest(job, entry.dataset, entry.version, entry.manifest)
                health = check(job.spark, manifest, nodes=storage_nodes(job.settings), repair=spec.repair)
            except (NodeUnavailable, ShardsLost) as error:
                health = error
            if entry not in catalogue.entries(spec.dataset, "stored"):
                # Another job removed it meanwhile: nothing of it may stay.
                remove(storage_nodes(job.settings), entry.dataset, entry.version)
            elif isinstance(health, NodeUnavailable | ShardsLost):
                errors.append(health)
            else:
                found.append(health)
        summary = _summary(found) | {"versions": len(found) + len(errors), "purged": purged}
        operation.record(counts=summary)
        errors += [health.error for health in found if health.error is not None]
        if errors:
            # What a retry may cure comes last, so that it does not hide another.
            raise min(errors, key=lambda error: not error.final)
    nodes: dict[str, Counter[str]] = {}
    for health in found:
        for name, conditions in health.by_node.items():
            nodes.setdefault(name, Counter()).update(conditions)
    return {**summary, "nodes": {name: dict(one) for name, one in sorted(nodes.items())}}


def _versions(catalogue: Catalogue, spec: RepairStorageSpec) -> list[Entry]:
    if spec.version is not None:
        return [catalogue.find(spec.dataset, spec.version)]
    if not catalogue.entries(spec.dataset):
        # Nothing was ever begun under this name.
        catalogue.find(spec.dataset)
    return catalogue.entries(spec.dataset, "stored")


def _summary(found: Sequence[Health]) -> dict[str, int]:
    conditions = Counter[str]()
    for health in found:
        conditions.update(health.conditions)
    return {
        "shards": conditions.total(),
        **{name: conditions[name] for name in ("intact", "damaged", "missing", "unreachable")},
        "manifests": sum(health.manifests for health in found),
        "rebuilt": sum(health.rebuilt for health in found),
        "leftovers": sum(health.leftovers for health in found),
    }
