"""What a version's key encrypts: read by an independent implementation of Tink's format, and bound to its place."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from typing import Any

import pytest
import rfc8785
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from google.protobuf.message import Message
from tink.proto import aes_gcm_hkdf_streaming_pb2, tink_pb2

from lepton_airflow.errors import DecryptionFailed, KeyExposure, KeyUnavailable
from lepton_airflow.keys.keyset import Keyset
from lepton_airflow.storage.envelope import Source, VersionKey

DATASET, VERSION, OBJECT = "clinic.visits", "0" * 32, "1" * 32
SEGMENT = 1 << 20
_HEADER = 1 + 32 + 7
_TAG = 16


class Bytes(Source):
    def __init__(self, content: bytes = b"") -> None:
        self.content = io.BytesIO(content)
        self.written = bytearray()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.content.readinto(buffer)

    def write(self, data: Any) -> int:
        self.written += data
        return len(data)


def encrypted(key: VersionKey, content: bytes, *, object_id: str = OBJECT) -> bytes:
    sink = Bytes()
    with key.encrypting(sink, object_id) as stream:
        stream.write(content)
    return bytes(sink.written)


def decrypted(key: VersionKey, content: bytes, *, object_id: str = OBJECT) -> bytes:
    with key.decrypting(Bytes(content), object_id) as stream:
        return b"".join(iter(lambda: stream.read(1 << 18), b""))


@pytest.fixture(scope="module")
def keyset() -> Keyset:
    return Keyset.generate("clinic", cipher="AES256_GCM")


def reopened(key: VersionKey, keyset: Keyset, **changes: Any) -> VersionKey:
    fields = {"keyset": keyset, "key_id": keyset.primary_key_id, "dataset": DATASET, "version": VERSION}
    return VersionKey.open(key.encrypted(keyset), **fields | changes)


def streaming_key(text: str, keyset: Keyset) -> Message:
    """The key in the clear, read with `cryptography` alone: AES-256-GCM under the keyset's key, behind Tink's prefix."""
    wrapped = base64.b64decode(json.loads(text)["encryptedKeyset"])
    assert wrapped[:5] == b"\x01" + struct.pack(">I", keyset.primary_key_id)
    associated = rfc8785.dumps({"format": "lepton.stored-key/1", "dataset": DATASET, "version": VERSION})
    clear = AESGCM(keyset.material(keyset.primary_key_id)).decrypt(wrapped[5:17], wrapped[17:], associated)
    (only,) = tink_pb2.Keyset.FromString(clear).key
    return aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey.FromString(only.key_data.value)


def independently(ciphertext: bytes, key: Any, associated: bytes) -> bytes:
    """Tink's AES-GCM-HKDF streaming format: header (its length, salt, nonce prefix), then segments under nonces that count."""
    assert ciphertext[0] == _HEADER
    salt, prefix = ciphertext[1:33], ciphertext[33:40]
    derived = HKDF(SHA256(), key.params.derived_key_size, salt, associated).derive(key.key_value)
    segments, position, end = [], _HEADER, SEGMENT
    while position < len(ciphertext):
        segments.append(ciphertext[position:end])
        position, end = end, end + SEGMENT
    clear = []
    for number, segment in enumerate(segments):
        nonce = prefix + struct.pack(">I", number) + bytes([number == len(segments) - 1])
        clear.append(AESGCM(derived).decrypt(nonce, segment, None))
    return b"".join(clear)


@pytest.mark.parametrize(
    "length", [0, 1, SEGMENT - _HEADER - _TAG - 1, SEGMENT - _HEADER - _TAG, SEGMENT - _HEADER - _TAG + 1, 3 * SEGMENT]
)
def test_another_implementation_reads_it_and_so_do_we(length: int, keyset: Keyset) -> None:
    key, content = VersionKey.generate(DATASET, VERSION), os.urandom(length)
    ciphertext = encrypted(key, content)
    associated = rfc8785.dumps(
        {"format": "lepton.stored-object/1", "dataset": DATASET, "version": VERSION, "object": OBJECT}
    )
    clear_key = streaming_key(key.encrypted(keyset), keyset)
    assert independently(ciphertext, clear_key, associated) == content
    assert decrypted(reopened(key, keyset), ciphertext) == content
    with pytest.raises(InvalidTag):
        independently(ciphertext, clear_key, associated + b" ")


def test_equal_files_look_different(keyset: Keyset) -> None:
    key = VersionKey.generate(DATASET, VERSION)
    assert encrypted(key, b"Ada") != encrypted(key, b"Ada")


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "its first byte": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "its salt": lambda content: content[:5] + bytes([content[5] ^ 1]) + content[6:],
    "a byte of the second segment": lambda content: content[: SEGMENT + 9] + b"\xff\x00" + content[SEGMENT + 11 :],
    "the last segment cut off": lambda content: content[: 2 * SEGMENT],
    "a byte cut off": lambda content: content[:-1],
    "a byte more": lambda content: content + b"\0",
    "nothing left": lambda _: b"",
    "two segments exchanged": lambda content: (
        content[:SEGMENT] + content[2 * SEGMENT : 3 * SEGMENT] + content[SEGMENT : 2 * SEGMENT] + content[3 * SEGMENT :]
    ),
    "a segment left out": lambda content: content[:SEGMENT] + content[2 * SEGMENT :],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_ciphertext_is_refused(change: str) -> None:
    key = VersionKey.generate(DATASET, VERSION)
    ciphertext = encrypted(key, os.urandom(4 * SEGMENT))
    with pytest.raises(DecryptionFailed, match=OBJECT):
        decrypted(key, CHANGES[change](ciphertext))


def test_it_is_bound_to_dataset_version_and_object(keyset: Keyset) -> None:
    key = VersionKey.generate(DATASET, VERSION)
    with pytest.raises(DecryptionFailed):
        decrypted(key, encrypted(key, b"Ada"), object_id="2" * 32)
    for changes in ({"dataset": "clinic.other"}, {"version": "3" * 32}):
        with pytest.raises(DecryptionFailed, match="key"):
            reopened(key, keyset, **changes)


def test_the_index_is_no_object_and_an_object_no_index() -> None:
    key = VersionKey.generate(DATASET, VERSION)
    index = key.seal_index(b"[]")
    assert key.open_index(index) == b"[]"
    with pytest.raises(DecryptionFailed):
        decrypted(key, index)
    with pytest.raises(DecryptionFailed, match="index"):
        key.open_index(encrypted(key, b"[]"))
    with pytest.raises(DecryptionFailed, match="index"):
        key.open_index(index[:-1])


def test_only_the_keyset_opens_the_versions_key(keyset: Keyset) -> None:
    key = VersionKey.generate(DATASET, VERSION)
    other = Keyset.generate("clinic", cipher="AES256_GCM")
    with pytest.raises(KeyUnavailable, match="not in the keyset"):
        VersionKey.open(
            key.encrypted(keyset), keyset=other, key_id=keyset.primary_key_id, dataset=DATASET, version=VERSION
        )
    text, place = key.encrypted(keyset), {"dataset": DATASET, "version": VERSION}
    with pytest.raises(DecryptionFailed):
        VersionKey.open(text, keyset=other, key_id=other.primary_key_id, **place)
    rotated, opened = keyset.with_new_primary(), {"key_id": keyset.primary_key_id, **place}
    assert decrypted(VersionKey.open(text, keyset=rotated, **opened), encrypted(key, b"Ada")) == b"Ada"
    for status in ("DISABLED", "DESTROYED"):
        with pytest.raises(KeyUnavailable, match=status.lower()):
            VersionKey.open(text, keyset=rotated.with_status(keyset.primary_key_id, status), **opened)


def test_it_does_not_leave_the_process() -> None:
    key = VersionKey.generate(DATASET, VERSION)
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(KeyExposure):
            leave(key)
