"""The kernels against ``cryptography`` and Tink, value by value and in both directions."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
import tink
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from hypothesis import given, settings
from hypothesis import strategies as st
from tink import aead, daead, json_proto_keyset_format, secret_key_access
from tink.proto import aes_gcm_pb2, aes_siv_pb2

from lepton_airflow.encryption.kernels.gcm import GcmKernel
from lepton_airflow.encryption.kernels.siv import SivKernel

Make = Callable[..., list[bytes | None]]

#: Whole columns at a time: few rows go one by one, many through the batch, and long values out of it.
columns = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "count": st.sampled_from([0, 1, 2, 95, 96, 97, 150, 400]),
        "shortest": st.sampled_from([0, 1, 11, 15, 16, 17, 20, 32, 200]),
        "spread": st.sampled_from([0, 1, 8, 16, 17, 100, 400]),
        "nulls": st.sampled_from([0.0, 0.1, 1.0]),
        "skip": st.integers(0, 20),
        "drop": st.integers(0, 20),
        "large": st.booleans(),
    }
)


def _column(make_values: Make, shape: dict[str, Any]) -> pa.Array:
    values = make_values(
        seed=shape["seed"],
        count=shape["count"],
        shortest=shape["shortest"],
        longest=shape["shortest"] + shape["spread"],
        nulls=shape["nulls"],
    )
    array = pa.array(values, pa.large_binary() if shape["large"] else pa.binary())
    return array.slice(shape["skip"], max(0, len(array) - shape["skip"] - shape["drop"]))


@settings(max_examples=120, deadline=None)
@given(shape=columns, key=st.binary(min_size=32, max_size=32), context=st.binary(max_size=70))
def test_gcm_equals_aesgcm(make_values: Make, shape: dict[str, Any], key: bytes, context: bytes) -> None:
    array, library, prefix = _column(make_values, shape), AESGCM(key), b"\x01\xff\x00\x0a\x7f"
    nonces = b"".join(v for v in make_values(seed=shape["seed"] + 1, count=len(array), shortest=12, longest=12) if v)
    kernel = GcmKernel(key, prefix=prefix, associated_data=context)
    expected = [
        None if v is None else prefix + (nonce := nonces[12 * i : 12 * i + 12]) + library.encrypt(nonce, v, context)
        for i, v in enumerate(array.to_pylist())
    ]
    encrypted = kernel.encrypt(array, nonces=nonces)
    encrypted.validate(full=True)
    assert encrypted.type == array.type
    assert encrypted.to_pylist() == expected
    decrypted = kernel.decrypt(pa.array(expected, array.type))
    decrypted.validate(full=True)
    assert decrypted.equals(array)
    assert kernel.decrypt(kernel.encrypt(array)).equals(array)


@settings(max_examples=120, deadline=None)
@given(shape=columns, key=st.binary(min_size=64, max_size=64), context=st.binary(max_size=70))
def test_siv_equals_aessiv(make_values: Make, shape: dict[str, Any], key: bytes, context: bytes) -> None:
    array, library, prefix = _column(make_values, shape), AESSIV(key), b"\x01\xff\x00\x0a\x7f"
    kernel = SivKernel(key, prefix=prefix, associated_data=context)
    expected = [None if v is None else prefix + library.encrypt(v, [context]) for v in array.to_pylist()]
    encrypted = kernel.encrypt(array)
    encrypted.validate(full=True)
    assert encrypted.type == array.type
    assert encrypted.to_pylist() == expected
    decrypted = kernel.decrypt(pa.array(expected, array.type))
    decrypted.validate(full=True)
    assert decrypted.equals(array)


def test_every_length_is_right(cipher: Any) -> None:
    for length in range(530):
        values = [bytes([row, length % 251]) * (length // 2) + bytes([row])[: length % 2] for row in range(100)]
        encrypted = cipher.encrypt(pa.array(values, pa.binary()))
        assert [cipher.decrypt_one(value) for value in encrypted.to_pylist()[::9]] == values[::9]
        assert cipher.kernel.decrypt(encrypted).to_pylist() == values
        from_library = pa.array([cipher.encrypt_one(value) for value in values], pa.binary())
        assert cipher.kernel.decrypt(from_library).to_pylist() == values


@dataclass(frozen=True)
class TinkKey:
    """A Tink keyset of one key, and the kernel for that key."""

    encrypt: Callable[[bytes, bytes], bytes]
    decrypt: Callable[[bytes, bytes], bytes]
    kernel: Callable[[bytes], Any]


def _tink_key(cipher: str) -> TinkKey:
    aead.register()
    daead.register()
    templates = {
        "gcm": aead.aead_key_templates.AES256_GCM,
        "siv": daead.deterministic_aead_key_templates.AES256_SIV,
        "raw gcm": aead.aead_key_templates.AES256_GCM_RAW,
    }
    handle = tink.new_keyset_handle(templates[cipher])
    (key,) = json.loads(json_proto_keyset_format.serialize(handle, secret_key_access.TOKEN))["key"]
    material = base64.b64decode(key["keyData"]["value"])
    prefix = b"" if cipher == "raw gcm" else b"\x01" + key["keyId"].to_bytes(4, "big")
    if cipher == "siv":
        primitive = handle.primitive(daead.DeterministicAead)
        secret = aes_siv_pb2.AesSivKey.FromString(material).key_value
        return TinkKey(
            primitive.encrypt_deterministically,
            primitive.decrypt_deterministically,
            lambda context: SivKernel(secret, prefix=prefix, associated_data=context),
        )
    randomised = handle.primitive(aead.Aead)
    secret = aes_gcm_pb2.AesGcmKey.FromString(material).key_value
    return TinkKey(
        randomised.encrypt,
        randomised.decrypt,
        lambda context: GcmKernel(secret, prefix=prefix, associated_data=context),
    )


@pytest.mark.parametrize("context", [b"", b"dataset|column"])
@pytest.mark.parametrize("cipher", ["gcm", "siv", "raw gcm"])
def test_tink_reads_what_the_kernel_writes_and_the_reverse(make_values: Make, cipher: str, context: bytes) -> None:
    key = _tink_key(cipher)
    kernel = key.kernel(context)
    values = make_values(seed=7, count=700, shortest=0, longest=90) + make_values(
        seed=8, count=3, shortest=600, longest=5000
    )
    for value, ciphertext in zip(values, kernel.encrypt(pa.array(values, pa.binary())).to_pylist(), strict=True):
        assert key.decrypt(ciphertext, context) == value
    from_tink = pa.array([key.encrypt(value, context) for value in values], pa.binary())
    assert kernel.decrypt(from_tink).to_pylist() == values
