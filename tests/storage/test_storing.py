"""Storing, restoring and repairing without the jobs around them: nodes that die on the way, and manifests that do not fit."""

from __future__ import annotations

import dataclasses
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.errors import InvalidData, LeptonError, NodeUnavailable, ShardsLost, from_wire
from lepton_airflow.keys.reference import KeysetReference
from lepton_airflow.settings import Settings
from lepton_airflow.storage import storing
from lepton_airflow.storage.envelope import VersionKeyReference
from lepton_airflow.storage.files import File, IndexedFile, read_index, write_index
from lepton_airflow.storage.manifest import MANIFEST, Code, Manifest, shard_name
from lepton_airflow.storage.nodes import Node
from lepton_airflow.storage.repairing import check
from lepton_airflow.storage.restoring import restore
from lepton_airflow.storage.storing import Stored, store

FolderOf = Callable[[Node], Path]
Nodes = tuple[Node, ...]


@pytest.fixture
def keyset(home: Settings) -> KeysetReference:
    return KeysetReference(str(home.keyring), "clinic", "AES256_GCM", str(home.identity_file))


@pytest.fixture
def stores(spark: Any, nodes: Nodes, source: Path, keyset: KeysetReference) -> Callable[..., Stored]:
    def work(folder: Path = source, fewest: int = 5) -> Stored:
        return store(
            spark,
            folder.as_uri(),
            dataset="clinic.visits",
            version=uuid.uuid4().hex,
            nodes=nodes,
            code=Code(3, 2),
            fewest=fewest,
            keyset=keyset,
        )

    return work


@pytest.fixture
def restores(spark: Any, nodes: Nodes, keyset: KeysetReference, tmp_path: Path) -> Callable[[Manifest], Path]:
    def work(manifest: Manifest) -> Path:
        target = tmp_path / f"restored-{uuid.uuid4().hex}"
        restore(spark, manifest, target.as_uri(), nodes=nodes, keyset=keyset)
        return target

    return work


def raised_by(work: Callable[[], object]) -> LeptonError:
    """The error of ``work``, also from inside a worker."""
    with pytest.raises(Exception) as caught:
        work()
    error = caught.value if isinstance(caught.value, LeptonError) else from_wire(str(caught.value))
    assert error is not None, caught.value
    return error


def shards_of(nodes: Sequence[Node], folder: FolderOf, manifest: Manifest) -> dict[str, bytes]:
    return {
        f"{node.name}/{file.name}": file.read_bytes()
        for node in nodes
        for file in (folder(node) / manifest.folder).iterdir()
    }


def test_a_file_that_changes_while_it_is_read_is_not_stored(stores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = storing.list_files

    def longer(*arguments: Any, **options: Any) -> tuple[File, ...]:
        return tuple(File(file.name, file.bytes + 1) for file in listed(*arguments, **options))

    monkeypatch.setattr(storing, "list_files", longer)
    error = raised_by(stores)
    assert isinstance(error, InvalidData)
    assert "changed while it was read" in error.rule


def test_a_node_that_dies_after_the_beginning_is_one_too_few_or_left_out(
    stores: Any, restores: Any, nodes: Nodes, folder: FolderOf, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = storing._ready

    def then_dies(*arguments: Any) -> tuple[Node | None, ...]:
        found = ready(*arguments)
        shutil.rmtree(folder(nodes[4]))
        return found

    monkeypatch.setattr(storing, "_ready", then_dies)
    error = raised_by(stores)
    assert isinstance(error, NodeUnavailable)
    assert "Only 4 shards" in error.rule
    nodes[4].prepare()
    stored = stores(fewest=4)
    assert stored.missing == {"e": 4}
    assert (restores(stored.manifest) / "part-0.bin").read_bytes() == (source / "part-0.bin").read_bytes()


def test_copies_of_the_manifest_count_as_shards_do(stores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put = Node.write

    def write(node: Node, path: str, data: bytes) -> None:
        if node.name == "e" and path.endswith(MANIFEST):
            raise NodeUnavailable("It is full.", place="e", remedy="Make room.")
        put(node, path, data)

    monkeypatch.setattr(Node, "write", write)
    error = raised_by(stores)
    assert isinstance(error, NodeUnavailable)
    assert "Only 4 copies of the manifest" in error.rule
    assert stores(fewest=4).missing == {}


def test_what_tries_left_that_did_not_count_is_taken_away(
    stores: Any, nodes: Nodes, folder: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = storing._ready

    def with_leftovers(given: Sequence[Node], where: str, fewest: int) -> tuple[Node | None, ...]:
        found = ready(given, where, fewest)
        for number, node in enumerate(nodes):
            (folder(node) / where / shard_name("f" * 32, number)).write_bytes(b"of a try that was slower")
        return found

    monkeypatch.setattr(storing, "_ready", with_leftovers)
    manifest = stores().manifest
    for number, node in enumerate(nodes):
        assert {file.name for file in (folder(node) / manifest.folder).iterdir()} == manifest.files(number)


def test_folders_of_any_name_come_back(stores: Any, restores: Any, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    names = ("_tries/kept.bin", "a b/#?%41&c=d.bin", "ä/ö.bin", "tries-x")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    restored = restores(stores(folder).manifest)
    assert {str(file.relative_to(restored)) for file in restored.rglob("*") if file.is_file()} == set(names)
    assert all((restored / name).read_bytes() == name.encode() for name in names)


def with_index(
    manifest: Manifest, keyset: KeysetReference, change: Callable[[list[IndexedFile]], list[IndexedFile]]
) -> Manifest:
    """The manifest with another index, as only a holder of the keyset can make it."""
    key = VersionKeyReference(
        manifest.encrypted_key, keyset, manifest.key_id, manifest.dataset, manifest.version
    ).open()
    files = change(list(read_index(key.open_index(manifest.index), place="here")))
    return dataclasses.replace(manifest, index=key.seal_index(write_index(files)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda files: files[1:], "other objects"),
        (lambda files: [*files, files[0]], "other objects"),
        (lambda files: [dataclasses.replace(files[0], object="f" * 32), *files[1:]], "other objects"),
        (lambda files: [dataclasses.replace(files[0], bytes=7), *files[1:]], "the index says 7"),
        (lambda files: [dataclasses.replace(files[0], name="../x"), *files[1:]], "index"),
    ],
)
def test_an_index_that_does_not_fit_restores_nothing(
    stores: Any, restores: Any, keyset: KeysetReference, change: Any, named: str
) -> None:
    manifest = with_index(stores().manifest, keyset, change)
    error = raised_by(lambda: restores(manifest))
    assert isinstance(error, InvalidData)
    assert named in error.rule


def test_what_can_be_mended_is_mended_beside_what_is_lost(
    spark: Any, stores: Any, nodes: Nodes, folder: FolderOf
) -> None:
    manifest = stores().manifest
    before = shards_of(nodes, folder, manifest)
    lost, mendable = manifest.objects[0].id, manifest.objects[1].id
    gone = [*((lost, number) for number in range(3)), (mendable, 1)]
    for object_id, number in gone:
        (folder(nodes[number]) / manifest.folder / shard_name(object_id, number)).unlink()
    health = check(spark, manifest, nodes=nodes, repair=True)
    assert isinstance(health.error, ShardsLost)
    assert lost in health.error.rule
    assert (health.conditions["missing"], health.rebuilt) == (4, 1)
    assert shards_of(nodes, folder, manifest) == {
        name: content for name, content in before.items() if lost not in name or name[0] in "de"
    }


def test_shards_that_would_come_out_otherwise_are_left_alone(
    spark: Any, stores: Any, nodes: Nodes, folder: FolderOf
) -> None:
    manifest = stores().manifest
    first = manifest.objects[0]
    other = dataclasses.replace(first, shards=(*first.shards[:4], "0" * 64))
    changed = dataclasses.replace(manifest, objects=(other, *manifest.objects[1:]))
    for node in nodes:
        node.write(f"{changed.folder}/{MANIFEST}", changed.to_bytes())
    before = shards_of(nodes, folder, manifest)
    health = check(spark, changed, nodes=nodes, repair=True)
    assert isinstance(health.error, ShardsLost)
    assert "other shards" in health.error.rule
    assert (health.conditions["damaged"], health.rebuilt) == (1, 0)
    assert shards_of(nodes, folder, manifest) == before


def test_copies_of_the_manifest_are_counted_and_mended(spark: Any, stores: Any, nodes: Nodes, folder: FolderOf) -> None:
    manifest = stores().manifest
    before = shards_of(nodes, folder, manifest)
    (folder(nodes[0]) / manifest.folder / MANIFEST).unlink()
    (folder(nodes[1]) / manifest.folder / MANIFEST).write_bytes(manifest.to_bytes() + b" ")
    counted = check(spark, manifest, nodes=nodes, repair=False)
    assert (counted.manifests, counted.rebuilt, counted.by_node) == (2, 0, {})
    mended = check(spark, manifest, nodes=nodes, repair=True)
    assert (mended.manifests, mended.rebuilt) == (2, 2)
    assert shards_of(nodes, folder, manifest) == before
