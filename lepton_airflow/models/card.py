"""The model card: what was trained on what, attacked how, and with which result. One JSON file beside the model."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import lepton_airflow
from lepton_airflow.models.artefact import CARD_FORMAT, INT8_FILE
from lepton_airflow.models.built_model import BuiltModel
from lepton_airflow.models.evaluation import Comparison, Curve, Evaluation, curve_points
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.gate import Verdict
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.plan import EvaluationPlan, RetrainingPlan
from lepton_airflow.models.splits import Splits
from lepton_airflow.models.training import TrainingRecord

LIMITS = (
    "Robust means: misled by none of the stated attacks. Another attack may find more; nothing here is a proof.",
    "The curve is measured by PGD alone, so it shows at least what a model keeps and may show more.",
    "Test examples are new units of the same table, not of another time or place.",
)
NOT_PRIVATE = "The model is not differentially private: it and this card hold exact statistics of the training data."
PRIVATE = (
    "The weights are differentially private for the units of the training split, as differential_privacy says. The accuracies "
    "here are exact counts over the held-out units, and are not."
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the training data came from and on whose behalf.

    :param rows: rows of the table, before repeated ones were dropped
    """

    run_key: str
    spec_digest: str
    purpose: str
    dataset: str
    rows: int
    features: Sequence[str]
    label: str
    classes: Sequence[str | int | bool]
    privacy_unit: str


def model_card(
    *,
    origin: Origin,
    plan: RetrainingPlan,
    seed: int,
    examples: Examples,
    splits: Splits,
    space: InputSpace,
    built: BuiltModel,
    standard: Curve | None,
    hardened: Evaluation,
    int8: Evaluation | None,
    comparison: Comparison | None,
    verdict: Verdict,
    records: Mapping[str, TrainingRecord],
    privacy: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Everything that somebody needs to judge the model, or to train and attack it again.

    :param seed: the one that was used, given or drawn
    :param standard: the curve of the baseline that saw no attack; None when none was trained
    :param int8: of the LiteRT model, if one ships
    :param comparison: with the champion that was there
    :param records: of the trainings, by name
    :param privacy: of a private training
    """
    return {
        "format": CARD_FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_key": origin.run_key,
        "spec_digest": origin.spec_digest,
        "purpose": origin.purpose,
        "data": {
            "dataset": origin.dataset,
            "digest": examples.digest(),
            "rows": origin.rows,
            "examples": len(examples),
            "units": examples.unit_count,
            "example": "a distinct combination of privacy unit, features and label",
            "features": list(origin.features),
            "image": None if plan.image is None else plan.image.model_dump(mode="json"),
            "label": origin.label,
            "classes": list(origin.classes),
            "privacy_unit": origin.privacy_unit,
            "split": "by privacy unit, keyed hash",
            "train": _size(splits.learned_from),
            "validation": _size(splits.validation),
            "test": _size(splits.held_out),
        },
        "model": {
            "file": built.file.name,
            "sha256": built.digest,
            "bytes": built.file.stat().st_size,
            "input": "features in raw units, in the order of data.features",
            "output": "logits, in the order of data.classes",
        },
        "preprocessing": {
            "layer": "standardise",
            "mean": space.mean.tolist(),
            "scale": space.scale.tolist(),
        },
        "threat_model": plan.threat_model.model_dump(mode="json", exclude_defaults=True),
        "training": plan.training.model_dump(mode="json"),
        "trainings": {
            name: {"kept_epoch": record.kept_epoch, "resumed_after": record.resumed_after}
            for name, record in records.items()
        },
        "hardening": {
            **plan.hardening.model_dump(mode="json"),
            **({"zero_shares": dict(built.zero_shares)} if built.zero_shares is not None else {}),
        },
        **_int8_section(built, int8),
        **({"differential_privacy": dict(privacy)} if privacy is not None else {}),
        "evaluation": {
            **evaluation_section(hardened, plan=plan.evaluation, comparison=comparison),
            "curve": {
                **({"standard": curve_points(standard)} if standard is not None else {}),
                "hardened": curve_points(hardened.curve),
            },
        },
        "gate": {**plan.gate.model_dump(mode="json"), "passed": verdict.passed, "reasons": list(verdict.reasons)},
        "seeds": {"training": seed, "given": plan.seed is not None},
        "limits": [*LIMITS, NOT_PRIVATE if privacy is None else PRIVATE],
        "versions": {
            "lepton-airflow": lepton_airflow.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("tensorflow", "keras", "numpy")},
        },
    }


def _size(part: Examples | None) -> dict[str, int] | None:
    return None if part is None else {"examples": len(part), "units": part.unit_count}


def _int8_section(built: BuiltModel, int8: Evaluation | None) -> dict[str, Any]:
    if built.int8 is None or int8 is None:
        return {}
    return {
        "int8": {
            "file": INT8_FILE,
            "sha256": f"sha256:{hashlib.sha256(built.int8).hexdigest()}",
            "bytes": len(built.int8),
            **measured_section(int8),
        }
    }


def evaluation_section(
    evaluation: Evaluation, *, plan: EvaluationPlan, comparison: Comparison | None
) -> dict[str, Any]:
    """How the shipped model was attacked and what it kept."""
    pgd = next(stage for stage in evaluation.stages() if stage["name"] == "pgd")
    return {
        **measured_section(evaluation),
        "attack": {"name": "pgd", **pgd["parameters"]},
        "expectation_samples": plan.expectation_samples,
        "comparison": comparison.to_dict()
        | {"interval": "Newcombe's method 10 for paired shares, 95%, over privacy units"}
        if comparison
        else None,
    }


def measured_section(evaluation: Evaluation) -> dict[str, Any]:
    """What any attacked model kept, the compressed one too."""
    return {
        "interval": "Wilson score, 95%, over privacy units",
        "clean": evaluation.clean.to_dict(),
        "robust": {"epsilon": evaluation.epsilon, **evaluation.robust.to_dict()},
        "suite": evaluation.stages(),
        "violations": evaluation.suite.violations,
        "refusals": [refusal.to_dict() for refusal in evaluation.refusals],
    }
