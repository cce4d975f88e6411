"""``lepton keys``: identities, keysets, and who can open them. Every command is an operation in the audit log.

Who may manage a keyset is not the policy's to say: only an identity to which it is sealed can open it, and so change it.
The audit says which one did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.table import Table

from lepton_airflow.cli.audited import audited
from lepton_airflow.cli.console import HomeOption, console
from lepton_airflow.errors import ConfigurationError, KeyExposure, KeyUnavailable
from lepton_airflow.keys.cipher import Cipher
from lepton_airflow.keys.identity import (
    Identity,
    Recipient,
    generate_identity,
    kms_identity,
    recipient_file,
    token_identity,
)
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.keys.keyset import KeyStatus
from lepton_airflow.keys.pkcs11 import NewKey
from lepton_airflow.keys.sealing import DEFAULT_ALGORITHM, SealingAlgorithm
from lepton_airflow.settings import Settings, load_settings

app = typer.Typer(no_args_is_help=True)

KeysetArgument = Annotated[str, typer.Argument(help="The keyset.")]
KeyIdOption = Annotated[int, typer.Option("--key-id", help="Of a key that `lepton keys list` shows.")]
CiphersOption = Annotated[
    list[str] | None, typer.Option("--cipher", help=f"{' or '.join(get_args(Cipher))}, once or more; default is each.")
]
RecipientOption = Annotated[str, typer.Option("--recipient", help="The name of a recipient.")]


@app.command()
def identity(
    name: Annotated[str, typer.Argument(help="Of the workload or role.")],
    algorithm: Annotated[
        SealingAlgorithm, typer.Option(help="How keysets are sealed to it, if its key is in a file.")
    ] = DEFAULT_ALGORITHM,
    pkcs11_module: Annotated[
        str, typer.Option(help="Make the key in a PKCS #11 token instead: the token's library.")
    ] = "",
    token: Annotated[str, typer.Option(help="The label of the PKCS #11 token.")] = "",
    pin_file: Annotated[
        str, typer.Option(help="A file, mode 0600, with the token's PIN; default is $LEPTON_PKCS11_PIN.")
    ] = "",
    kms_key: Annotated[
        str, typer.Option(help="Use a key of a key service instead: aws-kms://..., gcp-kms://... or hcvault://...")
    ] = "",
    home: HomeOption = None,
) -> None:
    """Make an identity: a private key for it alone, and the public key to which others seal.

    The private key is in a file, unless a PKCS #11 token or a key service is named.
    """
    settings = load_settings(home)
    if bool(pkcs11_module) != bool(token) or (pkcs11_module and kms_key) or (pin_file and not token):
        raise ConfigurationError(
            "A private key is in one place.",
            place="lepton keys identity",
            remedy="Give --pkcs11-module and --token (and --pin-file), or --kms-key, or none of them.",
        )
    if token:
        where = NewKey(module=pkcs11_module, token=token, pin_file=str(Path(pin_file).absolute()) if pin_file else "")
        recipient = _create_identity(settings, name, partial(token_identity, location=where), token=token)
    elif kms_key:
        recipient = _create_identity(settings, name, partial(kms_identity, key_uri=kms_key), kms_key=kms_key)
    else:
        recipient = create_identity(settings, name, algorithm=algorithm)
    console.print(f"identity {name} ({recipient.algorithm})\n  {recipient.fingerprint}")


def create_identity(settings: Settings, name: str, *, algorithm: SealingAlgorithm = DEFAULT_ALGORITHM) -> Recipient:
    """Make the identity ``name``, its key in a file, and record it in the audit log.

    :raises TargetExists: the identity is there
    """
    return _create_identity(settings, name, partial(generate_identity, algorithm=algorithm))


def _create_identity(settings: Settings, name: str, make: Callable[..., Recipient], **details: str) -> Recipient:
    with audited(settings, "keys.identity", keyset=name, **details) as record:
        recipient = make(name, identities=settings.identities, recipients=settings.recipients)
        record(algorithm=recipient.algorithm, fingerprint=recipient.fingerprint)
    return recipient


@app.command()
def create(
    name: KeysetArgument,
    cipher: CiphersOption = None,
    recipient: Annotated[list[str] | None, typer.Option(help="Once or more; default is your identity.")] = None,
    home: HomeOption = None,
) -> None:
    """Make a keyset with one fresh key for each cipher, sealed to the recipients."""
    settings = load_settings(home)
    names = tuple(recipient or (Identity.load(settings.identity_file).name,))
    create_keyset(settings, name, recipients=names, ciphers=_known(cipher) or get_args(Cipher))
    console.print(f"keyset {name} sealed to {', '.join(names)}")


def create_keyset(
    settings: Settings, name: str, *, recipients: Sequence[str], ciphers: Sequence[Cipher] = get_args(Cipher)
) -> None:
    """Make the keyset ``name`` and record it in the audit log.

    :raises KeyUnavailable: a recipient's public key is not among the settings' recipients
    :raises TargetExists: the keyset is there
    """
    with audited(settings, "keys.create", keyset=name, recipients=" ".join(recipients)) as record:
        public = [Recipient.load(recipient_file(recipient, settings.recipients)) for recipient in recipients]
        for cipher in ciphers:
            created = FileKeyring(settings.keyring).create(name, cipher=cipher, recipients=public)
            record(**{f"{cipher}.primary_key_id": created.primary_key_id})


@app.command("list")
def list_keysets(home: HomeOption = None) -> None:
    """Show every keyset: its keys, how much of them is used, and to whom it is sealed. Opens none of them."""
    from lepton_airflow.audit.database import connect
    from lepton_airflow.keys.usage import usage

    settings = load_settings(home)
    engine = connect(settings)
    table = Table("keyset", "cipher", "keys", "values", "sealed to")
    with audited(settings, "keys.list", keyset="*") as record:
        keysets = FileKeyring(settings.keyring).list()
        for keyset in keysets:
            # Only AES-GCM keys have a limit, and are counted.
            counted = usage(engine, keyset.name) if keyset.cipher == "AES256_GCM" else None
            keys = (
                f"{key_id} {'primary' if key_id == keyset.primary_key_id else status.lower()}"
                for key_id, status in keyset.keys.items()
            )
            used = ("" if counted is None else _share(counted.get(key_id, 0)) for key_id in keyset.keys)
            table.add_row(keyset.name, keyset.cipher, "\n".join(keys), "\n".join(used), "\n".join(keyset.recipients))
        record(keysets=len(keysets))
    console.print(table)


@app.command()
def rotate(
    name: KeysetArgument,
    cipher: CiphersOption = None,
    home: HomeOption = None,
) -> None:
    """Add a fresh key and encrypt under it from now on; what is encrypted already stays readable."""
    settings = load_settings(home)
    with audited(settings, "keys.rotate", keyset=name) as record:
        keyring, holder = FileKeyring(settings.keyring), Identity.load(settings.identity_file)
        for each in _known(cipher) or _ciphers(keyring, name):
            key_id = keyring.rotate(name, cipher=each, identity=holder)
            record(**{f"{each}.primary_key_id": key_id})
            console.print(f"{name} ({each}): key {key_id} is primary")


@app.command()
def grant(name: KeysetArgument, recipient: RecipientOption, home: HomeOption = None) -> None:
    """Seal the keyset to one recipient more, who can then read all that is encrypted under it."""
    settings = load_settings(home)
    with audited(settings, "keys.grant", keyset=name, recipient=recipient) as record:
        keyring, holder = FileKeyring(settings.keyring), Identity.load(settings.identity_file)
        public = Recipient.load(recipient_file(recipient, settings.recipients))
        record(fingerprint=public.fingerprint)
        for cipher in _ciphers(keyring, name):
            keyring.grant(name, cipher=cipher, identity=holder, recipient=public)
    console.print(f"{name} is sealed to {recipient} ({public.fingerprint})")


@app.command()
def revoke(name: KeysetArgument, recipient: RecipientOption, home: HomeOption = None) -> None:
    """Rotate, and seal to everybody but this recipient.

    It cannot read what is encrypted from now on. What it could read before it may have kept: encrypt that again and
    destroy the older keys.
    """
    settings = load_settings(home)
    with audited(settings, "keys.revoke", keyset=name, recipient=recipient) as record:
        keyring, holder = FileKeyring(settings.keyring), Identity.load(settings.identity_file)
        sealed = [keyset.cipher for keyset in keyring.describe(name) if recipient in keyset.recipients]
        if not sealed:
            raise KeyUnavailable(
                "The keyset is not sealed to it.",
                place=f"keyset {name!r}, recipient {recipient!r}",
                remedy="See `lepton keys list`.",
            )
        for cipher in sealed:
            key_id = keyring.revoke(name, cipher=cipher, identity=holder, recipient=recipient)
            record(**{f"{cipher}.primary_key_id": key_id})
            console.print(f"{name} ({cipher}): {recipient} is out, key {key_id} is primary")


@app.command()
def disable(name: KeysetArgument, key_id: KeyIdOption, home: HomeOption = None) -> None:
    """Stop decrypting under a key, for now."""
    _set_status("disable", name, key_id, "DISABLED", home)


@app.command()
def enable(name: KeysetArgument, key_id: KeyIdOption, home: HomeOption = None) -> None:
    """Decrypt again under a key that was disabled."""
    _set_status("enable", name, key_id, "ENABLED", home)


@app.command()
def destroy(name: KeysetArgument, key_id: KeyIdOption, home: HomeOption = None) -> None:
    """Destroy a key for good. What only it opens is lost: crypto-shredding. Copies of the keyring need the same."""
    _set_status("destroy", name, key_id, "DESTROYED", home)


@app.command()
def export(
    name: KeysetArgument,
    cipher: Annotated[Cipher, typer.Option(help="Which part of the keyset.")],
    understood: Annotated[bool, typer.Option("--i-understand-this-prints-secret-keys")] = False,
    home: HomeOption = None,
) -> None:
    """Print a keyset in clear to standard output, in Tink's JSON, which every Tink library reads."""
    from tink import secret_key_access

    settings = load_settings(home)
    with audited(settings, "keys.export", keyset=name, cipher=cipher):
        if not understood:
            raise KeyExposure(
                "The keys would be printed in clear.",
                place=f"keyset {name!r} ({cipher})",
                remedy="Add --i-understand-this-prints-secret-keys if that is what you want.",
            )
        keyset = FileKeyring(settings.keyring).open(name, cipher=cipher, identity=Identity.load(settings.identity_file))
        text = keyset.to_tink_json(secret_key_access.TOKEN)
    # Only after the audit has it.
    typer.echo(text)


def _set_status(action: str, name: str, key_id: int, status: KeyStatus, home: str | None) -> None:
    settings = load_settings(home)
    with audited(settings, f"keys.{action}", keyset=name, key_id=key_id) as record:
        keyring, holder = FileKeyring(settings.keyring), Identity.load(settings.identity_file)
        ciphers = [keyset.cipher for keyset in keyring.describe(name) if key_id in keyset.keys]
        if not ciphers:
            raise KeyUnavailable(
                "The keyset has no such key.",
                place=f"keyset {name!r}, key {key_id}",
                remedy="See `lepton keys list`.",
            )
        for cipher in ciphers:
            keyring.set_status(name, cipher=cipher, identity=holder, key_id=key_id, status=status)
            record(cipher=cipher)
    console.print(f"{name}: key {key_id} is {status.lower()}")


def _share(values: int) -> str:
    """How much a key has encrypted of what it may."""
    from lepton_airflow.keys.usage import ROTATE_AT, VALUES_PER_KEY

    share = f"{values:,} ({values / VALUES_PER_KEY:.0%})" if values else "-"
    return f"{share} rotate" if values >= ROTATE_AT else share


def _known(ciphers: list[str] | None) -> tuple[Cipher, ...]:
    unknown = [cipher for cipher in ciphers or () if cipher not in get_args(Cipher)]
    if unknown:
        raise ConfigurationError(
            f"There is no cipher {', '.join(unknown)}.",
            place="--cipher",
            remedy=f"Use {' or '.join(get_args(Cipher))}.",
        )
    return tuple(cipher for cipher in get_args(Cipher) if cipher in (ciphers or ()))


def _ciphers(keyring: FileKeyring, name: str) -> tuple[Cipher, ...]:
    return tuple(keyset.cipher for keyset in keyring.describe(name))
