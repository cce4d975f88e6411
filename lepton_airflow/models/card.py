"""The model card: what was trained on what, attacked how, and with which result. One JSON file beside the model."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lepton_airflow
from lepton_airflow.models.artefact import CARD_FORMAT
from lepton_airflow.models.evaluation import Comparison, Curve, Evaluation, curve_points
from lepton_airflow.models.examples import Examples, Features
from lepton_airflow.models.gate import Verdict
from lepton_airflow.models.plan import EvaluationPlan, RetrainingPlan

LIMITS = (
    "Robust means: misled by none of the stated attacks. Another attack may find more; nothing here is a proof.",
    "The curve is measured by PGD alone, so it shows at least what a model keeps and may show more.",
    "The model is not differentially private: it and this card hold exact statistics of the training data.",
    "Test examples are new units of the same table, not of another time or place.",
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
    train: Examples,
    test: Examples,
    mean: Features,
    scale: Features,
    model_file: Path,
    model_digest: str,
    standard: Curve,
    hardened: Evaluation,
    comparison: Comparison | None,
    verdict: Verdict,
) -> dict[str, Any]:
    """Everything that somebody needs to judge the model, or to train and attack it again.

    :param seed: the one that was used, given or drawn
    :param mean: [features], raw units
    :param scale: [features], raw units in one unit of epsilon
    :param model_file: the file that was loaded and attacked
    :param model_digest: its digest before that
    :param standard: the curve of the baseline that saw no attack
    :param comparison: with the champion that was there
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
            "train": {"examples": len(train), "units": train.unit_count},
            "test": {"examples": len(test), "units": test.unit_count},
        },
        "model": {
            "file": model_file.name,
            "sha256": model_digest,
            "bytes": model_file.stat().st_size,
            "input": "features in raw units, in the order of data.features",
            "output": "logits, in the order of data.classes",
        },
        "preprocessing": {
            "layer": "standardise",
            "mean": mean.tolist(),
            "scale": scale.tolist(),
        },
        "threat_model": plan.threat_model.model_dump(mode="json", exclude_defaults=True),
        "training": plan.training.model_dump(mode="json"),
        "hardening": plan.hardening.model_dump(mode="json"),
        "evaluation": {
            **evaluation_section(hardened, plan=plan.evaluation, comparison=comparison),
            "curve": {"standard": curve_points(standard), "hardened": curve_points(hardened.curve)},
        },
        "gate": {**plan.gate.model_dump(mode="json"), "passed": verdict.passed, "reasons": list(verdict.reasons)},
        "seeds": {"training": seed, "given": plan.seed is not None},
        "limits": list(LIMITS),
        "versions": {
            "lepton-airflow": lepton_airflow.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("tensorflow", "keras", "numpy")},
        },
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
