"""Keys of AWS KMS as recipients, against a server of AWS's interface (moto) in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.errors import (
    ConfigurationError,
    KeyServiceUnavailable,
    KeyUnavailable,
    TargetExists,
)
from lepton_airflow.keys.identity import Identity, Recipient, identity_file, kms_identity, recipient_file
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.keys.kms import KmsKey
from lepton_airflow.keys.reference import KeysetReference

SECRET = bytes(range(32))
REGION = "eu-central-1"


@pytest.fixture
def aws(aws_server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the service; identities find the service and credentials in the environment, as everywhere on AWS."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": aws_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return boto3.client("kms")


@pytest.fixture
def key_uri(aws: Any) -> str:
    return f"aws-kms://{aws.create_key()['KeyMetadata']['Arn']}"


@pytest.fixture
def cloud(key_uri: str, tmp_path: Path) -> Identity:
    kms_identity("cloud", key_uri=key_uri, identities=tmp_path / "identities", recipients=tmp_path / "recipients")
    return Identity.load(identity_file("cloud", tmp_path / "identities"))


def test_the_service_opens_what_it_sealed(cloud, tmp_path):
    recipient = Recipient.load(recipient_file("cloud", tmp_path / "recipients"))
    assert recipient == cloud.recipient
    assert recipient.algorithm == "KMS_AEAD"
    sealed = recipient.seal(SECRET, b"purpose")
    assert SECRET not in sealed
    assert cloud.unseal(sealed, b"purpose") == SECRET


def test_the_identity_file_holds_no_secret(cloud, key_uri, tmp_path):
    document = json.loads(identity_file("cloud", tmp_path / "identities").read_text())
    assert set(document) == {"format", "name", "algorithm", "fingerprint", "public_key", "provider"}


def test_a_keyset_is_sealed_to_a_file_identity_and_to_the_service(cloud, make_identity, tmp_path):
    etl = make_identity("etl")
    keyring = FileKeyring(tmp_path / "keyring")
    keyring.create("clinic", cipher="AES256_SIV", recipients=[etl.recipient])
    keyring.grant("clinic", cipher="AES256_SIV", identity=etl, recipient=cloud.recipient)
    reference = KeysetReference(
        keyring=str(keyring.folder),
        name="clinic",
        cipher="AES256_SIV",
        identity_file=str(identity_file("cloud", tmp_path / "identities")),
    )
    assert reference.open().keys == keyring.open("clinic", cipher="AES256_SIV", identity=etl).keys
    keyring.revoke("clinic", cipher="AES256_SIV", identity=etl, recipient="cloud")
    with pytest.raises(KeyUnavailable, match="not sealed to the identity 'cloud'"):
        reference.open()


def test_another_purpose_another_key_and_a_changed_seal_do_not_open(cloud, aws, tmp_path):
    other_uri = f"aws-kms://{aws.create_key()['KeyMetadata']['Arn']}"
    kms_identity("other", key_uri=other_uri, identities=tmp_path / "identities", recipients=tmp_path / "recipients")
    other = Identity.load(identity_file("other", tmp_path / "identities"))
    sealed = cloud.recipient.seal(SECRET, b"purpose")
    for identity, seal, info in (
        (cloud, sealed, b"another purpose"),
        (other, sealed, b"purpose"),
        (cloud, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"purpose"),
        (cloud, b"", b"purpose"),
    ):
        with pytest.raises(KeyUnavailable):
            identity.unseal(seal, info)


def test_the_purpose_is_not_in_the_request(cloud):
    # The encryption context shows in the service's own logs: it gets a digest.
    key = KmsKey(cloud.recipient.public_key, place="identity 'cloud'")
    _, bound = key._bound(SECRET, b"keyset clinic")
    assert b"clinic" not in bound
    assert len(bound) == 32


def test_a_key_that_is_missing_is_refused_and_named(key_uri, tmp_path):
    missing = key_uri[:-12] + "000000000000"
    with pytest.raises(KeyUnavailable, match=f"{missing}.*NotFoundException"):
        kms_identity("none", key_uri=missing, identities=tmp_path / "identities", recipients=tmp_path / "recipients")
    assert not (tmp_path / "identities").exists()


def test_missing_credentials_are_final_and_a_service_that_is_away_is_not(cloud, free_port, monkeypatch):
    sealed = cloud.recipient.seal(SECRET, b"purpose")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port}")
    with pytest.raises(KeyServiceUnavailable, match="EndpointConnectionError") as away:
        cloud.unseal(sealed, b"purpose")
    assert not away.value.final
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(KeyUnavailable, match="NoCredentialsError") as refused:
        cloud.unseal(sealed, b"purpose")
    assert refused.value.final


def test_an_identity_of_a_service_is_not_overwritten(cloud, key_uri, tmp_path):
    with pytest.raises(TargetExists):
        kms_identity("cloud", key_uri=key_uri, identities=tmp_path / "identities", recipients=tmp_path / "recipients")


@pytest.mark.parametrize(
    "uri",
    [
        "aws-kms://alias/etl",
        "aws-kms://arn:aws:kms:eu-central-1:123456789012:alias/etl",
        "aws-kms://arn:aws:s3:eu-central-1:123456789012:key/1",
        "gcp-kms://projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
        "hcvault://vault.example/transit",
        "https://example.org",
        "",
        "aws-kms://arn:aws:kms:eu-central-1:123456789012:key/1\n",
    ],
)
def test_a_uri_that_is_no_key_is_refused(uri, tmp_path):
    with pytest.raises(ConfigurationError, match="URI"):
        kms_identity("cloud", key_uri=uri, identities=tmp_path / "identities", recipients=tmp_path / "recipients")


@pytest.mark.parametrize(
    ("uri", "library", "extra"),
    [
        ("aws-kms://arn:aws:kms:eu-central-1:123456789012:key/1", "boto3", "lepton-airflow[aws]"),
        ("gcp-kms://projects/p/locations/l/keyRings/r/cryptoKeys/k", "google.cloud.kms_v1", "tink[gcpkms]"),
        ("hcvault://vault.example:8200/transit/keys/etl", "hvac", "tink[hcvault]"),
    ],
)
def test_a_missing_library_is_named(uri, library, extra, tmp_path):
    code = f"""
import sys
sys.modules[{library!r}] = None
from lepton_airflow.errors import MissingDependency
from lepton_airflow.keys.kms import KmsKey
try:
    KmsKey({uri.encode()!r}, place="identity").check()
except MissingDependency as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"Install {extra}" in said
