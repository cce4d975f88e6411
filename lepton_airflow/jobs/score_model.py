"""Score a champion on fresh rows of a protected table: whether it still is as good as it has to be, attacked and not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lepton_airflow.errors import EmptyTable
from lepton_airflow.jobs.examples import NewerThan
from lepton_airflow.jobs.spec import JobSpec, TableReference

if TYPE_CHECKING:
    from lepton_airflow.jobs.examples import ReadExamples
    from lepton_airflow.jobs.runner import Job
    from lepton_airflow.models.champion import Champion
    from lepton_airflow.models.intervals import Proportion

_BATCH_SIZE = 256


class ScoreModelSpec(JobSpec):
    """Which model is scored on which rows, and what it must reach. Columns, classes and threat model are those of its card.

    The attack is projected gradient descent alone and short: enough to notice that a model got worse, and no proof that it did
    not. Rows of people whom the model was trained on flatter it; give ``newer_than``, or a table of new rows.

    :param source: the protected table; what is encrypted is decrypted in memory only
    :param newer_than: score only rows whose ``column`` is greater than ``value``
    :param model: the champion's folder, on a file system that the Spark driver has mounted
    :param minimum_clean_accuracy: share of the rows classified correctly
    :param minimum_robust_accuracy: share still classified correctly under attack at the epsilon of the model's threat model
    :param minimum_units: with fewer privacy units nothing is decided
    :param steps: gradient steps of the attack
    :param restarts: attacks on each example
    :param seed: of the attack's random starts
    """

    source: TableReference
    newer_than: NewerThan | None = None
    model: str = Field(min_length=1)
    minimum_clean_accuracy: float = Field(ge=0, le=1)
    minimum_robust_accuracy: float = Field(ge=0, le=1)
    minimum_units: int = Field(default=100, ge=1)
    steps: int = Field(default=20, ge=1)
    restarts: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0)


def run(spec: ScoreModelSpec, job: Job) -> dict[str, Any]:
    """Read, attack and hold against the bounds.

    A bound counts as broken when the whole 95% interval of an accuracy (Wilson's, over privacy units) lies below it: a few
    unlucky rows do not start a training, and a model that is worse is found out as soon as enough rows say so.

    :returns: ``below`` (a bound is broken) and ``reasons``; ``n`` examples of ``units``; unless there are too few units
        ``clean_accuracy``, ``robust_accuracy``, their ``clean_interval`` and ``robust_interval``; ``epsilon``, ``sha256`` of the
        model file, and ``path``, its folder
    :raises UnreadableSource: there is no model
    :raises ModelTampered: the model file is not the one that its card describes; it is not loaded
    :raises InvalidData: rows that the model cannot be asked about: NaN, labels that it does not know, images of another size
    """
    from lepton_airflow.models.artefact import ModelFolder
    from lepton_airflow.models.champion import Champion
    from lepton_airflow.models.signing import verifier_of

    champion = Champion.open(ModelFolder(Path(spec.model), verifier=verifier_of(job.settings)))
    with job.guard.operation(
        action="evaluate",
        dataset=spec.source.name,
        columns=champion.columns,
        purpose=spec.purpose,
        details={"model": str(champion.folder.path)},
    ) as operation:
        read = _read(spec, job, champion)
        units = 0 if read is None else read.examples.unit_count
        summary: dict[str, Any] = {
            "below": False,
            "reasons": [],
            "n": 0 if read is None else len(read.examples),
            "units": units,
            "epsilon": champion.threat_model.epsilon,
            "sha256": champion.digest,
            "path": str(champion.folder.path),
        }
        if read is None or units < spec.minimum_units:
            summary["reasons"] = [f"{units} privacy units are too few to decide on; {spec.minimum_units} are needed"]
        else:
            summary |= _scored(spec, champion, read)
        operation.record(
            counts={"rows": 0 if read is None else read.rows, "examples": summary["n"], "units": units},
            digests={"model": champion.digest, **({} if read is None else {"data": read.examples.digest()})},
            details={
                name: summary[name]
                for name in ("below", "epsilon", "clean_accuracy", "robust_accuracy")
                if name in summary
            },
        )
    return summary


def _read(spec: ScoreModelSpec, job: Job, champion: Champion) -> ReadExamples | None:
    """The rows to score; None where there are none."""
    from lepton_airflow.jobs.examples import read_examples

    try:
        return read_examples(
            job,
            source=spec.source,
            features=champion.features,
            image=champion.image,
            label=champion.label,
            classes=champion.classes,
            privacy_unit=champion.privacy_unit,
            purpose=spec.purpose,
            newer_than=spec.newer_than,
            one_class_is_enough=True,
        )
    except EmptyTable:
        return None


def _scored(spec: ScoreModelSpec, champion: Champion, read: ReadExamples) -> dict[str, Any]:
    """Accuracies, their intervals, and which bounds are broken."""
    from lepton_airflow.models.runtime import load_tensorflow

    load_tensorflow()
    from lepton_airflow.models.attacks.pgd import ProjectedGradientDescent
    from lepton_airflow.models.intervals import Proportion
    from lepton_airflow.models.perturbation import Perturbation

    examples = read.examples
    attack = ProjectedGradientDescent(
        champion.load(),
        perturbation=Perturbation(champion.space()),
        steps=spec.steps,
        restarts=spec.restarts,
        batch_size=min(_BATCH_SIZE, len(examples)),
        seed=spec.seed,
    )
    shares: dict[str, Proportion] = {}
    for name, epsilon in (("clean", 0.0), ("robust", champion.threat_model.epsilon)):
        shares[name] = Proportion.of(attack.survivors(examples, epsilon), examples.units)
    bounds = {"clean": spec.minimum_clean_accuracy, "robust": spec.minimum_robust_accuracy}
    reasons = [
        f"{name} accuracy {share.share:.3f} (at most {share.interval[1]:.3f}, 95%) is below {bounds[name]:g}"
        for name, share in shares.items()
        if share.interval[1] < bounds[name]
    ]
    return {
        "below": bool(reasons),
        "reasons": reasons,
        **{f"{name}_accuracy": share.share for name, share in shares.items()},
        **{f"{name}_interval": list(share.interval) for name, share in shares.items()},
    }
