"""What the example DAGs will tell, held against the files beside them.

After a change that is meant, write them anew: ``python tests/lineage/test_example_dags.py``.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

DAGS = Path(__file__).parents[2] / "dags"
EXAMPLES = sorted(file.stem for file in DAGS.glob("*.py"))


def told_at_the_start(module: str) -> dict[str, Any]:
    """The lineage in the START event of each task of a DAG, but for its sender; the clinic's data are in ``/clinic``."""
    from openlineage.client.serde import Serde

    from lepton_airflow.hooks.lineage import LineageMixin

    sys.path.insert(0, str(DAGS))
    try:
        dag = getattr(importlib.import_module(module), module)()
    finally:
        sys.path.remove(str(DAGS))
    told = {}
    for task in sorted(dag.tasks, key=lambda task: task.task_id):
        if isinstance(task, LineageMixin):
            task.render_template_fields({"var": {"value": {"clinic_data": "/clinic"}}})  # type: ignore[typeddict-item]
            lineage = task.get_openlineage_facets_on_start()
            told[f"{module}.{task.task_id}"] = {
                "inputs": [Serde.to_dict(one) for one in lineage.inputs],
                "outputs": [Serde.to_dict(one) for one in lineage.outputs],
                "run": {"facets": {name: Serde.to_dict(one) for name, one in lineage.run_facets.items()}},
            }
    return told


def without_sender(value: Any) -> Any:
    """Without our version and that of openlineage-python."""
    if isinstance(value, dict):
        return {
            name: without_sender(one)
            for name, one in value.items()
            if name != "_producer" and not str(one).startswith("https://openlineage.io")
        }
    return [without_sender(one) for one in value] if isinstance(value, list) else value


def expected_file(module: str) -> Path:
    return DAGS / f"{module}.openlineage.json"


@pytest.mark.parametrize("module", EXAMPLES)
def test_the_examples_tell_what_the_files_beside_them_say(module: str, specification: Any) -> None:
    told = told_at_the_start(module)
    assert told
    assert without_sender(told) == json.loads(expected_file(module).read_text())
    for name, lineage in told.items():
        event = {
            "eventType": "START",
            "eventTime": "2026-11-24T12:00:00+00:00",
            "producer": "urn:test",
            "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
            "run": {"runId": "0193607a-0000-7000-8000-000000000000", **lineage["run"]},
            "job": {"namespace": "default", "name": name, "facets": {}},
            "inputs": lineage["inputs"],
            "outputs": lineage["outputs"],
        }
        specification.check(event)


def test_what_one_task_writes_the_next_one_reads() -> None:
    told = told_at_the_start("clinic_privacy_pipeline")
    (written,) = told["clinic_privacy_pipeline.protect"]["outputs"]
    for reader in ("release", "retrain"):
        (read,) = told[f"clinic_privacy_pipeline.{reader}"]["inputs"]
        assert (read["namespace"], read["name"]) == (written["namespace"], written["name"])


if __name__ == "__main__":
    for example in EXAMPLES:
        text = json.dumps(without_sender(told_at_the_start(example)), indent=2, sort_keys=True)
        expected_file(example).write_text(text + "\n")
