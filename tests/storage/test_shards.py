"""Objects in shards on real folders: what may be lost or damaged, and what is said of it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lepton_airflow.errors import NodeUnavailable, ShardsLost
from lepton_airflow.storage.manifest import Code, StoredObject, shard_name
from lepton_airflow.storage.nodes import Node
from lepton_airflow.storage.shards import ObjectShards, ShardReader, ShardWriter

CODE = Code(3, 2, block_bytes=64)
OBJECT = "a" * 32
CONTENT = os.urandom(5 * 3 * 64 + 17)
STRIPES = 6

FolderOf = Callable[[Node], Path]


def write(nodes: Sequence[Node | None], content: bytes = CONTENT, **options: Any) -> tuple[StoredObject, set[int]]:
    for node in nodes:
        if node is not None:
            node.make_folder("d/v")
    writer = ShardWriter(nodes, "d/v", OBJECT, CODE)
    try:
        for start in range(0, len(content), 100):
            writer.write(content[start : start + 100])
        stored = writer.finish(**options)
    finally:
        writer.discard()
    return stored, writer.missing


def read(nodes: Sequence[Node | None], stored: StoredObject) -> tuple[bytes, tuple[str, ...]]:
    shards = ObjectShards(nodes, "abcde", "d/v", stored, CODE, "here")
    reader = ShardReader(shards)
    try:
        return b"".join(iter(lambda: reader.read(50), b"")), shards.conditions
    finally:
        reader.close()
        shards.close()


def shard(folder: FolderOf, nodes: Sequence[Node], number: int) -> Path:
    return folder(nodes[number]) / "d" / "v" / shard_name(OBJECT, number)


def test_any_two_of_five_nodes_may_be_lost_and_no_third(nodes: tuple[Node, ...], folder: FolderOf) -> None:
    stored, missing = write(nodes)
    assert missing == set()
    files = {number: shard(folder, nodes, number) for number in range(5)}
    contents = {number: file.read_bytes() for number, file in files.items()}
    for count in range(4):
        for lost in combinations(range(5), count):
            for number, file in files.items():
                file.write_bytes(contents[number])
                if number in lost:
                    file.unlink()
            if count <= 2:
                content, conditions = read(nodes, stored)
                assert content == CONTENT
                # What is not needed is not looked for: parity shards only if data shards are missing.
                needed = [number for number in lost if number < 3 + len([one for one in lost if one < 3])]
                assert [number for number, one in enumerate(conditions) if one == "missing"] == needed
            else:
                with pytest.raises(ShardsLost, match=f"missing: {', '.join('abcde'[number] for number in lost)}"):
                    read(nodes, stored)


def test_no_shard_holds_what_another_one_holds_nor_is_larger_than_its_share(
    nodes: tuple[Node, ...], folder: FolderOf
) -> None:
    write(nodes)
    sizes = {shard(folder, nodes, number).stat().st_size for number in range(5)}
    assert sizes == {5 * 64 + 6 + 32 * STRIPES}
    assert len({shard(folder, nodes, number).read_bytes() for number in range(5)}) == 5


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5 * 64 + 6 + 32 * STRIPES - 1)), max_size=14))
def test_damage_anywhere_never_yields_other_bytes(
    nodes: tuple[Node, ...], folder: FolderOf, damage: list[tuple[int, int]]
) -> None:
    stored, _ = write(nodes)
    bad: dict[int, set[int]] = {stripe: set() for stripe in range(STRIPES)}
    for number, place in set(damage):
        file = shard(folder, nodes, number)
        content = bytearray(file.read_bytes())
        content[place] ^= 0x40
        file.write_bytes(content)
        # Without its digests no block of a shard can be told from another.
        stripes = range(STRIPES) if place >= 5 * 64 + 6 else [place // 64]
        for stripe in stripes:
            bad[stripe].add(number)
    if all(len(numbers) <= 2 for numbers in bad.values()):
        content, conditions = read(nodes, stored)
        assert content == CONTENT
        damaged = {number for number, _ in damage}
        assert {number for number, one in enumerate(conditions) if one == "damaged"} <= damaged
    else:
        with pytest.raises(ShardsLost, match="damaged"):
            read(nodes, stored)


def test_shards_that_are_damaged_each_elsewhere_are_read_together(nodes: tuple[Node, ...], folder: FolderOf) -> None:
    stored, _ = write(nodes)
    for number in range(5):
        file = shard(folder, nodes, number)
        content = bytearray(file.read_bytes())
        content[64 * number] ^= 1
        file.write_bytes(content)
    content, conditions = read(nodes, stored)
    assert content == CONTENT
    assert conditions[:3] == ("damaged",) * 3


@pytest.mark.parametrize(
    "change",
    [lambda content: content[:-1], lambda content: content + b"\0", lambda _: b"", lambda content: content[1:]],
)
def test_a_shard_of_another_length_is_damaged(
    nodes: tuple[Node, ...], folder: FolderOf, change: Callable[[bytes], bytes]
) -> None:
    stored, _ = write(nodes)
    file = shard(folder, nodes, 1)
    file.write_bytes(change(file.read_bytes()))
    content, conditions = read(nodes, stored)
    assert (content, conditions[1]) == (CONTENT, "damaged")


def test_a_bad_sector_is_damage_and_a_node_that_is_gone_is_not(
    nodes: tuple[Node, ...], folder: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: a disk that fails to read cannot be made here."""
    stored, _ = write(nodes)
    opened = Node.open

    class Sector:
        def __init__(self, file: Any) -> None:
            self.file = file

        def read_at(self, size: int, offset: int) -> bytes:
            if offset == 64:
                raise OSError(5, "Input/output error")
            return bytes(self.file.read_at(size, offset))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(
        Node, "open", lambda node, path: Sector(opened(node, path)) if node.name == "a" else opened(node, path)
    )
    content, conditions = read(nodes, stored)
    assert (content, conditions[0]) == (CONTENT, "damaged")
    (folder(nodes[0]) / "lepton-node.json").unlink()
    content, conditions = read(nodes, stored)
    assert (content, conditions[0]) == (CONTENT, "unreachable")


def test_nothing_stays_open(nodes: tuple[Node, ...], folder: FolderOf) -> None:
    stored, _ = write(nodes)
    read(nodes, stored)
    files, threads = len([*Path("/proc/self/fd").iterdir()]), threading.active_count()
    for _ in range(3):
        read(nodes, write(nodes)[0])
    shutil.rmtree(folder(nodes[0]) / "d")
    for _ in range(3):
        read(nodes, stored)
    assert (len([*Path("/proc/self/fd").iterdir()]), threading.active_count()) == (files, threads)


def test_a_shard_in_anothers_place_is_damaged(nodes: tuple[Node, ...], folder: FolderOf) -> None:
    stored, _ = write(nodes)
    shutil.copy(shard(folder, nodes, 0), shard(folder, nodes, 1))
    content, conditions = read(nodes, stored)
    assert (content, conditions[1]) == (CONTENT, "damaged")


def test_another_objects_shard_with_digests_of_its_own_is_damaged(nodes: tuple[Node, ...], folder: FolderOf) -> None:
    stored, _ = write(nodes)
    kept = shard(folder, nodes, 0).read_bytes()
    write(nodes, os.urandom(len(CONTENT)))
    others = [shard(folder, nodes, number).read_bytes() for number in range(5)]
    write(nodes, CONTENT)
    assert shard(folder, nodes, 0).read_bytes() == kept, "the code is deterministic"
    for number in (0, 1):
        shard(folder, nodes, number).write_bytes(others[number])
    content, conditions = read(nodes, stored)
    assert (content, conditions[:2]) == (CONTENT, ("damaged", "damaged"))


def test_too_few_on_the_nodes_that_answer_is_no_loss_yet(nodes: tuple[Node, ...], folder: FolderOf) -> None:
    stored, _ = write(nodes)
    assert read([None, None, *nodes[2:]], stored)[1][:2] == ("unreachable", "unreachable")
    shard(folder, nodes, 4).unlink()
    with pytest.raises(NodeUnavailable, match=r"missing: e; unreachable: a, b"):
        read([None, None, *nodes[2:]], stored)


def test_a_node_that_fails_on_the_way_is_left_out(nodes: tuple[Node, ...], folder: FolderOf) -> None:
    for node in nodes:
        node.make_folder("d/v")
    # One has no place for the file at the beginning, one none at the end.
    shutil.rmtree(folder(nodes[3]))
    writer = ShardWriter(nodes, "d/v", OBJECT, CODE)
    writer.write(CONTENT)
    shutil.rmtree(folder(nodes[0]))
    stored = writer.finish()
    writer.discard()
    assert writer.missing == {0, 3}
    assert not folder(nodes[0]).exists(), "a lost node is not made anew"
    content, conditions = read(nodes, stored)
    assert (content, conditions[0], conditions[3]) == (CONTENT, "missing", "missing")


def test_what_is_discarded_leaves_nothing(nodes: tuple[Node, ...], folder: FolderOf) -> None:
    for node in nodes:
        node.make_folder("d/v")
    writer = ShardWriter(nodes, "d/v", OBJECT, CODE)
    writer.write(CONTENT)
    writer.discard()
    assert [list((folder(node) / "d" / "v").iterdir()) for node in nodes] == [[]] * 5


def test_what_comes_out_otherwise_than_expected_is_not_put_in_place(nodes: tuple[Node, ...], folder: FolderOf) -> None:
    stored, _ = write(nodes)
    before = [shard(folder, nodes, number).read_bytes() for number in range(5)]
    with pytest.raises(ShardsLost, match="other shards"):
        write(nodes, CONTENT[:-1] + b"?", expected=stored)
    assert [shard(folder, nodes, number).read_bytes() for number in range(5)] == before
    assert len(list((folder(nodes[0]) / "d" / "v").iterdir())) == 1
