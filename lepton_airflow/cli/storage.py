"""``lepton storage``: the nodes, and what is stored on them. Storing, restoring and repairing are jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from lepton_airflow.cli.audited import audited
from lepton_airflow.cli.console import HomeOption, console
from lepton_airflow.errors import NodeUnavailable, StorageError
from lepton_airflow.settings import load_settings

if TYPE_CHECKING:
    from lepton_airflow.storage.catalogue import Entry

app = typer.Typer(no_args_is_help=True)


@app.command()
def prepare(
    names: Annotated[list[str] | None, typer.Argument(help="Nodes of the settings; none means all.")] = None,
    home: HomeOption = None,
) -> None:
    """Make places the storage nodes of the settings: a file is put there without which nothing is written to them."""
    from lepton_airflow.jobs.storage import storage_nodes

    settings = load_settings(home)
    nodes = storage_nodes(settings, tuple(names or ()))
    with audited(settings, "storage.prepare", nodes=" ".join(node.name for node in nodes)):
        for node in nodes:
            node.prepare()
            console.print(f"prepared: {node.name}, {node.uri}", markup=False, highlight=False)


@app.command()
def nodes(home: HomeOption = None) -> None:
    """Show the storage nodes of the settings, and whether each is there. Exit status 1 if one is not."""
    from lepton_airflow.jobs.storage import storage_nodes

    table, silent = Table("node", "place", "state"), 0
    for node in storage_nodes(load_settings(home)):
        try:
            node.check()
            state = "[green]there[/]"
        except NodeUnavailable as error:
            state, silent = f"[red]{escape(error.rule)}[/]", silent + 1
        table.add_row(node.name, escape(node.uri), state)
    console.print(table)
    if silent:
        raise typer.Exit(1)


@app.command("list")
def list_stored(
    dataset: Annotated[str | None, typer.Argument(help="Only this dataset's versions.")] = None,
    home: HomeOption = None,
) -> None:
    """List the versions that are stored, oldest first, as the catalogue has them."""
    from lepton_airflow.audit.database import connect
    from lepton_airflow.storage.catalogue import Catalogue

    engine = connect(load_settings(home))
    try:
        entries = Catalogue(engine).entries(dataset, "stored")
    finally:
        engine.dispose()
    if dataset is not None and not entries:
        raise StorageError(
            "No version of it is stored.", place=f"stored dataset {dataset}", remedy="See `lepton storage list`."
        )
    for name in dict.fromkeys(entry.dataset for entry in entries):
        console.print(_versions(name, [entry for entry in entries if entry.dataset == name]))


def _versions(dataset: str, entries: list[Entry]) -> Table:
    # A version is there to be copied: in a narrow terminal it goes on in the next line.
    version, stored = Column("version", overflow="fold"), Column("stored (UTC)", overflow="fold")
    files, size = Column("files", justify="right"), Column("bytes", justify="right")
    table = Table(version, stored, files, size, "missing when stored", title=escape(dataset), title_justify="left")
    for entry in entries:
        missing = ", ".join(f"{count} on {node}" for node, count in entry.summary["missing"].items())
        figures = (f"{entry.summary['files']:,}", f"{entry.summary['bytes']:,}")
        table.add_row(entry.version, entry.begun_at[:19].replace("T", " "), *figures, missing or "-")
    return table
