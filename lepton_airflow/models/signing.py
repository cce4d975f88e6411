"""Signatures of model folders in the format of the OpenSSF Model Signing specification (OMS), made by the library
``model-signing``: a Sigstore bundle with a DSSE envelope over an in-toto statement that lists the SHA-256 of every file.

So anybody can verify a champion without this package::

    model_signing verify key models/diagnosis --signature models/diagnosis/model.sig --public_key signing.pub

The library's own signer reads its private key from a file in clear. Ours is sealed and stays in memory, so the library's signer
is given the key itself. Unlike the library's defaults, nothing in the folder but the signature is left out of it (the library
leaves out files of Git), and symbolic links are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from lepton_airflow.errors import MissingDependency, ModelTampered
from lepton_airflow.keys.identity import Identity
from lepton_airflow.keys.signing_key import SigningKey, load_public_key, public_file
from lepton_airflow.models.artefact import SIGNATURE_FILE
from lepton_airflow.settings import Settings


class ModelVerifier:
    """Verifies folders with the public half of a signing key.

    :param path: the PEM file
    :raises KeyUnavailable: no such file
    :raises ConfigurationError: not a P-256 public key
    :raises MissingDependency: model-signing is not installed
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._verifier = _verifier(load_public_key(path))

    def verify(self, folder: Path) -> dict[str, str]:
        """Hold every file of ``folder`` against its signature.

        :returns: ``sha256:<hex>`` of each file by its name
        :raises ModelTampered: no signature or none of this key, or a file that was changed, removed or added: naming it
        """
        signature = folder / SIGNATURE_FILE
        if signature.is_symlink() or not signature.is_file():
            raise _tampered("The model has no signature, and one is required.", signature)
        try:
            signed = _digests(self._verifier.verify(_read(signature)))
        except (InvalidSignature, ValueError, KeyError, TypeError, AttributeError, OSError):
            # What the library raises about a broken bundle has no common base; none of it is a signature.
            raise _tampered(f"The signature is not one of the key in {self.path}.", signature) from None
        actual = folder_digests(folder)
        for name in sorted(signed.keys() | actual.keys()):
            if name not in actual:
                raise _tampered("The file was signed and is gone.", folder / name)
            if name not in signed:
                raise _tampered("The file was added after the folder was signed.", folder / name)
            if actual[name] != signed[name]:
                raise _tampered("The file is not the one that was signed.", folder / name)
        return signed


def sign(folder: Path, key: SigningKey, *, name: str) -> Path:
    """Sign every file of ``folder``.

    :param name: what the statement calls the model; informative
    :returns: the signature's file, in the folder
    :raises ModelTampered: the folder holds a symbolic link
    :raises MissingDependency: model-signing is not installed
    """
    signing = _library("model_signing._signing.signing")
    manifest = _library("model_signing.manifest")
    found = _manifest(folder)
    items = [
        manifest.FileManifestItem(path=Path(known.identifier), digest=known.digest)
        for known in found.resource_descriptors()
    ]
    kind = manifest.SerializationType.from_args(found.serialization_type)
    payload = signing.Payload(manifest.Manifest(name, items, kind))
    path = folder / SIGNATURE_FILE
    _signer(key.private_key).sign(payload).write(path)
    return path


def folder_digests(folder: Path) -> dict[str, str]:
    """``sha256:<hex>`` of every file of a folder but its signature.

    :raises ModelTampered: the folder holds a symbolic link or something else that is neither a file nor a folder
    """
    return _digests(_manifest(folder))


def signing_key_of(settings: Settings) -> SigningKey | None:
    """The key with which models are signed here; None when the settings name none.

    :raises KeyUnavailable: no such key, or it is not sealed to the settings' identity
    """
    if not settings.model_signing_key:
        return None
    identity = Identity.load(settings.identity_file)
    return SigningKey.open(settings.model_signing_key, keyring=settings.keyring, identity=identity)


def verifier_of(settings: Settings) -> ModelVerifier | None:
    """What models must be verified with here; None when the settings name no key. With one, nothing unsigned is loaded.

    :raises KeyUnavailable: the public key is missing
    """
    if settings.model_verifier is not None:
        return ModelVerifier(settings.model_verifier)
    if settings.model_signing_key:
        return ModelVerifier(public_file(settings.model_signing_key, settings.keyring))
    return None


def _manifest(folder: Path) -> Any:
    hashing = _library("model_signing.hashing")
    config = hashing.Config().set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)
    try:
        return config.hash(folder)
    except ValueError:
        strange = next((path for path in sorted(folder.rglob("*")) if path.is_symlink()), folder)
        raise _tampered("The folder holds something that is neither a file nor a folder.", strange) from None


def _digests(manifest: Any) -> dict[str, str]:
    return {
        known.identifier: f"{known.digest.algorithm}:{known.digest.digest_hex}"
        for known in manifest.resource_descriptors()
    }


def _signer(private_key: ec.EllipticCurvePrivateKey) -> Any:
    """The library's signer around a key in memory; its constructor only knows files."""
    library = _library("model_signing._signing.sign_ec_key")
    signer = library.Signer.__new__(library.Signer)
    signer._private_key = private_key
    return signer


def _verifier(public_key: ec.EllipticCurvePublicKey) -> Any:
    library = _library("model_signing._signing.sign_ec_key")
    verifier = library.Verifier.__new__(library.Verifier)
    verifier._public_key = public_key
    return verifier


def _read(signature: Path) -> Any:
    # The library would print a warning for a bundle that does not name its key; ours always do.
    bundle = json.loads(signature.read_text(encoding="utf-8"))
    if not bundle["verificationMaterial"]["publicKey"]["hint"]:
        raise ValueError
    return _library("model_signing._signing.sign_sigstore_pb").Signature.read(signature)


def _library(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"Signatures of models need the library model-signing ({error.name} is missing).",
            place="models",
            remedy="Install lepton-airflow[tensorflow].",
        ) from None


def _tampered(rule: str, path: Path) -> ModelTampered:
    return ModelTampered(
        rule,
        place=str(path),
        remedy="Do not load the model. Keep the folder for the inquiry, move it out of the way and train again.",
    )
