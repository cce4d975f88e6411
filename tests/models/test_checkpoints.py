"""Checkpoint files, and trainings that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_airflow.errors import ModelTampered, UnsafeFile
from lepton_airflow.models.architectures import classifier_for
from lepton_airflow.models.checkpoints import Checkpoint, Checkpoints
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.input_space import InputSpace, image_space
from lepton_airflow.models.objectives import objective_for
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import ImageColumn, TrainingPlan
from lepton_airflow.models.threat_model import ThreatModel
from lepton_airflow.models.training import EpochReport, TrainingRecord, train
from lepton_airflow.models.validation import Validation

EPOCHS = 6


def checkpoints(folder: Path, *, run_key: str = "run 1", spec_digest: str = "sha256:1") -> Checkpoints:
    return Checkpoints(folder / ".m.lepton", run_key=run_key, spec_digest=spec_digest, interval=0)


def written(folder: Path) -> Path:
    """The one checkpoint file there is."""
    (file,) = [file for file in folder.rglob("*") if file.is_file()]
    return file


def small() -> Checkpoint:
    return Checkpoint(arrays={"model/0": np.arange(6, dtype=np.float32).reshape(2, 3)}, facts={"epoch": 4})


def hardening(
    examples: Examples,
    *,
    report: Callable[[EpochReport], None],
    kept_in: Checkpoints | None,
    of_images: bool = False,
    **means: Any,
) -> tuple[Any, TrainingRecord]:
    """Train with everything that carries state from epoch to epoch."""
    if of_images:
        image = ImageColumn(column="pixels", shape=(4, 4, 1), high=1)
        space = image_space(image, threat_model=ThreatModel(norm="linf", epsilon=0.3, units="pixel range"))
        means |= {"filters": 4, "shift": 1}
    else:
        ones = np.ones(5, np.float32)
        space = InputSpace.free(norm="linf", names=list("abcde"), mean=0 * ones, scale=ones)
    plan = TrainingPlan(epochs=EPOCHS, batch_size=32, hidden=(8,), steps=2, averaging=0.9, **means)
    perturbation = Perturbation(space)
    model = classifier_for(space, plan=plan, classes=2, seed=1)
    record = train(
        model,
        examples,
        name="hardened",
        plan=plan,
        objective=objective_for(plan, perturbation=perturbation, epsilon=0.3, classes=2, seed=2),
        seed=3,
        report=report,
        validation=Validation(examples=examples.take(examples.units < 40), perturbation=perturbation, epsilon=0.3),
        checkpoints=kept_in,
    )
    return model, record


def images(blobs: Callable[..., Examples]) -> Examples:
    """4x4 pixels from 0 to 1."""
    points = blobs(100, features=16)
    return replace(points, features=np.clip(points.features / 4 + 0.5, 0, 1))


def same(left: Any, right: Any) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(left.get_weights(), right.get_weights(), strict=True))


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    checkpoints(tmp_path).save("hardened", binding="data", checkpoint=small())
    found = checkpoints(tmp_path).load("hardened", binding="data")
    assert found is not None
    assert found.facts == {"epoch": 4}
    np.testing.assert_array_equal(found.arrays["model/0"], small().arrays["model/0"])
    assert found.arrays.keys() == {"model/0"}


def test_nobody_else_can_read_them(tmp_path: Path) -> None:
    checkpoints(tmp_path).save("hardened", binding="", checkpoint=small())
    file = written(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    file.parent.chmod(0o750)
    with pytest.raises(UnsafeFile):
        checkpoints(tmp_path).save("hardened", binding="", checkpoint=small())


def test_another_run_spec_model_or_data_finds_nothing(tmp_path: Path) -> None:
    checkpoints(tmp_path).save("hardened", binding="data", checkpoint=small())
    assert checkpoints(tmp_path, run_key="run 2").load("hardened", binding="data") is None
    assert checkpoints(tmp_path, spec_digest="sha256:2").load("hardened", binding="data") is None
    assert checkpoints(tmp_path).load("standard", binding="data") is None
    assert checkpoints(tmp_path).load("hardened", binding="other data") is None
    # Somebody who renames a file gets no further.
    renamed = written(tmp_path)
    checkpoints(tmp_path).save("standard", binding="data", checkpoint=small())
    (other,) = [file for file in renamed.parent.iterdir() if file != renamed]
    renamed.replace(other)
    assert checkpoints(tmp_path).load("standard", binding="data") is None


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_file_is_never_used(tmp_path: Path, damage: str) -> None:
    checkpoints(tmp_path).save("hardened", binding="", checkpoint=small())
    file = written(tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flipped": bytes(content), "cut": bytes(content[:-1]), "empty": b""}[damage])
    with pytest.raises(ModelTampered, match=str(file)):
        checkpoints(tmp_path).load("hardened", binding="")


def test_a_write_that_was_cut_short_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    checkpoints(tmp_path).save("hardened", binding="", checkpoint=small())
    written(tmp_path).with_suffix(".new").write_bytes(b"half")
    assert checkpoints(tmp_path).load("hardened", binding="") is not None
    checkpoints(tmp_path).save("hardened", binding="", checkpoint=small())
    assert written(tmp_path).suffix == ".checkpoint"


def test_a_run_remembers_what_it_drew_until_it_has_ended(tmp_path: Path) -> None:
    draws = iter(range(10))

    def draw() -> dict[str, Any]:
        return {"seed": next(draws)}

    assert checkpoints(tmp_path).remembered(draw) == {"seed": 0}
    assert checkpoints(tmp_path).remembered(draw) == {"seed": 0}
    assert checkpoints(tmp_path, run_key="run 2").remembered(draw) == {"seed": 1}
    checkpoints(tmp_path).clear()
    assert checkpoints(tmp_path).remembered(draw) == {"seed": 2}


def test_checkpoints_wait_for_their_interval(tmp_path: Path) -> None:
    assert not Checkpoints(tmp_path, run_key="r", spec_digest="s", interval=60).due("hardened")
    assert Checkpoints(tmp_path, run_key="r", spec_digest="s", interval=0).due("hardened")


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("means", "last"),
    [
        ({"method": "pgd"}, 1),
        ({"method": "pgd"}, EPOCHS),
        ({"method": "generator"}, 1),
        ({"method": "trades", "of_images": True}, 3),
    ],
    ids=str,
)
def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(
    blobs: Callable[..., Examples], tmp_path: Path, means: dict[str, Any], last: int
) -> None:
    examples = images(blobs) if "of_images" in means else blobs(100)

    def stop(report: EpochReport) -> None:
        if report.epoch == last:
            raise Stopped

    with pytest.raises(Stopped):
        hardening(examples, **means, report=stop, kept_in=checkpoints(tmp_path))
    reports: list[EpochReport] = []
    resumed, record = hardening(examples, **means, report=reports.append, kept_in=checkpoints(tmp_path))
    whole, expected = hardening(examples, **means, report=lambda _report: None, kept_in=None)
    assert record.resumed_after == last
    assert [report.epoch for report in reports] == list(range(last + 1, EPOCHS + 1))
    assert same(resumed, whole)
    assert (record.kept_epoch, record.standing) == (expected.kept_epoch, expected.standing)


def test_other_examples_start_a_training_anew(blobs: Callable[..., Examples], tmp_path: Path) -> None:
    hardening(blobs(100), method="pgd", report=lambda _report: None, kept_in=checkpoints(tmp_path))
    _, record = hardening(blobs(100, seed=9), method="pgd", report=lambda _: None, kept_in=checkpoints(tmp_path))
    assert record.resumed_after == 0


@pytest.mark.slow
def test_a_process_that_was_killed_is_resumed_with_the_same_result(
    blobs: Callable[..., Examples], tmp_path: Path
) -> None:
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import numpy as np
        from lepton_airflow.models.runtime import load_tensorflow
        load_tensorflow()
        from lepton_airflow.models.examples import Examples
        from test_checkpoints import checkpoints, hardening
        folder = Path(sys.argv[1])
        examples = Examples(**np.load(folder / "examples.npz"), unit_ids=tuple(b"%06d" % unit for unit in range(100)))
        hardening(examples, method="pgd", kept_in=checkpoints(folder),
                  report=lambda report: print(report.epoch, flush=True))
        """
    )
    examples = blobs(100)
    np.savez(tmp_path / "examples.npz", features=examples.features, labels=examples.labels, units=examples.units)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "3":
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    (tmp_path / "examples.npz").unlink()
    resumed, record = hardening(examples, method="pgd", report=lambda _report: None, kept_in=checkpoints(tmp_path))
    whole, _ = hardening(examples, method="pgd", report=lambda _report: None, kept_in=None)
    assert 3 <= record.resumed_after < EPOCHS
    assert same(resumed, whole)
