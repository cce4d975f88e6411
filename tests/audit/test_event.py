"""The bytes of a leaf."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.audit.event import Actor, Event, LeafEncoder, event_id_of
from lepton_airflow.audit.schema import FIRST_SCHEMA, SCHEMA
from lepton_airflow.errors import InvalidData

TEXT = st.text(max_size=12)
MAYBE = st.none() | TEXT
DETAIL = TEXT | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
EVENTS = st.builds(
    Event,
    action=TEXT,
    phase=st.sampled_from(["intent", "success", "failure", "denied", "note", "close"]),
    dataset=MAYBE,
    columns=st.lists(TEXT, max_size=3).map(tuple),
    purpose=MAYBE,
    intent=MAYBE,
    rules=st.lists(TEXT, max_size=3).map(tuple),
    policy_digest=MAYBE,
    spec_digest=MAYBE,
    counts=st.dictionaries(TEXT, st.integers(-(2**53) + 1, 2**53 - 1), max_size=3),
    digests=st.dictionaries(TEXT, TEXT, max_size=3),
    details=st.dictionaries(TEXT, DETAIL | st.none(), max_size=3),
)
ACTORS = st.builds(Actor, principal=TEXT, host=TEXT, on_behalf_of=MAYBE, owner=MAYBE, team=MAYBE, bundle_version=MAYBE)
TIME = "2026-01-01T00:00:00.000000Z"


def encoded(event: Event, *, actor: Actor, run_key: str, **fields: Any) -> bytes:
    encoder = LeafEncoder(actor=actor, run_key=run_key, producer=fields.pop("producer"))
    return encoder.encode(event, time=TIME, **fields)


@given(
    event=EVENTS,
    actor=ACTORS,
    run_key=TEXT,
    producer=st.uuids().map(str),
    sequence=st.integers(0, 2**48 - 1),
    previous=st.none() | st.binary(min_size=32, max_size=32),
)
def test_a_leaf_is_the_canonical_json_of_its_fields(
    event: Event, actor: Actor, run_key: str, producer: str, sequence: int, previous: bytes | None
) -> None:
    event_id = event_id_of(producer, sequence)
    fields = {
        "schema": SCHEMA,
        "event_id": event_id,
        "time": TIME,
        "producer": {"id": producer, "sequence": sequence, "previous": previous.hex() if previous else None},
        "run_key": run_key,
        "actor": asdict(actor),
        **asdict(event),
        "columns": list(event.columns),
        "rules": list(event.rules),
    }
    leaf = encoded(
        event, actor=actor, run_key=run_key, producer=producer, event_id=event_id, sequence=sequence, previous=previous
    )
    assert leaf == canonical_json(fields)


@given(producer=st.uuids(version=4), sequence=st.integers(0, 2**48 - 1))
def test_an_event_id_is_a_uuid_of_version_8_made_of_its_producer_and_number(producer: uuid.UUID, sequence: int) -> None:
    text = event_id_of(str(producer), sequence)
    event_id = uuid.UUID(text)
    assert (str(event_id), event_id.version, event_id.variant) == (text, 8, uuid.RFC_4122)
    assert event_id.node == sequence
    assert (event_id.int ^ producer.int) >> 48 == (4 ^ 8) << 28, "all else is the producer's, but for the version"


@pytest.mark.parametrize("sequence", [0, 1, 10, 12345, 2**40])
def test_an_event_id_of_the_first_schema_is_a_uuid_of_version_5(sequence: int) -> None:
    producer = uuid.uuid4()
    assert event_id_of(str(producer), sequence, schema=FIRST_SCHEMA) == str(uuid.uuid5(producer, str(sequence)))


@pytest.mark.parametrize(
    "wrong", [{"dataset": "\ud800"}, {"details": {"n": float("nan")}}, {"counts": {"n": 2**53}}, {"digests": {1: "a"}}]
)
def test_an_event_that_has_no_canonical_form_is_refused(wrong: dict[str, Any]) -> None:
    event = Event(action="encrypt", phase="note", **wrong)
    with pytest.raises(InvalidData):
        encoded(
            event,
            actor=Actor(principal="etl", host="here"),
            run_key="run",
            producer=str(uuid.UUID(int=1)),
            event_id="id",
            sequence=0,
            previous=None,
        )
