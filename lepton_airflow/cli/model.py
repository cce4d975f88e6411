"""``lepton model``: which models there are, whether a folder holds what the registry says, and the key that signs them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lepton_airflow.cli.audited import _user, audited
from lepton_airflow.cli.console import HomeOption, console
from lepton_airflow.errors import ConfigurationError, RegistryError
from lepton_airflow.settings import SETTINGS_FILE, Settings, load_settings

if TYPE_CHECKING:
    from lepton_airflow.models.artefact import ModelFolder
    from lepton_airflow.models.registry import Entry, ModelRegistry

app = typer.Typer(no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="The model's name.")]
FolderArgument = Annotated[Path, typer.Argument(help="The folder of a model.")]

#: Of `sha256:` and 64 digits: enough to tell models apart.
_SHORT = 19


@app.command("list")
def list_models(
    model: Annotated[str | None, typer.Argument(help="Only this name.")] = None, home: HomeOption = None
) -> None:
    """Show every model that a gate has judged, and its status."""
    table = Table("model", "file", "status", "clean", "robust", "epsilon", "dataset", "registered at")
    with _registry(load_settings(home)) as registry:
        for entry in _entries(registry, model):
            measured = (_number(entry.metrics.get(name)) for name in ("clean_accuracy", "robust_accuracy", "epsilon"))
            table.add_row(
                *map(escape, (entry.model, entry.sha256[:_SHORT], entry.status, *measured, entry.dataset)),
                entry.registered_at.partition(".")[0],
            )
    console.print(table)


@app.command()
def show(
    model: NameArgument,
    sha256: Annotated[str, typer.Option(help="The file, or the beginning of its hash; default is the champion.")] = "",
    home: HomeOption = None,
) -> None:
    """Print one model's entry as JSON: its status, run, card, dataset and measurements."""
    with _registry(load_settings(home)) as registry:
        found = [entry for entry in _entries(registry, model) if _is_meant(entry, sha256)]
    if len(found) != 1:
        raise RegistryError(
            "Several files begin so." if found else "There is no such file." if sha256 else "There is no champion.",
            place=f"model {model!r}",
            remedy="See `lepton model list`, and give more of the hash.",
        )
    typer.echo(json.dumps(vars(found[0]), indent=2, sort_keys=True))


@app.command()
def history(model: NameArgument, home: HomeOption = None) -> None:
    """Show every change of a status under this name: when, from what to what, by whom and why."""
    table = Table("changed at", "file", "from", "to", "by", "run key", "reason")
    with _registry(load_settings(home)) as registry:
        _entries(registry, model)
        for change in registry.history(model):
            table.add_row(
                change.changed_at.partition(".")[0],
                change.sha256[:_SHORT],
                change.before or "-",
                *map(escape, (change.after, change.principal, change.run_key, change.reason)),
            )
    console.print(table)


@app.command()
def verify(folder: FolderArgument, home: HomeOption = None) -> None:
    """Hold a champion's folder against its card, its signature and the registry. Loads nothing; status 1 if one is wrong."""
    from lepton_airflow.models.shipping import require_champion

    settings = load_settings(home)
    with audited(settings, "model.verify", folder=str(folder.absolute())) as record, _registry(settings) as registry:
        place, signed = _folder(settings, folder)
        entry = require_champion(registry, place)
        record(model=entry.model, sha256=entry.sha256, signed=signed)
    console.print("[green]files[/]      are those of the model card", highlight=False)
    if signed:
        console.print(f"[green]signature[/]  of the key in {signed}", highlight=False)
    else:
        console.print(
            f"[yellow]signature[/]  not required: {SETTINGS_FILE} names no model_signing_key or model_verifier",
            highlight=False,
        )
    console.print(f"[green]registry[/]   champion of {escape(entry.model)}, {entry.sha256}", highlight=False)


@app.command()
def promote(
    folder: FolderArgument,
    reason: Annotated[str, typer.Option(help="Why; it stays in the model's history.")],
    home: HomeOption = None,
) -> None:
    """Make the model in this folder the champion of its name, and retire the one so far.

    For a model that was champion before, put back from a copy, or for a challenger. Its files are verified first; what a gate
    has refused is not promoted. The policy must grant `promote` for what the model learned from, and for its purpose.
    """
    from lepton_airflow.jobs.runner import Caller, audit_log_of, guard_of
    from lepton_airflow.models.registry import ModelRegistry
    from lepton_airflow.models.shipping import require_registered

    settings = load_settings(home)
    caller = Caller(on_behalf_of=_user())
    with audit_log_of(settings, f"model/{uuid.uuid4()}", caller) as (engine, principal, log):
        registry = ModelRegistry(engine)
        entry, card = require_registered(registry, _folder(settings, folder)[0])
        guard = guard_of(settings, log, principal=principal, spec_digest=card["spec_digest"])
        with guard.operation(
            action="promote",
            dataset=entry.dataset,
            columns=[*card["data"]["features"], card["data"]["label"], card["data"]["privacy_unit"]],
            purpose=card["purpose"],
            details={"model": entry.model, "folder": str(folder.absolute())},
        ) as operation:
            operation.record(digests={"model": entry.sha256})
            entry = registry.promote(entry.model, sha256=entry.sha256, reason=reason, log=log)
    console.print(f"champion of {escape(entry.model)}: {entry.sha256}", highlight=False)


@app.command()
def keygen(
    name: Annotated[str, typer.Argument(help="Of the key in the keyring.")],
    recipient: Annotated[list[str] | None, typer.Option(help="Once or more; default is your identity.")] = None,
    home: HomeOption = None,
) -> None:
    """Make a key that signs models, its private half sealed to the recipients."""
    from lepton_airflow.keys.identity import Identity, Recipient, recipient_file
    from lepton_airflow.keys.signing_key import generate_signing_key

    settings = load_settings(home)
    names = tuple(recipient or (Identity.load(settings.identity_file).name,))
    with audited(settings, "model.keygen", key=name, recipients=" ".join(names)):
        public = [Recipient.load(recipient_file(each, settings.recipients)) for each in names]
        path = generate_signing_key(name, keyring=settings.keyring, recipients=public)
    console.print(f"signing key {name} sealed to {', '.join(names)}\n  public half: {path}", highlight=False)
    console.print(
        f"  Write `model_signing_key: {name}` into {settings.home / SETTINGS_FILE}: from then on models are signed, "
        "and none without its signature is loaded.",
        highlight=False,
    )


@app.command()
def sign(folder: FolderArgument, home: HomeOption = None) -> None:
    """Sign a champion that was published before there was a key. Its files and its entry are verified first."""
    from lepton_airflow.models.artefact import ModelFolder
    from lepton_airflow.models.shipping import require_champion
    from lepton_airflow.models.signing import signing_key_of

    settings = load_settings(home)
    place = ModelFolder(folder)
    with audited(settings, "model.sign", folder=str(place.path)) as record, _registry(settings) as registry:
        key = signing_key_of(settings)
        if key is None:
            raise ConfigurationError(
                "No key signs models here.",
                place=str(settings.home / SETTINGS_FILE),
                remedy="Make one with `lepton model keygen`, and write `model_signing_key: <name>` there.",
            )
        entry = require_champion(registry, place)
        record(model=entry.model, sha256=entry.sha256, key=key.name)
        place.sign(key)
    console.print(f"signed with {key.name}: {place.path}", highlight=False)


@contextmanager
def _registry(settings: Settings) -> Iterator[ModelRegistry]:
    from lepton_airflow.audit.database import connect
    from lepton_airflow.models.registry import ModelRegistry

    engine = connect(settings)
    try:
        yield ModelRegistry(engine)
    finally:
        engine.dispose()


def _folder(settings: Settings, path: Path) -> tuple[ModelFolder, str]:
    """The folder as these settings demand it, and where the key is that must have signed it; empty if none must."""
    from lepton_airflow.models.artefact import ModelFolder
    from lepton_airflow.models.signing import verifier_of

    verifier = verifier_of(settings)
    return ModelFolder(path, verifier=verifier), str(verifier.path) if verifier else ""


def _entries(registry: ModelRegistry, model: str | None) -> list[Entry]:
    found = registry.entries(model)
    if model is not None and not found:
        raise RegistryError(
            "The registry has no model of this name.", place=f"model {model!r}", remedy="See `lepton model list`."
        )
    return found


def _is_meant(entry: Entry, sha256: str) -> bool:
    if not sha256:
        return entry.status == "champion"
    return entry.sha256.removeprefix("sha256:").startswith(sha256.removeprefix("sha256:"))


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"
