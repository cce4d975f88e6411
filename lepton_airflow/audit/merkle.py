"""The Merkle tree of RFC 6962 section 2.1 over SHA-256: roots, and whether inclusion and consistency proofs hold.

Proofs are made by :class:`lepton_airflow.audit.nodes.StoredTree`.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf; the prefix keeps leaves and nodes apart (second-preimage resistance)."""
    return hashlib.sha256(b"\x00" + data).digest()


def leaf_hashes(leaves: Iterable[bytes]) -> list[bytes]:
    """The hash of each leaf."""
    return _all_hashed(b"\x00", leaves)


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: all that is needed to add leaves and to compute the root, O(log n) hashes.

    ``nodes`` are the roots of the complete subtrees, largest first: one for each set bit of ``size``.

    :param size: number of leaves
    :param nodes: as above
    :raises ValueError: the number of nodes does not fit the size
    """

    def __init__(self, size: int = 0, nodes: Iterable[bytes] = ()) -> None:
        self.size = size
        self._nodes = list(nodes)
        if len(self._nodes) != size.bit_count() or any(len(node) != HASH_BYTES for node in self._nodes):
            raise ValueError("the nodes do not fit the size of the tree")

    @property
    def nodes(self) -> tuple[bytes, ...]:
        return tuple(self._nodes)

    def append(self, hashed: bytes, *, level: int = 0) -> list[bytes]:
        """Add one leaf, given as its leaf hash, or a complete subtree.

        :param level: the subtree has 2**level leaves, and the tree so far a multiple of that
        :returns: the subtrees that are complete now and end here: of 2**level leaves, of twice as many, and so on
        :raises ValueError: the tree's size is no such multiple
        """
        size = self.size >> level
        if size << level != self.size:
            raise ValueError("a subtree must begin at a multiple of its size")
        self.size += 1 << level
        completed = [hashed]
        while size & 1:
            hashed = node_hash(self._nodes.pop(), hashed)
            completed.append(hashed)
            size >>= 1
        self._nodes.append(hashed)
        return completed

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Add leaves, given as their leaf hashes; faster than one by one."""
        for level, hashed in subtrees(leaves, first=self.size):
            self.append(hashed, level=level)

    def root(self) -> bytes:
        """The root of the tree so far."""
        if not self._nodes:
            return EMPTY_ROOT
        hashed = self._nodes[-1]
        for node in reversed(self._nodes[:-1]):
            hashed = node_hash(node, hashed)
        return hashed


def root(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes."""
    frontier = Frontier()
    frontier.extend(list(leaves))
    return frontier.root()


def subtrees(leaves: Sequence[bytes], *, first: int) -> list[tuple[int, bytes]]:
    """The largest complete subtrees over some leaves of a tree, from left to right: each one's level and root.

    :param leaves: leaf hashes
    :param first: the position of the first of them
    """
    left: list[tuple[int, bytes]] = []
    right: list[tuple[int, bytes]] = []
    nodes, level = list(leaves), 0
    while nodes:
        if first & 1:
            left.append((level, nodes[0]))
            nodes, first = nodes[1:], first + 1
        if len(nodes) & 1:
            right.append((level, nodes.pop()))
        nodes = _all_hashed(b"\x01", map(operator.add, nodes[::2], nodes[1::2]))
        first, level = first >> 1, level + 1
    return left + right[::-1]


def _all_hashed(prefix: bytes, texts: Iterable[bytes]) -> list[bytes]:
    """The SHA-256 of each text with a prefix: copying a state that has it takes less time than beginning anew each time."""
    copy = hashlib.sha256(prefix).copy
    hashes = []
    for text in texts:
        state = copy()
        state.update(text)
        hashes.append(state.digest())
    return hashes


def verify_inclusion(*, leaf: bytes, index: int, size: int, proof: Sequence[bytes], root_hash: bytes) -> bool:
    """Whether ``leaf`` (a leaf hash) is leaf ``index`` of the tree of that size and root (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    node, last, hashed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            hashed = node_hash(sibling, hashed)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            hashed = node_hash(hashed, sibling)
        node >>= 1
        last >>= 1
    return last == 0 and hashed == root_hash


def verify_consistency(*, old_size: int, old_root: bytes, size: int, root_hash: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the tree of ``size`` extends the one of ``old_size`` (RFC 9162 section 2.1.4.2)."""
    if not 0 <= old_size <= size:
        return False
    if old_size == 0:
        return not proof and old_root == EMPTY_ROOT
    if old_size == size:
        return not proof and old_root == root_hash
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)  # a complete subtree of the new tree: the proof leaves it out
    if not path:
        return False
    node, last = old_size - 1, size - 1
    while node & 1:
        node >>= 1
        last >>= 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            new = node_hash(new, sibling)
        node >>= 1
        last >>= 1
    return last == 0 and old == old_root and new == root_hash
