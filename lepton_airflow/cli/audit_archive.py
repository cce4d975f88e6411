"""``lepton audit archive``: retention without purging."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lepton_airflow.cli.audit_search import audit_database
from lepton_airflow.cli.console import HomeOption, errors
from lepton_airflow.errors import SpecError
from lepton_airflow.settings import load_settings


def archive(
    place: Annotated[
        str,
        typer.Argument(metavar="PLACE", help="A folder, a URL of fsspec (s3://bucket/archive) or a second database."),
    ],
    before: Annotated[str | None, typer.Option(help="Archive the events before this time (ISO 8601).")] = None,
    to: Annotated[int | None, typer.Option("--to", min=0, help="Archive up to this leaf, itself included.")] = None,
    home: HomeOption = None,
) -> None:
    """Move the oldest sealed events into an archive with its proofs; only their hashes stay in the database.

    Needs the sealer's private key. Nothing is removed before the archive was read back and verified.
    """
    from lepton_airflow.audit.archive import ACTION
    from lepton_airflow.audit.archive import archive as archive_log
    from lepton_airflow.audit.checkpoint import Signer
    from lepton_airflow.audit.quorum import Quorum
    from lepton_airflow.audit.search import parse_moment
    from lepton_airflow.cli.audited import command_log

    if (before is None) == (to is None):
        raise SpecError("The range is not clear.", place="lepton audit archive", remedy="Give --before, or --to.")
    settings = load_settings(home)
    signer = Signer.load(settings.checkpoint_signer)
    with audit_database(settings) as engine:
        log = command_log(settings, engine, ACTION)
        try:
            made = archive_log(
                engine,
                place if "://" in place else Path(place).expanduser().absolute(),
                log=log,
                signer=signer,
                exports=settings.checkpoint_exports,
                quorum=Quorum.of(settings),
                before=None if before is None else parse_moment(before),
                stop=None if to is None else to + 1,
            )
        finally:
            log.close()
    for archived in made:
        typer.echo(f"archived: {archived.leaves}, sha256 {archived.digest}, {archived.place}/{archived.name}")
    if not made:
        typer.echo("nothing to archive: these events are archived, newer, or not sealed yet")
    elif "://" not in made[0].place:
        where = f"{made[0].place}/{made[0].name}"
        errors.print(
            f"check it with: lepton audit verify --offline {where}", markup=False, highlight=False, soft_wrap=True
        )
