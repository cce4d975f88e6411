"""What a user sees of a training."""

from __future__ import annotations

import io

from rich.console import Console

from lepton_airflow.models.progress import TrainingProgress
from lepton_airflow.models.training import EpochReport
from lepton_airflow.models.validation import Standing


def report(epoch: int, epochs: int, standing: Standing | None = None) -> EpochReport:
    return EpochReport(model="hardened", epoch=epoch, epochs=epochs, loss=0.5, accuracy=0.75, standing=standing)


def test_a_log_gets_a_few_lines_the_last_epoch_among_them() -> None:
    text = io.StringIO()
    with TrainingProgress(Console(file=text, width=100)) as progress:
        for epoch in range(1, 84):
            progress(report(epoch, 83))
    lines = text.getvalue().splitlines()
    assert 5 <= len(lines) <= 7
    assert lines[-1] == "hardened model: epoch 83 of 83, loss 0.500, accuracy 0.750"


def test_a_terminal_gets_a_bar() -> None:
    text = io.StringIO()
    with TrainingProgress(Console(file=text, width=100, force_terminal=True)) as progress:
        for epoch in range(1, 4):
            progress(report(epoch, 3, Standing(robust=0.625, clean=0.875)))
    assert "hardened model" in text.getvalue()
    assert "loss 0.500, clean 0.875, robust 0.625" in text.getvalue()
