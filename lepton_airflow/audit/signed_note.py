"""What all signed notes share (c2sp.org/signed-note): the text forms of notes and keys, and the files of private keys.

A note is text, an empty line, and one line for each signature:

    — <name of the key> base64(4 bytes of key id | signature)

Public keys are ``<name>+<key id, hex>+base64(algorithm | key)``, private ones ``PRIVATE+KEY+`` and the same with the seed. These
are the forms of Go's ``note`` package, so its tools read them.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from lepton_airflow.errors import ConfigurationError, KeyUnavailable, TargetExists, UnsafeFile

#: Signature types of c2sp.org/signed-note.
ED25519 = b"\x01"
COSIGNATURE = b"\x04"
KEY_ID_BYTES = 4
_PRIVATE = "PRIVATE+KEY+"
_SIGNATURE_LINE = re.compile(r"— (?P<name>[^\s+]+) (?P<data>[A-Za-z0-9+/]+={0,2})")


def split_note(note: str) -> tuple[str, list[tuple[str, bytes]]] | None:
    """A note's text, with its last newline, and the name and bytes of each signature; None when it is no signed note."""
    text, separator, lines = note.rpartition("\n\n")
    if not separator or not lines.endswith("\n"):
        return None
    signatures = []
    for line in lines.removesuffix("\n").split("\n"):
        match = _SIGNATURE_LINE.fullmatch(line)
        if match is None:
            return None
        data = from_base64(match["data"])
        if data is not None:
            signatures.append((match["name"], data))
    return f"{text}\n", signatures


def signature_line(name: str, key_id: bytes, signature: bytes) -> str:
    """One signature, with its newline."""
    return f"— {name} {to_base64(key_id + signature)}\n"


def key_id(name: str, algorithm: bytes, public_key: bytes) -> bytes:
    """The four bytes by which signatures name their key."""
    return hashlib.sha256(f"{name}\n".encode() + algorithm + public_key).digest()[:KEY_ID_BYTES]


def is_name(name: str) -> bool:
    """Whether a key can be called so."""
    return bool(name) and "+" not in name and not any(character.isspace() for character in name)


def format_public(name: str, algorithm: bytes, public_key: bytes) -> str:
    return f"{name}+{key_id(name, algorithm, public_key).hex()}+{to_base64(algorithm + public_key)}"


def parse_public(text: str, algorithm: bytes, *, place: str, remedy: str) -> tuple[str, bytes]:
    """The name and the 32 bytes of an Ed25519 public key.

    :raises ConfigurationError: it is none of this algorithm
    """
    name, _, rest = text.strip().partition("+")
    hexadecimal, _, data = rest.partition("+")
    public_key = _key_bytes(data, algorithm)
    if public_key is not None and is_name(name) and key_id(name, algorithm, public_key).hex() == hexadecimal:
        try:
            Ed25519PublicKey.from_public_bytes(public_key)
            return name, public_key
        except ValueError:
            pass  # 32 bytes that are no point of the curve
    raise ConfigurationError("This is not an Ed25519 verifier key.", place=place, remedy=remedy)


def read_private(path: Path, algorithm: bytes) -> tuple[str, Ed25519PrivateKey]:
    """The name and the key in a private key file.

    :raises KeyUnavailable: there is no such file
    :raises UnsafeFile: others than its owner can read it
    :raises ConfigurationError: it holds no Ed25519 private key of this algorithm
    """
    text = read_key_file(path)
    if path.stat().st_mode & 0o077:
        raise UnsafeFile(
            "Others than its owner can read the private key.",
            place=str(path),
            remedy=f"Run `chmod 600 {path}`, and make a new key if it may have been read.",
        )
    prefix, marker, rest = text.strip().rpartition(_PRIVATE)
    name, _, rest = rest.partition("+")
    hexadecimal, _, data = rest.partition("+")
    seed = _key_bytes(data, algorithm)
    if seed is not None and marker and not prefix and is_name(name):
        key = Ed25519PrivateKey.from_private_bytes(seed)
        if key_id(name, algorithm, key.public_key().public_bytes_raw()).hex() == hexadecimal:
            return name, key
    raise ConfigurationError(
        "This is not an Ed25519 signer key.", place=str(path), remedy="Restore it, or make a new one."
    )


def write_private(path: Path, *, name: str, algorithm: bytes, remedy: str) -> str:
    """Make a key, write its private half durably to a new file (mode 0600) and return the text of its public half.

    :param remedy: what to do if the file is there already
    :raises TargetExists: the file is there already
    :raises ConfigurationError: an unusable name
    """
    if not is_name(name):
        raise ConfigurationError(
            "The name of a key has no spaces and no plus sign.", place=f"key name {name!r}", remedy="Choose another."
        )
    key = Ed25519PrivateKey.generate()
    public_key = key.public_key().public_bytes_raw()
    data = to_base64(algorithm + key.private_bytes_raw())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise TargetExists("There is a private key already.", place=str(path), remedy=remedy) from None
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{_PRIVATE}{name}+{key_id(name, algorithm, public_key).hex()}+{data}\n")
        file.flush()
        os.fsync(descriptor)
    return format_public(name, algorithm, public_key)


def read_key_file(path: Path) -> str:
    """The text of a key file.

    :raises KeyUnavailable: it cannot be read
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyUnavailable(
            f"The checkpoint key cannot be read ({type(error).__name__}).",
            place=str(path),
            remedy="Run `lepton init`, or point the settings at the key.",
        ) from None


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


def _key_bytes(data: str, algorithm: bytes) -> bytes | None:
    decoded = from_base64(data)
    return decoded[1:] if decoded is not None and decoded[:1] == algorithm and len(decoded) == 33 else None
