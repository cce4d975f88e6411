"""Changed ciphertexts: each is found, named by its row, and nothing of the array leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lepton_airflow.encryption.kernels.failures import NotAuthentic
from lepton_airflow.encryption.kernels.gcm import GcmKernel
from lepton_airflow.encryption.kernels.siv import SivKernel

Make = Callable[..., list[bytes | None]]

rows_of_each_path = pytest.mark.parametrize("rows", [pytest.param(3, id="one by one"), pytest.param(400, id="batch")])


def _refused(cipher: Any, values: list[bytes | None]) -> tuple[int, ...]:
    with pytest.raises(NotAuthentic) as caught:
        cipher.kernel.decrypt(pa.array(values, pa.binary()))
    return caught.value.rows


@rows_of_each_path
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 28, 40])
def test_a_change_of_any_byte_is_found(cipher: Any, make_values: Make, length: int, rows: int) -> None:
    values = make_values(seed=length, count=rows, shortest=length, longest=length)
    encrypted = cipher.encrypt(pa.array(values, pa.binary())).to_pylist()
    for position in range(length + cipher.kernel.overhead):
        row = position % rows
        changed = bytearray(encrypted[row])
        changed[position] ^= 1 << position % 8
        assert _refused(cipher, [*encrypted[:row], bytes(changed), *encrypted[row + 1 :]]) == (row,), position


def test_a_change_of_any_bit_of_a_row_is_found(cipher: Any, make_values: Make) -> None:
    (encrypted,) = cipher.encrypt(pa.array(make_values(seed=1, count=1, shortest=21, longest=21))).to_pylist()
    changed = []
    for bit in range(8 * len(encrypted)):
        value = bytearray(encrypted)
        value[bit // 8] ^= 1 << bit % 8
        changed += [bytes(value), encrypted]
    assert _refused(cipher, changed) == tuple(range(0, len(changed), 2))


@rows_of_each_path
def test_values_cut_short_or_made_longer_are_found(cipher: Any, make_values: Make, rows: int) -> None:
    encrypted = cipher.encrypt(pa.array(make_values(seed=2, count=rows, shortest=20, longest=20))).to_pylist()
    shorter = [encrypted[1][:length] for length in range(len(encrypted[1]))]
    longer = [encrypted[1] + bytes(extra) for extra in range(1, 40)]
    for changed in shorter + longer:
        assert _refused(cipher, [encrypted[0], changed, *encrypted[2:]]) == (1,)
    assert _refused(cipher, shorter + longer) == tuple(range(len(shorter + longer)))


@rows_of_each_path
def test_values_whose_parts_are_exchanged_are_found(cipher: Any, make_values: Make, rows: int) -> None:
    encrypted = cipher.encrypt(pa.array(make_values(seed=3, count=rows, shortest=24, longest=24))).to_pylist()
    header = 5 + cipher.kernel.header
    mixed = [encrypted[0][:header] + encrypted[1][header:], *encrypted[1:]]
    assert _refused(cipher, mixed) == (0,)


def test_a_value_of_another_key_context_or_prefix_is_found(cipher: Any, make_values: Make) -> None:
    kernel: type[GcmKernel] | type[SivKernel] = type(cipher.kernel)
    key = bytes(range(32 if kernel is GcmKernel else 64))
    array = pa.array(make_values(seed=4, count=300, shortest=0, longest=30), pa.binary())
    context = b"clinic.patients|email|string"
    others = {
        "key": kernel(key[::-1], prefix=bytes.fromhex("0112345678"), associated_data=context),
        "context": kernel(key, prefix=bytes.fromhex("0112345678"), associated_data=context[:-1]),
        "prefix": kernel(key, prefix=bytes.fromhex("0112345679"), associated_data=context),
        "no prefix": kernel(key, prefix=b"", associated_data=context),
    }
    for name, other in others.items():
        with pytest.raises(NotAuthentic) as caught:
            cipher.kernel.decrypt(other.encrypt(array))
        assert caught.value.rows == tuple(range(300)), name


def test_the_rows_named_are_those_of_the_array_given(cipher: Any, make_values: Make) -> None:
    values = make_values(seed=5, count=25_000, shortest=0, longest=50, nulls=0.3)
    values[70] = bytes(5000)
    encrypted = cipher.encrypt(pa.array(values, pa.binary())).to_pylist()
    random = np.random.default_rng(5)
    chosen = {int(row) for row in random.choice(25_000, 40) if encrypted[row] is not None} | {70}
    for row in chosen:
        encrypted[row] = encrypted[row][:-1] + bytes([encrypted[row][-1] ^ 0x80])
    sliced = pa.array(encrypted, pa.binary()).slice(13)
    with pytest.raises(NotAuthentic) as caught:
        cipher.kernel.decrypt(sliced)
    assert caught.value.rows == tuple(sorted(row - 13 for row in chosen if row >= 13))


def test_the_failure_says_nothing_about_values(cipher: Any) -> None:
    encrypted = cipher.encrypt(pa.array([b"a secret value"] * 200, pa.binary())).to_pylist()
    encrypted[9] = encrypted[9][:-1] + b"!"
    with pytest.raises(NotAuthentic, match=r"^1 values are not authentic$"):
        cipher.kernel.decrypt(pa.array(encrypted, pa.binary()))


def test_gcm_draws_a_new_nonce_for_every_value() -> None:
    kernel = GcmKernel(bytes(32), prefix=b"", associated_data=b"")
    # Values of both paths and of several lengths, equal in each group.
    values = [b"", b"short", b"x" * 40, b"y" * 900] * 3000
    seen: set[bytes] = set()
    for _ in range(2):
        encrypted = kernel.encrypt(pa.array(values, pa.binary())).to_pylist()
        seen |= {value[:12] for value in encrypted}
    assert len(seen) == 2 * len(values)


def test_siv_is_deterministic_wherever_a_value_stands() -> None:
    kernel = SivKernel(bytes(64), prefix=b"\x01\x00\x00\x00\x01", associated_data=b"joined")
    alone = {value: kernel.encrypt(pa.array([value])).to_pylist()[0] for value in (b"", b"id-17", b"q" * 33)}
    assert len(set(alone.values())) == 3
    among = kernel.encrypt(pa.array([*alone, *[b"other"] * 500, *alone], pa.binary())).to_pylist()
    assert among[:3] == among[-3:] == list(alone.values())
