"""Retrain a classifier against attack, from a protected table to a champion behind a gate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import Field, StrictBool, StrictInt, StrictStr, model_validator

from lepton_airflow.errors import GateRefused
from lepton_airflow.jobs.spec import JobSpec, TableReference
from lepton_airflow.models.plan import (
    EvaluationPlan,
    GatePlan,
    HardeningPlan,
    ImageColumn,
    RetrainingPlan,
    TrainingPlan,
)
from lepton_airflow.models.threat_model import ThreatModel

if TYPE_CHECKING:
    from lepton_airflow.access.guard import Operation
    from lepton_airflow.jobs.runner import Job
    from lepton_airflow.jobs.training_budget import TrainingBudget
    from lepton_airflow.models.artefact import ModelFolder


class RetrainModelSpec(JobSpec):
    """What to learn from which columns, against which attacker, and what the result must reach.

    The model is trained on the distinct combinations of privacy unit, features and label: rows that repeat one, such
    as the same measurements at every visit of a patient, count once. All examples of a unit are either trained on or
    tested on.

    :param source: the protected table. Encrypted features and labels are decrypted in memory only; the unit stays
        encrypted
    :param privacy_unit: the column that identifies the person
    :param label_column: the column with the class
    :param classes: the labels that may occur, in the order of the model's outputs; at least two, all of one type
    :param features: columns of numbers, in the order of the model's inputs; or
    :param image: the column of images that the model sees instead
    :param threat_model: how far an attacker may move an example
    :param training: how the model is trained
    :param hardening: what is made of it before it is attacked
    :param evaluation: how it is attacked
    :param gate: what it must reach to replace the champion
    :param target: the champion's folder, on a file system that the Spark driver has mounted
    :param budget: the dataset whose privacy budget pays for private training; by default the source's name
    :param seed: fixes weights, batches, attack starts and the split, so that a run can be repeated; by default they
        come from the operating system. It protects nothing, which is why a spec may hold one: neither noise nor a key
        ever comes from it. Who knows it can tell which units were tested on
    """

    source: TableReference
    privacy_unit: str = Field(min_length=1)
    label_column: str = Field(min_length=1)
    classes: tuple[StrictBool | StrictInt | StrictStr, ...] = Field(min_length=2)
    features: tuple[str, ...] = ()
    image: ImageColumn | None = None
    threat_model: ThreatModel
    training: TrainingPlan = TrainingPlan()
    hardening: HardeningPlan = HardeningPlan()
    evaluation: EvaluationPlan = EvaluationPlan()
    gate: GatePlan
    target: str = Field(min_length=1)
    budget: str | None = Field(default=None, min_length=1)
    seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _columns_classes_and_target(self) -> RetrainModelSpec:
        if bool(self.features) == bool(self.image):
            raise ValueError("give either features or image")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("features (or image), label_column and privacy_unit must be different columns")
        if len(set(self.classes)) < len(self.classes) or len({type(name) for name in self.classes}) > 1:
            raise ValueError("classes must be different values of one type")
        if "://" in self.target or self.target.startswith("file:"):
            raise ValueError("target must be a folder of a mounted file system, not a URI")
        if self.budget is not None and self.training.differential_privacy is None:
            raise ValueError("budget goes with training.differential_privacy")
        _ = self.plan  # whose parts must go together
        return self

    @property
    def plan(self) -> RetrainingPlan:
        return RetrainingPlan(
            threat_model=self.threat_model,
            training=self.training,
            hardening=self.hardening,
            evaluation=self.evaluation,
            gate=self.gate,
            image=self.image,
            seed=self.seed,
        )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that the model sees."""
        return self.features if self.image is None else (self.image.column,)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.inputs, self.label_column, self.privacy_unit)


def run(spec: RetrainModelSpec, job: Job) -> dict[str, Any]:
    """Train, attack, judge and publish; a model that does not pass leaves the champion where it is.

    :returns: ``clean_accuracy``, ``robust_accuracy`` (at ``epsilon``, of ``n_test`` examples), ``gate``, ``path``
        (the folder), ``sha256`` of the model file, ``replayed``: an earlier try had published this very model already; and for
        private training ``epsilon_spent`` and ``epsilon_left``
    :raises SpecError: the champion has other inputs or classes
    :raises BudgetExhausted: private training would cost more than is left; no data was read
    :raises GateRefused: with the reasons
    """
    from lepton_airflow.models.artefact import ModelFolder
    from lepton_airflow.models.champion import require_same_inputs
    from lepton_airflow.models.registry import ModelRegistry
    from lepton_airflow.models.shipping import model_name, register_champion
    from lepton_airflow.models.signing import verifier_of
    from lepton_airflow.models.tracking import measurements, track

    folder = ModelFolder(Path(spec.target), verifier=verifier_of(job.settings))
    with job.guard.operation(
        action="train",
        dataset=spec.source.name,
        columns=spec.columns,
        purpose=spec.purpose,
        details={"target": spec.target},
    ) as operation:
        card = folder.committed(run_key=job.run_key, spec_digest=job.spec_digest)
        champion = folder.champion()
        if champion is not None:
            require_same_inputs(
                champion, features=spec.features, image=spec.image, classes=spec.classes, place=str(folder.path)
            )
        replayed = card is not None
        with _budget(spec, job, replayed=replayed) as budget:
            if card is None:
                card = _retrain(spec, job, folder, budget)
            summary = _summary(card, folder)
            operation.record(
                counts={name: card["data"][name] for name in ("rows", "examples", "units")},
                digests={"data": card["data"]["digest"], "model": card["model"]["sha256"]},
                details={**measurements(card), "gate": summary["gate"], "replayed": replayed},
            )
            if not card["gate"]["passed"]:
                _refuse(card, folder, job, operation)
            if budget is not None:
                budget.publish()
                summary |= budget.summary()
        # Done again by a rerun: a job may have died between publishing and registering.
        register_champion(ModelRegistry(job.engine), folder, log=job.log)
        summary["replayed"] = replayed
        operation.record(details=track(card, model=model_name(folder, card)))
    return summary


def _retrain(spec: RetrainModelSpec, job: Job, folder: ModelFolder, budget: TrainingBudget | None) -> dict[str, Any]:
    from lepton_airflow.jobs.examples import read_examples
    from lepton_airflow.models.runtime import load_tensorflow
    from lepton_airflow.models.signing import signing_key_of

    key = signing_key_of(job.settings)
    read = read_examples(
        job,
        source=spec.source,
        features=spec.features,
        image=spec.image,
        label=spec.label_column,
        classes=spec.classes,
        privacy_unit=spec.privacy_unit,
        purpose=spec.purpose,
    )
    load_tensorflow()
    from lepton_airflow.models.card import Origin
    from lepton_airflow.models.checkpoints import Checkpoints
    from lepton_airflow.models.dp_sgd import schedule
    from lepton_airflow.models.networks import Means
    from lepton_airflow.models.progress import TrainingProgress
    from lepton_airflow.models.retraining import retrain

    origin = Origin(
        run_key=job.run_key,
        spec_digest=job.spec_digest,
        purpose=spec.purpose,
        dataset=spec.source.name,
        rows=read.rows,
        features=spec.inputs,
        label=spec.label_column,
        classes=spec.classes,
        privacy_unit=spec.privacy_unit,
    )
    private = spec.training.differential_privacy
    with TrainingProgress() as progress:
        means = Means(
            report=progress,
            # The weights between two steps of a private training are paid for only as part of the whole.
            checkpoints=None
            if private
            else Checkpoints(
                folder.hidden,
                run_key=job.run_key,
                spec_digest=job.spec_digest,
                interval=spec.training.checkpoint_interval,
            ),
            session=job.spark if spec.training.workers > 1 else None,
            network_is_trusted=job.settings.training_network == "trusted",
            noise=None if private is None else schedule(private),
        )
        return retrain(
            read.examples,
            origin=origin,
            plan=spec.plan,
            folder=folder,
            means=means,
            key=key,
            before_publishing=job.require_audit,
            **({"drawn": budget.draw} if budget is not None else {}),
        )


@contextmanager
def _budget(spec: RetrainModelSpec, job: Job, *, replayed: bool) -> Iterator[TrainingBudget | None]:
    """The budget of a private training, reserved; None for others, and for what is published already."""
    private = spec.training.differential_privacy
    if private is None or replayed:
        yield None
        return
    from lepton_airflow.jobs.training_budget import reserved

    with reserved(
        job,
        private,
        dataset=spec.budget or spec.source.name,
        unit=spec.privacy_unit,
        purpose=spec.purpose,
        spec=spec.model_dump(mode="json"),
    ) as budget:
        yield budget


def _refuse(card: dict[str, Any], folder: ModelFolder, job: Job, operation: Operation) -> NoReturn:
    from lepton_airflow.models.registry import ModelRegistry
    from lepton_airflow.models.shipping import model_name, register_rejected
    from lepton_airflow.models.tracking import track

    name, reasons = model_name(folder, card), "; ".join(card["gate"]["reasons"])
    register_rejected(
        ModelRegistry(job.engine),
        model=name,
        card=card,
        reason=reasons,
        log=job.log,
    )
    operation.record(details=track(card, model=name))
    raise GateRefused(
        f"The new model does not pass the gate: {reasons}. "
        f"{'The champion stays.' if folder.path.exists() else 'Nothing is published.'}",
        place=str(folder.path),
        remedy="Train longer or on more data, or defend against a smaller epsilon.",
    )


def _summary(card: dict[str, Any], folder: ModelFolder) -> dict[str, Any]:
    robust = card["evaluation"]["robust"]
    return {
        "clean_accuracy": card["evaluation"]["clean"]["accuracy"],
        "robust_accuracy": robust["accuracy"],
        "epsilon": robust["epsilon"],
        "n_test": robust["n"],
        "gate": "passed" if card["gate"]["passed"] else "refused",
        "path": str(folder.path),
        "sha256": card["model"]["sha256"],
    }
