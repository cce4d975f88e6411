"""The ``lepton`` command."""

from __future__ import annotations

import sys

import typer

from lepton_airflow import __version__
from lepton_airflow.cli import access, audit, budget, keys, lineage, model, release_review, storage
from lepton_airflow.cli.console import errors
from lepton_airflow.cli.home import init
from lepton_airflow.cli.jobs import run
from lepton_airflow.cli.scan import scan
from lepton_airflow.errors import LeptonError

app = typer.Typer(
    name="lepton",
    help="The privacy boundary for Airflow and Spark pipelines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(init)
app.command()(run)
app.command()(scan)
app.add_typer(keys.app, name="keys", help="Identities, keysets and who can open them.")
app.add_typer(access.app, name="access", help="What the policy decides, and its mistakes.")
app.add_typer(audit.app, name="audit", help="Seal and verify the audit log.")
app.add_typer(budget.app, name="budget", help="Privacy budgets and what is left of them.")
app.add_typer(lineage.app, name="lineage", help="Where data came from and where it went.")
app.add_typer(model.app, name="model", help="Models: which is the champion, and whether a folder holds it.")
app.add_typer(release_review.app, name="release", help="Releases: from a plan to a receipt.")
app.add_typer(storage.app, name="storage", help="Storage nodes, and the datasets in shards on them.")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Run the command; a typed error is one message and exit status 1."""
    try:
        app()
    except LeptonError as error:
        errors.print(f"[bold red]{error.code}[/] ", end="")
        errors.print(str(error), markup=False, highlight=False)
        sys.exit(1)
