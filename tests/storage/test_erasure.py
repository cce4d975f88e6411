"""The code against arithmetic in GF(2^8) that is written here, and against every loss that it must survive."""

from __future__ import annotations

import os
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_airflow.storage.erasure import ErasureCode
from lepton_airflow.storage.geometry import DIGEST_BYTES, Geometry


def times(a: int, b: int) -> int:
    """The product in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


INVERSE = {a: b for a in range(1, 256) for b in range(1, 256) if times(a, b) == 1}


def coded(stripe: bytes, data: int, parity: int) -> list[bytes]:
    """The blocks of a stripe, byte by byte."""
    size = -(-len(stripe) // data)
    padded = stripe.ljust(size * data, b"\0")
    blocks = [padded[number * size : (number + 1) * size] for number in range(data)]
    for number in range(data, data + parity):
        block = bytearray(size)
        for other in range(data):
            factor = INVERSE[number ^ other]
            for place in range(size):
                block[place] ^= times(factor, blocks[other][place])
        blocks.append(bytes(block))
    return blocks


@given(st.integers(1, 6), st.integers(1, 4), st.binary(min_size=1, max_size=60))
def test_the_blocks_are_those_of_the_cauchy_matrix(data: int, parity: int, stripe: bytes) -> None:
    assert ErasureCode(data, parity).encode(stripe) == coded(stripe, data, parity)


@pytest.mark.parametrize(("data", "parity"), [(1, 1), (1, 3), (2, 1), (3, 2), (4, 2), (5, 3), (10, 2)])
@pytest.mark.parametrize("length", [1, 7, 4096, 99_991])
def test_every_loss_of_as_many_blocks_as_there_are_parity_blocks_is_survived(
    data: int, parity: int, length: int
) -> None:
    code, stripe = ErasureCode(data, parity), os.urandom(length)
    blocks = [bytes(block) for block in code.encode(stripe)]
    assert len(blocks) == data + parity
    for kept in combinations(range(data + parity), data):
        assert code.decode({number: blocks[number] for number in kept}, length) == stripe
    # More than are needed do no harm, in any order.
    assert code.decode({number: blocks[number] for number in reversed(range(1, data + parity))}, length) == stripe


def test_a_code_of_the_most_blocks_survives_its_losses() -> None:
    code, stripe = ErasureCode(24, 8), os.urandom(1000)
    blocks = [bytes(block) for block in code.encode(stripe)]
    assert code.decode(dict(list(enumerate(blocks))[8:]), 1000) == stripe


@given(st.integers(1, 5000), st.integers(1, 7), st.integers(1, 200))
def test_blocks_and_their_digests_fill_a_shard_without_a_gap(length: int, data: int, block_bytes: int) -> None:
    geometry = Geometry(length, data, block_bytes)
    lengths = [geometry.block_length(stripe) for stripe in range(geometry.stripes)]
    assert sum(geometry.stripe_length(stripe) for stripe in range(geometry.stripes)) == length
    assert all(size == block_bytes for size in lengths[:-1])
    assert 1 <= lengths[-1] <= block_bytes
    assert geometry.digests_at == sum(lengths)
    assert geometry.shard_bytes == sum(lengths) + DIGEST_BYTES * geometry.stripes
