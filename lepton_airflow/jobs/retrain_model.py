"""Retrain a classifier against attack, from a protected table to a champion behind a gate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, StrictBool, StrictInt, StrictStr, model_validator

from lepton_airflow.jobs.spec import JobSpec, TableReference
from lepton_airflow.models.plan import EvaluationPlan, GatePlan, ImageColumn, RetrainingPlan, TrainingPlan
from lepton_airflow.models.threat_model import ThreatModel

if TYPE_CHECKING:
    from lepton_airflow.jobs.runner import Job
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
    :param evaluation: how it is attacked
    :param gate: what it must reach to replace the champion
    :param target: the champion's folder, on a file system that the Spark driver has mounted
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
    evaluation: EvaluationPlan = EvaluationPlan()
    gate: GatePlan
    target: str = Field(min_length=1)
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
        return self

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
        (the folder), ``sha256`` of the model file, and ``replayed``: an earlier try had published this very model
        already
    :raises SpecError: the champion has other inputs or classes
    :raises GateRefused: with the reasons
    """
    from lepton_airflow.models.artefact import ModelFolder
    from lepton_airflow.models.champion import require_same_inputs

    folder = ModelFolder(Path(spec.target))
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
        if card is None:
            card = _retrain(spec, job, folder)
        data, evaluation = card["data"], card["evaluation"]
        summary = {
            "clean_accuracy": evaluation["clean"]["accuracy"],
            "robust_accuracy": evaluation["robust"]["accuracy"],
            "epsilon": evaluation["robust"]["epsilon"],
            "n_test": evaluation["robust"]["n"],
            "gate": "passed",
            "path": str(folder.path),
            "sha256": card["model"]["sha256"],
            "replayed": replayed,
        }
        operation.record(
            counts={name: data[name] for name in ("rows", "examples", "units")},
            digests={"data": data["digest"], "model": card["model"]["sha256"]},
            details={
                name: summary[name] for name in ("clean_accuracy", "robust_accuracy", "epsilon", "gate", "replayed")
            },
        )
    return summary


def _retrain(spec: RetrainModelSpec, job: Job, folder: ModelFolder) -> dict[str, Any]:
    from lepton_airflow.jobs.examples import read_examples
    from lepton_airflow.models.runtime import load_tensorflow

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
    plan = RetrainingPlan(
        threat_model=spec.threat_model,
        training=spec.training,
        evaluation=spec.evaluation,
        gate=spec.gate,
        image=spec.image,
        seed=spec.seed,
    )
    with TrainingProgress() as progress:
        return retrain(read.examples, origin=origin, plan=plan, folder=folder, report=progress)
