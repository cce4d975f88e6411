"""The files of a new model, built in a staging folder: from here on only these files are attacked, and nothing else ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_airflow.models.artefact import INT8_FILE, MODEL_FILE, file_digest
from lepton_airflow.models.examples import Features
from lepton_airflow.models.loading import load_model
from lepton_airflow.models.plan import HardeningPlan


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """
    :param file: ``model.keras``
    :param digest: of ``file`` before anybody attacked it
    :param model: what was loaded from ``file``
    :param int8: the LiteRT model, if there is one
    :param zero_shares: the share of weights that are 0, by layer, if it was pruned
    """

    file: Path
    digest: str
    model: Any
    int8: bytes | None
    zero_shares: Mapping[str, float] | None


def build(network: Any, staging: Path, *, plan: HardeningPlan, representative: Features) -> BuiltModel:
    """Save a trained network, load it again from its file, and convert what was loaded if the plan asks for integers.

    :param representative: [n, d], raw training examples, for the scales of integers
    :raises InvalidData: see :func:`lepton_airflow.models.int8.to_int8`
    """
    file = staging / MODEL_FILE
    network.save(file)
    digest = file_digest(file)
    model = load_model(file, sha256=digest)
    int8, zeros = None, None
    if plan.int8:
        from lepton_airflow.models.int8 import to_int8

        int8 = to_int8(model, representative)
        (staging / INT8_FILE).write_bytes(int8)
    if plan.pruning:
        from lepton_airflow.models.pruning import zero_shares

        zeros = zero_shares(model)
    return BuiltModel(file=file, digest=digest, model=model, int8=int8, zero_shares=zeros)
