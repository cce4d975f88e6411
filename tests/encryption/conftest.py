"""A keyring with one keyset for each cipher, sealed to one identity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

from lepton_airflow.keys.cipher import Cipher
from lepton_airflow.keys.identity import Identity, generate_identity, identity_file
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.keys.keyset import Keyset
from lepton_airflow.keys.reference import KeysetReference


@dataclass(frozen=True)
class Keys:
    """The keyset ``clinic`` and the identity ``etl`` that opens it."""

    keyring: FileKeyring
    identity: Identity
    identity_file: Path

    @property
    def references(self) -> dict[str, KeysetReference]:
        return {
            cipher: KeysetReference(str(self.keyring.folder), "clinic", cipher, str(self.identity_file))
            for cipher in get_args(Cipher)
        }

    def keyset(self, cipher: Cipher) -> Keyset:
        return self.keyring.open("clinic", cipher=cipher, identity=self.identity)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    identities = tmp_path / "identities"
    recipient = generate_identity("etl", identities=identities, recipients=tmp_path / "recipients")
    keyring = FileKeyring(tmp_path / "keyring")
    for cipher in get_args(Cipher):
        keyring.create("clinic", cipher=cipher, recipients=[recipient])
    file = identity_file("etl", identities)
    return Keys(keyring=keyring, identity=Identity.load(file), identity_file=file)
