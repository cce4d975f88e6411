"""The manifest: the same bytes everywhere, known by its digest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lepton_airflow.errors import InvalidData, NodeUnavailable, ShardsLost
from lepton_airflow.keys.keyset import Keyset
from lepton_airflow.storage.envelope import VersionKey
from lepton_airflow.storage.files import IndexedFile, list_files, read_index, write_index
from lepton_airflow.storage.manifest import (
    MANIFEST,
    Code,
    Manifest,
    StoredObject,
    folder_of,
    manifest_copy,
    read_manifest,
)
from lepton_airflow.storage.nodes import Node

FolderOf = Callable[[Node], Path]
VERSION = "0" * 32


def manifest(**changes: object) -> Manifest:
    keyset = Keyset.generate("clinic", cipher="AES256_GCM")
    key = VersionKey.generate("clinic.visits", VERSION)
    made = Manifest(
        dataset="clinic.visits",
        version=VERSION,
        keyset="clinic",
        key_id=keyset.primary_key_id,
        encrypted_key=key.encrypted(keyset),
        code=Code(3, 2),
        nodes=tuple("abcde"),
        objects=(StoredObject("a" * 32, 100, ("0" * 64,) * 5),),
        index=key.seal_index(write_index([IndexedFile("part-0", 84, "a" * 32)])),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def put(node: Node, content: Manifest | bytes) -> None:
    node.make_folder(folder_of("clinic.visits", VERSION))
    node.write(
        f"{folder_of('clinic.visits', VERSION)}/{MANIFEST}",
        content if isinstance(content, bytes) else content.to_bytes(),
    )


def asked(one: Manifest) -> dict[str, str]:
    return {"dataset": "clinic.visits", "version": VERSION, "expected": one.digest}


def test_it_comes_back_as_it_was_written() -> None:
    one = manifest()
    again = Manifest.from_bytes(one.to_bytes())
    assert again.to_bytes() == one.to_bytes()
    assert again.digest == one.digest
    assert dataclasses.replace(again, encrypted_key=one.encrypted_key) == one


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields | {"format": "lepton.stored-dataset/2"},
        lambda fields: fields | {"more": 1},
        lambda fields: {name: value for name, value in fields.items() if name != "index"},
        lambda fields: fields | {"index": "?"},
        lambda fields: fields | {"nodes": "abcde"},
        lambda fields: fields | {"objects": [{"id": "a", "bytes": "many", "shards": []}]},
        lambda _: [],
    ],
)
def test_what_is_no_manifest_is_told(change: Callable[[object], object]) -> None:
    with pytest.raises(ValueError, match=r"not a manifest|not canonical"):
        Manifest.from_bytes(json.dumps(change(json.loads(manifest().to_bytes()))).encode())


def test_the_same_fields_in_other_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="canonical"):
        Manifest.from_bytes(json.dumps(json.loads(manifest().to_bytes()), indent=1).encode())


def test_one_intact_copy_is_enough(nodes: tuple[Node, ...], folder: FolderOf) -> None:
    one = manifest()
    put(nodes[0], manifest(key_id=5))  # another one: an older version's, or a forged one
    put(nodes[1], one.to_bytes()[:-1])
    put(nodes[2], b"\xff not JSON")
    put(nodes[3], b"[" * 100_000)
    put(nodes[4], one)
    assert read_manifest(nodes, **asked(one)).digest == one.digest
    told = [manifest_copy(node, **asked(one)) is not None for node in nodes]
    assert told == [False, False, False, False, True]


def test_without_an_intact_copy_it_is_lost_or_out_of_reach(nodes: tuple[Node, ...], folder: FolderOf) -> None:
    one = manifest()
    put(nodes[0], manifest(key_id=5))
    with pytest.raises(ShardsLost, match=one.digest):
        read_manifest(nodes, **asked(one))
    (folder(nodes[3]) / "lepton-node.json").unlink()
    with pytest.raises(NodeUnavailable, match="out of reach: d"):
        read_manifest(nodes, **asked(one))


def test_a_manifest_of_another_dataset_is_not_taken_though_its_digest_is_asked_for(nodes: tuple[Node, ...]) -> None:
    other = manifest(dataset="clinic.other")
    put(nodes[0], other)
    with pytest.raises(ShardsLost):
        read_manifest(nodes, **asked(other))


@pytest.mark.parametrize("dataset", ["..", ".", "../../etc", "/etc", "a/b", "a b", "clinic.visits", "Ärzte", "a%2Fb"])
def test_no_name_of_a_dataset_leads_out_of_the_node(dataset: str) -> None:
    first, second = folder_of(dataset, VERSION).split("/")
    assert second == VERSION
    assert first not in ("", ".", "..")
    assert "." not in first


def test_names_of_datasets_are_told_apart() -> None:
    names = ["a/b", "a%2Fb", "a.b", "a%2Eb", "a b", "ab"]
    assert len({folder_of(name, VERSION) for name in names}) == len(names)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "", ".hidden", "_lepton_commit.json"]
)
def test_an_index_names_files_of_the_dataset_only(name: str) -> None:
    with pytest.raises(InvalidData):
        read_index(write_index([IndexedFile(name, 1, "a" * 32)]), place="here")


@pytest.mark.parametrize("content", [b"", b"{}", b'[{"name":"a"}]', b"\xff"])
def test_what_is_no_index_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidData):
        read_index(content, place="here")


def test_an_index_comes_back() -> None:
    files = (IndexedFile("a/b=c & d/ä.parquet", 7, "a" * 32),)
    assert read_index(write_index(files), place="here") == files


def test_hidden_files_and_commit_records_are_left_out(source: Path) -> None:
    found = {file.name: file.bytes for file in list_files(source.as_uri(), place="here")}
    assert sorted(found) == ["_SUCCESS", "part-0.bin", "part-1.bin", "year=2025/site=north & west/part-2.bin"]
    assert found["part-1.bin"] == 1
