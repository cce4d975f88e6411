"""Restoring: Spark tasks read a version's files from the shards that are left, and write them to a folder."""

from __future__ import annotations

import posixpath
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lepton_airflow.columnar.files import open_place
from lepton_airflow.errors import InvalidData
from lepton_airflow.keys.reference import KeysetReference
from lepton_airflow.storage.envelope import VersionKeyReference
from lepton_airflow.storage.files import IndexedFile, read_index
from lepton_airflow.storage.manifest import Code, Manifest, StoredObject, by_shard, version_text
from lepton_airflow.storage.nodes import Node
from lepton_airflow.storage.shards import Condition, ObjectShards, ShardReader
from lepton_airflow.storage.tasks import in_tasks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Restored:
    """What was restored.

    :param bytes: of the files, in the clear
    :param conditions: how many shards were found in which condition; of those that were not needed nothing is known, and they
        count as intact
    """

    files: int
    bytes: int
    conditions: dict[Condition, int]


@dataclass(frozen=True)
class _Recipe:
    """What a task needs; it holds no secret."""

    tries: str
    folder: str
    place: str
    nodes: tuple[Node | None, ...]
    names: tuple[str, ...]
    code: Code
    key: VersionKeyReference


def restore(
    session: SparkSession, manifest: Manifest, target: str, *, nodes: Sequence[Node], keyset: KeysetReference
) -> Restored:
    """Write the files of a stored version into a new folder.

    :param target: URI of the folder; its parent exists
    :param nodes: of the settings
    :param keyset: the one that the manifest names
    :raises LeptonError: as :class:`VersionKey` and :class:`ObjectShards`, some of them wrapped by Spark, on the wire
    """
    # Hidden files are never stored, so none of the version's own is in there.
    tries = f".tries-{uuid.uuid4().hex}"
    recipe = _Recipe(
        tries=f"{target.rstrip('/')}/{tries}",
        folder=manifest.folder,
        place=version_text(manifest.dataset, manifest.version),
        nodes=by_shard(manifest, nodes),
        names=manifest.nodes,
        code=manifest.code,
        key=VersionKeyReference(manifest.encrypted_key, keyset, manifest.key_id, manifest.dataset, manifest.version),
    )
    index = read_index(recipe.key.open().open_index(manifest.index), place=recipe.place)
    stored = {one.id: one for one in manifest.objects}
    if {file.object for file in index} != stored.keys() or len(index) != len(stored):
        raise InvalidData(
            "The index names other objects than the manifest.",
            place=recipe.place,
            remedy="Restore another version; keep this one for who looks into it.",
        )
    files, path = open_place(target)
    for folder in {posixpath.join(path, tries), *(posixpath.dirname(posixpath.join(path, one.name)) for one in index)}:
        files.create_dir(folder, recursive=True)
    items = [(file, stored[file.object]) for file in index]
    written = in_tasks(session, items, partial(_restore_file, recipe), place=recipe.place)
    for file, (name, _) in zip(index, written, strict=True):
        files.move(posixpath.join(path, tries, name), posixpath.join(path, file.name))
    files.delete_dir(posixpath.join(path, tries))
    conditions = Counter(condition for _, found in written for condition in found)
    return Restored(len(index), sum(file.bytes for file in index), dict(conditions))


def _restore_file(recipe: _Recipe, item: tuple[IndexedFile, StoredObject]) -> tuple[str, tuple[Condition, ...]]:
    """Each try writes a file of its own; the driver takes those of tries that count."""
    (file, stored), name, size = item, uuid.uuid4().hex, 0
    files, path = open_place(f"{recipe.tries}/{name}")
    key = recipe.key.open()
    shards = ObjectShards(recipe.nodes, recipe.names, recipe.folder, stored, recipe.code, recipe.place)
    try:
        with (
            files.open_output_stream(path) as sink,
            ShardReader(shards) as reader,
            key.decrypting(reader, stored.id) as clear,
        ):
            while data := clear.read(_READ_BYTES):
                size += len(data)
                sink.write(data)
    finally:
        shards.close()
    if size != file.bytes:
        raise InvalidData(
            f"An object is {size} bytes long, the index says {file.bytes}.",
            place=recipe.place,
            remedy="Restore another version; keep this one for who looks into it.",
        )
    return name, shards.conditions
