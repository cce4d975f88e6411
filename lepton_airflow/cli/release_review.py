"""``lepton release approve | publish | receipt | verify``: what happens to a release after its numbers are drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from lepton_airflow.cli.audited import _user
from lepton_airflow.cli.console import HomeOption, console
from lepton_airflow.cli.release import app
from lepton_airflow.errors import ReceiptInvalid, TargetExists
from lepton_airflow.settings import load_settings

if TYPE_CHECKING:
    from lepton_airflow.jobs.publish_release import DrawnRelease
    from lepton_airflow.privacy.receipt import Verified

__all__ = ["app"]

RunKey = Annotated[str, typer.Argument(help="The run key of the release, as `lepton budget show DATASET` has it.")]

#: What no receipt can prove; said with every verification.
LIMITS = (
    "that the numbers were computed from that source, by the program that says so",
    "that everybody is shown the same log: compare the checkpoint with one that somebody else kept",
)


@app.command()
def approve(
    run_key: RunKey,
    show: Annotated[
        bool,
        typer.Option("--show", help="Show the noisy numbers too; the policy and the audit take it like an approval."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
) -> None:
    """Approve a release that was drawn, under this identity, if the policy grants it the action `approve`.

    Neither who asked for the release nor the identity that ran it can.
    """
    from lepton_airflow.audit.database import connect
    from lepton_airflow.jobs.publish_release import approve_release, drawn_release, show_release
    from lepton_airflow.jobs.runner import Caller
    from lepton_airflow.keys.identity import Identity

    settings = load_settings(home)
    approver = Identity.load(settings.identity_file).name
    caller = Caller(on_behalf_of=_user())
    engine = connect(settings)
    try:
        _describe(drawn_release(engine, run_key))
    finally:
        engine.dispose()
    if show:
        document = show_release(run_key, settings=settings, caller=caller)
        typer.echo(json.dumps(document, indent=1, ensure_ascii=False))
    if not yes:
        typer.confirm(f"Let it be published, as {approver}?", abort=True)
    release = approve_release(run_key, settings=settings, approver=approver, known_by="identity", caller=caller)
    typer.echo(f"approved by {release.approver}; `lepton release publish {run_key}` publishes it")


@app.command()
def publish(run_key: RunKey, home: HomeOption = None) -> None:
    """Publish a release that is approved: write its file from the stored numbers. It costs nothing."""
    from lepton_airflow.jobs.publish_release import publish_release, released_spec
    from lepton_airflow.jobs.runner import Caller
    from lepton_airflow.lineage.emission import announced

    settings = load_settings(home)
    spec = released_spec(run_key, settings=settings)
    with announced("publish_release", spec, run_key=run_key) as announcement:
        summary = publish_release(run_key, settings=settings, caller=Caller(on_behalf_of=_user()))
        announcement.result = summary
    typer.echo(f"published: {summary['release']} ({summary['digest']})")


@app.command()
def receipt(
    run_key: RunKey,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; it must not be there yet.")],
    home: HomeOption = None,
) -> None:
    """Write the receipt of a published release, which proves offline what the sealed audit log says about it."""
    from lepton_airflow.audit.checkpoint import Verifier
    from lepton_airflow.audit.database import connect
    from lepton_airflow.privacy.receipt_issue import issue_receipt

    settings = load_settings(home)
    engine = connect(settings)
    try:
        content = issue_receipt(engine, run_key, verifier=Verifier.load(settings.checkpoint_verifier))
    finally:
        engine.dispose()
    try:
        with output.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise TargetExists("The file is there already.", place=str(output), remedy="Choose another.") from None
    typer.echo(f"receipt: {output}")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="RECEIPT", help="The receipt.")],
    release: Annotated[Path | None, typer.Option("--release", help="The release file that it is for.")] = None,
    verifier_key: Annotated[
        Path | None,
        typer.Option(
            "--verifier-key", help="The sealer's public key. Get it from somebody other than the receipt's sender."
        ),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Verify a receipt, without database and network; exit status 1 and the place of what is wrong, if anything is."""
    from lepton_airflow.audit.checkpoint import Verifier
    from lepton_airflow.privacy.receipt import verify_receipt

    key = Verifier.load(verifier_key or load_settings(home).checkpoint_verifier)
    content = None if release is None else _read(release, "release file")
    verified = verify_receipt(_read(file, "receipt"), verifier=key, release_file=content)
    _print_verified(verified)


def _read(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ReceiptInvalid(
            f"The {what} cannot be read ({type(error).__name__}).", place=str(file), remedy="Check the path."
        ) from None


def _describe(drawn: DrawnRelease) -> None:
    """What an approver goes by: all of it known without the data, so the groups of a private choice are not counted."""
    from lepton_airflow.privacy.amount import amount_text

    release, spec = drawn.release, drawn.spec
    about = Table.grid(Column(style="dim"), Column(overflow="fold"), padding=(0, 2))
    amounts = f"epsilon {amount_text(release.epsilon)}, delta {amount_text(release.delta)}"
    groupings = (
        f"{grouping.name}: " + ("chosen privately" if planned.groups is None else f"{count} groups")
        for grouping, planned, count in zip(spec.sets, drawn.plan.groupings, drawn.groups, strict=True)
    )
    for name, text in (
        ("dataset", spec.source.name),
        ("purpose", spec.purpose),
        ("privacy unit", release.unit),
        ("costs", f"{amounts}, of the budget of {release.dataset}"),
        ("groups", "; ".join(groupings)),
        ("metrics", ", ".join(f"{metric.name} ({metric.type})" for metric in spec.metrics)),
        ("file", spec.target),
        ("requested by", release.requested_by or "not known"),
        ("run as", release.principal),
        ("drawn at", release.drawn_at or ""),
        ("approved by", release.approver or "nobody yet"),
    ):
        about.add_row(name, escape(text))
    console.print(about)
    table = Table("query", "mechanism", "groups", "steps per group", "width", "scale", "epsilon", "rho", "delta")
    for event in drawn.plan.events():
        numbers = (event.groups, event.per_group, event.width, f"{event.scale:.6g}")
        costs = (f"{float(cost):.6g}" for cost in (event.epsilon, event.rho, event.delta))
        table.add_row(*map(escape, (event.query, event.mechanism, *map(str, numbers), *costs)))
    console.print(table)


def _print_verified(verified: Verified) -> None:
    claims = verified.claims
    approval = claims["approval"]
    approver = f"{approval['approver']} (known by {approval['known_by']})" if approval else "not required"
    table = Table.grid(Column(style="dim"), Column(overflow="fold"), padding=(0, 2))
    file = "its SHA-256 is that" if verified.file_checked else "not given, so not checked"
    for name, text in (
        ("log", f"{verified.tree_size} events, signed by {verified.signed_by}"),
        ("run key", claims["run_key"]),
        ("dataset", claims["dataset"]),
        ("source", claims["source_digest"] or "not known: the process that read it died before it could say"),
        ("spec", claims["spec_digest"]),
        (
            "costs",
            f"epsilon {claims['epsilon']}, delta {claims['delta']}: {len(claims['mechanisms'])} mechanisms add up",
        ),
        ("run as", claims["principal"]),
        ("requested by", claims["requested_by"] or "not known"),
        ("approved by", approver),
        ("policy", f"{claims['policy']['digest']}, rules {', '.join(claims['policy']['rules'])}"),
        ("published", f"{claims['publication']['published_at']}, {claims['release_digest']}"),
        ("release file", file),
    ):
        table.add_row(name, escape(text))
    typer.echo("ok: the audit log says so")
    console.print(table)
    if verified.further_signatures:
        typer.echo(f"not checked: {verified.further_signatures} further signatures on the checkpoint")
    for limit in LIMITS:
        typer.echo(f"not proved: {limit}")
