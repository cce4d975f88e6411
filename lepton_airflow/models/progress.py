"""Shows how a training goes: a bar on a terminal, a few lines in a log."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lepton_airflow.models.training import EpochReport

_LINES = 5


class TrainingProgress:
    """A context manager to be called with each :class:`EpochReport`. It writes to standard error."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, report: EpochReport) -> None:
        if self._console.is_terminal:
            self._move_bar(report)
        elif report.epoch % max(1, report.epochs // _LINES) == 0 or report.epoch == report.epochs:
            self._console.print(
                f"{report.model} model: epoch {report.epoch} of {report.epochs}, {_figures(report)}", highlight=False
            )

    def _move_bar(self, report: EpochReport) -> None:
        if report.model not in self._tasks:
            self._tasks[report.model] = self._bar.add_task(f"{report.model} model", total=report.epochs, figures="")
        self._bar.update(self._tasks[report.model], completed=report.epoch, figures=_figures(report))


def _figures(report: EpochReport) -> str:
    if report.loss is None:
        return "no figures: they would tell of the training data"
    if report.standing is None:
        return f"loss {report.loss:.3f}, accuracy {report.accuracy:.3f}"
    return f"loss {report.loss:.3f}, clean {report.standing.clean:.3f}, robust {report.standing.robust:.3f}"
