"""Keys of cloud key services as recipients: a symmetric key in AWS KMS, Google Cloud KMS or Vault's transit engine.

The service encrypts and decrypts the key that encrypts a keyset; its own key never leaves it, and who may do which, its own
permissions say. Sealing asks the service too: who grants a keyset to such a recipient needs the permission to *encrypt* under
its key, who opens it the one to *decrypt*. The clients are Tink's, which find credentials as each service's own library does.

Each seal is bound to its purpose: as associated data, which AWS KMS takes as encryption context, and, because Tink's
client for Vault has none, as a digest before the secret.
"""

from __future__ import annotations

import importlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from lepton_airflow.errors import ConfigurationError, KeyServiceUnavailable, KeyUnavailable, MissingDependency
from lepton_airflow.keys.sealing import binding, bound_secret

PROVIDER = "kms"
Algorithm = Literal["KMS_AEAD"]
#: Recipients with this algorithm have the URI of their key in place of a public key.
ALGORITHM: Algorithm = "KMS_AEAD"

_URI = re.compile(
    r"aws-kms://arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+"
    r"|gcp-kms://projects/[^/\s]+/locations/[\w-]+/keyRings/[\w-]+/cryptoKeys/[\w-]+"
    r"|hcvault://[A-Za-z0-9.:-]+/[\w./-]+/keys/[\w.-]+",
    re.ASCII,
)
_EXTRAS = {"aws-kms": "lepton-airflow[aws]", "gcp-kms": "tink[gcpkms]", "hcvault": "tink[hcvault]"}
#: What the services' libraries call a ciphertext that is not authentic, by AWS's error code or the exception's name ...
_DOES_NOT_OPEN = frozenset({"InvalidCiphertextException", "IncorrectKeyException", "InvalidArgument", "InvalidRequest"})
#: ... and what no second try will cure. Anything else may pass: the network, throttling, an outage.
_REFUSED = frozenset(
    {
        *("AccessDeniedException", "NotFoundException", "DisabledException", "KMSInvalidStateException"),
        *("InvalidKeyUsageException", "UnrecognizedClientException", "InvalidClientTokenId", "ExpiredTokenException"),
        *("InvalidSignatureException", "IncompleteSignature", "NoCredentialsError", "PartialCredentialsError"),
        *("PermissionDenied", "Unauthenticated", "NotFound", "FailedPrecondition", "DefaultCredentialsError"),
        *("Forbidden", "Unauthorized", "InvalidPath"),
    }
)


def check_uri(uri: bytes, *, place: str) -> str:
    """The URI of a key as text, in Tink's form for its service.

    :raises ConfigurationError: anything else
    """
    text = uri.decode("ascii", errors="replace")
    if not _URI.fullmatch(text):
        raise ConfigurationError(
            "The key's URI is not one of a key service.",
            place=place,
            remedy="Use aws-kms://<key ARN>, gcp-kms://projects/.../cryptoKeys/<name> or hcvault://<host>/<mount>/keys/<name>.",
        )
    return text


class KmsKey:
    """A symmetric key in a key service. Holds no secret: what the process may do with it, its credentials say.

    :param uri: see :func:`check_uri`
    """

    def __init__(self, uri: bytes, *, place: str) -> None:
        self._uri = check_uri(uri, place=place)
        self._place = f"{place}, {self._uri}"

    def seal(self, secret: bytes, info: bytes) -> bytes:
        """Have the service encrypt a secret, bound to the purpose ``info``.

        :raises KeyUnavailable: the service does not let the caller encrypt
        :raises KeyServiceUnavailable: the service cannot be reached
        """
        plaintext, bound = self._bound(secret, info)
        try:
            with self._typed():
                sealed: bytes = self._aead().encrypt(plaintext, bound)
        except ValueError:
            raise self._refused("InvalidArgument") from None
        return sealed

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """See :class:`~lepton_airflow.keys.sealing.PrivateKey`.

        :raises ValueError: it does not open
        :raises KeyUnavailable: the service does not let the caller decrypt
        :raises KeyServiceUnavailable: the service cannot be reached
        """
        if not sealed:
            raise ValueError
        _, bound = self._bound(b"", info)
        with self._typed():
            opened: bytes = self._aead().decrypt(sealed, bound)
        return opened if bound else bound_secret(opened, info)

    def check(self) -> None:
        """Seal and open once.

        :raises KeyUnavailable: the service does not let the caller do both
        """
        secret = secrets.token_bytes(32)
        if self.unseal(self.seal(secret, b"check"), b"check") != secret:
            raise self._refused("another plaintext")

    def _bound(self, secret: bytes, info: bytes) -> tuple[bytes, bytes]:
        """What to encrypt, and with which associated data."""
        if self._uri.startswith("hcvault://"):
            return binding(info) + secret, b""
        return secret, binding(info)

    def _aead(self) -> Any:
        scheme, _, path = self._uri.partition("://")
        try:
            if scheme == "aws-kms":
                from tink.integration import awskms

                return awskms.AwsKmsClient(self._uri, None).get_aead(self._uri)
            if scheme == "gcp-kms":
                from tink.integration import gcpkms

                return gcpkms.GcpKmsClient(self._uri).get_aead(self._uri)
            hvac = importlib.import_module("hvac")
            from tink.integration import hcvault

            host, _, key_path = path.partition("/")
            return hcvault.new_aead(key_path, hvac.Client(url=f"https://{host}"))
        except ImportError:
            raise MissingDependency(
                "The library of the key service is not installed.",
                place=self._place,
                remedy=f"Install {_EXTRAS[scheme]}.",
            ) from None

    @contextmanager
    def _typed(self) -> Iterator[None]:
        """Turn what the services' libraries raise into typed errors; their texts may quote requests and stay here."""
        from tink import TinkError

        try:
            yield
        except (MissingDependency, ValueError):
            raise
        except Exception as error:
            cause = error.args[0] if isinstance(error, TinkError) and error.args else error
            response = getattr(cause, "response", None)
            code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
            reason = str(code or type(cause).__name__)
            if reason in _DOES_NOT_OPEN:
                raise ValueError from None
            if reason in _REFUSED:
                raise self._refused(reason) from None
            raise KeyServiceUnavailable(
                f"The key service could not be asked ({reason}).",
                place=self._place,
                remedy="Check the network and the service; trying again may help.",
            ) from None

    def _refused(self, reason: str) -> KeyUnavailable:
        return KeyUnavailable(
            f"The key service does not let this process use the key ({reason}).",
            place=self._place,
            remedy="Check the credentials, the key's state, and its permissions to encrypt (grant) and decrypt (open).",
        )
