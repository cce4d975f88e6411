"""One object in shards: written to all nodes at once, read from those that still have it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from lepton_airflow.errors import LeptonError, NodeUnavailable, ShardsLost
from lepton_airflow.storage.envelope import Source
from lepton_airflow.storage.erasure import ErasureCode
from lepton_airflow.storage.geometry import DIGEST_BYTES
from lepton_airflow.storage.manifest import Code, StoredObject, shard_name
from lepton_airflow.storage.nodes import Node, NodeWriter

#: ``damaged``: some of its bytes are not those that were stored. ``unreachable``: its node does not answer.
Condition = Literal["intact", "damaged", "missing", "unreachable"]


class ShardWriter(io.RawIOBase):
    """Takes an object's bytes; a stripe at a time is coded and sent to the nodes while the next one comes in.

    A node that fails is left out from then on; who uses this decides how many may.

    :param nodes: by shard; None where there is no node now
    :param folder: of the version, on every node
    :ivar missing: shards that are on no node
    """

    def __init__(self, nodes: Sequence[Node | None], folder: str, object_id: str, code: Code) -> None:
        self._id = object_id
        self._code = code
        self._erasure = ErasureCode(code.data, code.parity)
        # Parts of the stripe that comes in, and how much of it they are.
        self._parts: list[bytes] = []
        self._filled = 0
        self._bytes = 0
        self._digests = [bytearray() for _ in nodes]
        self._writers: dict[int, NodeWriter] = {}
        self._pool = ThreadPoolExecutor(max_workers=len(nodes))
        self._sent: list[Future[None]] = []
        self.missing: set[int] = set()
        for number, node in enumerate(nodes):
            if node is None:
                self.missing.add(number)
                continue
            try:
                self._writers[number] = node.writer(f"{folder}/{shard_name(object_id, number)}")
            except NodeUnavailable:
                self.missing.add(number)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        rest, size = memoryview(data), self._code.data * self._code.block_bytes
        self._bytes += len(rest)
        while rest:
            # Tink's buffer is its own again after this call.
            part = bytes(rest[: size - self._filled])
            self._parts.append(part)
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == size:
                self._send()
        return len(data)

    def finish(self, *, expected: StoredObject | None = None) -> StoredObject:
        """Write what is left and the digests, and make the shards durable.

        :param expected: what must have come out; None if that is not known yet
        :raises ShardsLost: something else did; no shard is left in place
        """
        if self._filled:
            self._send()
        self._wait()
        digests = [bytes(one) for one in self._digests]
        written = StoredObject(self._id, self._bytes, tuple(hashlib.sha256(one).hexdigest() for one in digests))
        if expected not in (None, written):
            raise ShardsLost(
                "Coded again, the object has other shards than those that were stored.",
                place=f"object {self._id}",
                remedy="Nothing was changed. Repair with the version of pyeclib that stored it, and report this.",
            )
        list(self._pool.map(self._end, range(len(digests)), digests))
        return written

    def discard(self) -> None:
        """Take back what was not finished, and let go of everything."""
        for sent in self._sent:
            sent.cancel()
        self._pool.shutdown()
        for writer in self._writers.values():
            writer.discard()

    def _send(self) -> None:
        blocks = self._erasure.encode(b"".join(self._parts))
        self._parts, self._filled = [], 0
        # A shard's blocks are in order: one stripe is on its way at a time.
        self._wait()
        self._sent = [self._pool.submit(self._put, number, block) for number, block in enumerate(blocks)]

    def _wait(self) -> None:
        for sent in self._sent:
            sent.result()
        self._sent = []

    def _put(self, number: int, block: memoryview) -> None:
        self._digests[number] += hashlib.sha256(block).digest()
        self._try(number, block)

    def _end(self, number: int, digests: bytes) -> None:
        self._try(number, digests, commit=True)

    def _try(self, number: int, data: bytes | memoryview, *, commit: bool = False) -> None:
        writer = self._writers.get(number)
        if writer is None:
            return
        try:
            writer.write(data)
            if commit:
                writer.commit()
        except NodeUnavailable:
            self.missing.add(number)
            self._writers.pop(number).discard()


class _Shard:
    """One shard of an object, opened when it is first asked for.

    :ivar condition: as far as it was read
    :ivar usable: whether some of its blocks can still be told to be intact
    """

    def __init__(self, node: Node | None, path: str, expected: str, code: Code, length: int) -> None:
        self._node = node
        self._path = path
        self._expected = expected
        self._geometry = code.geometry(length)
        self._block_bytes = code.block_bytes
        self._file: Any = None
        self._digests: bytes | None = None
        self.condition: Condition = "intact"
        self.usable = True

    def block(self, stripe: int) -> bytes | None:
        """An intact block; None if it is not."""
        if self._digests is None and self.usable:
            self._open()
        if not self.usable or self._digests is None:
            return None
        data = self._read(stripe * self._block_bytes, self._geometry.block_length(stripe))
        wanted = self._digests[stripe * DIGEST_BYTES : (stripe + 1) * DIGEST_BYTES]
        if data is None or hashlib.sha256(data).digest() == wanted:
            return data
        self.condition = "damaged"
        return None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self) -> None:
        try:
            self._file = None if self._node is None else self._node.open(self._path)
        except NodeUnavailable:
            self._give_up("unreachable")
            return
        if self._file is None:
            self._give_up("unreachable" if self._node is None else "missing")
            return
        digests = self._read(self._geometry.digests_at, self._geometry.stripes * DIGEST_BYTES)
        if self.condition == "unreachable":
            return
        if digests is None or hashlib.sha256(digests).hexdigest() != self._expected:
            self._give_up("damaged")
            return
        self._digests = digests
        # What was put behind it harms nothing, but is not what was stored.
        if self._file.size() > self._geometry.shard_bytes:
            self.condition = "damaged"

    def _read(self, offset: int, size: int) -> bytes | None:
        """None where the place cannot be read: a bad sector, if the node answers nevertheless."""
        try:
            data: bytes = self._file.read_at(size, offset)
        except OSError:
            if self._node is not None and self._node.answers():
                self.condition = "damaged"
            else:
                self._give_up("unreachable")
            return None
        return data

    def _give_up(self, condition: Condition) -> None:
        self.condition, self.usable = condition, False


class ObjectShards:
    """The shards of one object, for reading.

    :param nodes: by shard; None where the settings have none any more
    :param folder: of the version, on every node
    :param place: the dataset and version, for errors
    """

    def __init__(
        self,
        nodes: Sequence[Node | None],
        names: Sequence[str],
        folder: str,
        stored: StoredObject,
        code: Code,
        place: str,
    ) -> None:
        self.stored = stored
        self.code = code
        self.geometry = code.geometry(stored.bytes)
        self._names = names
        self._place = place
        self._erasure = ErasureCode(code.data, code.parity)
        self._shards = [
            _Shard(node, f"{folder}/{shard_name(stored.id, number)}", digest, code, stored.bytes)
            for number, (node, digest) in enumerate(zip(nodes, stored.shards, strict=True))
        ]
        self._pool = ThreadPoolExecutor(max_workers=len(nodes))

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Of each shard, as far as it was read."""
        return tuple(shard.condition for shard in self._shards)

    def blocks(self, stripe: int, *, every: bool = False) -> dict[int, bytes]:
        """Intact blocks of a stripe, by shard: as many as it takes, data blocks first.

        :param every: look at every shard
        :raises ShardsLost: there are too few, and every node answers
        :raises NodeUnavailable: there are too few on the nodes that answer
        """
        found: dict[int, bytes] = {}
        left = [number for number, shard in enumerate(self._shards) if shard.usable]
        while left and (every or len(found) < self.code.data):
            wanted = len(left) if every else self.code.data - len(found)
            wave, left = left[:wanted], left[wanted:]
            read = self._pool.map(lambda number: self._shards[number].block(stripe), wave)
            found |= {number: block for number, block in zip(wave, read, strict=True) if block is not None}
        if len(found) < self.code.data:
            raise self._too_few(len(found))
        return found

    def stripe(self, number: int) -> bytes:
        """The object's bytes in a stripe; raises like :meth:`blocks`."""
        return self._erasure.decode(self.blocks(number), self.geometry.stripe_length(number))

    def close(self) -> None:
        self._pool.shutdown()
        for shard in self._shards:
            shard.close()

    def _too_few(self, found: int) -> NodeUnavailable | ShardsLost:
        bad = {
            condition: [
                name for name, shard in zip(self._names, self._shards, strict=True) if shard.condition == condition
            ]
            for condition in ("missing", "damaged", "unreachable")
        }
        told = "; ".join(f"{condition}: {', '.join(names)}" for condition, names in bad.items() if names)
        rule = f"Only {found} shards of object {self.stored.id} can be read, {self.code.data} are needed ({told})."
        if bad["unreachable"]:
            return NodeUnavailable(
                rule, place=self._place, remedy="Make the nodes reachable that are not, and run the job again."
            )
        return ShardsLost(
            rule,
            place=self._place,
            remedy="Bring back a node's content from elsewhere, or restore an older version.",
        )


class ShardReader(Source):
    """An object's bytes, in order; the next stripe is read while one is used. Reading raises like :meth:`ObjectShards.blocks`."""

    def __init__(self, shards: ObjectShards) -> None:
        self._shards = shards
        self._ahead = ThreadPoolExecutor(max_workers=1)
        self._stripe = memoryview(b"")
        self._number = 0
        self._next: Future[bytes] | None = self._ahead.submit(shards.stripe, 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._stripe and self._next is not None:
            try:
                self._stripe = memoryview(self._next.result())
            except LeptonError as error:
                self.failure = error
                raise
            self._number += 1
            more = self._number < self._shards.geometry.stripes
            self._next = self._ahead.submit(self._shards.stripe, self._number) if more else None
        size = min(len(buffer), len(self._stripe))
        buffer[:size] = self._stripe[:size]
        self._stripe = self._stripe[size:]
        return size

    def close(self) -> None:
        self._ahead.shutdown(cancel_futures=True)
        super().close()
