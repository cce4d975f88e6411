"""The result channel: the last outcome under each run key, and no success overwritten by another spec."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.audit import runs
from lepton_airflow.errors import InvalidData


def put(engine: sql.Engine, **changes: Any) -> None:
    fields = {"job": "encrypt_columns", "spec_digest": "sha256:a", "status": "success", "payload": {"rows": 3}}
    runs.put(engine, "dag/task/run/0", **{**fields, **changes})


def test_an_outcome_comes_back(engine: sql.Engine) -> None:
    assert runs.get(engine, "dag/task/run/0") is None
    put(engine, payload={"rows": 3, "nested": {"epsilon": 0.5, "names": ["a"]}})
    record = runs.get(engine, "dag/task/run/0")
    assert record is not None
    assert (record.job, record.spec_digest, record.status) == ("encrypt_columns", "sha256:a", "success")
    assert record.payload == {"rows": 3, "nested": {"epsilon": 0.5, "names": ["a"]}}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"status": "failure"}, {}),
        ({"status": "failure"}, {"spec_digest": "sha256:b"}),
        ({}, {"status": "failure"}),
        ({}, {"payload": {"rows": 4}}),
    ],
)
def test_a_later_attempt_replaces_the_outcome(
    engine: sql.Engine, first: dict[str, Any], second: dict[str, Any]
) -> None:
    put(engine, **first)
    put(engine, **second)
    record = runs.get(engine, "dag/task/run/0")
    assert record is not None
    assert record.status == second.get("status", "success")
    assert record.spec_digest == second.get("spec_digest", "sha256:a")


def test_a_mended_spec_under_the_same_run_key_replaces_the_outcome(engine: sql.Engine) -> None:
    put(engine)
    put(engine, spec_digest="sha256:b", status="failure")
    record = runs.get(engine, "dag/task/run/0")
    assert record is not None
    assert (record.spec_digest, record.status) == ("sha256:b", "failure")


def test_a_payload_that_is_no_json_is_refused(engine: sql.Engine) -> None:
    with pytest.raises(InvalidData):
        put(engine, payload={"rows": float("inf")})
    assert runs.get(engine, "dag/task/run/0") is None
