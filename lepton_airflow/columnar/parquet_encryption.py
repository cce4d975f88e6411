"""Parquet Modular Encryption: whole files encrypted, as a second layer, with a keyset of ours in place of a key service.

Each file has data keys of its own, which Arrow draws. They are wrapped by Tink's AEAD under the primary key of an AES256_GCM
keyset and stand in the file beside the keyset's name, so who holds the keyset reads the file and nothing else is needed. Names,
types and statistics of columns are encrypted too. pyarrow reads such files, and so does the direct road; Spark would need a key
service of its own in Java.

Format: Apache Parquet, Modular Encryption, AES_GCM_V1, encrypted footer, uniform encryption, 256-bit data keys.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow.parquet.encryption as pe
import rfc8785
import tink

from lepton_airflow.errors import DecryptionFailed, InvalidData
from lepton_airflow.keys.reference import KeysetReference

#: The last bytes of a Parquet file whose footer is encrypted.
ENCRYPTED_MAGIC = b"PARE"
#: The length of the footer and the magic bytes.
_FOOTER_END = 8
_KEY_MATERIAL_BYTES = 4096
_WRAPPED_KEY_FORMAT = "lepton.parquet-key/1"


@dataclass(frozen=True)
class FileKeys:
    """Where the keysets are that open encrypted Parquet files. Strings only: it travels to Spark's workers.

    :param keyring: the folder of the file keyring
    :param identity_file: the private identity's file, on every machine of the job
    :param keyset: whose primary key wraps the keys of files that are written; None writes them without this layer
    """

    keyring: str
    identity_file: str
    keyset: str | None = None

    def reading(self) -> Any:
        """What pyarrow needs to read files, encrypted or not."""
        return _factory().file_decryption_properties(self._connection(), pe.DecryptionConfiguration())

    def writing(self) -> Any:
        """What pyarrow needs to write files: None for files without this layer."""
        if self.keyset is None:
            return None
        configuration = pe.EncryptionConfiguration(
            footer_key=self.keyset,
            uniform_encryption=True,
            plaintext_footer=False,
            double_wrapping=False,
            data_key_length_bits=256,
        )
        return _factory().file_encryption_properties(self._connection(), configuration)

    def _connection(self) -> Any:
        return pe.KmsConnectionConfig(
            # The instance is named in the file. By the token Arrow tells apart the services that it caches.
            kms_instance_id="lepton",
            key_access_token=f"{self.keyring}\n{self.identity_file}",
            custom_kms_conf={"keyring": self.keyring, "identity_file": self.identity_file},
        )


class _KeysetService(pe.KmsClient):  # type: ignore[misc]
    """Arrow's view of a key service: wraps and unwraps data keys under keysets, which it names master keys."""

    def __init__(self, configuration: Mapping[str, str]) -> None:
        super().__init__()
        self._keyring = configuration["keyring"]
        self._identity_file = configuration["identity_file"]

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        """The wrapped key, as text that Arrow puts into the file."""
        aead = self._keyset(master_key_identifier).open().aead()
        return base64.b64encode(aead.encrypt(key_bytes, _bound(master_key_identifier)))

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        """The data key.

        :raises DecryptionFailed: it is not authentic under any key of the keyset
        """
        keyset = self._keyset(master_key_identifier)
        try:
            data_key: bytes = keyset.open().aead().decrypt(base64.b64decode(wrapped_key), _bound(master_key_identifier))
        except tink.TinkError:
            raise DecryptionFailed(
                "The file's key is not authentic under this keyset.",
                place=f"Parquet file, keyset {master_key_identifier!r}",
                remedy="The file was changed, or its key was destroyed: restore it from a copy.",
            ) from None
        return data_key

    def _keyset(self, name: str) -> KeysetReference:
        return KeysetReference(keyring=self._keyring, name=name, cipher="AES256_GCM", identity_file=self._identity_file)


def reading(file_keys: FileKeys | None) -> Any:
    """What pyarrow needs to read the files of a table, None if they are not encrypted."""
    return None if file_keys is None else file_keys.reading()


def keyset_of(file: Any) -> str | None:
    """The keyset that an encrypted Parquet file names; None for a file without this layer.

    :param file: an Arrow file, opened for reading
    :raises InvalidData: the file is encrypted with other key management
    """
    size = file.size()
    tail = file.read_at(_FOOTER_END, size - _FOOTER_END) if size >= _FOOTER_END else b""
    if tail[4:] != ENCRYPTED_MAGIC:
        return None
    length = min(int.from_bytes(tail[:4], "little"), size - _FOOTER_END)
    # The footer begins with the description of its key, in clear: JSON in a Thrift field.
    start = file.read_at(min(length, _KEY_MATERIAL_BYTES), size - _FOOTER_END - length)
    found = re.search(rb'\{[^{}]*"masterKeyID"[^{}]*\}', start)
    try:
        name = json.loads(found[0])["masterKeyID"] if found else None
    except (ValueError, KeyError):
        name = None
    if not isinstance(name, str):
        raise InvalidData(
            "The Parquet file is encrypted, and not under a keyset of a keyring.",
            place="Parquet file",
            remedy="Read it with the program and the key service that wrote it.",
        )
    return name


@cache
def _factory() -> Any:
    """One for each process: Arrow's properties refer to it, and it caches the services."""
    return pe.CryptoFactory(lambda configuration: _KeysetService(configuration.custom_kms_conf))


def _bound(keyset: str) -> bytes:
    return rfc8785.dumps({"format": _WRAPPED_KEY_FORMAT, "keyset": keyset})
