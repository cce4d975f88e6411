"""Store a dataset in encrypted, erasure-coded shards over several storage nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from lepton_airflow.errors import SpecError
from lepton_airflow.jobs.spec import JobSpec, TableReference
from lepton_airflow.jobs.storage import purge, storage_nodes, taken_back_if_it_fails, tell_columns
from lepton_airflow.keys.usage import reserve_usage

if TYPE_CHECKING:
    from lepton_airflow.audit.event import Detail
    from lepton_airflow.jobs.runner import Job
    from lepton_airflow.storage.storing import Stored


class StoreDatasetSpec(JobSpec):
    """What to store.

    :param source: the folder of the dataset, of files of any format; its name is the one under which it is stored
    :param keyset: the name of the keyset in the keyring; its AES256_GCM part encrypts the version's key
    :param parity_shards: so many nodes may be lost. The data are cut over the other nodes, so that they take ``nodes /
        (nodes - parity_shards)`` of their size
    :param nodes: names of the settings' storage nodes, in this order; none means all
    :param fewest_shards: so many nodes must take part; by default all. With fewer, a version is stored while a node is out of
        reach, and ``repair_storage`` fills it later
    :param keep_versions: how many versions stay, this one among them; by default all
    """

    source: TableReference
    keyset: str = Field(min_length=1)
    parity_shards: int = Field(ge=1)
    nodes: tuple[str, ...] = ()
    fewest_shards: int | None = Field(default=None, ge=1)
    keep_versions: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _a_folder_and_each_node_once(self) -> StoreDatasetSpec:
        if self.source.path is None or self.source.options or self.source.secret_options:
            raise ValueError("source is a folder: give its path, and no options")
        if len(set(self.nodes)) != len(self.nodes):
            raise ValueError("name each node once")
        return self


def run(spec: StoreDatasetSpec, job: Job) -> dict[str, Any]:
    """Store the folder as a new version.

    :returns: ``dataset``, ``version``, ``manifest`` (its digest), ``files``, ``bytes`` (in the clear), ``shards``, ``missing``
        (what could not be written, by node), ``removed`` (older versions), and ``replayed``: an earlier try had stored it
    """
    from lepton_airflow.columnar.files import uri_of
    from lepton_airflow.storage.catalogue import Catalogue
    from lepton_airflow.storage.manifest import Code
    from lepton_airflow.storage.storing import store

    nodes = storage_nodes(job.settings, spec.nodes)
    _check_numbers(spec, len(nodes))
    dataset, folder = spec.source.name, spec.source.path or ""
    code = Code(len(nodes) - spec.parity_shards, spec.parity_shards)
    details: dict[str, Detail] = {
        "source": folder,
        "keyset": spec.keyset,
        "nodes": " ".join(node.name for node in nodes),
        "data_shards": code.data,
        "parity_shards": code.parity,
    }
    with job.guard.operation(
        action="store", dataset=dataset, columns=(), purpose=spec.purpose, details=details
    ) as operation:
        catalogue = Catalogue(job.engine)
        names = [node.name for node in nodes]
        entry, replayed = catalogue.begin(dataset, run_key=job.run_key, spec_digest=job.spec_digest, nodes=names)
        summary = entry.summary
        if not replayed:
            with taken_back_if_it_fails(job, catalogue, entry):
                keyset = job.keysets(spec.keyset, {"AES256_GCM"})["AES256_GCM"]
                # One value: the version's key.
                warning = reserve_usage(job.engine, spec.keyset, keyset.open().primary_key_id, 1)
                stored = store(
                    job.spark,
                    uri_of(job.qualified(folder)),
                    dataset=dataset,
                    version=entry.version,
                    nodes=nodes,
                    code=code,
                    fewest=spec.fewest_shards or len(nodes),
                    keyset=keyset,
                )
                summary = _summary(stored, warning)
                tell_columns(job, spec.source)
                # In the audit's database: where the outcome could not be recorded, nothing becomes a version.
                catalogue.commit(entry.version, manifest=summary["manifest"], summary=summary)
        versions = [one.version for one in catalogue.entries(dataset, "stored")]
        old = versions[: -spec.keep_versions] if spec.keep_versions else []
        # Others may have become complete since, and this one is what the caller is told of.
        removed = [version for version in old if version != entry.version]
        catalogue.remove(removed)
        purge(job, catalogue, dataset)
        operation.record(
            counts={
                **{name: summary[name] for name in ("files", "bytes", "shards")},
                "shards_missing": sum(summary["missing"].values()),
                "versions_removed": len(removed),
            },
            digests={"manifest": summary["manifest"]},
            details={"version": summary["version"]},
        )
    return {**summary, "removed": removed, "replayed": replayed}


def _summary(stored: Stored, warning: str | None) -> dict[str, Any]:
    manifest = stored.manifest
    return {
        "dataset": manifest.dataset,
        "version": manifest.version,
        "manifest": manifest.digest,
        "files": len(manifest.objects),
        "bytes": stored.bytes,
        "shards": len(manifest.objects) * len(manifest.nodes),
        "missing": stored.missing,
        **({"warnings": [warning]} if warning else {}),
    }


def _check_numbers(spec: StoreDatasetSpec, nodes: int) -> None:
    from lepton_airflow.storage.erasure import MOST_BLOCKS

    if not spec.parity_shards < nodes <= MOST_BLOCKS:
        raise SpecError(
            f"There are {nodes} nodes; with {spec.parity_shards} parity shards there must be {spec.parity_shards + 1} at least, "
            f"and {MOST_BLOCKS} at most.",
            place="StoreDatasetSpec.parity_shards",
            remedy="Ask for fewer parity shards, or name more nodes in the settings.",
        )
    if spec.fewest_shards is not None and not nodes - spec.parity_shards <= spec.fewest_shards <= nodes:
        raise SpecError(
            f"Fewer than {nodes - spec.parity_shards} shards cannot be read, and there are {nodes} nodes.",
            place="StoreDatasetSpec.fewest_shards",
            remedy="Give a number from the one to the other.",
        )
