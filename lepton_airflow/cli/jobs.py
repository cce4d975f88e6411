"""``lepton run``: a job on a Spark session that this process starts, the same as under spark-submit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lepton_airflow.cli.console import HomeOption


def run(
    job: Annotated[str, typer.Argument(help="Its name, such as encrypt_columns, release_aggregates or retrain_model.")],
    spec: Annotated[Path, typer.Option(help="The job's spec, a YAML file.")],
    home: HomeOption = None,
    run_key: Annotated[str | None, typer.Option(help="Repeating a run under its key has the same effect once.")] = None,
) -> None:
    """Run a job here, with PySpark installed beside this command; prints the result as one JSON line."""
    from lepton_airflow.jobs.main import main

    arguments = ["--spec", str(spec)]
    if home:
        arguments += ["--home", home]
    if run_key:
        arguments += ["--run-key", run_key]
    raise typer.Exit(main(job, arguments))
