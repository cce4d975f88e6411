"""Proofs from stored subtree hashes hold against the roots of the whole list, whichever of them are stored."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import pytest
import sqlalchemy as sql

from lepton_airflow.audit.database import leaf_table, node_table
from lepton_airflow.audit.merkle import Frontier, root, verify_consistency, verify_inclusion
from lepton_airflow.audit.nodes import Node, StoredTree, grow, lacks_nodes, root_with, store_older_nodes

SIZE = 256 * 256 + 256 * 3 + 17


def hashed(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


@pytest.fixture(scope="module")
def leaves() -> list[bytes]:
    return [hashed(number) for number in range(SIZE)]


@pytest.fixture(scope="module")
def connection(leaves: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> sql.Connection:
    """A database with one stored subtree of 65,536 leaves and 259 of 256."""
    engine = sql.create_engine(f"sqlite:///{tmp_path_factory.mktemp('nodes')}/audit.db")
    leaf_table.create(engine)
    node_table.create(engine)
    connection = engine.connect()
    connection.execute(
        leaf_table.insert(),
        [
            {"event_id": str(number), "payload": "", "leaf_hash": leaf, "tree_index": number}
            for number, leaf in enumerate(leaves)
        ],
    )
    store_older_nodes(connection, size=SIZE // 2)
    store_older_nodes(connection, size=SIZE)
    assert connection.scalar(sql.select(sql.func.count()).select_from(node_table)) == 1 + 259
    return connection


@pytest.mark.parametrize("step", [1, 255, 256, 257, 1000, SIZE])
def test_a_growing_tree_tells_the_subtrees_to_store(leaves: list[bytes], connection: sql.Connection, step: int) -> None:
    frontier = Frontier()
    grown = [node for start in range(0, SIZE, step) for node in grow(frontier, leaves[start : start + step])]
    stored = connection.execute(sql.select(node_table)).all()
    assert sorted(grown) == sorted(Node(row.level, row.position, row.hash) for row in stored)
    assert (frontier.size, frontier.root()) == (SIZE, root(leaves))


def test_a_log_that_was_sealed_without_storing_them_is_known_by_its_size() -> None:
    assert [lacks_nodes(last, size=600) for last in (None, 0, 1)] == [True, True, False]
    assert [lacks_nodes(None, size=size) for size in (0, 255, 256)] == [False, False, True]


def includes(tree: StoredTree, leaves: list[bytes], index: int, *, top: bytes) -> bool:
    path = tree.inclusion_path(index)
    return verify_inclusion(leaf=leaves[index], index=index, size=tree.size, proof=path, root_hash=top)


def extends(tree: StoredTree, leaves: list[bytes], old_size: int, *, top: bytes) -> bool:
    old_root, path = root(leaves[:old_size]), tree.consistency_path(old_size)
    return verify_consistency(old_size=old_size, old_root=old_root, size=tree.size, root_hash=top, proof=path)


def test_proofs_of_a_large_tree_hold(leaves: list[bytes], connection: sql.Connection) -> None:
    source = random.Random(3)
    tree = StoredTree(connection, size=SIZE)
    top = root(leaves)
    assert tree.root() == tree.frontier().root() == top
    for index in (0, SIZE - 1, source.randrange(SIZE)):
        assert includes(tree, leaves, index, top=top)
    for old_size in (0, 1, 256, 65_536, SIZE - 1, SIZE, source.randrange(SIZE)):
        assert extends(tree, leaves, old_size, top=top)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 255, 256, 257, 511, 700])
def test_proofs_of_every_size_hold(leaves: list[bytes], connection: sql.Connection, size: int) -> None:
    source = random.Random(size)
    tree = StoredTree(connection, size=size)
    assert tree.frontier().nodes
    top = root(leaves[:size])
    assert tree.root() == tree.frontier().root() == top
    for index in {0, size - 1, source.randrange(size)}:
        assert includes(tree, leaves, index, top=top)
    for old_size in {0, 1, size, source.randrange(size)}:
        assert extends(tree, leaves, old_size, top=top)


def test_a_range_is_proved_as_a_whole(leaves: list[bytes], connection: sql.Connection) -> None:
    source = random.Random(5)
    for size in (1, 5, 13, 300, 1000):
        tree = StoredTree(connection, size=size)
        for _ in range(20):
            first, stop = sorted(source.sample(range(size + 1), 2))
            outside = tree.outside(first, stop)
            assert root_with(leaves[first:stop], first=first, size=size, outside=outside) == tree.root()
            other = [*leaves[first : stop - 1], bytes(32)]
            assert root_with(other, first=first, size=size, outside=outside) != tree.root()


def test_a_proof_that_does_not_fit_is_refused(leaves: list[bytes], connection: sql.Connection) -> None:
    outside = StoredTree(connection, size=10).outside(2, 5)
    cases: list[Callable[[], object]] = [
        lambda: root_with(leaves[2:5], first=2, size=10, outside=outside[1:]),
        lambda: root_with([], first=2, size=10, outside=outside),
        lambda: root_with(leaves[:11], first=0, size=10, outside=[]),
        lambda: StoredTree(connection, size=10).outside(2, 11),
        lambda: StoredTree(connection, size=10).consistency_path(11),
    ]
    for case in cases:
        with pytest.raises(ValueError, match=r"proof|leaves|older tree"):
            case()


def test_what_is_not_stored_is_computed(leaves: list[bytes], connection: sql.Connection) -> None:
    with connection.begin_nested() as savepoint:
        connection.execute(node_table.delete().where(node_table.c.position % 3 == 0))
        assert includes(StoredTree(connection, size=SIZE), leaves, 777, top=root(leaves))
        savepoint.rollback()
