"""The key of one stored version, and what it encrypts: envelope encryption with Tink's streaming AEAD.

Every version has a fresh key of Tink's kind AES256_GCM_HKDF_1MB (after Hoang, Reyhanitabar, Rogaway and Vizár, "Online
Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", https://eprint.iacr.org/2015/189): each object is encrypted
under a key that is derived from it with a salt of its own, in segments of 1 MiB that can be neither reordered nor cut off. The
version's key is stored beside the data, encrypted under a key of the keyring (Tink's format for encrypted keysets): who does
not open that keyset reads nothing.

The associated data, canonical JSON, binds each ciphertext to its dataset, version and object.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, NoReturn, cast

import rfc8785
import tink
from tink import json_proto_keyset_format, streaming_aead

from lepton_airflow.errors import DecryptionFailed, KeyExposure, LeptonError
from lepton_airflow.keys.keyset import Keyset
from lepton_airflow.keys.reference import KeysetReference
from lepton_airflow.storage.manifest import version_text

streaming_aead.register()


class Source(io.RawIOBase):
    """Where ciphertext comes from.

    :ivar failure: why reading failed; Tink only tells that it did
    """

    failure: LeptonError | None = None


class VersionKey:
    """The key of one version of a dataset. It holds a secret: it cannot be pickled or copied."""

    def __init__(self, handle: tink.KeysetHandle, dataset: str, version: str) -> None:
        self._handle = handle
        self._primitive: Any = handle.primitive(streaming_aead.StreamingAead)
        self._dataset = dataset
        self._version = version

    @classmethod
    def generate(cls, dataset: str, version: str) -> VersionKey:
        """A fresh key."""
        template = streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB
        return cls(tink.new_keyset_handle(template), dataset, version)

    @classmethod
    def open(cls, text: str, *, keyset: Keyset, key_id: int, dataset: str, version: str) -> VersionKey:
        """Open what :meth:`encrypted` wrote.

        :param keyset: the AES256_GCM part of the keyset
        :param key_id: of the key under which it was encrypted
        :raises KeyUnavailable: that key is disabled or destroyed, or not in the keyset
        :raises DecryptionFailed: it is not authentic for this dataset and version
        """
        keyset.material(key_id)
        try:
            handle = json_proto_keyset_format.parse_encrypted(text, keyset.aead(), _context("key", dataset, version))
        except tink.TinkError:
            raise _not_authentic(dataset, version, "Its key") from None
        return cls(handle, dataset, version)

    def encrypted(self, keyset: Keyset) -> str:
        """This key under the keyset's primary key, in Tink's JSON format for encrypted keysets."""
        associated = _context("key", self._dataset, self._version)
        return str(json_proto_keyset_format.serialize_encrypted(self._handle, keyset.aead(), associated))

    @contextmanager
    def encrypting(self, sink: io.RawIOBase, object_id: str) -> Iterator[IO[bytes]]:
        """A stream of which the ciphertext goes to ``sink``, which is complete after the ``with`` statement."""
        stream = self._primitive.new_encrypting_stream(cast("Any", sink), self._object(object_id))
        with stream:
            yield stream

    @contextmanager
    def decrypting(self, source: Source, object_id: str) -> Iterator[IO[bytes]]:
        """The stream of the clear bytes; what is read is authentic, and its end is the end.

        :raises DecryptionFailed: a segment is not authentic
        :raises LeptonError: the failure of the source
        """
        with self._primitive.new_decrypting_stream(cast("Any", source), self._object(object_id)) as stream:
            try:
                yield stream
            except tink.TinkError:
                raise source.failure or _not_authentic(self._dataset, self._version, f"Object {object_id}") from None

    def seal_index(self, index: bytes) -> bytes:
        """The index of the version's files, encrypted."""
        sink = _Bytes()
        with self._primitive.new_encrypting_stream(sink, _context("index", self._dataset, self._version)) as stream:
            stream.write(index)
        return bytes(sink.content)

    def open_index(self, sealed: bytes) -> bytes:
        """What :meth:`seal_index` took.

        :raises DecryptionFailed: it is not authentic
        """
        associated = _context("index", self._dataset, self._version)
        try:
            with self._primitive.new_decrypting_stream(io.BytesIO(sealed), associated) as stream:
                index: bytes = stream.read()
        except tink.TinkError:
            raise _not_authentic(self._dataset, self._version, "Its index") from None
        return index

    def __reduce__(self) -> NoReturn:
        raise KeyExposure(
            "The key of a stored version is not pickled or copied.",
            place=version_text(self._dataset, self._version),
            remedy="Send the encrypted key and a KeysetReference instead.",
        )

    def _object(self, object_id: str) -> bytes:
        return _context("object", self._dataset, self._version, object=object_id)


@dataclass(frozen=True)
class VersionKeyReference:
    """Where a version's key is, in place of the key: what travels to Spark's workers.

    :param encrypted: the key, as :meth:`VersionKey.encrypted` wrote it
    :param keyset: what opens it
    :param key_id: of the key under which it was encrypted
    """

    encrypted: str
    keyset: KeysetReference
    key_id: int
    dataset: str
    version: str

    def open(self) -> VersionKey:
        """The key.

        :raises LeptonError: as :meth:`KeysetReference.open` and :meth:`VersionKey.open`
        """
        return VersionKey.open(
            self.encrypted, keyset=self.keyset.open(), key_id=self.key_id, dataset=self.dataset, version=self.version
        )


class _Bytes(io.RawIOBase):
    """Keeps what is written after it is closed, which Tink's stream does."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.content += data
        return len(data)


def _context(what: str, dataset: str, version: str, **more: str) -> bytes:
    return rfc8785.dumps({"format": f"lepton.stored-{what}/1", "dataset": dataset, "version": version, **more})


def _not_authentic(dataset: str, version: str, what: str) -> DecryptionFailed:
    return DecryptionFailed(
        f"{what} is not authentic for this dataset and version.",
        place=version_text(dataset, version),
        remedy="Find out who can write to the storage nodes or to the audit database; an older version may still be whole.",
    )
