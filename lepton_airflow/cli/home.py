"""``lepton init``: the folder with everything that jobs need besides their data."""

from __future__ import annotations

import getpass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
import yaml

from lepton_airflow.cli.console import HomeOption, console
from lepton_airflow.settings import SETTINGS_FILE, load_settings


def init(
    home: HomeOption = None,
    identity: Annotated[
        str, typer.Option(help="The first identity; it becomes the one that jobs use unless told otherwise.")
    ] = "",
    keyset: Annotated[str, typer.Option(help="The first keyset, sealed to that identity.")] = "default",
    audit_database: Annotated[
        str, typer.Option(help="SQLAlchemy URL of the audit database, without a password.")
    ] = "sqlite:///audit.db",
) -> None:
    """Make settings, an identity, a sealed keyset, the sealer's key, a default-deny policy and the audit database.

    What is there already is kept; nothing is ever overwritten.
    """
    from lepton_airflow.audit.checkpoint import Signer, generate_signer
    from lepton_airflow.audit.database import connect, migrate
    from lepton_airflow.audit.sealer import seal
    from lepton_airflow.cli.keys import create_identity, create_keyset

    folder = Path(home or "~/.lepton").expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = identity or getpass.getuser()
    if (folder / SETTINGS_FILE).exists():
        settings = load_settings(folder)
    else:
        (folder / SETTINGS_FILE).write_text(
            yaml.safe_dump({"identity": name, "audit_database": audit_database}, sort_keys=False)
        )
        settings = load_settings(folder)
        console.print(f"settings    {folder / SETTINGS_FILE}")
    engine = connect(settings, check_schema=False)
    migrate(engine)
    console.print(f"audit       {settings.audit_database}")
    if not settings.identity_file.exists():
        create_identity(settings, name)
        console.print(f"identity    {settings.identity_file}  (private)")
    # The public half decides: the private one belongs elsewhere, and a second signer would disown what the first signed.
    first_time = not settings.checkpoint_verifier.exists()
    if first_time:
        settings.checkpoint_signer.parent.mkdir(mode=0o700, exist_ok=True)
        verifier = generate_signer(settings.checkpoint_signer, name="lepton-audit")
        settings.checkpoint_verifier.write_text(f"{verifier}\n")
        console.print(f"sealer key  {settings.checkpoint_signer}  (for the sealer alone)")
    if not settings.policy.exists():
        access = files("lepton_airflow.access")
        # Editors that know YAML's language server check and complete the file by it.
        modeline = f"# yaml-language-server: $schema={access.joinpath('policy.schema.json')}\n"
        settings.policy.write_text(modeline + access.joinpath("policy.template.yaml").read_text())
        console.print(f"policy      {settings.policy}  (denies everything until you grant something)")
    if not (settings.keyring / keyset).exists():
        create_keyset(settings, keyset, recipients=(name,))
        console.print(f"keyset      {settings.keyring / keyset}  (sealed to {name})")
    if first_time:
        # From the first checkpoint on, a log that was emptied differs from one that is new.
        seal(engine, signer=Signer.load(settings.checkpoint_signer), exports=settings.checkpoint_exports)
    engine.dispose()
    console.print("[green]ready[/]     set LEPTON_HOME to this folder, or pass --home")
