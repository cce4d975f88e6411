"""Keys that sign models: ECDSA over P-256 with SHA-256 (FIPS 186-5), the private half sealed as keysets are.

Two files in the keyring for each: ``<folder>/<name>/signing.json``, mode 0600::

    {
      "format": "lepton.signing-key/1",
      "name": "models", "algorithm": "ECDSA_P256_SHA256",
      "public_key": "<base64 of the DER SubjectPublicKeyInfo>",
      "recipients": [{"name", "algorithm", "fingerprint", "public_key", "sealed_key"}]
    }

and ``<folder>/<name>/signing.pub``, the public half as PEM, for everybody who verifies. What is sealed to each recipient is the
private scalar, 32 bytes; the sealing's ``info`` binds format, name, algorithm, public key and the recipient's fingerprint, so a
sealed scalar opens for its own public key only. The scalar is never written in clear.

A signing key is not rotated: make another one, under another name, and verify what the old one signed with its public half.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import rfc8785
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lepton_airflow.errors import ConfigurationError, KeyExposure, KeyUnavailable
from lepton_airflow.keys.files import (
    already_there,
    check_name,
    dump_document,
    load_document,
    private_folder,
    read_private_file,
    write_file,
)
from lepton_airflow.keys.identity import Identity, Recipient

SIGNING_KEY_FORMAT = "lepton.signing-key/1"
ALGORITHM = "ECDSA_P256_SHA256"
_SCALAR_BYTES = 32


class SigningKey:
    """A private key in memory. Holds a secret: it cannot be pickled or copied.

    :ivar name: its name in the keyring
    :ivar public_key: PEM SubjectPublicKeyInfo
    """

    def __init__(self, name: str, private_key: ec.EllipticCurvePrivateKey) -> None:
        self.name = name
        self.public_key = private_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self._private_key = private_key

    @property
    def private_key(self) -> ec.EllipticCurvePrivateKey:
        """What signs; it must not leave this process."""
        return self._private_key

    @classmethod
    def open(cls, name: str, *, keyring: Path, identity: Identity) -> SigningKey:
        """Unseal a signing key.

        :raises KeyUnavailable: no such key, or it is not sealed to this identity
        :raises UnsafeFile: others have rights on the file
        :raises ConfigurationError: the file was changed
        """
        path = private_file(name, keyring)
        missing = KeyUnavailable(
            f"There is no signing key {name!r}.",
            place=f"keyring {keyring}",
            remedy=f"Make it with `lepton model keygen {name}`.",
        )
        document = load_document(read_private_file(path, missing=missing), place=str(path), schema=SIGNING_KEY_FORMAT)
        try:
            public_key = base64.b64decode(document["public_key"], validate=True)
            sealed = {known["fingerprint"]: known["sealed_key"] for known in document["recipients"]}
            found = sealed.get(identity.fingerprint)
            sealed_key = None if found is None else base64.b64decode(found, validate=True)
        except (KeyError, TypeError, ValueError):
            raise _changed(path) from None
        if sealed_key is None:
            raise KeyUnavailable(
                f"The signing key is not sealed to the identity {identity.name!r} ({identity.fingerprint[:23]}...).",
                place=f"signing key {name!r} in {keyring}",
                remedy="Sign as an identity to which it is sealed, or make a new one for this identity too.",
            )
        scalar = identity.unseal(sealed_key, _sealing_info(name, public_key, identity.fingerprint))
        key = ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1())
        if document.get("name") != name or _der(key) != public_key:
            raise _changed(path)
        return cls(name, key)

    def __repr__(self) -> str:
        return f"SigningKey(name={self.name!r}, algorithm={ALGORITHM!r})"

    def __reduce__(self) -> NoReturn:
        raise KeyExposure(
            "A signing key is not pickled or copied.",
            place=f"signing key {self.name!r}",
            remedy="Sign on the driver; ship the public half instead.",
        )


def generate_signing_key(name: str, *, keyring: Path, recipients: Sequence[Recipient]) -> Path:
    """Make a signing key, sealed to ``recipients``.

    :returns: the file with its public half
    :raises TargetExists: the key is there; keys are never overwritten
    :raises ConfigurationError: no recipient, or two with one name
    """
    names = [recipient.name for recipient in recipients]
    if not names or len(set(names)) != len(names):
        raise ConfigurationError(
            "A signing key is sealed to at least one recipient, to each once.",
            place=f"signing key {name!r}",
            remedy="Name one recipient or more, each once.",
        )
    private, public = private_file(name, keyring), public_file(name, keyring)
    for path in (private, public):
        if path.exists():
            raise already_there(path)
    key = ec.generate_private_key(ec.SECP256R1())
    scalar = key.private_numbers().private_value.to_bytes(_SCALAR_BYTES, "big")
    document: dict[str, Any] = {
        "format": SIGNING_KEY_FORMAT,
        "name": name,
        "algorithm": ALGORITHM,
        "public_key": base64.b64encode(_der(key)).decode("ascii"),
        "recipients": [
            {
                **recipient.to_document(),
                "sealed_key": base64.b64encode(
                    recipient.seal(scalar, _sealing_info(name, _der(key), recipient.fingerprint))
                ).decode("ascii"),
            }
            for recipient in recipients
        ],
    }
    private_folder(private.parent)
    # The private half goes first, so that nobody waits for signatures of a key that was not kept.
    write_file(private, dump_document(document), replace=False)
    try:
        write_file(public, SigningKey(name, key).public_key, replace=False, mode=0o644)
    except BaseException:
        private.unlink()
        raise
    return public


def private_file(name: str, keyring: Path) -> Path:
    """Where the sealed private half is."""
    return keyring / check_name(name, kind="signing key") / "signing.json"


def public_file(name: str, keyring: Path) -> Path:
    """Where the public half is."""
    return keyring / check_name(name, kind="signing key") / "signing.pub"


def load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a PEM file with the public half of a signing key.

    :raises KeyUnavailable: no such file, or it cannot be read
    :raises ConfigurationError: not a P-256 public key
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise KeyUnavailable(
            f"The public key of models cannot be read ({type(error).__name__}).",
            place=str(path),
            remedy="Copy it there from the keyring, or make a key with `lepton model keygen`.",
        ) from None
    try:
        key = serialization.load_pem_public_key(content)
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigurationError(
            "The file is not the PEM public key of an ECDSA P-256 key.",
            place=str(path),
            remedy="Copy the file `signing.pub` from the keyring.",
        )
    return key


def _der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _sealing_info(name: str, public_key: bytes, fingerprint: str) -> bytes:
    return rfc8785.dumps(
        {
            "format": SIGNING_KEY_FORMAT,
            "name": name,
            "algorithm": ALGORITHM,
            "public_key": base64.b64encode(public_key).decode("ascii"),
            "recipient": fingerprint,
        }
    )


def _changed(path: Path) -> ConfigurationError:
    return ConfigurationError(
        "The signing key is not as it was written: something changed the file.",
        place=str(path),
        remedy="Restore the file from a copy, and find out who can write to the keyring.",
    )
