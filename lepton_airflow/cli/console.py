"""How every command finds its settings and prints."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

#: For people; results that programs read go to standard output as they are.
console = Console()
errors = Console(stderr=True)

HomeOption = Annotated[
    str | None,
    typer.Option("--home", help="The folder that `lepton init` made.", envvar="LEPTON_HOME", show_default="~/.lepton"),
]
