"""Checking and repairing: every shard is held against the manifest, and what is lost is computed anew. No key is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lepton_airflow.errors import NodeUnavailable, ShardsLost
from lepton_airflow.storage.manifest import (
    MANIFEST,
    Code,
    Manifest,
    StoredObject,
    by_shard,
    manifest_copy,
    version_text,
)
from lepton_airflow.storage.nodes import Node
from lepton_airflow.storage.shards import Condition, ObjectShards, ShardWriter
from lepton_airflow.storage.tasks import in_tasks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class Health:
    """How a version was found, and what was done.

    :param conditions: how many shards were found in which condition
    :param by_node: those that were not intact, by node
    :param manifests: copies of the manifest that were missing or altered, on nodes that answer
    :param rebuilt: shards, and copies of the manifest, that were written anew
    :param leftovers: files that belong to no object, of tries that did not count, and were deleted
    :param error: of the first object of which too few shards are left
    """

    conditions: Mapping[Condition, int]
    by_node: Mapping[str, Mapping[Condition, int]]
    manifests: int
    rebuilt: int
    leftovers: int
    error: NodeUnavailable | ShardsLost | None


@dataclass(frozen=True)
class _Recipe:
    folder: str
    place: str
    nodes: tuple[Node | None, ...]
    names: tuple[str, ...]
    code: Code
    repair: bool


@dataclass(frozen=True)
class _Found:
    conditions: tuple[Condition, ...]
    rebuilt: int
    error: NodeUnavailable | ShardsLost | None


def check(session: SparkSession, manifest: Manifest, *, nodes: Sequence[Node], repair: bool) -> Health:
    """Read every shard of a version; with ``repair`` write those anew that are missing or damaged, where their nodes answer.

    :param nodes: of the settings
    """
    ready, copies, leftovers = _prepare(manifest, nodes, repair=repair)
    recipe = _Recipe(
        folder=manifest.folder,
        place=version_text(manifest.dataset, manifest.version),
        nodes=ready,
        names=manifest.nodes,
        code=manifest.code,
        repair=repair,
    )

    found = in_tasks(session, manifest.objects, partial(_check_object, recipe), place=recipe.place)
    by_node = {
        name: Counter(one.conditions[number] for one in found if one.conditions[number] != "intact")
        for number, name in enumerate(manifest.nodes)
    }
    return Health(
        conditions=Counter(condition for one in found for condition in one.conditions),
        by_node={name: conditions for name, conditions in by_node.items() if conditions},
        manifests=copies,
        rebuilt=(copies if repair else 0) + sum(one.rebuilt for one in found),
        leftovers=leftovers,
        error=next((one.error for one in found if one.error is not None), None),
    )


def _prepare(manifest: Manifest, nodes: Sequence[Node], *, repair: bool) -> tuple[tuple[Node | None, ...], int, int]:
    """The nodes that answer; with ``repair`` each has the manifest then, and no shard of an object that the manifest has not.

    :returns: the nodes, how many had no intact manifest, and how many files were deleted
    """
    ready: list[Node | None] = []
    copies = leftovers = 0
    for number, node in enumerate(by_shard(manifest, nodes)):
        try:
            if node is not None:
                copies += _check_manifest(manifest, node, repair=repair)
                leftovers += _remove_others(manifest, node, number) if repair else 0
            ready.append(node)
        except NodeUnavailable:
            ready.append(None)
    return tuple(ready), copies, leftovers


def _check_manifest(manifest: Manifest, node: Node, *, repair: bool) -> int:
    there = manifest_copy(node, dataset=manifest.dataset, version=manifest.version, expected=manifest.digest)
    if there is not None:
        return 0
    if repair:
        node.make_folder(manifest.folder)
        node.write(f"{manifest.folder}/{MANIFEST}", manifest.to_bytes())
    return 1


def _remove_others(manifest: Manifest, node: Node, number: int) -> int:
    others = set(node.names(manifest.folder)) - manifest.files(number)
    for name in others:
        node.delete(f"{manifest.folder}/{name}")
    return len(others)


def _check_object(recipe: _Recipe, stored: StoredObject) -> _Found:
    shards = ObjectShards(recipe.nodes, recipe.names, recipe.folder, stored, recipe.code, recipe.place)
    error: NodeUnavailable | ShardsLost | None = None
    try:
        for stripe in range(shards.geometry.stripes):
            try:
                shards.blocks(stripe, every=True)
            except (NodeUnavailable, ShardsLost) as too_few:
                error = too_few
        conditions = shards.conditions
        wanted = [number for number, condition in enumerate(conditions) if condition in ("missing", "damaged")]
        rebuilt = 0
        if recipe.repair and wanted and error is None:
            try:
                rebuilt = _rebuild(recipe, shards, wanted)
            except (NodeUnavailable, ShardsLost) as failed:
                error = failed
    finally:
        shards.close()
    return _Found(conditions, rebuilt, error)


def _rebuild(recipe: _Recipe, shards: ObjectShards, numbers: Sequence[int]) -> int:
    """Write some shards anew: the object is coded again, from what is intact, and must come out as it was stored.

    :returns: how many; a node that fails is left out
    """
    nodes = [node if number in numbers else None for number, node in enumerate(recipe.nodes)]
    writer = ShardWriter(nodes, recipe.folder, shards.stored.id, recipe.code)
    try:
        for stripe in range(shards.geometry.stripes):
            writer.write(shards.stripe(stripe))
        writer.finish(expected=shards.stored)
    finally:
        writer.discard()
    return len(nodes) - len(writer.missing)
