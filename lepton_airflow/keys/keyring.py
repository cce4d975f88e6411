"""The file keyring: keysets stored only sealed, each to the public keys of those who may open it.

One file for each keyset and cipher, ``<folder>/<name>/<cipher>.json``, mode 0600::

    {
      "format": "lepton.sealed-keyset/1",
      "name": "clinic", "cipher": "AES256_GCM",
      "keyset_info": {"primary_key_id": 17, "keys": [{"key_id": 17, "status": "ENABLED"}]},
      "recipients": [{"name", "algorithm", "fingerprint", "public_key", "sealed_key"}],
      "encrypted_keyset": "<base64 of nonce (12 bytes), ciphertext, tag (16 bytes)>"
    }

The keyset, a serialised Tink ``Keyset``, is encrypted with AES-256-GCM under a key-encryption key that is drawn anew at
each write and sealed to each recipient; the sealing's ``info`` binds format, name, cipher and the recipient's
fingerprint. The associated data is the canonical JSON (RFC 8785) of all the other fields, so an edit of the public part
shows as well.

Not seen here: an older version of a whole file, put back, opens as it did then; and whoever knows the public keys can
seal another keyset in place of this one. So keep the folder writable only by those who manage keys.
"""

from __future__ import annotations

import base64
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import rfc8785
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tink import secret_key_access

from lepton_airflow.errors import ConfigurationError, KeyUnavailable
from lepton_airflow.keys.cipher import Cipher
from lepton_airflow.keys.files import (
    check_name,
    dump_document,
    load_document,
    private_folder,
    read_private_file,
    write_file,
)
from lepton_airflow.keys.identity import Identity, Recipient
from lepton_airflow.keys.keyset import Keyset, KeyStatus, check_cipher

SEALED_KEYSET_FORMAT = "lepton.sealed-keyset/1"
_NONCE_BYTES = 12


@dataclass(frozen=True)
class KeysetDescription:
    """What a sealed keyset's file says of it; authentic only if :meth:`FileKeyring.open` accepts the file.

    :param keys: the status of each key by its id
    :param recipients: the fingerprint of each recipient by its name
    """

    name: str
    cipher: Cipher
    primary_key_id: int
    keys: Mapping[int, KeyStatus]
    recipients: Mapping[str, str]


class FileKeyring:
    """Sealed keysets in a folder.

    Changes are atomic, and one at a time for each keyset. Every change needs an identity that can open the keyset, and
    draws a new key-encryption key.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(
        self, name: str, *, cipher: Cipher, recipients: Sequence[Recipient], keyset: Keyset | None = None
    ) -> KeysetDescription:
        """Make a keyset with one fresh key, or store an imported one, sealed to ``recipients``.

        :raises TargetExists: the keyset is there; keys are never overwritten
        :raises ConfigurationError: no recipient, or two with one name
        """
        fresh = keyset or Keyset.generate(name, cipher=cipher)
        with self._locked(name):
            self._write(name, cipher, fresh, recipients, replace=False)
        return self._describe(name, cipher)

    def open(self, name: str, *, cipher: Cipher, identity: Identity) -> Keyset:
        """Unseal a keyset.

        :raises KeyUnavailable: no such keyset, or it is not sealed to this identity
        :raises UnsafeFile: others have rights on the file
        :raises ConfigurationError: the file was changed by something else than this class
        """
        return self._open(self._read(name, cipher), identity)

    def describe(self, name: str) -> tuple[KeysetDescription, ...]:
        """Describe the keyset's part of each cipher, without opening it.

        :raises KeyUnavailable: no such keyset
        """
        found = tuple(self._describe(name, cipher) for cipher in get_args(Cipher) if self.path(name, cipher).exists())
        if not found:
            raise self._missing(name, " or ".join(get_args(Cipher)))
        return found

    def list(self) -> tuple[KeysetDescription, ...]:
        """Describe every keyset of the folder."""
        found = [
            (path.parent.name, cipher) for cipher in get_args(Cipher) for path in self.folder.glob(f"*/{cipher}.json")
        ]
        return tuple(self._describe(name, cipher) for name, cipher in sorted(found))

    def rotate(self, name: str, *, cipher: Cipher, identity: Identity) -> int:
        """Add a fresh key and make it primary; values under the older keys stay readable. Returns the new key's id."""
        with self._change(name, cipher, identity) as (keyset, recipients):
            rotated = keyset.with_new_primary()
            self._write(name, cipher, rotated, recipients, replace=True)
        return rotated.primary_key_id

    def grant(self, name: str, *, cipher: Cipher, identity: Identity, recipient: Recipient) -> None:
        """Seal the keyset to one recipient more. A recipient of the same name is replaced by this one."""
        with self._change(name, cipher, identity) as (keyset, recipients):
            others = [known for known in recipients if known.name != recipient.name]
            self._write(name, cipher, keyset, [*others, recipient], replace=True)

    def revoke(self, name: str, *, cipher: Cipher, identity: Identity, recipient: str) -> int:
        """Rotate, and seal to everybody but ``recipient`` (a name). Returns the new primary key's id.

        What was encrypted before stays readable for who kept the older keys: to end that too, encrypt it again under
        the new key and destroy the old ones.

        :raises KeyUnavailable: the keyset is not sealed to it, or to nobody else
        """
        with self._change(name, cipher, identity) as (keyset, recipients):
            others = [known for known in recipients if known.name != recipient]
            if len(others) == len(recipients) or not others:
                raise KeyUnavailable(
                    "It is the only recipient." if not others else "The keyset is not sealed to it.",
                    place=f"keyset {name!r} ({cipher}), recipient {recipient!r}",
                    remedy="Grant the keyset to another recipient first." if not others else "See `lepton keys list`.",
                )
            rotated = keyset.with_new_primary()
            self._write(name, cipher, rotated, others, replace=True)
        return rotated.primary_key_id

    def set_status(self, name: str, *, cipher: Cipher, identity: Identity, key_id: int, status: KeyStatus) -> None:
        """Enable, disable or destroy one key that is not primary. What only a destroyed key opens is lost for good.

        Copies of the file from before still hold a destroyed key: shredding is complete when those are gone too.

        :raises KeyUnavailable: no such key, the primary one, or one that is destroyed already
        """
        with self._change(name, cipher, identity) as (keyset, recipients):
            self._write(name, cipher, keyset.with_status(key_id, status), recipients, replace=True)

    def path(self, name: str, cipher: Cipher) -> Path:
        """The file of a keyset's part for one cipher."""
        check_cipher(cipher, place=f"keyset {name!r}")
        return self.folder / check_name(name, kind="keyset") / f"{cipher}.json"

    def _read(self, name: str, cipher: Cipher) -> dict[str, Any]:
        path = self.path(name, cipher)
        content = read_private_file(path, missing=self._missing(name, cipher))
        document = load_document(content, place=str(path), schema=SEALED_KEYSET_FORMAT)
        if document.get("name") != name or document.get("cipher") != cipher:
            raise _changed(path)
        return document

    def _describe(self, name: str, cipher: Cipher) -> KeysetDescription:
        document = self._read(name, cipher)
        try:
            info = document["keyset_info"]
            return KeysetDescription(
                name=name,
                cipher=cipher,
                primary_key_id=info["primary_key_id"],
                keys={key["key_id"]: key["status"] for key in info["keys"]},
                recipients={known["name"]: known["fingerprint"] for known in document["recipients"]},
            )
        except (KeyError, TypeError):
            raise _changed(self.path(name, cipher)) from None

    def _open(self, document: dict[str, Any], identity: Identity) -> Keyset:
        name, cipher = document["name"], document["cipher"]
        path = self.path(name, cipher)
        try:
            sealed_keys = {known["fingerprint"]: known["sealed_key"] for known in document["recipients"]}
            sealed = sealed_keys.get(identity.fingerprint)
            encrypted = _from_base64(document["encrypted_keyset"])
            sealed_key = None if sealed is None else _from_base64(sealed)
        except (KeyError, TypeError, ValueError):
            raise _changed(path) from None
        if sealed_key is None:
            raise KeyUnavailable(
                f"The keyset is not sealed to the identity {identity.name!r} ({identity.fingerprint[:23]}...).",
                place=f"keyset {name!r} ({cipher}) in {self.folder}",
                remedy=f"Ask a holder to run `lepton keys grant {name} --recipient {identity.name}`.",
            )
        key = identity.unseal(sealed_key, _sealing_info(name, cipher, identity.fingerprint))
        try:
            serialized = AESGCM(key).decrypt(
                encrypted[:_NONCE_BYTES], encrypted[_NONCE_BYTES:], _associated_data(document)
            )
        except (InvalidTag, ValueError):
            raise _changed(path) from None
        return Keyset.from_proto(serialized, name=name, cipher=cipher)

    @contextmanager
    def _change(self, name: str, cipher: Cipher, identity: Identity) -> Iterator[tuple[Keyset, Sequence[Recipient]]]:
        """Hold the keyset's lock around reading, changing and writing it."""
        self._read(name, cipher)
        with self._locked(name):
            document = self._read(name, cipher)
            keyset = self._open(document, identity)
            place = str(self.path(name, cipher))
            yield keyset, [Recipient.from_document(known, place=place) for known in document["recipients"]]

    def _write(
        self, name: str, cipher: Cipher, keyset: Keyset, recipients: Sequence[Recipient], *, replace: bool
    ) -> None:
        place = f"keyset {name!r} ({cipher})"
        names = [recipient.name for recipient in recipients]
        if not names or len(set(names)) != len(names):
            raise ConfigurationError(
                "A keyset is sealed to at least one recipient, to each once.",
                place=place,
                remedy="Name one recipient or more, each once.",
            )
        if keyset.name != name or keyset.cipher != cipher:
            raise ConfigurationError(
                f"The keyset given is {keyset.name!r} ({keyset.cipher}).",
                place=place,
                remedy="Give that name and cipher.",
            )
        key = AESGCM.generate_key(256)
        document: dict[str, Any] = {
            "format": SEALED_KEYSET_FORMAT,
            "name": name,
            "cipher": cipher,
            "keyset_info": {
                "primary_key_id": keyset.primary_key_id,
                "keys": [{"key_id": key_id, "status": status} for key_id, status in keyset.keys.items()],
            },
            "recipients": [
                {
                    **recipient.to_document(),
                    "sealed_key": _to_base64(recipient.seal(key, _sealing_info(name, cipher, recipient.fingerprint))),
                }
                for recipient in recipients
            ],
        }
        nonce = os.urandom(_NONCE_BYTES)
        serialized = keyset.to_proto(secret_key_access.TOKEN)
        encrypted = AESGCM(key).encrypt(nonce, serialized, _associated_data(document))
        document["encrypted_keyset"] = _to_base64(nonce + encrypted)
        write_file(self.path(name, cipher), dump_document(document), replace=replace)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        folder = private_folder(self.folder / check_name(name, kind="keyset"))
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _missing(self, name: str, cipher: str) -> KeyUnavailable:
        return KeyUnavailable(
            f"There is no keyset {name!r} ({cipher}).",
            place=f"keyring {self.folder}",
            remedy=f"Create it with `lepton keys create {name}`, or choose a keyset that `lepton keys list` shows.",
        )


def _associated_data(document: Mapping[str, Any]) -> bytes:
    return rfc8785.dumps({field: value for field, value in document.items() if field != "encrypted_keyset"})


def _sealing_info(name: str, cipher: str, fingerprint: str) -> bytes:
    return rfc8785.dumps({"format": SEALED_KEYSET_FORMAT, "name": name, "cipher": cipher, "recipient": fingerprint})


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str) -> bytes:
    """Decode strictly: of the many base64 texts for the same bytes only the canonical one passes."""
    data = base64.b64decode(text, validate=True)
    if _to_base64(data) != text:
        raise ValueError
    return data


def _changed(path: Path) -> ConfigurationError:
    return ConfigurationError(
        "The sealed keyset is not as it was written: something changed the file.",
        place=str(path),
        remedy="Restore the file from a copy, and find out who can write to the keyring.",
    )
