"""AES-SIV against published vectors."""

from __future__ import annotations

import pyarrow as pa
import pytest

from lepton_airflow.encryption.kernels.siv import SivKernel

# RFC 5297, appendix A.1 (one associated datum; A.2 has three, which Tink's form does not use).
_KEY = bytes.fromhex("fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
_CONTEXT = bytes.fromhex("101112131415161718191a1b1c1d1e1f2021222324252627")
_PLAINTEXT = bytes.fromhex("112233445566778899aabbccddee")
_OUTPUT = bytes.fromhex("85632d07c6e8f37f950acd320a2ecc9340c02b9690c4dc04daef7f6afe5c")


@pytest.mark.parametrize("rows", [pytest.param(1, id="one by one"), pytest.param(200, id="batch")])
def test_the_published_vector_comes_out_and_back(rows: int) -> None:
    kernel = SivKernel(_KEY, prefix=b"\x01\x00\x00\x00\x07", associated_data=_CONTEXT)
    encrypted = kernel.encrypt(pa.array([_PLAINTEXT] * rows, pa.binary()))
    assert encrypted.to_pylist() == [b"\x01\x00\x00\x00\x07" + _OUTPUT] * rows
    assert kernel.decrypt(encrypted).to_pylist() == [_PLAINTEXT] * rows


@pytest.mark.parametrize("length", [0, 16, 33, 63, 65])
def test_a_key_of_another_size_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        SivKernel(bytes(length), prefix=b"", associated_data=b"")
