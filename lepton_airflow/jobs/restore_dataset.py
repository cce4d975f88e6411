"""Restore a stored dataset into a folder, from the shards that are left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from lepton_airflow.columnar.publish import Written
from lepton_airflow.jobs.spec import JobSpec, TableReference, TargetReference
from lepton_airflow.jobs.storage import storage_nodes, stored_manifest, tell_columns

if TYPE_CHECKING:
    from lepton_airflow.jobs.runner import Job


class RestoreDatasetSpec(JobSpec):
    """What to restore.

    :param dataset: the name under which it was stored
    :param target: the folder to write; columns that were encrypted are bound to the name that the table had
    :param version: by default the newest
    :param manifest: the digest of the version's manifest, as the audit has it: with it a version is restored that the catalogue
        does not know, because the database is another one
    """

    dataset: str = Field(min_length=1)
    target: TargetReference
    version: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")
    manifest: str | None = Field(default=None, pattern="^sha256:[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _a_folder_and_a_whole_reference(self) -> RestoreDatasetSpec:
        if self.target.path is None or self.target.options or self.target.secret_options:
            raise ValueError("target is a folder: give its path, and no options")
        if self.manifest is not None and self.version is None:
            raise ValueError("give the version whose manifest this is")
        return self


def run(spec: RestoreDatasetSpec, job: Job) -> dict[str, Any]:
    """Write the files of a stored version into the target, atomically.

    :returns: ``dataset``, ``version``, ``manifest``, ``target``, ``files``, ``bytes``, ``shards_damaged``, ``shards_missing``,
        ``shards_unreachable`` (as far as they were needed) and ``replayed``
    """
    from lepton_airflow.columnar.files import uri_of
    from lepton_airflow.storage.catalogue import Catalogue
    from lepton_airflow.storage.restoring import restore

    with job.guard.operation(
        action="restore",
        dataset=spec.dataset,
        columns=(),
        purpose=spec.purpose,
        details={"target": spec.target.path, "version": spec.version},
    ) as operation:

        def write(folder: str | None) -> Written:
            version, expected = spec.version, spec.manifest
            if version is None or expected is None:
                entry = Catalogue(job.engine).find(spec.dataset, version)
                version, expected = entry.version, entry.manifest
            manifest = stored_manifest(job, spec.dataset, version, expected)
            keyset = job.keysets(manifest.keyset, {"AES256_GCM"})["AES256_GCM"]
            nodes = storage_nodes(job.settings)
            restored = restore(job.spark, manifest, uri_of(folder or ""), nodes=nodes, keyset=keyset)
            tell_columns(job, TableReference(name=spec.target.name, format=spec.target.format, path=folder))
            conditions = {
                f"shards_{one}": restored.conditions.get(one, 0) for one in ("damaged", "missing", "unreachable")
            }
            told = {"version": version, "manifest": manifest.digest, "files": restored.files, "bytes": restored.bytes}
            return Written(None, {**told, **conditions})

        commit = job.committed(spec.target)
        details = dict(commit.details if commit else job.publish(write, spec.target).details)
        operation.record(
            counts={name: details[name] for name in _COUNTS},
            digests={"manifest": details["manifest"]},
            details={"version": details["version"]},
        )
    return {"dataset": spec.dataset, "target": spec.target.path, **details, "replayed": commit is not None}


_COUNTS = ("files", "bytes", "shards_damaged", "shards_missing", "shards_unreachable")
