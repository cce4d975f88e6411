"""Reed-Solomon coding of stripes into blocks, of which any ``data`` many give the stripe back.

The code is systematic, over GF(2^8) with the polynomial 0x11d: the first ``data`` blocks are parts of the stripe, and of the
others block ``i`` is their sum, block ``j`` times ``1 / (i xor j)``: a Cauchy matrix (Intel ISA-L's ``gf_gen_cauchy1_matrix``).
liberasurecode computes it; the header that it puts before each block, which tells its own version, is taken off, so that a
block can be rebuilt by any version, to the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from lepton_airflow.errors import MissingDependency

#: Of liberasurecode.
MOST_BLOCKS = 32
_HEADER_BYTES = 80


class ErasureCode:
    """One code; strings and numbers only, so it travels to workers.

    :param data: blocks that a stripe is cut into, and that are enough to read it
    :param parity: blocks more: so many may be lost
    :raises MissingDependency: pyeclib is not installed
    """

    def __init__(self, data: int, parity: int) -> None:
        self.data = data
        self.parity = parity
        _driver(data, parity)

    @property
    def blocks(self) -> int:
        """All blocks of a stripe."""
        return self.data + self.parity

    def encode(self, stripe: bytes) -> list[memoryview]:
        """Cut and code a stripe.

        :param stripe: one byte at least
        :returns: ``blocks`` blocks of ``ceil(len(stripe) / data)`` bytes; the data ones are padded with zeros
        """
        fragments = _driver(self.data, self.parity).encode(stripe)
        return [memoryview(fragment)[_HEADER_BYTES:] for fragment in fragments]

    def decode(self, blocks: Mapping[int, bytes], length: int) -> bytes:
        """The stripe of ``length`` bytes.

        :param blocks: intact blocks by their number, ``data`` many or more
        """
        if all(number in blocks for number in range(self.data)):
            return b"".join(blocks[number] for number in range(self.data))[:length]
        headers = _headers(self.data, self.parity, length)
        fragments = [headers[number] + block for number, block in blocks.items()]
        stripe: bytes = _driver(self.data, self.parity).decode(fragments)
        return stripe


@lru_cache
def _driver(data: int, parity: int) -> Any:
    try:
        from pyeclib.ec_iface import ECDriver
    except ImportError:
        raise MissingDependency(
            "pyeclib is not installed.", place="storage", remedy="Install lepton-airflow[storage]."
        ) from None
    return ECDriver(k=data, m=parity, ec_type="isa_l_rs_cauchy")


@lru_cache(maxsize=64)
def _headers(data: int, parity: int, length: int) -> tuple[bytes, ...]:
    """What liberasurecode wants before the blocks of a stripe of this length: numbers and lengths, nothing of the content."""
    return tuple(fragment[:_HEADER_BYTES] for fragment in _driver(data, parity).encode(bytes(length)))
