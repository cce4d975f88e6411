"""What the example DAGs tell when they start and fail, held against the files beside them.

What they tell when they are complete is held against them where they run: ``tests/dags``.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

DAGS = Path(__file__).parents[2] / "dags"
EXAMPLES = sorted(file.stem for file in DAGS.glob("*.py"))


def told(module: str, kind: str) -> dict[str, Any]:
    """The lineage that each task of a DAG adds to its START or FAIL event; the clinic's data are in ``/clinic``."""
    from openlineage.client.serde import Serde

    from lepton_airflow.hooks.lineage import LineageMixin

    sys.path.insert(0, str(DAGS))
    try:
        dag = getattr(importlib.import_module(module), module)()
    finally:
        sys.path.remove(str(DAGS))
    events = {}
    for task in dag.tasks:
        if isinstance(task, LineageMixin):
            task.render_template_fields({"var": {"value": {"clinic_data": "/clinic"}}})  # type: ignore[typeddict-item]
            run = SimpleNamespace(dag_id=module, task_id=task.task_id, run_id="run", map_index=-1)
            lineage = (
                task.get_openlineage_facets_on_start()
                if kind == "START"
                else task.get_openlineage_facets_on_failure(run)
            )
            events[f"{module}.{task.task_id}"] = {
                "inputs": [Serde.to_dict(one) for one in lineage.inputs],
                "outputs": [Serde.to_dict(one) for one in lineage.outputs],
                "run": {"facets": {name: Serde.to_dict(one) for name, one in lineage.run_facets.items()}},
            }
    return events


@pytest.mark.parametrize("kind", ["START", "FAIL"])
@pytest.mark.parametrize("module", EXAMPLES)
def test_the_examples_tell_what_the_files_beside_them_say(
    module: str, kind: str, specification: Any, expected_events: Any
) -> None:
    events = told(module, kind)
    assert events
    for name, lineage in events.items():
        expected_events.hold(name, kind, lineage)
        event = {
            "eventType": kind,
            "eventTime": "2026-11-24T12:00:00+00:00",
            "producer": "urn:test",
            "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
            "run": {"runId": "0193607a-0000-7000-8000-000000000000", **lineage["run"]},
            "job": {"namespace": "default", "name": name, "facets": {}},
            "inputs": lineage["inputs"],
            "outputs": lineage["outputs"],
        }
        specification.check(event)


@pytest.mark.parametrize("module", EXAMPLES)
def test_every_task_of_the_examples_has_its_events_in_the_files(module: str) -> None:
    file = DAGS / f"{module}.openlineage.json"
    expected = {name: sorted(events) for name, events in json.loads(file.read_text()).items()}
    assert expected == {name: ["COMPLETE", "FAIL", "START"] for name in told(module, "START")}


def test_what_one_task_writes_the_next_one_reads() -> None:
    events = told("clinic_privacy_pipeline", "START")
    (written,) = events["clinic_privacy_pipeline.protect"]["outputs"]
    for reader in ("release", "retrain"):
        (read,) = events[f"clinic_privacy_pipeline.{reader}"]["inputs"]
        assert (read["namespace"], read["name"]) == (written["namespace"], written["name"])
