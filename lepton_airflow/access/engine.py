"""Which engine decides: as the settings say."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lepton_airflow.access.policy import Policy
from lepton_airflow.access.request import PolicyEngine
from lepton_airflow.errors import ConfigurationError
from lepton_airflow.settings import Settings

EngineName = Literal["builtin", "cedar"]


def load_policy(settings: Settings) -> PolicyEngine:
    """Read the policy that the settings name, with the engine that they name.

    :raises ConfigurationError: the file is missing, not valid, or for the other engine
    :raises MissingDependency: the engine is Cedar, and cedarpy is not installed
    """
    return read_policy(settings.policy, engine=settings.policy_engine)


def read_policy(path: Path, *, engine: EngineName) -> PolicyEngine:
    """Read a policy file.

    :raises LeptonError: as :func:`load_policy`
    """
    # Not at the top: the built-in engine needs none of it.
    from lepton_airflow.access.cedar import SUFFIX, CedarPolicy

    if (path.suffix == SUFFIX) != (engine == "cedar"):
        raise ConfigurationError(
            f"The policy engine {engine} does not read this file.",
            place=str(path),
            remedy="`policy_engine: cedar` goes with a .cedar file as `policy:`, the built-in engine with a YAML file.",
        )
    return CedarPolicy.load(path) if engine == "cedar" else Policy.load(path)
