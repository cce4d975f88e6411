"""Restoring: Spark tasks read a version's files from the shards that are left, and write them to a folder."""

from __future__ import annotations

import posixpath
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from lepton_airflow.columnar.failures import errors_for_the_driver
from lepton_airflow.columnar.files import open_place
from lepton_airflow.errors import InvalidData
from lepton_airflow.keys.reference import KeysetReference
from lepton_airflow.storage.envelope import VersionKey
from lepton_airflow.storage.files import IndexedFile, read_index
from lepton_airflow.storage.manifest import Code, Manifest, StoredObject, by_shard
from lepton_airflow.storage.nodes import Node
from lepton_airflow.storage.shards import Condition, ObjectShards, ShardReader

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: Tries write here, inside the folder under construction; the driver takes out what successful ones wrote.
_TRIES = "_tries"
_READ_BYTES = 1 << 20
_TASKS_EACH = 4


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

    target: str
    dataset: str
    version: str
    folder: str
    nodes: tuple[Node | None, ...]
    names: tuple[str, ...]
    code: Code
    encrypted_key: str
    key_id: int
    keyset: KeysetReference

    @property
    def place(self) -> str:
        return f"stored dataset {self.dataset}, version {self.version}"


def restore(
    session: SparkSession, manifest: Manifest, target: str, *, nodes: Sequence[Node], keyset: KeysetReference
) -> Restored:
    """Write the files of a stored version into a new folder.

    :param target: URI of the folder; its parent exists
    :param nodes: of the settings
    :param keyset: the one that the manifest names
    :raises LeptonError: as :class:`VersionKey` and :class:`ObjectShards`, some of them wrapped by Spark, on the wire
    """
    recipe = _Recipe(
        target=target.rstrip("/"),
        dataset=manifest.dataset,
        version=manifest.version,
        folder=manifest.folder,
        nodes=by_shard(manifest, nodes),
        names=manifest.nodes,
        code=manifest.code,
        encrypted_key=manifest.encrypted_key,
        key_id=manifest.key_id,
        keyset=keyset,
    )
    index = read_index(_key(recipe).open_index(manifest.index), place=recipe.place)
    stored = {one.id: one for one in manifest.objects}
    if {file.object for file in index} != stored.keys() or len(index) != len(stored):
        raise InvalidData(
            "The index names other objects than the manifest.",
            place=recipe.place,
            remedy="Restore another version; keep this one for who looks into it.",
        )
    files, path = open_place(target)
    for folder in {posixpath.join(path, _TRIES), *(posixpath.dirname(posixpath.join(path, one.name)) for one in index)}:
        files.create_dir(folder, recursive=True)
    context = session.sparkContext
    work_items = [(file, stored[file.object]) for file in index]

    def work(item: tuple[IndexedFile, StoredObject]) -> tuple[str, tuple[Condition, ...]]:
        with errors_for_the_driver(recipe.place):
            return _restore_file(recipe, *item)

    tasks = min(len(index), _TASKS_EACH * context.defaultParallelism)
    written = context.parallelize(work_items, tasks).map(work).collect()
    for file, (name, _) in zip(index, written, strict=True):
        files.move(posixpath.join(path, _TRIES, name), posixpath.join(path, file.name))
    files.delete_dir(posixpath.join(path, _TRIES))
    conditions = Counter(condition for _, found in written for condition in found)
    return Restored(len(index), sum(file.bytes for file in index), dict(conditions))


def _key(recipe: _Recipe) -> VersionKey:
    return VersionKey.open(
        recipe.encrypted_key,
        keyset=recipe.keyset.open(),
        key_id=recipe.key_id,
        dataset=recipe.dataset,
        version=recipe.version,
    )


def _restore_file(recipe: _Recipe, file: IndexedFile, stored: StoredObject) -> tuple[str, tuple[Condition, ...]]:
    name = uuid.uuid4().hex
    files, path = open_place(f"{recipe.target}/{_TRIES}/{quote(name)}")
    shards = ObjectShards(recipe.nodes, recipe.names, recipe.folder, stored, recipe.code, recipe.place)
    try:
        reader, size = ShardReader(shards), 0
        with files.open_output_stream(path) as sink, _key(recipe).decrypting(reader, stored.id) as clear:
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
