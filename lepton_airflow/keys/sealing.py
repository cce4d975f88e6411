"""The algorithms that seal a secret of 32 bytes to a public key, and private keys that open it again.

- ``HPKE_MLKEM768_X25519`` (default): HPKE base mode (RFC 9180) with the hybrid of ML-KEM-768 (FIPS 203) and X25519,
  HKDF-SHA256 and AES-256-GCM. Safe against who records now and has a quantum computer later.
- ``HPKE_X25519``: the same with DHKEM(X25519, HKDF-SHA256), for peers without ML-KEM.
- ``RSA_OAEP_3072_SHA256``: RSAES-OAEP (RFC 8017) with SHA-256 and MGF1-SHA-256, for hardware tokens.
- ``RSA_OAEP_3072_SHA1``: the same with SHA-1 and MGF1-SHA-1, for tokens that have no other, such as SoftHSM 2.6. OAEP
  does not rest on the hash being free of collisions, so this is not broken as SHA-1 signatures are (RFC 8017, appendix B.1).

Each binds an ``info`` string: what was sealed for one purpose cannot be opened for another. HPKE has a field for it.
Tokens know no OAEP label, so there the plaintext starts with the SHA-256 digest of ``info``.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal, Protocol, get_args

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from lepton_airflow.errors import ConfigurationError

SealingAlgorithm = Literal["HPKE_MLKEM768_X25519", "HPKE_X25519", "RSA_OAEP_3072_SHA256", "RSA_OAEP_3072_SHA1"]
DEFAULT_ALGORITHM: SealingAlgorithm = "HPKE_MLKEM768_X25519"
RSA_BITS = 3072

_MLKEM768_SEED_BYTES = 64
_MLKEM768_PUBLIC_BYTES = 1184
_DIGEST_BYTES = hashlib.sha256().digest_size
_SUITES = {
    "HPKE_MLKEM768_X25519": hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
    "HPKE_X25519": hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
}

_SoftwareKey = hpke.MLKEM768X25519PrivateKey | X25519PrivateKey | rsa.RSAPrivateKey
_PublicKey = hpke.MLKEM768X25519PublicKey | X25519PublicKey | rsa.RSAPublicKey


class PrivateKey(Protocol):
    """What opens a seal: a key in this process, or one that a token or a key service never gives away."""

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """Open what was sealed for the purpose ``info``.

        :raises ValueError: sealed to another key or for another purpose, or changed since
        :raises KeyUnavailable: the token or the service refuses
        """
        ...


class SoftwareKey:
    """A private key in memory.

    :param private_key: ML-KEM-768 seed (64 bytes) and X25519 scalar (32 bytes); the scalar alone; or DER PKCS #8
    :raises ConfigurationError: not a private key of this algorithm
    """

    def __init__(self, algorithm: SealingAlgorithm, private_key: bytes, *, place: str) -> None:
        self._algorithm = algorithm
        self._key = _parse_private_key(algorithm, private_key, place=place)
        self.public_key = _public_key(algorithm, private_key)

    @staticmethod
    def generate(algorithm: SealingAlgorithm) -> bytes:
        """A fresh private key in the form that the constructor takes."""
        if algorithm == "HPKE_MLKEM768_X25519":
            return MLKEM768PrivateKey.generate().private_bytes_raw() + X25519PrivateKey.generate().private_bytes_raw()
        if algorithm == "HPKE_X25519":
            return X25519PrivateKey.generate().private_bytes_raw()
        if algorithm in get_args(SealingAlgorithm):
            return rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS).private_bytes(
                serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        raise unknown_algorithm("new identity")

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """See :class:`PrivateKey`."""
        try:
            if isinstance(self._key, rsa.RSAPrivateKey):
                return bound_secret(self._key.decrypt(sealed, _oaep(self._algorithm)), info)
            return _SUITES[self._algorithm].decrypt(sealed, self._key, info)
        except InvalidTag:
            raise ValueError from None


def seal(algorithm: SealingAlgorithm, public_key: bytes, secret: bytes, *, info: bytes, place: str) -> bytes:
    """Encrypt a short secret to a public key for the purpose ``info``.

    :raises ConfigurationError: not a public key of this algorithm
    """
    key = parse_public_key(algorithm, public_key, place=place)
    if isinstance(key, rsa.RSAPublicKey):
        return key.encrypt(binding(info) + secret, _oaep(algorithm))
    return _SUITES[algorithm].encrypt(secret, key, info)


def binding(info: bytes) -> bytes:
    """What precedes the secret where the algorithm has no field of its own for the purpose."""
    return hashlib.sha256(info).digest()


def bound_secret(opened: bytes, info: bytes) -> bytes:
    """The secret after its :func:`binding`.

    :raises ValueError: it was sealed for another purpose
    """
    if not hmac.compare_digest(opened[:_DIGEST_BYTES], binding(info)):
        raise ValueError
    return opened[_DIGEST_BYTES:]


def rsa_public_key(modulus: int, exponent: int) -> bytes:
    """The DER SubjectPublicKeyInfo of an RSA key, which is a recipient's form of it."""
    return (
        rsa.RSAPublicNumbers(exponent, modulus)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def parse_public_key(algorithm: SealingAlgorithm, public_key: bytes, *, place: str) -> _PublicKey:
    """Read a public key: ML-KEM-768 encapsulation key (1,184 bytes) followed by the X25519 point (32 bytes); the point
    alone; or the DER SubjectPublicKeyInfo of an RSA key of at least 3,072 bits.

    :raises ConfigurationError: an unknown algorithm, or not a key of it
    """
    if algorithm not in get_args(SealingAlgorithm):
        raise unknown_algorithm(place)
    damaged = ConfigurationError(
        f"The public key is not a {algorithm} key.", place=place, remedy="Get the file again from the recipient."
    )
    try:
        if algorithm == "HPKE_MLKEM768_X25519":
            return hpke.MLKEM768X25519PublicKey(
                MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM768_PUBLIC_BYTES]),
                X25519PublicKey.from_public_bytes(public_key[_MLKEM768_PUBLIC_BYTES:]),
            )
        if algorithm == "HPKE_X25519":
            return X25519PublicKey.from_public_bytes(public_key)
        key = serialization.load_der_public_key(public_key)
    except (TypeError, ValueError):
        raise damaged from None
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < RSA_BITS:
        raise damaged
    return key


def unknown_algorithm(place: str) -> ConfigurationError:
    return ConfigurationError(
        "The sealing algorithm is not known.",
        place=place,
        remedy=f"Use one of {', '.join(get_args(SealingAlgorithm))}.",
    )


def damaged_identity(place: str) -> ConfigurationError:
    return ConfigurationError(
        "The private key is damaged.", place=place, remedy="Restore the identity's file from a copy, or make a new one."
    )


def _oaep(algorithm: SealingAlgorithm) -> padding.OAEP:
    if algorithm == "RSA_OAEP_3072_SHA1":
        return padding.OAEP(mgf=padding.MGF1(hashes.SHA1()), algorithm=hashes.SHA1(), label=None)  # noqa: S303
    return padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def _parse_private_key(algorithm: SealingAlgorithm, private_key: bytes, *, place: str) -> _SoftwareKey:
    if algorithm not in get_args(SealingAlgorithm):
        raise unknown_algorithm(place)
    try:
        if algorithm == "HPKE_MLKEM768_X25519":
            return hpke.MLKEM768X25519PrivateKey(
                MLKEM768PrivateKey.from_seed_bytes(private_key[:_MLKEM768_SEED_BYTES]),
                X25519PrivateKey.from_private_bytes(private_key[_MLKEM768_SEED_BYTES:]),
            )
        if algorithm == "HPKE_X25519":
            return X25519PrivateKey.from_private_bytes(private_key)
        key = serialization.load_der_private_key(private_key, password=None)
    except (TypeError, ValueError):
        raise damaged_identity(place) from None
    if not isinstance(key, rsa.RSAPrivateKey) or key.key_size < RSA_BITS:
        raise damaged_identity(place)
    return key


def _public_key(algorithm: SealingAlgorithm, private_key: bytes) -> bytes:
    """The public half of a private key that parses, in the form that :func:`parse_public_key` reads."""
    if algorithm == "HPKE_MLKEM768_X25519":
        mlkem, x25519 = private_key[:_MLKEM768_SEED_BYTES], private_key[_MLKEM768_SEED_BYTES:]
        return (
            MLKEM768PrivateKey.from_seed_bytes(mlkem).public_key().public_bytes_raw()
            + X25519PrivateKey.from_private_bytes(x25519).public_key().public_bytes_raw()
        )
    if algorithm == "HPKE_X25519":
        return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()
    return (
        serialization.load_der_private_key(private_key, password=None)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
