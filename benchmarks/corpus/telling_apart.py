"""How many masked models the gate's diagnosis refuses, and how many honest ones, on seeds on which no threshold was set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from corpus.masked_models import Case, breast_cancer, digits, honest_models, masked_models

from lepton_airflow.models.evaluation import evaluate
from lepton_airflow.models.plan import EvaluationPlan

#: The thresholds of :mod:`lepton_airflow.models.masking` were set on seeds 1, 2 and 3.
SEEDS = (21, 22)
#: Each data set's masks stand before one of its honest models.
MASKED = ("standard, dense", "PGD, convolutional")


@dataclass(frozen=True, kw_only=True)
class Told:
    """One model: whether it is masked, and the codes for which it was refused."""

    case: str
    seed: int
    model: str
    masked: bool
    clean: float
    robust: float
    codes: tuple[str, ...]


def told_apart(*, quick: bool) -> Iterator[Told]:
    """Five masked and five honest models of each data set and seed; when quick, one honest one, the breast cancer
    records and one seed."""
    for seed in SEEDS[:1] if quick else SEEDS:
        for case in [breast_cancer(seed)] if quick else [breast_cancer(seed), digits(seed)]:
            yield from _of(case, seed, quick=quick)


def shares(told: list[Told]) -> dict[str, float]:
    """The shares of the masked and of the honest models that were refused: 1 and 0 are meant."""
    return {
        f"{kind}_refused": float(np.mean([bool(one.codes) for one in told if one.masked == masked]))
        for kind, masked in (("masked", True), ("honest", False))
    }


def _of(case: Case, seed: int, *, quick: bool) -> Iterator[Told]:
    if quick:
        case = replace(case, held_out=case.held_out.take(np.arange(len(case.held_out)) < 80))
    plan = EvaluationPlan(
        epsilons=(2 * case.epsilon,) if quick else (case.epsilon / 2, 2 * case.epsilon, 4 * case.epsilon),
        steps=20,
        restarts=1 if quick else 2,
        apgd_steps=20 if quick else 50,
        square_queries=20 if quick else 500,
    )
    honest = honest_models(case, seed, epochs=15 if quick else 30, names=("standard, dense",) if quick else None)
    base = next(name for name in reversed(MASKED) if name in honest)
    for masked, models in ((False, honest), (True, masked_models(case, honest[base]))):
        for name, model in models.items():
            yield _told(case, seed, name, model, masked=masked, plan=plan)


def _told(case: Case, seed: int, name: str, model: Any, *, masked: bool, plan: EvaluationPlan) -> Told:
    found = evaluate(model, case.held_out, space=case.space, epsilon=case.epsilon, plan=plan, seed=seed)
    return Told(
        case=case.name,
        seed=seed,
        model=name,
        masked=masked,
        clean=found.clean.share,
        robust=found.robust.share,
        codes=tuple(refusal.code for refusal in found.refusals),
    )
