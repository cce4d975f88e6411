"""Store datasets in encrypted shards over several nodes, restore them, and keep the shards whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lepton_airflow.operators.base import LeptonSparkOperator


class StoreDatasetOperator(LeptonSparkOperator):
    """Store a folder as a new version: encrypted, erasure-coded, a shard of each file on every storage node of the settings.

    .. code-block:: python

        StoreDatasetOperator(
            task_id="store_visits",
            source={"name": "clinic.visits", "path": "/data/protected/visits"},
            keyset="clinic",
            parity_shards=2,
            keep_versions=7,
            purpose="archive",
        )

    :param source: the folder: ``name``, under which it is stored, and ``path`` (templated)
    :param keyset: the name of the keyset in the keyring (templated)
    :param parity_shards: so many nodes may be lost
    :param nodes: names of storage nodes; none means all of the settings
    :param fewest_shards: so many nodes must take part; by default all
    :param keep_versions: how many versions stay; by default all
    :param purpose: why; the policy grants the action ``store`` for purposes (templated)
    :returns: ``dataset``, ``version``, ``manifest``, ``files``, ``bytes``, ``shards``, ``missing``, ``removed``, ``replayed``
    """

    job: ClassVar[str] = "store_dataset"
    spec_fields: ClassVar[tuple[str, ...]] = (
        "source",
        "keyset",
        "parity_shards",
        "nodes",
        "fewest_shards",
        "keep_versions",
        "purpose",
    )
    template_fields = ("source", "keyset", "purpose")

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        keyset: str,
        parity_shards: int,
        purpose: str,
        nodes: Sequence[str] | None = None,
        fewest_shards: int | None = None,
        keep_versions: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.keyset = keyset
        self.parity_shards = parity_shards
        self.nodes = nodes
        self.fewest_shards = fewest_shards
        self.keep_versions = keep_versions
        self.purpose = purpose


class RestoreDatasetOperator(LeptonSparkOperator):
    """Restore a stored version into a folder, atomically, from whichever shards are left.

    :param dataset: the name under which it was stored (templated)
    :param target: the folder: ``name`` and ``path``, with ``mode`` ``errorifexists`` or ``overwrite`` (templated)
    :param version: by default the newest (templated)
    :param manifest: the digest of the version's manifest, for a version that the catalogue does not know (templated)
    :param purpose: why; the policy grants the action ``restore`` for purposes (templated)
    :returns: ``dataset``, ``version``, ``manifest``, ``target``, ``files``, ``bytes``, ``shards_damaged``, ``shards_missing``,
        ``shards_unreachable``, ``replayed``
    """

    job: ClassVar[str] = "restore_dataset"
    spec_fields: ClassVar[tuple[str, ...]] = ("dataset", "target", "version", "manifest", "purpose")
    template_fields = ("dataset", "target", "version", "manifest", "purpose")

    def __init__(
        self,
        *,
        dataset: str,
        target: Mapping[str, Any],
        purpose: str,
        version: str | None = None,
        manifest: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dataset = dataset
        self.target = target
        self.version = version
        self.manifest = manifest
        self.purpose = purpose


class RepairStorageOperator(LeptonSparkOperator):
    """Check every shard of a stored dataset, and write those anew that are damaged or missing. It opens no key.

    The task fails if too few shards of a version are left; what can be repaired is repaired first.

    :param dataset: the name under which it was stored (templated)
    :param version: by default all versions (templated)
    :param repair: False only counts
    :param abandon_after_hours: versions that were begun so long ago and are not complete are given up
    :param purpose: why; the policy grants the action ``repair`` for purposes (templated)
    :returns: ``versions``, ``shards``, ``intact``, ``damaged``, ``missing``, ``unreachable``, ``manifests``, ``rebuilt``,
        ``leftovers``, ``purged``, ``nodes``
    """

    job: ClassVar[str] = "repair_storage"
    spec_fields: ClassVar[tuple[str, ...]] = ("dataset", "version", "repair", "abandon_after_hours", "purpose")
    template_fields = ("dataset", "version", "purpose")

    def __init__(
        self,
        *,
        dataset: str,
        purpose: str,
        version: str | None = None,
        repair: bool | None = None,
        abandon_after_hours: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dataset = dataset
        self.version = version
        self.repair = repair
        self.abandon_after_hours = abandon_after_hours
        self.purpose = purpose
