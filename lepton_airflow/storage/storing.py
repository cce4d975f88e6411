"""Storing: Spark tasks encrypt a folder's files, each into one shard on every node; then the manifest says what is where."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from lepton_airflow.columnar.files import open_place
from lepton_airflow.errors import InvalidData, NodeUnavailable
from lepton_airflow.keys.reference import KeysetReference
from lepton_airflow.storage.envelope import VersionKey, VersionKeyReference
from lepton_airflow.storage.files import File, IndexedFile, list_files, write_index
from lepton_airflow.storage.manifest import MANIFEST, Code, Manifest, StoredObject, folder_of, version_text
from lepton_airflow.storage.nodes import Node
from lepton_airflow.storage.shards import ShardWriter
from lepton_airflow.storage.tasks import in_tasks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Stored:
    """What was stored.

    :param bytes: of the files, in the clear
    :param missing: by node, the shards that could not be written to it
    """

    manifest: Manifest
    bytes: int
    missing: dict[str, int]


@dataclass(frozen=True)
class _Recipe:
    """What a task needs; it holds no secret."""

    source: str
    folder: str
    place: str
    nodes: tuple[Node | None, ...]
    code: Code
    fewest: int
    key: VersionKeyReference


def store(
    session: SparkSession,
    source: str,
    *,
    dataset: str,
    version: str,
    nodes: Sequence[Node],
    code: Code,
    fewest: int,
    keyset: KeysetReference,
) -> Stored:
    """Store a folder's files under a new version. The version is complete once this returns, and nothing else points to it.

    :param source: URI of the folder
    :param version: 32 hex digits, never used before
    :param nodes: one for each shard
    :param fewest: so many shards of each object, and copies of the manifest, must be written
    :raises NodeUnavailable: fewer could be
    :raises LeptonError: as :func:`list_files`, and for the keyset; or wrapped by Spark, on the wire
    """
    files = list_files(source, place=dataset)
    opened = keyset.open()
    key = VersionKey.generate(dataset, version)
    reference = VersionKeyReference(key.encrypted(opened), keyset, opened.primary_key_id, dataset, version)
    folder = folder_of(dataset, version)
    recipe = _Recipe(
        source=source.rstrip("/"),
        folder=folder,
        place=version_text(dataset, version),
        nodes=_ready(nodes, folder, fewest),
        code=code,
        fewest=fewest,
        key=reference,
    )
    written = in_tasks(session, files, partial(_store_file, recipe), place=recipe.place)
    index = [IndexedFile(file.name, file.bytes, stored.id) for file, (stored, _) in zip(files, written, strict=True)]
    manifest = Manifest(
        dataset=dataset,
        version=version,
        keyset=keyset.name,
        key_id=reference.key_id,
        encrypted_key=reference.encrypted,
        code=code,
        nodes=tuple(node.name for node in nodes),
        objects=tuple(stored for stored, _ in written),
        index=key.seal_index(write_index(index)),
    )
    missing = Counter(manifest.nodes[number] for _, numbers in written for number in numbers)
    _put_manifest(manifest, recipe)
    return Stored(manifest, sum(file.bytes for file in files), dict(missing))


def remove(nodes: Sequence[Node], dataset: str, version: str) -> list[str]:
    """Delete a version from every node that answers.

    :returns: the nodes that did not
    """
    silent = []
    for node in nodes:
        try:
            node.check()
            node.delete_folder(folder_of(dataset, version))
        except NodeUnavailable:
            silent.append(node.name)
    return silent


def _ready(nodes: Sequence[Node], folder: str, fewest: int) -> tuple[Node | None, ...]:
    """The nodes that answer, each with a folder for the version."""
    ready: list[Node | None] = []
    reasons = []
    for node in nodes:
        try:
            node.check()
            node.make_folder(folder)
            ready.append(node)
        except NodeUnavailable as error:
            reasons.append(error)
            ready.append(None)
    if len(nodes) - len(reasons) < fewest:
        raise reasons[0]
    return tuple(ready)


def _store_file(recipe: _Recipe, file: File) -> tuple[StoredObject, frozenset[int]]:
    # Each try of a task writes objects of its own: none can mix its shards with another's.
    object_id = uuid.uuid4().hex
    key = recipe.key.open()
    files, path = open_place(f"{recipe.source}/{quote(file.name)}")
    writer = ShardWriter(recipe.nodes, recipe.folder, object_id, recipe.code)
    try:
        size = 0
        with files.open_input_stream(path) as source, key.encrypting(writer, object_id) as clear:
            while data := source.read(_READ_BYTES):
                size += len(data)
                clear.write(data)
        if size != file.bytes:
            raise InvalidData(
                "A file of the source changed while it was read.",
                place=recipe.place,
                remedy="Store a folder that nobody writes to.",
            )
        stored = writer.finish()
    finally:
        writer.discard()
    _require(recipe, len(recipe.nodes) - len(writer.missing), "shards of an object")
    return stored, frozenset(writer.missing)


def _put_manifest(manifest: Manifest, recipe: _Recipe) -> None:
    """Write a copy to every node, and take away what tries left that did not count."""
    content, written = manifest.to_bytes(), 0
    for number, node in enumerate(recipe.nodes):
        if node is None:
            continue
        # A node that is lost by now has lost its shards too: the next repair tells.
        with suppress(NodeUnavailable):
            node.write(f"{manifest.folder}/{MANIFEST}", content)
            for left in set(node.names(manifest.folder)) - manifest.files(number):
                node.delete(f"{manifest.folder}/{left}")
            written += 1
    _require(recipe, written, "copies of the manifest")


def _require(recipe: _Recipe, written: int, what: str) -> None:
    if written < recipe.fewest:
        raise NodeUnavailable(
            f"Only {written} {what} could be written, {recipe.fewest} are asked for.",
            place=recipe.place,
            remedy="Make all nodes reachable, with room, and run the job again; nothing of this version stays.",
        )
