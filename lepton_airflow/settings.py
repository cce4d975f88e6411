"""Where this environment keeps its audit database, keyring, identity and policy.

Settings hold references only, never a secret: they may be logged. They are read from one YAML file
(``$LEPTON_HOME/lepton.yaml``, written by ``lepton init``), and single fields can be overridden by environment variables,
``LEPTON_<FIELD>``, or by the Lepton connection of an Airflow operator.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from lepton_airflow.errors import ConfigurationError

SETTINGS_FILE = "lepton.yaml"
#: The audit database's password travels in this environment variable only.
DATABASE_PASSWORD_VARIABLE = "LEPTON_AUDIT_DATABASE_PASSWORD"  # noqa: S105 - the name of a variable, not a password


_NOT_IN_THE_ENVIRONMENT = ("home", "checkpoint_exports", "storage_nodes", "witnesses", "witness_places")


NodeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Settings(BaseModel):
    """References to what a job needs besides its spec. Relative paths are relative to ``home``.

    :param home: the folder that ``lepton init`` made
    :param audit_database: SQLAlchemy URL of the audit database, without a password
    :param allow_unverified_database: accept a PostgreSQL server on another machine without ``sslmode=verify-full``
    :param audit_writer_role: PostgreSQL role that only adds events; migrating makes it, empty makes none
    :param audit_sealer_role: PostgreSQL role of the sealer
    :param keyring: folder of sealed keysets
    :param identities: folder of private identities (mode 0700); which one a job uses says ``identity``
    :param identity: name of the identity under which jobs unseal keys and are authorised, or the path of its file
    :param recipients: folder of public keys to which keysets can be sealed
    :param policy: the access policy
    :param policy_engine: what reads the policy and decides: ``builtin`` (a YAML file) or ``cedar`` (a ``.cedar`` file, with the
        extra ``cedar``)
    :param environment: where this is, such as ``production``: conditions of the policy can ask for it. Whoever may set
        ``LEPTON_ENVIRONMENT`` says it, so it guards against mistakes and not against that person
    :param model_signing_key: name of the key in the keyring that signs models; none signs them. With one, a model without its
        signature is refused
    :param model_verifier: the public key with which models must be signed, where the keyring's own file is not the one to trust
    :param training_network: ``trusted`` says that nobody but Spark's workers can read or reach the network between them: only
        then does a training by several workers span several hosts, whose gradients TensorFlow sends in the clear
    :param checkpoint_signer: the sealer's private key; only the sealer can read it
    :param checkpoint_verifier: the sealer's public key
    :param checkpoint_exports: places outside the database to which every signed checkpoint is copied: folders, URLs of fsspec
        file systems (``s3://bucket/audit``), or a second database (``postgresql://...``, ``sqlite:///...``)
    :param storage_nodes: name -> place of each storage node: folders, or URLs of file systems that pyarrow opens
        (``s3://bucket/shards``)
    :param witnesses: public keys of witnesses (``lepton audit witness keygen`` prints them)
    :param witness_quorum: so many of them must have cosigned the latest checkpoint, or it does not verify
    :param witness_places: where witnesses leave cosigned checkpoints, if not in ``checkpoint_exports``
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path
    audit_database: str = "sqlite:///audit.db"
    allow_unverified_database: bool = False
    audit_writer_role: str = "lepton_writer"
    audit_sealer_role: str = "lepton_sealer"
    keyring: Path = Path("keyring")
    identities: Path = Path("identities")
    identity: str = ""
    recipients: Path = Path("recipients")
    policy: Path = Path("policy.yaml")
    policy_engine: Literal["builtin", "cedar"] = "builtin"
    environment: str = ""
    training_network: Literal["untrusted", "trusted"] = "untrusted"
    model_signing_key: str = ""
    model_verifier: Path | None = None
    checkpoint_signer: Path = Path("sealer/checkpoint.key")
    checkpoint_verifier: Path = Path("checkpoint.pub")
    checkpoint_exports: tuple[Path | str, ...] = (Path("checkpoints"),)
    storage_nodes: dict[NodeName, Path | str] = {}
    witnesses: tuple[str, ...] = ()
    witness_quorum: int = Field(default=0, ge=0)
    witness_places: tuple[Path | str, ...] = ()

    def model_post_init(self, _context: Any) -> None:
        home = self.home.expanduser().absolute()
        paths = {"home": home}
        for name in ("keyring", "identities", "recipients", "policy", "checkpoint_signer", "checkpoint_verifier"):
            paths[name] = home / getattr(self, name)
        if self.model_verifier is not None:
            paths["model_verifier"] = home / self.model_verifier
        for name, path in paths.items():
            object.__setattr__(self, name, path)
        for name in ("checkpoint_exports", "witness_places"):
            places = (_under(home, place) for place in getattr(self, name))
            object.__setattr__(self, name, tuple(places))
        nodes = {name: _under(home, place) for name, place in self.storage_nodes.items()}
        object.__setattr__(self, "storage_nodes", nodes)
        object.__setattr__(self, "audit_database", _under_sqlite(home, self.audit_database))

    @property
    def identity_file(self) -> Path:
        """The private identity's file.

        :raises ConfigurationError: no identity is chosen
        """
        if not self.identity:
            raise ConfigurationError(
                "No identity is chosen.",
                place=str(self.home / SETTINGS_FILE),
                remedy="Set `identity:` there, LEPTON_IDENTITY, or the identity of the Lepton connection.",
            )
        if "/" in self.identity:
            return self.home / Path(self.identity).expanduser()
        return self.identities / f"{self.identity}.identity.json"


def _under(home: Path, place: Path | str) -> Path | str:
    """An export's place: a URL stays one, a path follows the home folder."""
    text = str(place)
    return _under_sqlite(home, text) if isinstance(place, str) and "://" in text else home / text


def _under_sqlite(home: Path, url: str) -> str:
    """SQLite paths follow the home folder like every other path; an absolute one stays as it is."""
    prefix = "sqlite:///"
    return f"{prefix}{home / url.removeprefix(prefix)}" if url.startswith(prefix) else url


def load_settings(home: str | Path | None = None, overrides: Mapping[str, str] | None = None) -> Settings:
    """Read the settings of ``home`` (default ``$LEPTON_HOME``, else ``~/.lepton``).

    :param overrides: fields that win over the file and the environment (the Lepton connection's)
    :raises ConfigurationError: the file is missing or not valid
    """
    folder = Path(home or os.environ.get("LEPTON_HOME") or "~/.lepton").expanduser().absolute()
    file = folder / SETTINGS_FILE
    try:
        fields = yaml.safe_load(file.read_text()) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The settings cannot be read ({type(error).__name__}).",
            place=str(file),
            remedy="Run `lepton init` to make them, or set LEPTON_HOME to the folder that holds them.",
        ) from None
    if not isinstance(fields, dict):
        raise ConfigurationError("The settings must be a mapping.", place=str(file), remedy="See `lepton init`.")
    for name in Settings.model_fields:
        value = os.environ.get(f"LEPTON_{name.upper()}")
        if value and name not in _NOT_IN_THE_ENVIRONMENT:
            fields[name] = value
    fields |= dict(overrides or {})
    fields["home"] = folder
    try:
        return Settings(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigurationError(
            f"{first['msg']}.",
            place=f"{file}: {'.'.join(str(part) for part in first['loc'])}",
            remedy=f"Known settings: {', '.join(Settings.model_fields)}.",
        ) from None
