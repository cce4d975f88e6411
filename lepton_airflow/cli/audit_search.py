"""``lepton audit search``, ``tail`` and ``export``: who did what, on the screen or as files with proofs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from lepton_airflow.cli.console import HomeOption, console, errors
from lepton_airflow.errors import SpecError
from lepton_airflow.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

JsonOption = Annotated[bool, typer.Option("--json", help="One event a line, as it is in the log.")]
#: Columns of an event that are named in a table; JSON has all.
_COLUMNS = 5


def search(
    dataset: Annotated[str | None, typer.Option(help="Events about this dataset.")] = None,
    column: Annotated[str | None, typer.Option(help="Events that name this column.")] = None,
    principal: Annotated[str | None, typer.Option(help="Events of this identity.")] = None,
    action: Annotated[str | None, typer.Option(help="encrypt, decrypt, release, keys.rotate ...")] = None,
    phase: Annotated[str | None, typer.Option(help="open, intent, success, failure, denied, note, close.")] = None,
    run: Annotated[str | None, typer.Option(help="Events of this run key.")] = None,
    since: Annotated[str | None, typer.Option(help="From this time on (ISO 8601; UTC without a zone).")] = None,
    until: Annotated[str | None, typer.Option(help="Before this time.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 100,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Find events, newest first. What is printed is not verified: that is `lepton audit verify`."""
    from lepton_airflow.audit.search import Query, parse_moment
    from lepton_airflow.audit.search import search as search_log

    query = Query(
        dataset=dataset,
        column=column,
        principal=principal,
        action=action,
        phase=phase,
        run_key=run,
        since=None if since is None else parse_moment(since),
        until=None if until is None else parse_moment(until),
    )
    with audit_database(load_settings(home)) as engine:
        _print(search_log(engine, query, limit=limit), as_json=as_json)
        say_archived(engine)


def tail(
    count: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many events.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events until interrupted.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Print the last events in the order of the log."""
    from lepton_airflow.audit.search import tail as tail_log

    with audit_database(load_settings(home)) as engine:
        events = tail_log(engine, count=count, follow=follow)
        if not follow:
            _print(events, as_json=as_json)
            return
        try:
            for event in events:
                typer.echo(json.dumps(event) if as_json else "  ".join(_row(event)))
        except KeyboardInterrupt:
            return


def export(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder.")],
    first: Annotated[int | None, typer.Option("--from", min=0, help="The first leaf.")] = None,
    last: Annotated[int | None, typer.Option("--to", min=0, help="The last leaf, itself included.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every sealed leaf.")] = False,
    home: HomeOption = None,
) -> None:
    """Write sealed events to Parquet, with the signed checkpoint and the proofs that they are in the log."""
    from lepton_airflow.audit.checkpoint import Verifier
    from lepton_airflow.audit.quorum import Quorum
    from lepton_airflow.audit.ranges import export_range

    if everything == (first is not None or last is not None):
        raise SpecError(
            "The range is not clear.", place="lepton audit export", remedy="Give --all, or --from and --to."
        )
    settings = load_settings(home)
    verifier = Verifier.load(settings.checkpoint_verifier)
    stop = None if last is None else last + 1
    with audit_database(settings) as engine:
        cosigned = Quorum.of(settings).cosigned()
        checkpoint = export_range(engine, output, verifier=verifier, first=first or 0, stop=stop, cosigned=cosigned)
    shown = f"leaves {first or 0} to {(stop or checkpoint.tree_size) - 1} of {checkpoint.tree_size}"
    typer.echo(f"exported: {shown}, root {checkpoint.root_hash.hex()}")
    errors.print(
        f"check it with: lepton audit verify --offline {output}", markup=False, highlight=False, soft_wrap=True
    )


def say_archived(engine: Engine) -> None:
    """Say on standard error which events were not looked at because only an archive has them."""
    from lepton_airflow.audit.archived import described

    for where in described(engine):
        errors.print(f"note: not looked at: {where}", style="dim", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def audit_database(settings: Settings, *, check_schema: bool = True) -> Iterator[Engine]:
    from lepton_airflow.audit.database import connect

    engine = connect(settings, check_schema=check_schema)
    try:
        yield engine
    finally:
        engine.dispose()


def _print(events: Iterable[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        for event in events:
            typer.echo(json.dumps(event))
        return
    table = Table(
        Column("time (UTC)", no_wrap=True),
        "action",
        "phase",
        "who",
        Column("what", overflow="fold", ratio=3),
        Column("run", overflow="fold", ratio=2),
    )
    before = ""
    for event in events:
        run = event["run_key"]
        # A run's events mostly stand together, and its key is long: it is said once.
        table.add_row(*map(Text, (*_row(event), "" if run == before else run)))
        before = run
    if table.row_count:
        console.print(table)
    else:
        errors.print("no such events")


def _row(event: dict[str, Any]) -> tuple[str, ...]:
    actor = event["actor"]
    time = event["time"][: len("0000-00-00T00:00:00")].replace("T", " ")
    who = actor["principal"] + (f" for {actor['on_behalf_of']}" if actor["on_behalf_of"] else "")
    named, more = event["columns"][:_COLUMNS], len(event["columns"]) - _COLUMNS
    columns = ", ".join(named) + (f" and {more} more" if more > 0 else "")
    purpose = event["purpose"]
    what = (event["dataset"], f"({columns})" if columns else None, f"for {purpose}" if purpose else None)
    return time, event["action"], event["phase"], who, " ".join(filter(None, what))
