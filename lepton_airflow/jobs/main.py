"""The command line behind every ``spark_jobs/<job>.py`` and ``lepton run``."""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lepton_airflow.errors import LeptonError, SpecError
from lepton_airflow.jobs.runner import Caller, run_job
from lepton_airflow.jobs.spec import read_spec_file
from lepton_airflow.settings import load_settings


def main(job: str, arguments: Sequence[str] | None = None) -> int:
    """Run ``job`` with command-line arguments; print its summary as one JSON line, or its error as one line.

    :returns: the exit status: 0, or 1 after a typed error
    """
    parser = argparse.ArgumentParser(prog=f"{job}.py", description=f"Run the Lepton job {job} on Spark.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--spec", type=Path, metavar="FILE", help="the spec, a YAML file")
    source.add_argument("--spec-json", metavar="JSON", help="the spec itself (how operators pass it)")
    parser.add_argument("--run-key", help="repeating a run under its key has the same effect once; default: a new key")
    parser.add_argument("--home", help="the folder that `lepton init` made; default $LEPTON_HOME")
    parser.add_argument("--on-behalf-of", help="the user who asked for the run, for the audit")
    parser.add_argument("--owner", help="the owner of the pipeline, for the audit")
    parser.add_argument("--team", help="the team of the pipeline, for the audit")
    parser.add_argument("--bundle-version", help="the version of the DAG bundle, for the audit")
    parser.add_argument("--attempt", default="", help="set by operators, which report a stored error themselves")
    options = parser.parse_args(arguments)
    run_key = options.run_key or f"spark-submit/{uuid.uuid4()}"
    try:
        summary = run_job(
            job,
            _spec_fields(options),
            settings=load_settings(options.home),
            run_key=run_key,
            caller=Caller(
                on_behalf_of=options.on_behalf_of,
                owner=options.owner,
                team=options.team,
                bundle_version=options.bundle_version,
            ),
            attempt=options.attempt,
            # For an operator's task Airflow's provider sends the events.
            announce=not options.attempt,
        )
    except LeptonError as error:
        if not (options.attempt and error.stored):
            print(f"lepton: {job} [{error.code}] {error}", file=sys.stderr)
        return 1
    print(json.dumps({"job": job, "run_key": run_key, "result": summary}))
    return 0


def _spec_fields(options: argparse.Namespace) -> dict[str, Any]:
    if options.spec is not None:
        return read_spec_file(options.spec)
    try:
        fields = json.loads(options.spec_json)
    except ValueError:
        raise SpecError(
            "The spec is not valid JSON.", place="--spec-json", remedy="Pass --spec FILE instead."
        ) from None
    if not isinstance(fields, dict):
        raise SpecError("A spec is a mapping of fields.", place="--spec-json", remedy="Pass a JSON object.")
    return fields
