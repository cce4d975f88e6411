"""The files beside the example DAGs: what each task tells when it starts, is complete and fails.

After a change that is meant, run the tests with ``EXPECTED_EVENTS=write``: they write the files anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DAGS = Path(__file__).parents[2] / "dags"
#: Where the files say that the clinic's data are.
DATA = "/clinic"
_WIDTH = 120
#: What is different in each deployment, and what the files have in its place.
_ELSEWHERE = {"keyId": 1, "policyDigest": f"sha256:{'0' * 64}"}


def hold(task: str, kind: str, lineage: Mapping[str, Any], *, data: Path | str = DATA) -> None:
    """Hold what a task told against the file beside its DAG.

    :param task: ``dag.task``
    :param kind: of the event, such as START
    :param lineage: the event, or as much of it
    :param data: where the clinic's data were
    """
    facets = {name: facet for name, facet in lineage["run"]["facets"].items() if name == "lepton_privacy"}
    told = {"inputs": lineage["inputs"], "outputs": lineage["outputs"], "run": {"facets": facets}}
    told = _essence(json.loads(json.dumps(told).replace(str(data), DATA)))
    file = DAGS / f"{task.partition('.')[0]}.openlineage.json"
    expected = json.loads(file.read_text()) if file.exists() else {}
    if os.environ.get("EXPECTED_EVENTS") == "write":
        expected.setdefault(task, {})[kind] = told
        file.write_text(_text(expected, 0) + "\n")
    assert told == expected[task][kind]


def _text(value: Any, indent: int) -> str:
    """JSON, on one line what has room there."""
    line = json.dumps(value, sort_keys=True)
    if len(line) + indent <= _WIDTH or not isinstance(value, dict | list):
        return line
    if isinstance(value, list):
        inner, (opening, closing) = [_text(one, indent + 1) for one in value], "[]"
    else:
        inner = [f"{json.dumps(name)}: {_text(value[name], indent + 1)}" for name in sorted(value)]
        opening, closing = "{}"
    space = "\n" + " " * (indent + 1)
    return f"{opening}{space}{f',{space}'.join(inner)}\n{' ' * indent}{closing}"


def _essence(value: Any) -> Any:
    """Without our version and that of openlineage-python, and with nothing of a deployment or a run."""
    if isinstance(value, dict):
        return {
            name: _ELSEWHERE[name] if name in _ELSEWHERE else _run_key(one) if name == "runKey" else _essence(one)
            for name, one in value.items()
            if name != "_producer" and not str(one).startswith("https://openlineage.io")
        }
    return [_essence(one) for one in value] if isinstance(value, list) else value


def _run_key(key: str) -> str:
    dag, task, *_, mapped = key.split("/")
    return f"{dag}/{task}/run/{mapped}"
