"""Private keys in PKCS #11 tokens (hardware security modules, smart cards, SoftHSM): generated there, and never outside.

The token does the RSA-OAEP decryption (PKCS #11 v2.40, CKM_RSA_PKCS_OAEP). Not every token has OAEP with SHA-256; a new key
is tried with it, and if the token refuses, with SHA-1. The identity's algorithm says which it is.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepton_airflow.errors import ConfigurationError, KeyServiceUnavailable, KeyUnavailable, MissingDependency
from lepton_airflow.keys.files import read_private_file
from lepton_airflow.keys.sealing import RSA_BITS, SealingAlgorithm, bound_secret, rsa_public_key, seal

if TYPE_CHECKING:
    import pkcs11

PROVIDER = "pkcs11"
#: The PIN of the token, if no file is named for it.
PIN_VARIABLE = "LEPTON_PKCS11_PIN"

#: A login holds for all sessions of a process, so one session at a time is open.
_one_session = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """Where a key is to be made.

    :param module: the token's PKCS #11 library, such as ``/usr/lib/softhsm/libsofthsm2.so``
    :param token: the token's label
    :param pin_file: a file (mode 0600) with the token's user PIN; empty for the environment variable LEPTON_PKCS11_PIN
    """

    module: str
    token: str
    pin_file: str = ""


@dataclass(frozen=True, kw_only=True)
class KeyLocation(NewKey):
    """Where a key is. Holds no secret.

    :param key_id: CKA_ID of the key, in hex
    """

    key_id: str

    def to_document(self) -> dict[str, str]:
        return asdict(self)


class TokenKey:
    """An RSA private key in a token."""

    def __init__(self, algorithm: SealingAlgorithm, location: KeyLocation, *, place: str) -> None:
        if algorithm not in ("RSA_OAEP_3072_SHA256", "RSA_OAEP_3072_SHA1"):
            raise ConfigurationError(
                f"A token does not unseal {algorithm}.", place=place, remedy="Make the identity again."
            )
        self._algorithm = algorithm
        self._location = location
        self._place = place

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """See :class:`~lepton_airflow.keys.sealing.PrivateKey`.

        :raises ValueError: it does not open
        :raises KeyUnavailable: no such module, token or key, or the wrong PIN
        :raises KeyServiceUnavailable: the token fails for another reason
        """
        with _session(self._location, self._place) as session:
            return bound_secret(_decrypt(session, self._location, self._algorithm, sealed), info)


def generate(name: str, where: NewKey) -> tuple[SealingAlgorithm, bytes, KeyLocation]:
    """Make an RSA-3072 key in a token, which may neither be read out nor copied.

    :param name: the key's label in the token
    :returns: the algorithm that the token supports, the public key (DER SubjectPublicKeyInfo), and where the key is
    :raises KeyUnavailable: no such module or token, the wrong PIN, or the token has no OAEP at all
    """
    place = f"identity {name!r}"
    location = KeyLocation(
        module=where.module, token=where.token, pin_file=where.pin_file, key_id=secrets.token_hex(16)
    )
    with _session(location, place, writable=True) as session:
        from pkcs11 import Attribute, KeyType

        public, private = session.generate_keypair(
            KeyType.RSA,
            RSA_BITS,
            id=bytes.fromhex(location.key_id),
            label=name,
            store=True,
            private_template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True},
        )
        exponent = int.from_bytes(public[Attribute.PUBLIC_EXPONENT], "big")
        public_key = rsa_public_key(int.from_bytes(public[Attribute.MODULUS], "big"), exponent)
        algorithm = _supported(session, location, public_key, place)
        if algorithm is None:
            public.destroy()
            private.destroy()
            raise KeyUnavailable(
                "The token has no RSA-OAEP decryption, neither with SHA-256 nor with SHA-1.",
                place=place,
                remedy="Use a token that has CKM_RSA_PKCS_OAEP.",
            )
    return algorithm, public_key, location


def _supported(session: Any, location: KeyLocation, public_key: bytes, place: str) -> SealingAlgorithm | None:
    """The best algorithm in which the token opens what was sealed to the key."""
    secret = secrets.token_bytes(32)
    algorithms: tuple[SealingAlgorithm, ...] = ("RSA_OAEP_3072_SHA256", "RSA_OAEP_3072_SHA1")
    for algorithm in algorithms:
        sealed = seal(algorithm, public_key, secret, info=b"", place=place)
        try:
            if bound_secret(_decrypt(session, location, algorithm, sealed), b"") == secret:
                return algorithm
        except ValueError:
            continue
    return None


def _decrypt(session: Any, location: KeyLocation, algorithm: SealingAlgorithm, sealed: bytes) -> bytes:
    """:raises ValueError: the token does not decrypt it"""
    from pkcs11 import MGF, KeyType, Mechanism, ObjectClass, exceptions

    hashed = (Mechanism.SHA_1, MGF.SHA1) if algorithm == "RSA_OAEP_3072_SHA1" else (Mechanism.SHA256, MGF.SHA256)
    key = session.get_key(object_class=ObjectClass.PRIVATE_KEY, key_type=KeyType.RSA, id=bytes.fromhex(location.key_id))
    try:
        opened: bytes = key.decrypt(sealed, mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=(*hashed, None))
    except (
        exceptions.ArgumentsBad,
        exceptions.EncryptedDataInvalid,
        exceptions.EncryptedDataLenRange,
        exceptions.DataLenRange,
        exceptions.DataInvalid,
        exceptions.GeneralError,
        exceptions.MechanismInvalid,
        exceptions.MechanismParamInvalid,
    ):
        # Tokens disagree on how they say that an RSA ciphertext is not one of theirs.
        raise ValueError from None
    return opened


@contextmanager
def _session(location: NewKey, place: str, *, writable: bool = False) -> Iterator[pkcs11.Session]:
    """A session with the user logged in.

    :raises KeyUnavailable: no such module, token or key, or the wrong PIN
    :raises KeyServiceUnavailable: the token fails for another reason
    """
    library = _library(location, place)
    from pkcs11 import exceptions

    pin = _pin(location, place)
    where = f"{place}, token {location.token!r}"
    with _one_session:
        try:
            with library.get_token(token_label=location.token).open(user_pin=pin, rw=writable) as session:
                yield session
        except (exceptions.NoSuchToken, exceptions.MultipleTokensReturned, exceptions.TokenNotPresent):
            raise KeyUnavailable(
                "There is no such token, or there are several.",
                place=where,
                remedy=f"See the tokens with `pkcs11-tool --module {location.module} --list-token-slots`.",
            ) from None
        except (exceptions.PinIncorrect, exceptions.PinInvalid, exceptions.PinLenRange, exceptions.PinLocked):
            raise KeyUnavailable(
                "The token refuses the PIN.",
                place=where,
                remedy=f"Correct {location.pin_file or PIN_VARIABLE}; many tokens lock after a few wrong PINs.",
            ) from None
        except exceptions.NoSuchKey:
            raise KeyUnavailable(
                "The token does not hold the identity's key.",
                place=where,
                remedy="Restore the token from its backup, or make a new identity and grant the keysets to it.",
            ) from None
        except exceptions.PKCS11Error as error:
            raise KeyServiceUnavailable(
                f"The token failed ({type(error).__name__}).", place=where, remedy="Check the token and try again."
            ) from None


def _library(location: NewKey, place: str) -> Any:
    try:
        import pkcs11
    except ImportError:
        raise MissingDependency(
            "PKCS #11 tokens need the python-pkcs11 library.", place=place, remedy="Install lepton-airflow[pkcs11]."
        ) from None
    try:
        return pkcs11.lib(location.module)
    except (pkcs11.exceptions.PKCS11Error, OSError, RuntimeError):
        raise KeyUnavailable(
            "The PKCS #11 library cannot be loaded.",
            place=f"{place}, {location.module}",
            remedy="Install the token's library, on every machine that unseals keys.",
        ) from None


def _pin(location: NewKey, place: str) -> str:
    if location.pin_file:
        missing = KeyUnavailable(
            "The file with the token's PIN is missing.",
            place=f"{place}, {location.pin_file}",
            remedy="Put it there, mode 0600.",
        )
        return read_private_file(Path(location.pin_file), missing=missing).decode().rstrip("\n")
    pin = os.environ.get(PIN_VARIABLE)
    if pin is None:
        raise KeyUnavailable(
            "The token's PIN is not given.", place=place, remedy=f"Set {PIN_VARIABLE}, or name a file with it."
        )
    return pin
