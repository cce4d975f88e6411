"""AES-256-GCM against published vectors."""

from __future__ import annotations

import pyarrow as pa
import pytest

from lepton_airflow.encryption.kernels.gcm import GcmKernel

# McGrew and Viega, "The Galois/Counter Mode of Operation (GCM)", appendix B, test cases 13 to 16: key, nonce, associated
# data, plaintext, ciphertext, tag.
_KEY = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"
_NONCE = "cafebabefacedbaddecaf888"
_PLAINTEXT = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
)
_CIPHERTEXT = (
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
)
_CASES = {
    13: ("00" * 32, "00" * 12, "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
    14: (
        "00" * 32,
        "00" * 12,
        "",
        "00" * 16,
        "cea7403d4d606b6e074ec5d3baf39d18",
        "d0d1c8a799996bf0265b98b5d48ab919",
    ),
    15: (_KEY, _NONCE, "", _PLAINTEXT, _CIPHERTEXT, "b094dac5d93471bdec1a502270e3cc6c"),
    16: (
        _KEY,
        _NONCE,
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        _PLAINTEXT[:120],
        _CIPHERTEXT[:120],
        "76fc6ece0f4e1768cddf8853bb2d551b",
    ),
}


@pytest.mark.parametrize("rows", [pytest.param(1, id="one by one"), pytest.param(200, id="batch")])
@pytest.mark.parametrize("case", _CASES)
def test_the_published_vectors_come_out_and_back(case: int, rows: int) -> None:
    key, nonce, context, plaintext, ciphertext, tag = map(bytes.fromhex, _CASES[case])
    kernel = GcmKernel(key, prefix=b"\x01\x00\x00\x00\x07", associated_data=context)
    encrypted = kernel.encrypt(pa.array([plaintext] * rows, pa.binary()), nonces=nonce * rows)
    assert encrypted.to_pylist() == [b"\x01\x00\x00\x00\x07" + nonce + ciphertext + tag] * rows
    assert kernel.decrypt(encrypted).to_pylist() == [plaintext] * rows


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33, 64])
def test_a_key_of_another_size_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        GcmKernel(bytes(length), prefix=b"", associated_data=b"")
