"""What each job says of its inputs, outputs and columns: pure functions of the spec and of what the run observed."""

from __future__ import annotations

from functools import reduce
from operator import getitem
from typing import Any

import jsonschema
import pytest
from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
from openlineage.client.facet_v2 import job_type_job, parent_run, tags_run
from openlineage.client.serde import Serde
from referencing.exceptions import Unresolvable

from lepton_airflow.jobs.runner import JOBS
from lepton_airflow.lineage import facets
from lepton_airflow.lineage.jobs import OPERATIONS, job_lineage
from lepton_airflow.lineage.model import JobLineage
from lepton_airflow.lineage.naming import Place, place_of

RAW = {"name": "clinic.visits_raw", "path": "/raw"}
VISITS = {"name": "clinic.visits", "path": "s3a://clinic/visits"}
PROTECTED = {
    "tables": {
        "clinic.visits": {
            "fields": [["id", "binary"], ["email", "binary"], ["site", "string"]],
            "protected": {
                "id": {"cipher": "AES256_SIV", "keyset": "clinic", "domain": "patient", "type": "bigint"},
                "email": {"cipher": "AES256_GCM", "keyset": "clinic", "type": "string"},
            },
        }
    },
    "keys": {},
    "policy_digest": "a" * 64,
}
SPECS: dict[str, dict[str, Any]] = {
    "encrypt_columns": {
        "source": RAW,
        "target": VISITS,
        "keyset": "clinic",
        "columns": {"email": {}, "id": {"cipher": "AES256_SIV", "domain": "patient"}},
        "purpose": "ingestion",
    },
    "decrypt_columns": {"source": VISITS, "target": RAW, "columns": ["email"], "purpose": "letters"},
    "gate_model": {
        "source": VISITS,
        "trained_on": RAW,
        "model": "/models/candidate",
        "champion": "/models/diagnosis",
        "gate": {"minimum_clean_accuracy": 0.9, "minimum_robust_accuracy": 0.6},
        "purpose": "model",
    },
    "rotate_keys": {"source": VISITS, "target": VISITS, "purpose": "rotation"},
    "release_aggregates": {
        "source": VISITS,
        "privacy_unit": "id",
        "group_by": ["site"],
        "groups": [["north"]],
        "metrics": [
            {"name": "visits", "type": "count"},
            {"name": "age", "type": "mean", "column": "age", "lower": 0, "upper": 99},
        ],
        "epsilon": "0.5",
        "target": "/out.json",
        "purpose": "statistics",
    },
    "retrain_model": {
        "source": VISITS,
        "privacy_unit": "id",
        "features": ["a", "b"],
        "label_column": "ill",
        "target": "/model",
        "purpose": "model",
    },
    "score_model": {
        "source": {"name": "clinic.visits", "path": "/data/visits"},
        "model": "/models/diagnosis",
        "minimum_clean_accuracy": 0.9,
        "minimum_robust_accuracy": 0.6,
        "purpose": "model",
    },
    "store_dataset": {"source": VISITS, "keyset": "clinic", "parity_shards": 2, "purpose": "archive"},
    "restore_dataset": {"dataset": "clinic.visits", "target": RAW, "purpose": "recovery"},
    "repair_storage": {"dataset": "clinic.visits", "purpose": "archive"},
    "verify_audit": {"purpose": "nightly"},
}
#: What comes of these is no dataset.
WRITE_NOTHING = ("gate_model", "repair_storage", "score_model", "verify_audit")


def as_event(lineage: JobLineage) -> dict[str, Any]:
    event = RunEvent(
        eventType=RunState.COMPLETE,
        eventTime="2026-11-24T12:00:00+00:00",
        run=Run(runId="0193607a-0000-7000-8000-000000000000", facets=facets.run_facets(lineage)),
        job=Job(namespace="test", name="test"),
        inputs=facets.inputs(lineage),
        outputs=facets.outputs(lineage),
        producer=facets.PRODUCER,
    )
    return Serde.to_dict(event)


def transformations(event: dict[str, Any]) -> dict[tuple[str | None, str], tuple[str, str, bool]]:
    """By output column (None: the whole dataset) and input column."""
    facet = event["outputs"][0]["facets"]["columnLineage"]
    sources = [(name, one) for name, field in facet["fields"].items() for one in field["inputFields"]]
    sources += [(None, one) for one in facet["dataset"]]
    return {
        (output, one["field"]): (step["type"], step["subtype"], step["masking"])
        for output, one in sources
        for step in one["transformations"]
    }


@pytest.mark.parametrize("observed", [None, PROTECTED])
@pytest.mark.parametrize("job", SPECS)
def test_every_job_is_told_as_the_specification_says(job: str, observed: Any, specification: Any) -> None:
    event = as_event(job_lineage(job, SPECS[job], observed=observed, run_key="dag/task/run/-1"))
    specification.check(event)
    facet = event["run"]["facets"]["lepton_privacy"]
    assert facet["operation"] == OPERATIONS[job]
    assert facet["purpose"] == SPECS[job]["purpose"]
    assert facet["runKey"] == "dag/task/run/-1"
    assert facet.get("policyDigest") == (observed and "a" * 64)
    assert bool(event["inputs"]) == (job != "verify_audit")
    assert bool(event["outputs"]) == (job not in WRITE_NOTHING)


def test_every_job_of_the_runner_has_an_operation() -> None:
    # Publishing is no job of its own: it goes on from a release.
    assert OPERATIONS.keys() - {"publish_release"} == JOBS.keys() == SPECS.keys()


def test_what_is_stored_is_what_is_restored_and_repaired() -> None:
    stored = job_lineage("store_dataset", SPECS["store_dataset"])
    restored = job_lineage("restore_dataset", SPECS["restore_dataset"])
    assert [one.place for one in stored.inputs] == [place_of(VISITS)]
    assert [one.place for one in stored.outputs] == [Place("lepton-storage", "clinic.visits")]
    assert restored.inputs == stored.outputs == job_lineage("repair_storage", SPECS["repair_storage"]).inputs
    assert [one.place for one in restored.outputs] == [place_of(RAW)]


OUTPUT = ("outputs", 0)
COLUMN = (*OUTPUT, "facets", "columnLineage", "fields", "email", "inputFields", 0)
EMISSION = ("job", "facets", "jobType", "emissionPattern")
PARENT_TAGS = ("run", "facets", "parent", "run", "facets", "tags")
#: Takes a field away.
GONE = object()


def whole_event() -> dict[str, Any]:
    """An event with something for each kind of rule that a run's event can break."""
    result = {"columns": ["email", "id"], "rows": 3}
    event = as_event(job_lineage("encrypt_columns", SPECS["encrypt_columns"], result=result))
    pattern = job_type_job.EmissionPattern(eventTrigger="ONE_TIME", eventContentMode="COMPLETE", windowDuration=1)
    tags = tags_run.TagsRunFacet(tags=[tags_run.TagsRunFacetFields(key="site", value="north")])
    parent = parent_run.ParentRunFacet(
        run=parent_run.Run(runId=event["run"]["runId"], facets={"tags": tags}),
        job=parent_run.Job(namespace="test", name="parent"),
    )
    job_type = job_type_job.JobTypeJobFacet(processingType="BATCH", integration="LEPTON", emissionPattern=pattern)
    event["run"]["facets"]["parent"] = Serde.to_dict(parent)
    event["job"]["facets"] = {"jobType": Serde.to_dict(job_type)}
    return event


def changed(event: dict[str, Any], path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    holder: Any = reduce(getitem, path[:-1], event)  # type: ignore[arg-type]
    if value is GONE:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return event


@pytest.mark.parametrize(
    ("rule", "path", "value"),
    [
        ("required", ("job", "namespace"), GONE),
        ("required", (*COLUMN, "field"), GONE),
        ("required", (*PARENT_TAGS, "tags", 0, "key"), GONE),
        # What every facet has, whatever its schema.
        ("anyOf", (*OUTPUT, "facets", "schema", "_producer"), GONE),
        ("anyOf", (*PARENT_TAGS, "_schemaURL"), GONE),
        ("type", ("job", "name"), 1),
        ("type", ("run", "facets"), []),
        ("type", ("inputs",), {}),
        ("type", (*OUTPUT, "facets", "tags", "tags", 0, "value"), 1),
        ("type", (*OUTPUT, "facets", "columnLineage", "fields", "email"), "id"),
        ("type", (*OUTPUT, "outputFacets", "outputStatistics", "rowCount"), "3"),
        ("type", (*COLUMN, "transformations", 0, "masking"), "yes"),
        ("format", ("run", "runId"), "1"),
        ("format", ("eventTime",), "yesterday"),
        ("format", ("eventTime",), "2026-11-24T12:00:00"),
        ("format", ("producer",), "lepton"),
        ("format", ("run", "facets", "parent", "run", "runId"), "1"),
        ("enum", ("eventType",), "DONE"),
        ("minimum", (*EMISSION, "windowDuration"), 0),
        # Fields that the specification does not know; it lets them pass.
        ("unevaluatedProperties", ("note",), "x"),
        ("unevaluatedProperties", (*OUTPUT, "note"), "x"),
        ("unevaluatedProperties", (*OUTPUT, "facets", "schema", "note"), "x"),
        ("unevaluatedProperties", (*COLUMN, "note"), "x"),
        ("unevaluatedProperties", (*EMISSION, "note"), "x"),
        # Our own schema.
        ("additionalProperties", ("run", "facets", "lepton_privacy", "value"), "ada@example.org"),
        ("required", ("run", "facets", "lepton_privacy", "operation"), GONE),
    ],
)
def test_the_check_of_events_refuses_what_is_wrong(
    rule: str, path: tuple[str | int, ...], value: object, specification: Any
) -> None:
    specification.check(whole_event())
    with pytest.raises(jsonschema.ValidationError) as refusal:
        specification.check(changed(whole_event(), path, value))
    assert refusal.value.validator == rule


def test_the_check_of_events_refuses_a_facet_under_another_name(specification: Any) -> None:
    event = whole_event()
    event["run"]["facets"]["father"] = event["run"]["facets"].pop("parent")
    with pytest.raises(jsonschema.ValidationError, match="father"):
        specification.check(event)


@pytest.mark.parametrize(
    "url",
    [
        "https://openlineage.io/spec/facets/9-0-0/SchemaDatasetFacet.json#/$defs/SchemaDatasetFacet",
        "https://openlineage.io/spec/facets/1-2-0/SchemaDatasetFacet.json#/$defs/NoFacet",
        "https://example.org/SchemaDatasetFacet.json",
        "urn:lepton-airflow:openlineage:0-0-0:LeptonPrivacyRunFacet#/$defs/LeptonPrivacyRunFacet",
    ],
)
def test_the_check_of_events_refuses_a_schema_that_it_does_not_know(url: str, specification: Any) -> None:
    with pytest.raises(Unresolvable):
        specification.check(changed(whole_event(), (*OUTPUT, "facets", "schema", "_schemaURL"), url))
    with pytest.raises(AssertionError):
        specification.check(changed(whole_event(), ("schemaURL",), url))


def test_encryption_masks_and_what_passes_does_not() -> None:
    fields = [["id", "bigint"], ["email", "string"], ["site", "string"], ["address", "struct<street:string>"]]
    observed = {
        "tables": {"clinic.visits_raw": {"fields": fields, "protected": {}}},
        "keys": {"clinic": {"AES256_GCM": 7, "AES256_SIV": 8}},
    }
    spec = SPECS["encrypt_columns"] | {"columns": {"*.street": {}, **SPECS["encrypt_columns"]["columns"]}}
    result = {"columns": ["address.street", "email", "id"], "rows": 3}
    event = as_event(job_lineage("encrypt_columns", spec, observed=observed, result=result))
    masked = ("DIRECT", "TRANSFORMATION", True)
    assert transformations(event) == {
        ("address.street", "address.street"): masked,
        ("email", "email"): masked,
        ("id", "id"): masked,
        ("site", "site"): ("DIRECT", "IDENTITY", False),
    }
    (target,) = event["outputs"]
    assert (target["namespace"], target["name"]) == ("s3://clinic", "visits")
    assert {field["name"]: field.get("type") for field in target["facets"]["schema"]["fields"]} == {
        "id": "binary",
        "email": "binary",
        "site": "string",
        "address": None,
    }
    assert {tag["field"]: tag["value"] for tag in target["facets"]["tags"]["tags"]} == {
        "id": "AES256_SIV",
        "email": "AES256_GCM",
        "address.street": "AES256_GCM",
    }
    assert target["outputFacets"]["outputStatistics"]["rowCount"] == 3
    columns = {one.pop("name"): one for one in event["run"]["facets"]["lepton_privacy"]["columns"]}
    assert columns["id"] == {"cipher": "AES256_SIV", "keyset": "clinic", "keyId": 8, "domain": "patient"}
    assert columns["address.street"] == {"cipher": "AES256_GCM", "keyset": "clinic", "keyId": 7}


def test_before_the_run_a_pattern_names_no_column() -> None:
    spec = SPECS["encrypt_columns"] | {"columns": {"*_id": {}, "tag:pii": {}, "email": {}}}
    event = as_event(job_lineage("encrypt_columns", spec))
    assert transformations(event).keys() == {("email", "email")}


def test_a_column_chosen_by_one_of_several_tags_has_an_unknown_cipher() -> None:
    spec = SPECS["encrypt_columns"] | {"columns": {"tag:pii": {}, "tag:id": {"cipher": "AES256_SIV"}}}
    event = as_event(job_lineage("encrypt_columns", spec, result={"columns": ["email"]}))
    assert transformations(event) == {("email", "email"): ("DIRECT", "TRANSFORMATION", True)}
    assert event["run"]["facets"]["lepton_privacy"]["columns"] == [{"name": "email", "keyset": "clinic"}]


def test_decryption_does_not_mask() -> None:
    event = as_event(job_lineage("decrypt_columns", SPECS["decrypt_columns"], observed=PROTECTED))
    assert transformations(event) == {
        ("email", "email"): ("DIRECT", "TRANSFORMATION", False),
        ("id", "id"): ("DIRECT", "IDENTITY", False),
        ("site", "site"): ("DIRECT", "IDENTITY", False),
    }
    facts = event["outputs"][0]["facets"]
    assert {field["name"]: field["type"] for field in facts["schema"]["fields"]}["email"] == "string"
    assert {tag["field"]: tag["value"] for tag in facts["tags"]["tags"]} == {"id": "AES256_SIV", "email": "none"}


def test_rotation_goes_from_a_dataset_to_itself() -> None:
    result = {"columns": ["id", "email"], "rows": 1}
    event = as_event(job_lineage("rotate_keys", SPECS["rotate_keys"], observed=PROTECTED, result=result))
    assert transformations(event) == {
        ("id", "id"): ("DIRECT", "TRANSFORMATION", True),
        ("email", "email"): ("DIRECT", "TRANSFORMATION", True),
        ("site", "site"): ("DIRECT", "IDENTITY", False),
    }
    assert event["inputs"][0]["name"] == event["outputs"][0]["name"]


def test_a_release_aggregates_behind_noise_and_says_what_it_costs() -> None:
    spec = SPECS["release_aggregates"] | {"delta": "1e-6", "noise": "gaussian"}
    event = as_event(job_lineage("release_aggregates", spec, observed=PROTECTED))
    assert transformations(event) == {
        ("visits", "id"): ("DIRECT", "AGGREGATION", True),
        ("age", "age"): ("DIRECT", "AGGREGATION", True),
        ("age", "id"): ("INDIRECT", "FILTER", True),
        (None, "site"): ("INDIRECT", "GROUP_BY", True),
    }
    facet = event["run"]["facets"]["lepton_privacy"]
    assert facet["release"] == {
        "epsilon": 0.5,
        "delta": 1e-6,
        "noise": "gaussian",
        "privacyUnit": "id",
        "budget": "clinic.visits",
    }
    assert facet["columns"][0] == {"name": "id", "cipher": "AES256_SIV", "keyset": "clinic", "domain": "patient"}
    # How many rows there are is what the noise hides.
    assert "outputStatistics" not in event["outputs"][0]["outputFacets"]


def test_keys_of_a_public_table_are_an_input_and_private_ones_come_from_the_data() -> None:
    sites = {"name": "public.sites", "table": "sites"}
    spec = {name: value for name, value in SPECS["release_aggregates"].items() if not name.startswith("group")}
    spec["groupings"] = [{"by": ["site"], "keys": sites}, {"by": ["ward"], "keys": "private"}]
    event = as_event(job_lineage("release_aggregates", spec))
    assert [one["name"] for one in event["inputs"]] == ["visits", "default.sites"]
    found = transformations(event)
    assert found["site", "site"] == ("DIRECT", "IDENTITY", False)
    assert found["ward", "ward"] == ("INDIRECT", "FILTER", True)


def test_training_masks_nothing() -> None:
    event = as_event(job_lineage("retrain_model", SPECS["retrain_model"]))
    assert transformations(event) == {
        (None, "a"): ("INDIRECT", "TRAINING", False),
        (None, "b"): ("INDIRECT", "TRAINING", False),
        (None, "ill"): ("INDIRECT", "TRAINING", False),
        (None, "id"): ("INDIRECT", "FILTER", True),
    }


def test_private_training_masks_and_says_what_it_costs(specification: Any) -> None:
    private = {"epsilon": "2.5", "delta": 1e-5, "sampling_rate": 0.1, "steps": 100}
    spec = {**SPECS["retrain_model"], "training": {"differential_privacy": private}}
    event = as_event(job_lineage("retrain_model", spec))
    specification.check(event)
    assert transformations(event)[None, "a"] == ("INDIRECT", "TRAINING", True)
    assert event["run"]["facets"]["lepton_privacy"]["training"] == {
        "privacyUnit": "id",
        "differentialPrivacy": True,
        "epsilon": 2.5,
        "delta": 1e-5,
        "budget": "clinic.visits",
    }
    event = as_event(job_lineage("retrain_model", {**spec, "budget": "clinic.all"}))
    assert event["run"]["facets"]["lepton_privacy"]["training"]["budget"] == "clinic.all"


def test_a_release_that_waits_has_written_nothing_and_who_publishes_it_has() -> None:
    spec = SPECS["release_aggregates"]
    waiting = as_event(job_lineage("release_aggregates", spec, result={"published": False}))
    assert (len(waiting["inputs"]), waiting["outputs"]) == (1, [])
    published = as_event(job_lineage("publish_release", spec, result={"published": True}))
    at_once = as_event(job_lineage("release_aggregates", spec, result={"published": True}))
    assert published["outputs"] == at_once["outputs"] != []
    assert published["run"]["facets"]["lepton_privacy"]["operation"] == "release"


def test_a_receipt_is_written_and_nothing_is_read() -> None:
    event = as_event(job_lineage("issue_receipt", {"receipt": "/data/receipt.json"}))
    assert (event["inputs"], [one["name"] for one in event["outputs"]]) == ([], ["/data/receipt.json"])


def test_a_gate_reads_tables_and_models() -> None:
    event = as_event(job_lineage("gate_model", SPECS["gate_model"]))
    names = [one["name"] for one in event["inputs"]]
    assert names[2:] == ["/models/candidate", "/models/diagnosis"]
    assert len(names) == 4


@pytest.mark.parametrize("job", [*JOBS, "no_such_job"])
@pytest.mark.parametrize(
    "spec", [{}, {"source": 1, "purpose": "x"}, {"source": RAW, "target": VISITS, "columns": 5, "epsilon": "much"}]
)
def test_a_wrong_spec_has_a_facet_and_no_lineage(job: str, spec: dict[str, Any], specification: Any) -> None:
    event = as_event(job_lineage(job, spec))
    specification.check(event)
