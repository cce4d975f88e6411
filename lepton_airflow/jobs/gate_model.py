"""Hold an existing model against a gate: attack it on a protected table and on request compare it with the champion."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from lepton_airflow.errors import GateRefused
from lepton_airflow.jobs.examples import NewerThan
from lepton_airflow.jobs.spec import JobSpec, TableReference
from lepton_airflow.models.plan import EvaluationPlan, GatePlan
from lepton_airflow.models.threat_model import ThreatModel

if TYPE_CHECKING:
    from lepton_airflow.jobs.examples import ReadExamples
    from lepton_airflow.jobs.runner import Job
    from lepton_airflow.models.artefact import ModelFolder
    from lepton_airflow.models.champion import Champion
    from lepton_airflow.models.evaluation import Comparison, Evaluation
    from lepton_airflow.models.refusals import Refusal


class GateModelSpec(JobSpec):
    """Which model must reach what, on which rows. Columns and classes are those of its card.

    People whom the model was trained on flatter it. That a table is the very one it was trained on is noticed by its digest; that
    some of its people are in both only with ``trained_on``.

    :param source: the protected table; what is encrypted is decrypted in memory only
    :param newer_than: attack only rows whose ``column`` is greater than ``value``
    :param trained_on: the table that the model was trained on: nobody in it may be in ``source``
    :param model: the model's folder, on a file system that the Spark driver has mounted
    :param champion: the folder of the model to compare with
    :param threat_model: how far an attacker may move an example; by default as the model's card says
    :param evaluation: how it is attacked
    :param gate: what it must reach
    :param seed: of the attacks; by default it comes from the operating system
    """

    source: TableReference
    newer_than: NewerThan | None = None
    trained_on: TableReference | None = None
    model: str = Field(min_length=1)
    champion: str | None = Field(default=None, min_length=1)
    threat_model: ThreatModel | None = None
    evaluation: EvaluationPlan = EvaluationPlan()
    gate: GatePlan
    seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _two_models(self) -> GateModelSpec:
        if self.champion is not None and Path(self.champion) == Path(self.model):
            raise ValueError("model and champion must be different folders")
        return self


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """What came of the attack, and why it was refused; no reasons mean that it passed."""

    evaluation: Evaluation
    comparison: Comparison | None
    refusals: tuple[Refusal, ...]
    reasons: tuple[str, ...]


def run(spec: GateModelSpec, job: Job) -> dict[str, Any]:
    """Read, attack, compare and judge. Nothing is written but the events of the audit; both models stay as they are.

    :returns: ``gate``; ``clean_accuracy`` and ``robust_accuracy`` of ``n_test`` examples of ``units``, with their
        ``clean_interval`` and ``robust_interval``; ``attacks``: what was left after each; ``epsilon``, ``seed``; ``sha256`` of
        the model file; with a champion its ``champion_sha256``, and ``clean_difference`` and ``robust_difference``, each with
        the ends of its interval
    :raises UnreadableSource: there is no model
    :raises ModelTampered: a model file is not the one that its card describes; it is not loaded
    :raises SpecError: the champion has other inputs or classes; or the threat model does not fit the model's inputs
    :raises InvalidData: rows that the model cannot be asked about, or that break the threat model's constraints
    :raises GateRefused: with the reasons
    """
    model = _opened(spec.model, job)
    champion = None if spec.champion is None else _opened(spec.champion, job)
    if champion is not None:
        from lepton_airflow.models.champion import require_same_inputs

        require_same_inputs(
            champion.card, features=model.features, image=model.image, classes=model.classes, place=str(spec.champion)
        )
    if spec.threat_model is not None:
        stated = spec.threat_model.model_dump(mode="json", exclude_defaults=True)
        model = replace(model, card={**model.card, "threat_model": stated})
    with job.guard.operation(
        action="evaluate",
        dataset=spec.source.name,
        columns=model.columns,
        purpose=spec.purpose,
        details={"model": spec.model, **({} if spec.champion is None else {"champion": spec.champion})},
    ) as operation:
        read = _read(spec, job, model, spec.source)
        before = None if spec.trained_on is None else _trained_on(spec.trained_on, spec, job, model)
        seed = secrets.randbits(31) if spec.seed is None else spec.seed
        judged = _judge(spec, job, model=model, champion=champion, read=read, trained_on=before, seed=seed)
        summary = _summary(judged, model=model, champion=champion, seed=seed)
        operation.record(
            counts={"rows": read.rows, "examples": len(read.examples), "units": read.examples.unit_count},
            digests={
                "data": read.examples.digest(),
                "model": model.digest,
                **({} if champion is None else {"champion": champion.digest}),
            },
            details={
                "gate": summary["gate"],
                "clean_accuracy": summary["clean_accuracy"],
                "robust_accuracy": summary["robust_accuracy"],
                "epsilon": summary["epsilon"],
                "refusals": ", ".join(refusal.code for refusal in judged.refusals),
            },
        )
        if judged.reasons:
            raise GateRefused(
                f"The model does not pass the gate: {'; '.join(judged.reasons)}.",
                place=spec.model,
                remedy="Keep the model that is in use; train this one longer, or defend against a smaller epsilon.",
            )
    return summary


def _folder(path: str, job: Job) -> ModelFolder:
    from lepton_airflow.models.artefact import ModelFolder
    from lepton_airflow.models.signing import verifier_of

    return ModelFolder(Path(path), verifier=verifier_of(job.settings))


def _opened(path: str, job: Job) -> Champion:
    from lepton_airflow.models.champion import Champion

    return Champion.open(_folder(path, job))


def _read(spec: GateModelSpec, job: Job, model: Champion, source: TableReference) -> ReadExamples:
    from lepton_airflow.jobs.examples import read_examples

    return read_examples(
        job,
        source=source,
        features=model.features,
        image=model.image,
        label=model.label,
        classes=model.classes,
        privacy_unit=model.privacy_unit,
        purpose=spec.purpose,
        newer_than=spec.newer_than if source == spec.source else None,
        one_class_is_enough=True,
    )


def _trained_on(table: TableReference, spec: GateModelSpec, job: Job, model: Champion) -> ReadExamples:
    """The table that the model was trained on, under an authorisation of its own."""
    with job.guard.operation(
        action="evaluate", dataset=table.name, columns=model.columns, purpose=spec.purpose
    ) as operation:
        read = _read(spec, job, model, table)
        operation.record(counts={"rows": read.rows}, digests={"data": read.examples.digest()})
    return read


def _judge(
    spec: GateModelSpec,
    job: Job,
    *,
    model: Champion,
    champion: Champion | None,
    read: ReadExamples,
    trained_on: ReadExamples | None,
    seed: int,
) -> _Judged:
    from lepton_airflow.models.runtime import load_tensorflow

    load_tensorflow()
    from lepton_airflow.models.evaluation import compare, evaluate
    from lepton_airflow.models.gate import judge
    from lepton_airflow.models.input_space import require_inside
    from lepton_airflow.models.refusals import other_artefact, overlap, same_data

    space, epsilon = model.space(), model.threat_model.epsilon
    require_inside(read.examples, space, place=spec.source.name)
    other = None if champion is None else champion.load()
    evaluation = evaluate(
        model.load(), read.examples, space=space, epsilon=epsilon, plan=spec.evaluation, seed=seed, champion=other
    )
    comparison = None
    if other is not None:
        there = evaluate(other, read.examples, space=space, epsilon=epsilon, plan=spec.evaluation, seed=seed)
        comparison = compare(there, evaluation)
    refusals = (
        *same_data(str(model.card["data"]["digest"]), read.examples),
        *(() if trained_on is None else overlap(trained_on.examples, read.examples)),
        # The folder may have got another model while this one was attacked.
        *other_artefact(model.digest, _opened(spec.model, job).digest),
    )
    verdict = judge(spec.gate, evaluation=evaluation, refusals=refusals, comparison=comparison)
    return _Judged(
        evaluation=evaluation,
        comparison=comparison,
        refusals=(*evaluation.refusals, *refusals),
        reasons=verdict.reasons,
    )


def _summary(judged: _Judged, *, model: Champion, champion: Champion | None, seed: int) -> dict[str, Any]:
    evaluation = judged.evaluation
    clean, robust = evaluation.clean, evaluation.robust
    summary: dict[str, Any] = {
        "gate": "refused" if judged.reasons else "passed",
        "clean_accuracy": clean.share,
        "clean_interval": list(clean.interval),
        "robust_accuracy": robust.share,
        "robust_interval": list(robust.interval),
        "n_test": robust.examples,
        "units": robust.units,
        "attacks": {stage["name"]: stage["successes"] for stage in evaluation.stages()},
        "epsilon": evaluation.epsilon,
        "seed": seed,
        "sha256": model.digest,
    }
    if champion is not None and judged.comparison is not None:
        summary["champion_sha256"] = champion.digest
        for name, difference in (("clean", judged.comparison.clean), ("robust", judged.comparison.robust)):
            summary[f"{name}_difference"] = [difference.mean, difference.lower, difference.upper]
    return summary
