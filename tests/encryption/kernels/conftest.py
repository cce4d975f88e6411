"""Columns of made-up values, and the two kernels with the per-value library calls that they must equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV

from lepton_airflow.encryption.kernels.aead import BatchAead
from lepton_airflow.encryption.kernels.gcm import GcmKernel
from lepton_airflow.encryption.kernels.siv import SivKernel

PREFIX = bytes.fromhex("0112345678")
CONTEXT = b"clinic.patients|email|string"


@dataclass(frozen=True)
class Cipher:
    """A batch kernel and what it must equal, value by value."""

    name: str
    kernel: BatchAead
    encrypt_one: Callable[[bytes], bytes]
    decrypt_one: Callable[[bytes], bytes]

    def encrypt(self, array: pa.Array) -> pa.Array:
        kernel: Any = self.kernel
        return kernel.encrypt(array)


def _gcm(key: bytes) -> Cipher:
    library = AESGCM(key)
    nonce = bytes(12)
    return Cipher(
        "gcm",
        GcmKernel(key, prefix=PREFIX, associated_data=CONTEXT),
        lambda value: PREFIX + nonce + library.encrypt(nonce, value, CONTEXT),
        lambda value: library.decrypt(value[5:17], value[17:], CONTEXT),
    )


def _siv(key: bytes) -> Cipher:
    library = AESSIV(key)
    return Cipher(
        "siv",
        SivKernel(key, prefix=PREFIX, associated_data=CONTEXT),
        lambda value: PREFIX + library.encrypt(value, [CONTEXT]),
        lambda value: library.decrypt(value[5:], [CONTEXT]),
    )


_CIPHERS = {"gcm": _gcm(bytes(range(32))), "siv": _siv(bytes(range(64)))}


@pytest.fixture(params=sorted(_CIPHERS))
def cipher(request: pytest.FixtureRequest) -> Cipher:
    """Each kernel in turn."""
    return _CIPHERS[request.param]


@pytest.fixture(scope="session")
def make_values() -> Callable[..., list[bytes | None]]:
    """Makes values: ``make_values(seed=, count=, shortest=, longest=, nulls=)``, ``nulls`` being a share of the rows."""

    def make(*, seed: int, count: int, shortest: int, longest: int, nulls: float = 0.0) -> list[bytes | None]:
        random = np.random.default_rng(seed)
        lengths = random.integers(shortest, longest, size=count, endpoint=True)
        missing = random.random(count) < nulls
        return [None if absent else random.bytes(int(length)) for length, absent in zip(lengths, missing, strict=True)]

    return make
