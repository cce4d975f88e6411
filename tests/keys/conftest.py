"""Identities, recipients and a keyring with one keyset, in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lepton_airflow.keys.identity import (
    Identity,
    Recipient,
    generate_identity,
    identity_file,
)
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.keys.sealing import DEFAULT_ALGORITHM, SealingAlgorithm

MakeIdentity = Callable[..., Identity]


@pytest.fixture
def make_identity(tmp_path: Path) -> MakeIdentity:
    def make(name: str, algorithm: SealingAlgorithm = DEFAULT_ALGORITHM) -> Identity:
        identities = tmp_path / "identities"
        generate_identity(name, algorithm=algorithm, identities=identities, recipients=tmp_path / "recipients")
        return Identity.load(identity_file(name, identities))

    return make


@pytest.fixture
def etl(make_identity: MakeIdentity) -> Identity:
    return make_identity("etl")


@pytest.fixture
def recipient(etl: Identity) -> Recipient:
    return etl.recipient


@pytest.fixture
def keyring(tmp_path: Path, etl: Identity) -> FileKeyring:
    keyring = FileKeyring(tmp_path / "keyring")
    keyring.create("clinic", cipher="AES256_GCM", recipients=[etl.recipient])
    return keyring
