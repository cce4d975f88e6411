"""``lepton audit``: seal the log, verify it, search it, export it, migrate its database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from lepton_airflow.cli import audit_archive, audit_search, audit_witness
from lepton_airflow.cli.audit_search import audit_database
from lepton_airflow.cli.console import HomeOption, console, errors
from lepton_airflow.errors import UnreadableSource
from lepton_airflow.settings import load_settings

if TYPE_CHECKING:
    from lepton_airflow.audit.verify import VerificationReport

app = typer.Typer(no_args_is_help=True)
app.command()(audit_search.search)
app.command()(audit_search.tail)
app.command()(audit_search.export)
app.command()(audit_archive.archive)
app.add_typer(audit_witness.app, name="witness", help="A second party that sees that the log is never taken back.")

_SHOWN = 100


@app.command()
def seal(home: HomeOption = None) -> None:
    """Put new events into the Merkle tree, sign a checkpoint and copy it to the exports.

    Needs the sealer's private key, which the writers of events must not be able to read.
    """
    from lepton_airflow.audit.checkpoint import Signer
    from lepton_airflow.audit.quorum import Quorum
    from lepton_airflow.audit.sealer import seal as seal_log

    settings = load_settings(home)
    signer = Signer.load(settings.checkpoint_signer)
    with audit_database(settings) as engine:
        quorum = Quorum.of(settings)
        checkpoint = seal_log(engine, signer=signer, exports=settings.checkpoint_exports, quorum=quorum)
    typer.echo(f"sealed: {checkpoint.tree_size} events, root {checkpoint.root_hash.hex()}, signed by {signer.name}")
    if quorum.witnesses:
        _say(f"note: {quorum.judge(checkpoint, quorum.cosigned()).text}")


@app.command()
def verify(
    since: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="A signed checkpoint, verified before: read only what follows it."),
    ] = None,
    offline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Verify what `lepton audit export` wrote, without the database."),
    ] = None,
    archive: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLACE", help="Where the archives must be; may be repeated. Default: where they were written."
        ),
    ] = None,
    verifier_key: Annotated[
        Path | None,
        typer.Option(
            "--verifier-key",
            help="With --offline: the sealer's public key; neither a home nor its witnesses are asked for then.",
        ),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what is detected and what is not.")] = False,
    home: HomeOption = None,
) -> None:
    """Recompute the log and hold it against every signed checkpoint; exit status 1 if anything is wrong."""
    from lepton_airflow.audit.checkpoint import Verifier
    from lepton_airflow.audit.quorum import Quorum
    from lepton_airflow.audit.ranges import verify_range
    from lepton_airflow.audit.verify import EXPLANATION
    from lepton_airflow.audit.verify import verify as verify_log

    if explain:
        typer.echo(EXPLANATION)
        return
    earlier = None if since is None else _read_note(since)
    if offline is not None and verifier_key is not None:
        _report(verify_range(offline, verifier=Verifier.load(verifier_key), since=earlier, quorum=Quorum()))
        return
    if verifier_key is not None:
        raise typer.BadParameter(
            "It goes with --offline; otherwise the home names the key.", param_hint="--verifier-key"
        )
    settings = load_settings(home)
    verifier = Verifier.load(settings.checkpoint_verifier)
    quorum = Quorum.of(settings)
    if offline is not None:
        _report(verify_range(offline, verifier=verifier, since=earlier, quorum=quorum))
        return
    with audit_database(settings) as engine, Progress(console=errors, transient=True) as progress:
        task = progress.add_task("verifying", total=None)
        report = verify_log(
            engine,
            verifier=verifier,
            exports=settings.checkpoint_exports,
            since=earlier,
            archives=archive or (),
            quorum=quorum,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    _report(report)


@app.command()
def migrate(home: HomeOption = None) -> None:
    """Bring the audit database's schema to this version of the package."""
    from lepton_airflow.audit.database import migrate as migrate_database

    settings = load_settings(home)
    with audit_database(settings, check_schema=False) as engine:
        migrate_database(engine)
    typer.echo("migrated: the schema of the audit database is current")


def _report(report: VerificationReport) -> None:
    for warning in report.warnings[:_SHOWN]:
        _say(f"warning: {warning.position}: {warning.text}")
    if len(report.warnings) > _SHOWN:
        _say(f"warning: and {len(report.warnings) - _SHOWN} more times that are odd")
    for note in report.notes:
        _say(f"note: {note}")
    if not report.ok:
        _print_findings(report)
        raise typer.Exit(1)
    signed = f"signed by {report.signed_by}" if report.signed_by else "nothing signed yet"
    typer.echo(f"ok: {report.tree_size} events, root {report.root}, {signed}")


def _say(text: str) -> None:
    errors.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def _read_note(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise UnreadableSource(
            f"The checkpoint cannot be read ({type(error).__name__}).",
            place=str(path),
            remedy="Name a file of an export, such as checkpoints/00000000000000000020.",
        ) from None


def _print_findings(report: VerificationReport) -> None:
    table = Table("where", "kind", "what", title=f"not ok: {len(report.findings)} findings")
    table.columns[0].overflow = table.columns[2].overflow = "fold"
    for finding in report.findings[:_SHOWN]:
        table.add_row(Text(finding.position), Text(finding.kind, style="bold red"), Text(finding.text))
    if len(report.findings) > _SHOWN:
        table.caption = f"and {len(report.findings) - _SHOWN} more"
    console.print(table)
