"""``lepton audit``: seal the log, verify it, migrate its database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from lepton_airflow.cli.console import HomeOption, console, errors
from lepton_airflow.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from lepton_airflow.audit.verify import VerificationReport

app = typer.Typer(no_args_is_help=True)

_SHOWN = 100


@app.command()
def seal(home: HomeOption = None) -> None:
    """Put new events into the Merkle tree, sign a checkpoint and copy it to the exports.

    Needs the sealer's private key, which the writers of events must not be able to read.
    """
    from lepton_airflow.audit.checkpoint import Signer
    from lepton_airflow.audit.sealer import seal as seal_log

    settings = load_settings(home)
    signer = Signer.load(settings.checkpoint_signer)
    with _database(settings) as engine:
        checkpoint = seal_log(engine, signer=signer, exports=settings.checkpoint_exports)
    typer.echo(f"sealed: {checkpoint.tree_size} events, root {checkpoint.root_hash.hex()}, signed by {signer.name}")


@app.command()
def verify(home: HomeOption = None) -> None:
    """Recompute the whole log and hold it against every signed checkpoint; exit status 1 if anything is wrong."""
    from lepton_airflow.audit.checkpoint import Verifier
    from lepton_airflow.audit.verify import verify as verify_log

    settings = load_settings(home)
    verifier = Verifier.load(settings.checkpoint_verifier)
    with _database(settings) as engine, Progress(console=errors, transient=True) as progress:
        task = progress.add_task("verifying", total=None)
        report = verify_log(
            engine,
            verifier=verifier,
            exports=settings.checkpoint_exports,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    for note in report.notes:
        errors.print(f"note: {note}", style="dim", markup=False, highlight=False, soft_wrap=True)
    if not report.ok:
        _print_findings(report)
        raise typer.Exit(1)
    signed = f"signed by {report.signed_by}" if report.signed_by else "nothing signed yet"
    typer.echo(f"ok: {report.tree_size} events, root {report.root}, {signed}")


@app.command()
def migrate(home: HomeOption = None) -> None:
    """Bring the audit database's schema to this version of the package."""
    from lepton_airflow.audit.database import migrate as migrate_database

    settings = load_settings(home)
    with _database(settings, check_schema=False) as engine:
        migrate_database(engine)
    typer.echo("migrated: the schema of the audit database is current")


@contextmanager
def _database(settings: Settings, *, check_schema: bool = True) -> Iterator[Engine]:
    from lepton_airflow.audit.database import connect

    engine = connect(settings, check_schema=check_schema)
    try:
        yield engine
    finally:
        engine.dispose()


def _print_findings(report: VerificationReport) -> None:
    table = Table("where", "kind", "what", title=f"not ok: {len(report.findings)} findings")
    table.columns[0].overflow = table.columns[2].overflow = "fold"
    for finding in report.findings[:_SHOWN]:
        table.add_row(Text(finding.position), Text(finding.kind, style="bold red"), Text(finding.text))
    if len(report.findings) > _SHOWN:
        table.caption = f"and {len(report.findings) - _SHOWN} more"
    console.print(table)
