"""Signed checkpoints: C2SP tlog-checkpoint notes with Ed25519 signatures (c2sp.org/signed-note, c2sp.org/tlog-checkpoint).

A checkpoint is the statement "the log named *origin* has *tree_size* leaves and this Merkle root":

    lepton-audit
    17
    <root hash, base64>

    — lepton-audit <4 bytes of key id and the signature, base64>
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from lepton_airflow.audit import signed_note
from lepton_airflow.audit.merkle import HASH_BYTES
from lepton_airflow.audit.signed_note import ED25519, KEY_ID_BYTES
from lepton_airflow.errors import AuditTampered

_BODY = re.compile(r"(?P<origin>[^\n]+)\n(?P<size>0|[1-9][0-9]{0,18})\n(?P<root>[A-Za-z0-9+/]{43}=)\n")


class Verifier:
    """The public half of a sealer's key.

    :param name: the key's name
    :param public_key: 32 bytes
    """

    def __init__(self, name: str, public_key: bytes) -> None:
        self.name = name
        self.key_id = signed_note.key_id(name, ED25519, public_key)
        self._public_bytes = public_key
        self._public_key = Ed25519PublicKey.from_public_bytes(public_key)

    @property
    def text(self) -> str:
        """The key as ``<name>+<key id>+<base64>``."""
        return signed_note.format_public(self.name, ED25519, self._public_bytes)

    @classmethod
    def load(cls, path: Path) -> Verifier:
        """Read a public key file.

        :raises KeyUnavailable: there is no such file
        :raises ConfigurationError: it holds no Ed25519 verifier key
        """
        return cls.parse(signed_note.read_key_file(path), place=str(path))

    @classmethod
    def parse(cls, text: str, *, place: str) -> Verifier:
        """Read the text form of a public key.

        :raises ConfigurationError: it is not one
        """
        remedy = "It is one line, <name>+<key id>+<base64>, that was printed when the sealer's key was made."
        return cls(*signed_note.parse_public(text, ED25519, place=place, remedy=remedy))

    def signed_text(self, note: str) -> str | None:
        """The text of a signed note if this key's signature on it is valid, else None; other signatures are ignored."""
        text, signatures = signed_note.split_note(note) or ("", [])
        for name, data in signatures:
            if name != self.name or data[:KEY_ID_BYTES] != self.key_id:
                continue
            try:
                self._public_key.verify(data[KEY_ID_BYTES:], text.encode())
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
        return cls(*signed_note.read_private(path, ED25519))

    def sign(self, text: str) -> str:
        """The signed note over ``text``, which ends with a newline."""
        signature = self._private_key.sign(text.encode())
        return f"{text}\n{signed_note.signature_line(self.name, self.verifier.key_id, signature)}"


def generate_signer(path: Path, *, name: str) -> str:
    """Make a sealer's key: write its private half to ``path`` (mode 0600) and return the text of its public half.

    :param name: the name of the log, which every checkpoint begins with; no spaces and no plus sign
    :raises TargetExists: the file is there already
    :raises ConfigurationError: an unusable name
    """
    remedy = "Keep it: a new one could not extend its log."
    return signed_note.write_private(path, name=name, algorithm=ED25519, remedy=remedy)


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
        return f"{self.origin}\n{self.tree_size}\n{signed_note.to_base64(self.root_hash)}\n"

    @classmethod
    def parse(cls, text: str, *, place: str = "checkpoint") -> Checkpoint:
        """Read a note's text.

        :param place: for the error: where it was found
        :raises AuditTampered: it is not a checkpoint of ours
        """
        match = _BODY.fullmatch(text)
        root_hash = signed_note.from_base64(match["root"]) if match else None
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
