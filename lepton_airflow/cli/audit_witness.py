"""``lepton audit witness``: what a witness runs, on a machine of its own, without the deployment's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lepton_airflow.cli.console import errors

app = typer.Typer(no_args_is_help=True)


@app.command()
def keygen(
    key: Annotated[Path, typer.Argument(metavar="KEY", help="The new private key's file.")],
    name: Annotated[str, typer.Option(help="The witness's name: a URL without a scheme, such as witness.example/w1.")],
) -> None:
    """Make a witness's key and print its public half, which goes into the settings (`witnesses`) of who trusts it."""
    from lepton_airflow.audit.cosignature import generate_witness

    typer.echo(generate_witness(key, name=name))


@app.command()
def cosign(
    place: Annotated[
        str, typer.Argument(metavar="PLACE", help="A folder or URL to which the sealer copies checkpoints.")
    ],
    key: Annotated[Path, typer.Option(help="The witness's private key.")],
    log_key: Annotated[Path, typer.Option(help="The sealer's public key, checkpoint.pub.")],
    state: Annotated[Path, typer.Option(help="The witness's memory of this log; only it may write there.")],
    to: Annotated[str | None, typer.Option(help="Where to write the cosigned checkpoint, if not to PLACE.")] = None,
    begin: Annotated[bool, typer.Option("--begin", help="The witness has never cosigned this log.")] = False,
) -> None:
    """Cosign the latest checkpoint, if the log still holds everything that this witness saw before."""
    from lepton_airflow.audit.checkpoint import Verifier
    from lepton_airflow.audit.cosignature import Witness
    from lepton_airflow.audit.witness import cosign as cosign_checkpoint

    witness = Witness.load(key)
    checkpoint = cosign_checkpoint(place, log=Verifier.load(log_key), witness=witness, state=state, to=to, begin=begin)
    typer.echo(f"cosigned: {checkpoint.tree_size} events, root {checkpoint.root_hash.hex()}")
    errors.print(f"by {witness.verifier.text}", markup=False, highlight=False, soft_wrap=True)
