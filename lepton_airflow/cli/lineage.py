"""``lepton lineage``: where a dataset came from and where it went, by the audit log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from lepton_airflow.cli.console import HomeOption, console, errors
from lepton_airflow.errors import ConfigurationError
from lepton_airflow.lineage.graph import Direction, Graph, Step
from lepton_airflow.settings import load_settings

if TYPE_CHECKING:
    from lepton_airflow.settings import Settings

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Where data came from and where it went."""


@app.command()
def show(
    dataset: Annotated[
        str, typer.Argument(help="Its name in specs and policies, or the path of a release or a model.")
    ],
    direction: Annotated[
        Direction, typer.Option(help="Where it came from (up), where it went (down), or both.")
    ] = "both",
    svg: Annotated[Path | None, typer.Option(help="Draw the graph into this file too.", dir_okay=False)] = None,
    home: HomeOption = None,
) -> None:
    """Show the operations that made a dataset and those that used it, with what protects each column.

    Only what succeeded is there. The audit log is read as it is; `lepton audit verify` tells whether it can be believed.
    """
    from lepton_airflow.lineage.svg import draw

    graph = _graph(load_settings(home))
    if dataset not in graph.datasets:
        known = sorted(graph.datasets)
        raise ConfigurationError(
            "The audit log knows no operation on this dataset.",
            place=dataset,
            remedy=f"Datasets there: {', '.join(known)}." if known else "No job has run yet.",
        )
    part = graph.around(dataset, direction)
    console.print(_tree(part, dataset, direction), soft_wrap=True)
    if svg is not None:
        try:
            svg.write_text(draw(part, dataset), encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"The picture cannot be written ({type(error).__name__}).",
                place=str(svg),
                remedy="Give --svg a file in a folder that is there.",
            ) from None
        errors.print(f"drawn: {svg}", markup=False, highlight=False, soft_wrap=True)


def _graph(settings: Settings) -> Graph:
    from lepton_airflow.audit.database import connect
    from lepton_airflow.cli.audit_search import say_archived
    from lepton_airflow.lineage.graph import read_graph

    engine = connect(settings)
    try:
        say_archived(engine)
        return read_graph(engine)
    finally:
        engine.dispose()


def _tree(graph: Graph, dataset: str, direction: Direction) -> Tree:
    tree = Tree(_name(dataset))
    for step in graph.within(dataset):
        tree.add(_step(step))
    if direction in ("up", "both"):
        _grow(tree.add(Text("from", style="dim")), graph, dataset, up=True, seen={dataset})
    if direction in ("down", "both"):
        _grow(tree.add(Text("to", style="dim")), graph, dataset, up=False, seen={dataset})
    return tree


def _grow(branch: Tree, graph: Graph, dataset: str, *, up: bool, seen: set[str]) -> None:
    steps = graph.upstream(dataset) if up else graph.downstream(dataset)
    for step in steps:
        further = step.source if up else step.target
        twig = branch.add(_step(step))
        if further is None:
            continue
        leaf = twig.add(_name(further))
        if further in seen:
            leaf.add(Text("shown above", style="dim"))
            continue
        for rotation in graph.within(further):
            leaf.add(_step(rotation))
        _grow(leaf, graph, further, up=up, seen=seen | {further})
    if not steps and len(seen) == 1:
        branch.add(Text("nothing that the audit log knows of", style="dim"))


def _name(dataset: str) -> Text:
    return Text(dataset, style="bold")


def _step(step: Step) -> Text:
    runs = f"{step.runs} run{'s' if step.runs != 1 else ''}, last {step.last[:19]}Z"
    told = [f"{step.action} by {step.task} ({runs})", *([step.note] if step.note else [])]
    columns = [f"{column}: {became}" for column, became in step.columns.items()]
    return Text("\n".join([", ".join(told), *(f"  {column}" for column in columns)]))
