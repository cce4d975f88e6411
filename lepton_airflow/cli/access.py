"""``lepton access``: what the policy decides and why, its mistakes, and the policy in Cedar. Reads no protected data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lepton_airflow.cli.console import HomeOption, console
from lepton_airflow.errors import ConfigurationError, TargetExists
from lepton_airflow.settings import Settings, load_settings

if TYPE_CHECKING:
    from lepton_airflow.access.explain import Considered
    from lepton_airflow.access.lint import SealedKeyset
    from lepton_airflow.access.policy import Policy
    from lepton_airflow.access.request import Decision, PolicyEngine, Request

app = typer.Typer(no_args_is_help=True)

_NEAREST = 3

PolicyOption = Annotated[
    Path | None, typer.Option("--policy", help="A policy file; default: that of the home. With it no home is needed.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command()
def check(
    principal: Annotated[str, typer.Option("--as", help="The identity that asks.")],
    action: Annotated[str, typer.Option(help="encrypt, decrypt, release, train, rotate, store, restore, verify ...")],
    purpose: Annotated[str, typer.Option(help="What for.")],
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Once or more: clinic.visits.email, or with --dataset the column alone. None: the whole dataset."
        ),
    ] = None,
    dataset: Annotated[str, typer.Option(help="The dataset; needed for nested columns, whose names have dots.")] = "",
    epsilon: Annotated[float | None, typer.Option(help="Of a release.")] = None,
    needs_approval: Annotated[bool, typer.Option("--needs-approval", help="The release waits for approval.")] = False,
    at: Annotated[str, typer.Option(help="When, as in 2026-05-04T09:30:00+02:00; default now.")] = "",
    environment: Annotated[str, typer.Option(help="Where; default: that of the settings.")] = "",
    policy: PolicyOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Say what the policy decides, by which rules and why. Exit status 0: allowed; 1: denied."""
    from lepton_airflow.access.explain import consider
    from lepton_airflow.access.policy import Policy
    from lepton_airflow.access.request import Request

    engine, settings = _policy(policy, home)
    where = environment or (settings.environment if settings else "")
    if epsilon is not None and not math.isfinite(epsilon):
        raise ConfigurationError("The epsilon is not finite.", place="--epsilon", remedy="Give a number.")
    name, columns = _resource(dataset, column or [])
    request = Request(principal, action, name, columns, purpose, epsilon, needs_approval, where or None)
    time = _time(at)
    decision = engine.decide(request, at=time)
    considered = consider(engine, request, at=time) if isinstance(engine, Policy) else ()
    # A grant without obstacles is one that allows; when all is denied it is a denial that stands in its way.
    near = () if decision.allow else considered[:_NEAREST]
    if as_json:
        typer.echo(json.dumps(_document(request, decision, near)))
    else:
        _print(request, decision, near, explained=isinstance(engine, Policy))
    raise typer.Exit(0 if decision.allow else 1)


@app.command()
def lint(
    keyring: Annotated[
        bool, typer.Option("--keyring", help="Hold grants against the keys of the home's keyring too.")
    ] = False,
    keyset: Annotated[
        list[str] | None,
        typer.Option(help="clinic=clinic.*: the keyset protects these datasets. Once or more; implies --keyring."),
    ] = None,
    spec: Annotated[
        list[Path] | None,
        typer.Option(help="The same, from a spec of encrypt_columns. Once or more; implies --keyring."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail too.")] = False,
    policy: PolicyOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Find rules that do nothing or say the same, and grants and keys that do not fit. Exit status 1 on errors."""
    from lepton_airflow.access.lint import lint as lint_policy

    checked = _builtin(*_policy(policy, home))
    keysets: tuple[SealedKeyset, ...] = ()
    if keyring or keyset or spec:
        keysets = _keysets(load_settings(home), _mapping(keyset or [], spec or []))
    findings = lint_policy(checked, keysets=keysets)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    elif findings:
        table = Table("severity", "rule", "kind", "what", "remedy")
        for finding in findings:
            style = "bold red" if finding.severity == "error" else "yellow"
            plain = (Text(text, overflow="fold") for text in (finding.rule, finding.kind, finding.text, finding.remedy))
            table.add_row(Text(finding.severity, style=style), *plain)
        console.print(table)
    else:
        typer.echo(f"ok: {len(checked.grants)} grants, {len(checked.denials)} denials, {len(keysets)} keysets")
    if any(strict or finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


@app.command("to-cedar")
def to_cedar(
    output: Annotated[Path, typer.Option(help="The .cedar file; roles and schema are written beside it.")],
    policy: PolicyOption = None,
    home: HomeOption = None,
) -> None:
    """Translate the policy to Cedar, for `policy_engine: cedar`. Needs no cedarpy."""
    from lepton_airflow.access.cedar import SCHEMA, SUFFIX, entities_file
    from lepton_airflow.access.translation import to_cedar as translate

    if output.suffix != SUFFIX:
        raise ConfigurationError(f"The file's name ends in {SUFFIX}.", place=str(output), remedy="Choose such a name.")
    translated = translate(_builtin(*_policy(policy, home)))
    texts = {
        entities_file(output): translated.entities_text,
        output.with_suffix(".cedarschema"): SCHEMA,
        output: translated.policies,
    }
    for file in texts:
        if file.exists():
            raise TargetExists(
                "The file is there already.", place=str(file), remedy="Choose another name, or remove it."
            )
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
        typer.echo(f"written: {file}")


def _policy(file: Path | None, home: str | None) -> tuple[PolicyEngine, Settings | None]:
    from lepton_airflow.access.cedar import SUFFIX
    from lepton_airflow.access.engine import load_policy, read_policy

    if file is not None:
        return read_policy(file, engine="cedar" if file.suffix == SUFFIX else "builtin"), None
    settings = load_settings(home)
    return load_policy(settings), settings


def _builtin(engine: PolicyEngine, _settings: Settings | None) -> Policy:
    from lepton_airflow.access.policy import Policy

    if not isinstance(engine, Policy):
        raise ConfigurationError(
            "This reads policies of the built-in engine.",
            place="policy_engine: cedar",
            remedy="Give the policy.yaml with --policy; Cedar has tools of its own.",
        )
    return engine


def _time(text: str) -> datetime | None:
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.utcoffset() is None:
        raise ConfigurationError(
            "The time is not one with an offset from UTC.",
            place="--at",
            remedy="Write it as 2026-05-04T09:30:00+02:00.",
        )
    return time


def _resource(dataset: str, columns: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    if dataset:
        return dataset, tuple(columns)
    split = [column.rpartition(".") for column in columns]
    datasets = {head for head, _, _ in split}
    if len(datasets) != 1 or "" in datasets:
        raise ConfigurationError(
            "A request is about columns of one dataset.",
            place="--column",
            remedy="Give columns as clinic.visits.email, all of one dataset, or --dataset.",
        )
    return datasets.pop(), tuple(name for _, _, name in split)


def _document(request: Request, decision: Decision, near: Sequence[Considered]) -> dict[str, Any]:
    return {
        "allow": decision.allow,
        "rules": list(decision.rules),
        "reason": decision.reason,
        "policy_digest": decision.policy_digest,
        "request": asdict(request),
        "nearest": [asdict(one) for one in near],
    }


def _print(request: Request, decision: Decision, near: Sequence[Considered], *, explained: bool) -> None:
    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    columns = ", ".join(request.columns) or "the dataset as a whole"
    line("allowed" if decision.allow else "denied", "bold green" if decision.allow else "bold red")
    line(f"  {request.principal}: {request.action} {columns} of {request.dataset}, for {request.purpose}")
    line(f"  {decision.reason}")
    line(f"  rules   {', '.join(decision.rules) or 'none'}")
    line(f"  policy  {decision.policy_digest}")
    for one in near:
        if one.obstacles:
            line(f"grant {one.rule} does not allow it:")
            for obstacle in one.obstacles:
                line(f"  {obstacle.part}: {obstacle.text}")
        else:
            line(f"grant {one.rule} would allow it, but a denial wins.")
    if not explained and not decision.allow:
        line("Cedar names the policies that decided; it does not say what others would have needed.")


def _mapping(pairs: Sequence[str], specs: Sequence[Path]) -> dict[str, list[str]]:
    """Patterns of datasets by keyset."""
    from lepton_airflow.jobs.spec import read_spec_file

    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, pattern = pair.partition("=")
        if not (name and equals and pattern):
            raise ConfigurationError(
                "This does not say which datasets a keyset protects.",
                place=f"--keyset {pair}",
                remedy="Write clinic=clinic.*",
            )
        found.setdefault(name, []).append(pattern)
    for file in specs:
        fields = read_spec_file(file)
        target = fields.get("target")
        keyset, dataset = fields.get("keyset"), target.get("name") if isinstance(target, dict) else None
        if not (isinstance(keyset, str) and isinstance(dataset, str)):
            raise ConfigurationError(
                "The spec names no keyset and target.", place=str(file), remedy="Give a spec of encrypt_columns."
            )
        found.setdefault(keyset, []).append(dataset)
    return found


def _keysets(settings: Settings, datasets: dict[str, list[str]]) -> tuple[SealedKeyset, ...]:
    """What the keyring's files say of their recipients. Opens none of them."""
    from lepton_airflow.access.lint import SealedKeyset
    from lepton_airflow.keys.keyring import FileKeyring

    sealed: dict[str, list[frozenset[str]]] = {}
    for part in FileKeyring(settings.keyring).list():
        sealed.setdefault(part.name, []).append(frozenset(part.recipients))
    unknown = sorted(datasets.keys() - sealed.keys())
    if unknown:
        raise ConfigurationError(
            f"There is no keyset {', '.join(unknown)}.", place=str(settings.keyring), remedy="See `lepton keys list`."
        )
    return tuple(
        SealedKeyset(
            name=name,
            holders=frozenset().union(*parts),
            complete=frozenset.intersection(*parts),
            datasets=tuple(datasets.get(name, ())),
        )
        for name, parts in sealed.items()
    )
