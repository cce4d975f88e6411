"""Nodes on folders and on an object store: what is there, what is not, and what is somebody else's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lepton_airflow.errors import ConfigurationError, NodeUnavailable, TargetExists
from lepton_airflow.jobs.storage import storage_nodes
from lepton_airflow.settings import Settings
from lepton_airflow.storage.manifest import Code
from lepton_airflow.storage.nodes import MARKER, Node, nodes_of
from lepton_airflow.storage.shards import ObjectShards, ShardReader, ShardWriter

FolderOf = Callable[[Node], Path]


def test_a_place_is_prepared_for_one_node(nodes: tuple[Node, ...], folder: FolderOf) -> None:
    nodes[0].prepare()
    nodes[0].check()
    with pytest.raises(TargetExists, match="another node"):
        Node("z", nodes[0].uri).prepare()
    nodes[0].check()


def test_where_the_mark_is_missing_there_is_no_node(nodes: tuple[Node, ...], folder: FolderOf) -> None:
    """An empty mount point must not be written to."""
    (folder(nodes[0]) / MARKER).unlink()
    with pytest.raises(NodeUnavailable, match="lepton storage prepare a"):
        nodes[0].check()
    shutil.rmtree(folder(nodes[1]))
    with pytest.raises(NodeUnavailable):
        nodes[1].check()
    assert not folder(nodes[1]).exists()


def test_places_that_were_exchanged_are_noticed(nodes: tuple[Node, ...]) -> None:
    exchanged = (Node("a", nodes[1].uri), Node("b", nodes[0].uri))
    for node in exchanged:
        with pytest.raises(NodeUnavailable, match="another node's"):
            node.check()


def test_a_file_is_there_in_full_or_not_at_all(nodes: tuple[Node, ...], folder: FolderOf) -> None:
    node = nodes[0]
    node.make_folder("d")
    node.write("d/f", b"old")
    writer = node.writer("d/f")
    writer.write(b"new")
    assert node.read("d/f") == b"old"
    writer.commit()
    writer.discard()
    assert node.read("d/f") == b"new"
    assert node.names("d") == ["f"]
    with pytest.raises(NodeUnavailable):
        node.write("nowhere/f", b"x")
    assert not (folder(node) / "nowhere").exists()


def test_what_is_not_there_is_none_and_deleting_it_is_no_error(nodes: tuple[Node, ...]) -> None:
    node = nodes[0]
    assert (node.read("d/f"), node.open("d/f"), node.names("d")) == (None, None, [])
    node.delete_folder("d")


def test_a_full_disk_is_a_node_that_cannot_be_written(small_disk: Path) -> None:
    node = Node("small", small_disk.as_uri())
    node.prepare()
    with pytest.raises(NodeUnavailable, match="OSError"):
        node.write("f", bytes(2 << 20))
    assert node.names("") == [MARKER]
    writer = ShardWriter([node, None], "", "a" * 32, Code(1, 1, block_bytes=1 << 16))
    for _ in range(32):
        writer.write(bytes(1 << 16))
    writer.finish()
    assert (writer.missing, node.names("")) == ({0, 1}, [MARKER])
    writer.discard()
    node.check()


def test_nodes_are_those_of_the_settings(storage: Settings) -> None:
    assert [node.name for node in storage_nodes(storage)] == list("abcde")
    assert [node.name for node in storage_nodes(storage, ("d", "a"))] == ["d", "a"]
    with pytest.raises(ConfigurationError, match="Known: a, b"):
        storage_nodes(storage, ("x",))
    with pytest.raises(ConfigurationError, match="There are no storage nodes"):
        nodes_of({})


@pytest.mark.parametrize(
    ("places", "named"),
    [
        ({"a": "keyring"}, "keyring"),
        ({"a": "identities/below"}, "identities"),
        ({"a": "."}, "keyring"),
        ({"a": "x", "b": "x"}, "node a"),
        ({"a": "x", "b": "x/y"}, "node a"),
        ({"a": "s3://bucket/x", "b": "s3://bucket"}, "node a"),
        ({"a": "s3://bucket/x?region=e", "b": "s3://bucket/y/../x/z?region=e"}, "node a"),
        ({"a": "x/../keyring"}, "keyring"),
        ({"a": "link"}, "keyring"),
        ({"a": "file://HOME/keyring"}, "keyring"),
    ],
)
def test_nodes_are_apart_from_keys_and_from_each_other(home: Settings, places: dict[str, str], named: str) -> None:
    (home.home / "link").symlink_to(home.keyring)
    there = {name: place.replace("HOME", str(home.home)) for name, place in places.items()}
    with pytest.raises(ConfigurationError, match=named):
        storage_nodes(Settings(**home.model_dump() | {"storage_nodes": there}))


def test_neighbours_with_like_names_are_apart(home: Settings) -> None:
    fields = home.model_dump() | {"storage_nodes": {"a": "node", "b": "node2", "c": "keyring2"}}
    assert len(storage_nodes(Settings(**fields))) == 3


def test_a_place_that_cannot_be_opened_is_a_mistake_in_the_settings() -> None:
    for uri in ("nothing://there/x", "mock:///x"):
        with pytest.raises(ConfigurationError, match="storage_nodes: a"):
            Node("a", uri).check()


def test_a_place_that_cannot_be_opened_now_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(uri: str) -> None:
        raise OSError(uri)

    monkeypatch.setattr("lepton_airflow.storage.nodes._opened", lost)
    node = Node("a", "s3://bucket/x")
    assert not node.answers()
    with pytest.raises(NodeUnavailable):
        node.read("f")


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="storage_nodes: a") as caught:
        nodes_of({"a": "s3://user:secret@bucket/x"})
    assert "secret" not in str(caught.value)


@pytest.fixture
def object_store(aws_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a bucket, with a place for the folder in it."""
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    boto3.client("s3", endpoint_url=aws_server, region_name="us-east-1").create_bucket(Bucket="shards")
    return f"s3://shards/{{}}?scheme=http&endpoint_override={aws_server.removeprefix('http://')}&region=us-east-1"


def test_shards_on_object_stores_and_a_folder_together(object_store: str, nodes: tuple[Node, ...]) -> None:
    mixed = (Node("x", object_store.format("x")), nodes[0], Node("y", object_store.format("y")))
    code, content = Code(2, 1, block_bytes=1000), bytes(range(256)) * 50
    for node in mixed:
        with pytest.raises(NodeUnavailable):
            Node(f"{node.name}2", node.uri).check()
        node.prepare()
        node.check()
        node.make_folder("d/v")
    writer = ShardWriter(mixed, "d/v", "a" * 32, code)
    writer.write(content)
    stored = writer.finish()
    writer.discard()
    assert writer.missing == set()
    for lost in range(3):
        kept = [node if number != lost else None for number, node in enumerate(mixed)]
        shards = ObjectShards(kept, "xay", "d/v", stored, code, "here")
        reader = ShardReader(shards)
        assert b"".join(iter(lambda: reader.read(999), b"")) == content  # noqa: B023
        reader.close()
        shards.close()
    (name,) = mixed[0].names("d/v")
    assert name == "a" * 32 + ".00"
    whole = mixed[0].read(f"d/v/{name}")
    assert whole is not None
    for cut in (0, 100, len(whole) - 1):
        mixed[0].write(f"d/v/{name}", whole[:cut])
        shards = ObjectShards(mixed, "xay", "d/v", stored, code, "here")
        assert shards.blocks(0).keys() == {1, 2}
        assert shards.conditions[0] == "damaged"
        shards.close()
    mixed[0].write("d/v/b", b"old")
    mixed[0].write("d/v/b", b"new")
    for path, there in (("d/v/b", b"new"), ("d/v/c", None)):
        writer_of_half = mixed[0].writer(path)
        writer_of_half.write(b"half")
        writer_of_half.discard()
        assert mixed[0].read(path) == there, "what is there is replaced once its replacement is complete"
    assert mixed[0].names("d/v") == ["a" * 32 + ".00", "b"]
    mixed[0].delete("d/v/b")
    mixed[0].delete_folder("d/v")
    assert (mixed[0].names("d/v"), mixed[0].open("d/v/" + "a" * 32 + ".00")) == ([], None)
    mixed[0].check()
