"""Identities and recipients: the private and the public half of the key pairs to which keysets are sealed.

A workload or a role holds an identity, everybody may hold its recipient. The identity's private key is in a file that only
it can read, in a PKCS #11 token, or in a cloud's key service; the identity's file then only says where.
Sealing does not say who sealed: whoever has the public key can. That a keyring is authentic rests on who may write it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from lepton_airflow.errors import ConfigurationError, KeyExposure, KeyUnavailable
from lepton_airflow.keys import kms, pkcs11
from lepton_airflow.keys.files import (
    already_there,
    check_name,
    dump_document,
    load_document,
    private_folder,
    read_private_file,
    write_file,
)
from lepton_airflow.keys.sealing import (
    DEFAULT_ALGORITHM,
    PrivateKey,
    SealingAlgorithm,
    SoftwareKey,
    damaged_identity,
    parse_public_key,
    seal,
)

IDENTITY_FORMAT = "lepton.identity/1"
RECIPIENT_FORMAT = "lepton.recipient/1"

RecipientAlgorithm = SealingAlgorithm | kms.Algorithm


def identity_file(name: str, identities: Path) -> Path:
    """Where the identity ``name`` keeps its private key, or says where that is."""
    return identities / f"{check_name(name, kind='identity')}.identity.json"


def recipient_file(name: str, recipients: Path) -> Path:
    """Where the public key of the identity ``name`` is published."""
    return recipients / f"{check_name(name, kind='recipient')}.recipient.json"


@dataclass(frozen=True)
class Recipient:
    """A public key to which secrets can be sealed.

    :param public_key: see :func:`~lepton_airflow.keys.sealing.parse_public_key`; for a key service, the key's URI
    """

    name: str
    algorithm: RecipientAlgorithm
    public_key: bytes

    def __post_init__(self) -> None:
        check_name(self.name, kind="recipient")
        if self.algorithm == kms.ALGORITHM:
            kms.check_uri(self.public_key, place=self._place)
        else:
            parse_public_key(self.algorithm, self.public_key, place=self._place)

    @classmethod
    def load(cls, path: Path) -> Recipient:
        """Read a recipient's file.

        :raises KeyUnavailable: no such file
        :raises ConfigurationError: the file is damaged, or its fingerprint is not that of its key
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise KeyUnavailable(
                f"The recipient's public key cannot be read ({type(error).__name__}).",
                place=str(path),
                remedy="Make it with `lepton keys identity <name>`, or copy the recipient's file there.",
            ) from None
        document = load_document(content, place=str(path), schema=RECIPIENT_FORMAT)
        recipient = cls.from_document(document, place=str(path))
        if document.get("fingerprint") != recipient.fingerprint:
            raise ConfigurationError(
                "The fingerprint is not that of the public key.",
                place=str(path),
                remedy="Get the file again from the recipient and compare fingerprints.",
            )
        return recipient

    @classmethod
    def from_document(cls, document: dict[str, Any], *, place: str) -> Recipient:
        """Read the fields ``name``, ``algorithm`` and ``public_key``.

        :raises ConfigurationError: a field is missing or not valid
        """
        try:
            name, algorithm, encoded = str(document["name"]), document["algorithm"], document["public_key"]
            public_key = base64.b64decode(encoded, validate=True)
        except (KeyError, TypeError, ValueError):
            raise ConfigurationError(
                "The recipient needs a name, an algorithm and a public key in base64.",
                place=place,
                remedy="Get the file again from the recipient.",
            ) from None
        return cls(name=name, algorithm=algorithm, public_key=public_key)

    def to_document(self) -> dict[str, str]:
        """What tells this recipient: name, algorithm, fingerprint and public key (base64)."""
        return {
            "name": self.name,
            "algorithm": self.algorithm,
            "fingerprint": self.fingerprint,
            "public_key": base64.b64encode(self.public_key).decode("ascii"),
        }

    @property
    def fingerprint(self) -> str:
        """``sha256:<hex>`` over algorithm, a zero byte and public key."""
        return f"sha256:{hashlib.sha256(self.algorithm.encode('ascii') + bytes(1) + self.public_key).hexdigest()}"

    def seal(self, secret: bytes, info: bytes) -> bytes:
        """Encrypt a short secret, such as a key of 32 bytes, to this recipient for the purpose ``info``.

        :raises KeyUnavailable: the recipient is a key of a key service, which does not let the caller encrypt
        """
        if self.algorithm == kms.ALGORITHM:
            return kms.KmsKey(self.public_key, place=self._place).seal(secret, info)
        return seal(self.algorithm, self.public_key, secret, info=info, place=self._place)

    @property
    def _place(self) -> str:
        return f"recipient {self.name!r}"


class Identity:
    """A private key that opens what was sealed to its :class:`Recipient`. Holds a secret: it cannot be pickled."""

    def __init__(self, recipient: Recipient, key: PrivateKey) -> None:
        self._key = key
        self.recipient = recipient
        self.name = recipient.name
        self.algorithm = recipient.algorithm

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read an identity's file. A token or a key service is not asked before something is to be unsealed.

        :raises KeyUnavailable: no such file
        :raises UnsafeFile: somebody other than its owner may read it
        :raises ConfigurationError: the file is damaged, or names a provider that this version does not know
        """
        name = path.name.removesuffix(".identity.json")
        missing = KeyUnavailable(
            f"The identity {name!r} has no private key here.",
            place=str(path),
            remedy="Make it with `lepton keys identity <name>`, or set `identity:` to one that is here.",
        )
        content = read_private_file(path, missing=missing)
        document = load_document(content, place=str(path), schema=IDENTITY_FORMAT)
        try:
            if "provider" in document:
                return cls._held_elsewhere(document, place=str(path))
            private_key = base64.b64decode(document["private_key"], validate=True)
            return cls._in_file(str(document["name"]), document["algorithm"], private_key)
        except (KeyError, TypeError, ValueError):
            raise damaged_identity(str(path)) from None

    @classmethod
    def _in_file(cls, name: str, algorithm: SealingAlgorithm, private_key: bytes) -> Identity:
        place = f"identity {check_name(name, kind='identity')!r}"
        key = SoftwareKey(algorithm, private_key, place=place)
        return cls(Recipient(name=name, algorithm=algorithm, public_key=key.public_key), key)

    @classmethod
    def _held_elsewhere(cls, document: dict[str, Any], *, place: str) -> Identity:
        recipient = Recipient.from_document(document, place=place)
        owner = f"identity {recipient.name!r}"
        if document["provider"] == pkcs11.PROVIDER:
            algorithm = cast("SealingAlgorithm", recipient.algorithm)
            return cls(recipient, pkcs11.TokenKey(algorithm, pkcs11.KeyLocation(**document["key"]), place=owner))
        if document["provider"] == kms.PROVIDER and recipient.algorithm == kms.ALGORITHM:
            return cls(recipient, kms.KmsKey(recipient.public_key, place=owner))
        raise ConfigurationError(
            "The file names a provider of private keys that is not known.",
            place=place,
            remedy=f"Known: {pkcs11.PROVIDER}, {kms.PROVIDER}, or a private key in the file itself.",
        )

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the public half."""
        return self.recipient.fingerprint

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """Open what :meth:`Recipient.seal` sealed for the purpose ``info``.

        :raises KeyUnavailable: sealed to another recipient or for another purpose, or changed since; or the token or
            the key service refuses
        :raises KeyServiceUnavailable: the token or the key service cannot be reached
        """
        try:
            return self._key.unseal(sealed, info)
        except ValueError:
            raise KeyUnavailable(
                "The sealed key does not open: it was sealed for another recipient or purpose, or changed since.",
                place=f"identity {self.name!r}",
                remedy="Ask a holder of the keyset to run `lepton keys grant` for this identity again.",
            ) from None

    def __repr__(self) -> str:
        return f"Identity(name={self.name!r}, algorithm={self.algorithm!r}, fingerprint={self.fingerprint!r})"

    def __reduce__(self) -> NoReturn:
        raise KeyExposure(
            "An identity holds a private key and is not pickled or copied.",
            place=f"identity {self.name!r}",
            remedy="Send the path of its file instead.",
        )


def generate_identity(
    name: str, *, algorithm: SealingAlgorithm = DEFAULT_ALGORITHM, identities: Path, recipients: Path
) -> Recipient:
    """Make an identity with its private key in a file: mode 0600, in ``identities`` (made with mode 0700 if missing);
    its public half goes to ``recipients``.

    :returns: the public half
    :raises TargetExists: the identity or the recipient is there already
    """
    # Before a key is made, which takes RSA a second, and before anything is written.
    check_name(name, kind="identity")
    private_key = SoftwareKey.generate(algorithm)
    public_key = SoftwareKey(algorithm, private_key, place=f"identity {name!r}").public_key
    recipient = Recipient(name=name, algorithm=algorithm, public_key=public_key)
    fields = {
        "name": name,
        "algorithm": algorithm,
        "private_key": base64.b64encode(private_key).decode("ascii"),
    }
    return _write(recipient, fields, identities=identities, recipients=recipients)


def token_identity(name: str, *, location: pkcs11.NewKey, identities: Path, recipients: Path) -> Recipient:
    """Make an identity whose RSA key is generated in a PKCS #11 token and never leaves it.

    :returns: the public half; its algorithm says which hash the token's OAEP has
    :raises TargetExists: the identity or the recipient is there already
    :raises KeyUnavailable: no such module or token, or the wrong PIN
    """
    check_name(name, kind="identity")
    _refuse_taken(name, identities=identities, recipients=recipients)
    algorithm, public_key, key = pkcs11.generate(name, location)
    recipient = Recipient(name=name, algorithm=algorithm, public_key=public_key)
    fields = {**recipient.to_document(), "provider": pkcs11.PROVIDER, "key": key.to_document()}
    return _write(recipient, fields, identities=identities, recipients=recipients)


def kms_identity(name: str, *, key_uri: str, identities: Path, recipients: Path) -> Recipient:
    """Make an identity out of a symmetric key that a key service holds already. Seals and opens once, to see that it works.

    :param key_uri: ``aws-kms://arn:aws:kms:...``, ``gcp-kms://projects/...`` or ``hcvault://<host>/<mount>/keys/<name>``
    :raises TargetExists: the identity or the recipient is there already
    :raises KeyUnavailable: the service does not let the caller use the key
    """
    check_name(name, kind="identity")
    recipient = Recipient(name=name, algorithm=kms.ALGORITHM, public_key=key_uri.encode())
    kms.KmsKey(recipient.public_key, place=f"identity {name!r}").check()
    fields = {**recipient.to_document(), "provider": kms.PROVIDER}
    return _write(recipient, fields, identities=identities, recipients=recipients)


def _refuse_taken(name: str, *, identities: Path, recipients: Path) -> None:
    """Before a token makes a key that nothing would name."""
    for path in (identity_file(name, identities), recipient_file(name, recipients)):
        if path.exists():
            raise already_there(path)


def _write(recipient: Recipient, fields: Mapping[str, Any], *, identities: Path, recipients: Path) -> Recipient:
    private, public = identity_file(recipient.name, identities), recipient_file(recipient.name, recipients)
    private_folder(identities)
    private_folder(recipients)
    # The private half goes first, so that nothing is ever sealed to a public key whose private half was not kept.
    write_file(private, dump_document({"format": IDENTITY_FORMAT, **fields}), replace=False)
    document = {"format": RECIPIENT_FORMAT, **recipient.to_document()}
    try:
        write_file(public, dump_document(document), replace=False, mode=0o644)
    except BaseException:
        private.unlink()
        raise
    return recipient
