"""Where the stripes and blocks of an object are: arithmetic that writers, readers and repairs share."""

from __future__ import annotations

from dataclasses import dataclass

#: Bytes of a block, in all stripes but an object's last one.
BLOCK_BYTES = 1 << 20
#: SHA-256.
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Geometry:
    """The cut of one object.

    A shard is a file of one block from each stripe, followed by the SHA-256 of each of these blocks.

    :param length: bytes of the object, one at least
    :param data: data blocks of a stripe
    :param block_bytes: of every block but those of the last stripe, which are as short as the rest of the object allows
    """

    length: int
    data: int
    block_bytes: int = BLOCK_BYTES

    @property
    def stripes(self) -> int:
        return -(-self.length // self._stripe_bytes)

    @property
    def digests_at(self) -> int:
        """Where in a shard the digests of its blocks begin."""
        return (self.stripes - 1) * self.block_bytes + self.block_length(self.stripes - 1)

    @property
    def shard_bytes(self) -> int:
        """The length of a shard."""
        return self.digests_at + self.stripes * DIGEST_BYTES

    def stripe_length(self, stripe: int) -> int:
        """Bytes of the object in a stripe."""
        return min(self._stripe_bytes, self.length - stripe * self._stripe_bytes)

    def block_length(self, stripe: int) -> int:
        return -(-self.stripe_length(stripe) // self.data)

    @property
    def _stripe_bytes(self) -> int:
        return self.data * self.block_bytes
