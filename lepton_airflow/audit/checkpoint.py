"""Signed checkpoints: C2SP tlog-checkpoint notes with Ed25519 signatures (c2sp.org/signed-note, c2sp.org/tlog-checkpoint).

A checkpoint is the statement "the log named *origin* has *tree_size* leaves and this Merkle root":

    lepton-audit
    17
    <root hash, base64>

    — lepton-audit <4 bytes of key id and the signature, base64>

Keys have the text forms of Go's ``note`` package, so its tools read them.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from lepton_airflow.audit.merkle import HASH_BYTES
from lepton_airflow.errors import (
    AuditTampered,
    ConfigurationError,
    KeyUnavailable,
    TargetExists,
    UnsafeFile,
)

_Key = TypeVar("_Key")
_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
_SIGNATURE_LINE = re.compile(r"— (?P<name>[^\s+]+) (?P<data>[A-Za-z0-9+/]+={0,2})")
_BODY = re.compile(r"(?P<origin>[^\n]+)\n(?P<size>0|[1-9][0-9]{0,18})\n(?P<root>[A-Za-z0-9+/]{43}=)\n")


class Verifier:
    """The public half of a sealer's key.

    :param name: the key's name
    :param public_key: 32 bytes
    """

    def __init__(self, name: str, public_key: bytes) -> None:
        self.name = name
        self.key_id = hashlib.sha256(f"{name}\n".encode() + _ED25519 + public_key).digest()[:_KEY_ID_BYTES]
        self._public_bytes = public_key
        self._public_key = Ed25519PublicKey.from_public_bytes(public_key)

    @property
    def text(self) -> str:
        """The key as ``<name>+<key id>+<base64>``."""
        return f"{self.name}+{self.key_id.hex()}+{_base64(_ED25519 + self._public_bytes)}"

    @classmethod
    def load(cls, path: Path) -> Verifier:
        """Read a public key file.

        :raises KeyUnavailable: there is no such file
        :raises ConfigurationError: it holds no Ed25519 verifier key
        """
        return cls.parse(_read(path), place=str(path))

    @classmethod
    def parse(cls, text: str, *, place: str) -> Verifier:
        """Read the text form of a public key.

        :raises ConfigurationError: it is not one
        """
        name, _, rest = text.strip().partition("+")
        key_id, _, data = rest.partition("+")
        verifier = _key(data, lambda key: cls(name, key))
        if verifier is None or not _is_name(name) or verifier.key_id.hex() != key_id:
            raise ConfigurationError(
                "This is not an Ed25519 verifier key.",
                place=place,
                remedy="It is one line, <name>+<key id>+<base64>, that was printed when the sealer's key was made.",
            )
        return verifier

    def signed_text(self, note: str) -> str | None:
        """The text of a signed note if this key's signature on it is valid, else None; other signatures are ignored."""
        text, separator, signatures = note.rpartition("\n\n")
        if not separator or not signatures.endswith("\n"):
            return None
        text += "\n"
        for line in signatures.removesuffix("\n").split("\n"):
            match = _SIGNATURE_LINE.fullmatch(line)
            if match is None:
                return None
            data = _bytes(match["data"])
            if match["name"] != self.name or data is None or data[:_KEY_ID_BYTES] != self.key_id:
                continue
            try:
                self._public_key.verify(data[_KEY_ID_BYTES:], text.encode())
            except InvalidSignature:
                return None
            return text
        return None


class Signer:
    """The private half of a sealer's key; writers of events must not be able to read it."""

    def __init__(self, name: str, private_key: Ed25519PrivateKey) -> None:
        self.name = name
        self._private_key = private_key
        self.verifier = Verifier(name, private_key.public_key().public_bytes_raw())

    def __reduce__(self) -> str:
        raise TypeError("a signer holds a private key and is never pickled")

    @classmethod
    def load(cls, path: Path) -> Signer:
        """Read a private key file.

        :raises KeyUnavailable: there is no such file
        :raises UnsafeFile: others than its owner can read it
        :raises ConfigurationError: it holds no Ed25519 signer key
        """
        text = _read(path)
        if path.stat().st_mode & 0o077:
            raise UnsafeFile(
                "Others than its owner can read the sealer's private key.",
                place=str(path),
                remedy=f"Run `chmod 600 {path}`, and make a new key if it may have been read.",
            )
        prefix, _, rest = text.strip().rpartition("PRIVATE+KEY+")
        name, _, rest = rest.partition("+")
        key_id, _, data = rest.partition("+")
        signer = _key(data, lambda key: cls(name, Ed25519PrivateKey.from_private_bytes(key)))
        if prefix or signer is None or not _is_name(name) or signer.verifier.key_id.hex() != key_id:
            raise ConfigurationError(
                "This is not an Ed25519 signer key.", place=str(path), remedy="Restore it, or make a new one."
            )
        return signer

    def sign(self, text: str) -> str:
        """The signed note over ``text``, which ends with a newline."""
        signature = self._private_key.sign(text.encode())
        return f"{text}\n— {self.name} {_base64(self.verifier.key_id + signature)}\n"


def generate_signer(path: Path, *, name: str) -> str:
    """Make a sealer's key: write its private half to ``path`` (mode 0600) and return the text of its public half.

    :param name: the name of the log, which every checkpoint begins with; no spaces and no plus sign
    :raises TargetExists: the file is there already
    :raises ConfigurationError: an unusable name
    """
    if not _is_name(name):
        raise ConfigurationError(
            "The name of a key has no spaces and no plus sign.", place=f"key name {name!r}", remedy="Choose another."
        )
    private_key = Ed25519PrivateKey.generate()
    signer = Signer(name, private_key)
    data = _base64(_ED25519 + private_key.private_bytes_raw())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise TargetExists(
            "There is a sealer's key already.", place=str(path), remedy="Keep it: a new one could not extend its log."
        ) from None
    with os.fdopen(descriptor, "w") as file:
        file.write(f"PRIVATE+KEY+{name}+{signer.verifier.key_id.hex()}+{data}\n")
        file.flush()
        os.fsync(descriptor)
    return signer.verifier.text


@dataclass(frozen=True)
class Checkpoint:
    """The size and root of a log at one moment.

    :param origin: the log's name
    :param tree_size: number of sealed leaves
    :param root_hash: 32 bytes
    """

    origin: str
    tree_size: int
    root_hash: bytes

    @property
    def text(self) -> str:
        """The note's text, which is what a signature covers."""
        return f"{self.origin}\n{self.tree_size}\n{_base64(self.root_hash)}\n"

    @classmethod
    def parse(cls, text: str, *, place: str = "checkpoint") -> Checkpoint:
        """Read a note's text.

        :param place: for the error: where it was found
        :raises AuditTampered: it is not a checkpoint of ours
        """
        match = _BODY.fullmatch(text)
        root_hash = _bytes(match["root"]) if match else None
        if match is None or root_hash is None or len(root_hash) != HASH_BYTES:
            raise _tampered("This is not a checkpoint.", place)
        return cls(match["origin"], int(match["size"]), root_hash)

    def sign(self, signer: Signer) -> str:
        """The checkpoint as a signed note."""
        return signer.sign(self.text)

    @classmethod
    def verify(cls, note: str, verifier: Verifier, *, place: str = "checkpoint") -> Checkpoint:
        """Read a signed note and check its signature and its origin.

        :param place: for the error: where it was found
        :raises AuditTampered: no valid signature by this key, or not a checkpoint of its log
        """
        text = verifier.signed_text(note)
        if text is None:
            raise _tampered(f"The checkpoint has no valid signature by {verifier.name}.", place)
        checkpoint = cls.parse(text, place=place)
        if checkpoint.origin != verifier.name:
            raise _tampered(f"The checkpoint is not of the log {verifier.name}.", place)
        return checkpoint


def _tampered(rule: str, place: str) -> AuditTampered:
    return AuditTampered(rule, place=place, remedy="Run `lepton audit verify`.")


def _key(data: str, build: Callable[[bytes], _Key]) -> _Key | None:
    """Build a key from the base64 of its algorithm and its 32 bytes; None when it is not that."""
    decoded = _bytes(data)
    if decoded is None or decoded[:1] != _ED25519 or len(decoded) != 33:
        return None
    try:
        return build(decoded[1:])
    except ValueError:
        return None


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(character.isspace() for character in name)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyUnavailable(
            f"The checkpoint key cannot be read ({type(error).__name__}).",
            place=str(path),
            remedy="Run `lepton init`, or point the settings at the key.",
        ) from None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None
