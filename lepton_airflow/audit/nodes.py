"""Hashes of the log's complete subtrees, stored as it is sealed: a proof then reads a few hundred hashes, not the whole log.

Stored are the subtrees of 256, 65,536 and 16,777,216 leaves (the levels of C2SP tlog-tiles). Nothing rests on them: who uses
them holds the result against a signed root. Where one is missing, as in a log that is older than this table, it is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sql

from lepton_airflow.audit.database import insert_into, leaf_table, node_table
from lepton_airflow.audit.merkle import Frontier, node_hash, root, subtrees

_FANOUT_BITS = 8
_FANOUT = 1 << _FANOUT_BITS
_LEVELS = (8, 16, 24)


class Node(NamedTuple):
    """A complete subtree of 2**level leaves, the position-th of them."""

    level: int
    position: int
    hash: bytes


def grow(frontier: Frontier, leaves: Sequence[bytes]) -> list[Node]:
    """Add leaf hashes to a tree.

    :returns: the subtrees to store that they complete
    """
    nodes, start = [], 0
    while start < len(leaves):
        stop = start + _FANOUT - frontier.size % _FANOUT
        for level, hashed in subtrees(leaves[start:stop], first=frontier.size):
            completed = frontier.append(hashed, level=level)
        if frontier.size % _FANOUT == 0:
            above = dict(enumerate(completed, level))
            nodes += [Node(level, (frontier.size >> level) - 1, above[level]) for level in _LEVELS if level in above]
        start = stop
    return nodes


def store_nodes(connection: sql.Connection, nodes: Sequence[Node]) -> None:
    """Store subtrees; what is there already stays, as nothing rests on it."""
    if nodes:
        insert = insert_into(node_table, connection).values([node._asdict() for node in nodes])
        connection.execute(insert.on_conflict_do_nothing())


def last_node() -> sql.ScalarSelect[int | None]:
    """The position of the last subtree of the lowest level that is stored."""
    columns = node_table.c
    return sql.select(sql.func.max(columns.position)).where(columns.level == _LEVELS[0]).scalar_subquery()


def lacks_nodes(last: int | None, *, size: int) -> bool:
    """Whether subtrees of a log of ``size`` leaves are not stored yet.

    :param last: what :func:`last_node` found
    """
    return (-1 if last is None else last) + 1 < size >> _LEVELS[0]


def store_older_nodes(connection: sql.Connection, *, size: int) -> None:
    """Store the subtrees of a log of ``size`` leaves that was sealed before they were stored."""
    columns = node_table.c
    for level in _LEVELS:
        last = connection.scalar(sql.select(sql.func.max(columns.position)).where(columns.level == level))
        for position in range(0 if last is None else last + 1, size >> level):
            hashes = _children(connection, level, position)
            if len(hashes) == _FANOUT:
                store_nodes(connection, [Node(level, position, root(hashes))])


def _children(connection: sql.Connection, level: int, position: int) -> list[bytes]:
    """The hashes one stored level below a subtree."""
    first = position << _FANOUT_BITS
    if level == _FANOUT_BITS:
        return _leaf_hashes(connection, first, first + _FANOUT)
    below = level - _FANOUT_BITS
    columns = node_table.c
    query = (
        sql.select(columns.hash)
        .where(columns.level == below, columns.position >= first, columns.position < first + _FANOUT)
        .order_by(columns.position)
    )
    return [bytes(hashed) for hashed in connection.scalars(query)]


def _leaf_hashes(connection: sql.Connection, first: int, stop: int) -> list[bytes]:
    columns = leaf_table.c
    query = (
        sql.select(columns.leaf_hash)
        .where(columns.tree_index >= first, columns.tree_index < stop)
        .order_by(columns.tree_index)
    )
    return [bytes(hashed) for hashed in connection.scalars(query)]


class StoredTree:
    """The tree of the first ``size`` sealed leaves, as the stored hashes say it is.

    :param stored: False takes the leaves' hashes alone
    :raises ValueError: from every method, when leaves are missing
    """

    def __init__(self, connection: sql.Connection, *, size: int, stored: bool = True) -> None:
        self.size = size
        self._levels = _LEVELS if stored else ()
        self._connection = connection
        self._nodes: dict[tuple[int, int], bytes] = {}
        self._loaded: set[tuple[int, int]] = set()

    def root(self) -> bytes:
        return self.subtree(0, self.size)

    def frontier(self) -> Frontier:
        """The right edge of the tree."""
        nodes, start = [], 0
        for level in reversed(range(self.size.bit_length())):
            if self.size >> level & 1:
                nodes.append(self.subtree(start, start + (1 << level)))
                start += 1 << level
        return Frontier(self.size, nodes)

    def subtree(self, start: int, stop: int) -> bytes:
        """The root over the leaves from ``start`` up to, not including, ``stop``: a subtree of RFC 6962's recursion."""
        width = stop - start
        level = width.bit_length() - 1
        if width == 1 << level and level in self._levels:
            stored = self._stored(level, start >> level)
            if stored is not None:
                return stored
        if width <= _FANOUT:
            hashes = _leaf_hashes(self._connection, start, stop)
            if len(hashes) != width:
                raise ValueError("there are fewer leaves than the tree has")
            return root(hashes)
        middle = start + _split(width)
        return node_hash(self.subtree(start, middle), self.subtree(middle, stop))

    def inclusion_path(self, index: int) -> list[bytes]:
        """The audit path of leaf ``index`` (RFC 6962 section 2.1.1), from the leaf upwards."""
        return self.outside(index, index + 1)

    def outside(self, first: int, stop: int) -> list[bytes]:
        """The subtrees that with the leaves from ``first`` up to, not including, ``stop`` make the root, from below upwards.

        For one leaf that is its audit path; for several it proves all of them at once (see :func:`root_with`).
        """
        if not 0 <= first < stop <= self.size:
            raise ValueError("no such leaves in the tree")
        return [self.subtree(*span) for span in _spans_outside(first, stop, self.size)]

    def consistency_path(self, old_size: int) -> list[bytes]:
        """The proof that the first ``old_size`` leaves are a prefix of this tree (RFC 6962 section 2.1.2)."""
        if not 0 <= old_size <= self.size:
            raise ValueError("no such older tree")
        path: list[bytes] = []
        if old_size in (0, self.size):
            return path
        start, stop, complete = 0, self.size, True
        while old_size != stop:
            middle = start + _split(stop - start)
            if old_size <= middle:
                path.append(self.subtree(middle, stop))
                stop = middle
            else:
                path.append(self.subtree(start, middle))
                start, complete = middle, False
        if not complete:
            path.append(self.subtree(start, stop))
        return path[::-1]

    def _stored(self, level: int, position: int) -> bytes | None:
        """A stored subtree; its siblings are read with it."""
        group = (level, position >> _FANOUT_BITS)
        if group not in self._loaded:
            self._loaded.add(group)
            first = group[1] << _FANOUT_BITS
            columns = node_table.c
            query = sql.select(columns.position, columns.hash).where(
                columns.level == level, columns.position >= first, columns.position < first + _FANOUT
            )
            self._nodes |= {(level, row.position): bytes(row.hash) for row in self._connection.execute(query)}
        return self._nodes.get((level, position))


def root_with(leaves: list[bytes], *, first: int, size: int, outside: list[bytes]) -> bytes:
    """The root of the tree of ``size`` in which ``leaves`` (leaf hashes) begin at ``first``, by :meth:`StoredTree.outside`.

    :raises ValueError: the hashes are not as many as such a tree needs
    """
    stop = first + len(leaves)
    spans = list(_spans_outside(first, stop, size)) if 0 <= first < stop <= size else None
    if spans is None or len(spans) != len(outside):
        raise ValueError("not a proof for these leaves")
    known = dict(zip(spans, outside, strict=True))

    def subtree(start: int, end: int) -> bytes:
        if (start, end) in known:
            return known[start, end]
        if first <= start and end <= stop:
            return root(leaves[start - first : end - first])
        middle = start + _split(end - start)
        return node_hash(subtree(start, middle), subtree(middle, end))

    return subtree(0, size)


def _spans_outside(first: int, stop: int, size: int) -> list[tuple[int, int]]:
    """The largest subtrees without a leaf of the range: the deepest first, as in an audit path."""

    def below(start: int, end: int) -> list[tuple[int, int]]:
        if first <= start and end <= stop:
            return []
        middle = start + _split(end - start)
        if middle <= first:
            return [*below(middle, end), (start, middle)]
        if stop <= middle:
            return [*below(start, middle), (middle, end)]
        return [*below(start, middle), *below(middle, end)]

    return below(0, size)


def _split(size: int) -> int:
    """The largest power of two smaller than ``size``."""
    return 1 << ((size - 1).bit_length() - 1)
