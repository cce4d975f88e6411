"""A leaf in a known form says what reading its JSON says, and nothing is in a form that is not canonical JSON of the schema."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from lepton_airflow.audit import forms as module
from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.audit.event import Actor, Event, LeafEncoder, event_id_of
from lepton_airflow.audit.forms import Forms, fields_of
from lepton_airflow.audit.schema import FIRST_SCHEMA, SCHEMA
from lepton_airflow.errors import InvalidData

PRODUCER = str(uuid.UUID(int=5, version=4))
NOT_OF_THE_SCHEMA = (InvalidData, KeyError, TypeError, ValueError, AttributeError)


def encoded(event: Event, *, sequence: int = 3, time: str = "2026-01-31T23:59:57.000001Z") -> bytes:
    encoder = LeafEncoder(actor=Actor(principal="etl", host="worker-1"), run_key="dag/task/run/0", producer=PRODUCER)
    event_id = event_id_of(PRODUCER, sequence)
    return encoder.encode(
        event, event_id=event_id, sequence=sequence, previous=bytes(32) if sequence else None, time=time
    )


NOTE = Event(action="encrypt", phase="note", dataset="clinic", columns=("ssn", "email"), counts={"rows": 12})
LEAVES = [
    encoded(NOTE),
    encoded(Event(action="producer", phase="open"), sequence=0),
    encoded(Event(action="producer", phase="close", counts={"events": 3})),
    encoded(
        Event(action="verify", phase="success", details={"event_id": "x", "deep": None, "sure": True, "number": -7})
    ),
    encoded(Event(action="encrypt", phase="intent", dataset="Müller", details={"ciphers": '{"é":"AES256_GCM\\n"}\t'})),
]


@pytest.fixture(scope="module")
def known() -> Forms:
    """Forms that have seen each leaf often enough."""
    forms = Forms()
    for leaf in LEAVES * 2:
        forms.learn(leaf)
    return forms


def read(payload: bytes) -> tuple[Any, ...] | None:
    """What an independent reader takes of a leaf; None if it is not canonical JSON of the schema."""
    try:
        event = json.loads(payload)
        if rfc8785.dumps(event) != payload or event["schema"] not in (SCHEMA, FIRST_SCHEMA):
            return None
        producer = event["producer"]
        if type(producer["sequence"]) is not int or producer["sequence"] < 0:
            return None
        opens = event["phase"] == "open" and event["action"] == "producer"
        closes = event["phase"] == "close"
        counted = event["counts"]["events"] if closes and event["action"] == "producer" else None
        named = str(uuid.UUID(producer["id"]))
        inside = (producer["sequence"], producer["previous"], counted)
        return event["schema"], event["event_id"], event["time"], opens, closes, named, *inside
    except (*NOT_OF_THE_SCHEMA, rfc8785.CanonicalizationError, RecursionError):
        return None


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_in_a_known_form_says_what_reading_it_says(known: Forms, leaf: bytes) -> None:
    match = known.match(leaf)
    assert match is not None
    assert fields_of(match) == read(leaf)
    # The next one of this form, of another producer.
    other = leaf.replace(PRODUCER.encode(), str(uuid.uuid4()).encode()).replace(b"worker-1", b"~ #[]")
    match = known.match(other)
    assert match is not None
    assert fields_of(match) == read(other)


#: What may be put into a payload, somewhere.
BYTES = [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b"1", b".", b"e5", b" ", b"\x00", b"\x7f", b"\n"]
BYTES += ["é".encode(), "\U0001f511".encode(), b"\xff", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\x80"]
BYTES += [b'\\"', b"\\\\", b"\\n", b"\\/", b"\\u001f", b"\\u001F", b"\\u000a", b"\\u0022", b"\\u007f", b"\\ud83d"]
BYTES += [b"\\u0041", b"null", b"999999999999999999", b'"a":1,', b',"z":1', b"00"]


@given(
    leaf=st.sampled_from(LEAVES),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 3), st.sampled_from([b"", *BYTES])), max_size=3
    ),
)
def test_whatever_is_done_to_a_leaf_its_form_does_not_take_it_for_what_it_is_not(
    known: Forms, leaf: bytes, changes: list[tuple[float, int, bytes]]
) -> None:
    for place, length, text in changes:
        start = int(place * len(leaf))
        leaf = leaf[:start] + text + leaf[start + length :]
    match = known.match(leaf)
    assert match is None or fields_of(match) == read(leaf)
    try:
        found: Any = Forms().fields(leaf)
    except NOT_OF_THE_SCHEMA:
        found = None
    # JSON has no integers: an independent reader takes those beyond 2^53 for what they are not.
    assert found == read(leaf) or b"999999999999" in leaf


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ('"rows":12', f'"rows":{number}')
        for number in ("012", "00", "-0", "-01", "1.0", "1e3", "0x1", "", "9007199254740993", '"1"')
    ]
    + [
        ('"sequence":3', '"sequence":03'),
        ('"sequence":3', '"sequence":-3'),
        ('"phase":"note"', '"phase":"close"'),
        ('"phase":"note"', '"phase":"note","phase":"note"'),
        ('"action":"encrypt"', '"action":"producer"'),
        ("event/2", "event/3"),
        ("event/2", "event/1"),
        ('"sequence":3', '"sequence":0'),
        ('"phase":"note"', '"phase":"open"'),
        ("clinic", 'clin"ic'),
        ("clinic", "clin\\ic"),
        ("clinic", "clin\x7fic"),
        ("clinic", "clin\nic"),
        ("clinic", "été"),
        ("-4000-", "+4000-"),
        ("57.000001Z", "57.000001"),
        (str(bytes(32).hex()), "A" * 64),
    ],
)
def test_what_is_no_canonical_leaf_is_in_no_form(known: Forms, text: str, other: str) -> None:
    assert text.encode() in LEAVES[0]
    leaf = LEAVES[0].replace(text.encode(), other.encode())
    match = known.match(leaf)
    assert match is None or fields_of(match) == read(leaf)


@given(
    details=st.dictionaries(
        st.text(max_size=4),
        st.none() | st.booleans() | st.text(max_size=9) | st.integers(-(2**53) + 1, 2**53 - 1),
        max_size=4,
    ),
    others=st.dictionaries(st.text(max_size=4), st.text(max_size=9) | st.floats(-1e15, 1e15), max_size=3),
)
def test_leaves_of_any_contents_are_read_alike_the_first_time_and_later(
    details: dict[str, Any], others: dict[str, Any]
) -> None:
    forms = Forms()
    leaves = [encoded(Event(action="scan", phase="note", details=values)) for values in (details, others)]
    for leaf in leaves * 4:
        assert forms.fields(leaf) == read(leaf)


@pytest.mark.parametrize(
    "change",
    [
        lambda event: event["details"].__setitem__("share", 0.5),
        lambda event: event["details"].__setitem__("été", 1),
        lambda event: event["producer"].__setitem__("id", f"{{{PRODUCER}}}"),
        lambda event: event["producer"].__setitem__("previous", "AB" * 32),
        lambda event: event.__setitem__("time", "2026-01-31T23:59:57Z"),
        lambda event: event.__setitem__("phase", "close"),
    ],
)
def test_what_is_unusual_never_becomes_a_form(change: Any) -> None:
    event = json.loads(LEAVES[0])
    change(event)
    leaf, forms = canonical_json(event), Forms()
    for _ in range(5):
        fields = forms.fields(leaf) if event["phase"] != "close" else None
        assert fields is None or fields == read(leaf)
        forms.learn(leaf)
    assert forms.match(leaf) is None
    assert not forms._forms


def test_leaves_that_all_have_shapes_of_their_own_are_soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bytes] = []
    monkeypatch.setattr(module, "parse_canonical", lambda payload: looked.append(payload) or json.loads(payload))
    forms = Forms()
    for number in range(300):
        forms.learn(encoded(Event(action="scan", phase="note", details={f"column {number}": 1})))
    assert len(looked) == module._TRIES


@pytest.mark.parametrize(
    "details",
    [{"place": "x" * 5000}, {f"column {number}": number for number in range(200)}, {"a": [[[[[[[[1]]]]]]]]}],
    ids=["long", "wide", "deep"],
)
def test_leaves_whose_form_would_be_dear_are_read(details: dict[str, Any]) -> None:
    leaf, forms = encoded(Event(action="scan", phase="note", details=details)), Forms()
    for _ in range(3):
        forms.learn(leaf)
        assert forms.fields(leaf) == read(leaf)
    assert not forms._forms


@pytest.mark.parametrize("depth", [100, 400, 900])
def test_a_leaf_of_any_depth_is_read_or_refused(depth: int) -> None:
    inner: Any = 1
    for _ in range(depth):
        inner = [inner]
    event = json.loads(LEAVES[0])
    leaf = canonical_json({**event, "zeal": None}).replace(b'"zeal":null', b'"zeal":' + b"[" * depth + b"]" * depth)
    forms = Forms()
    for _ in range(3):
        forms.learn(leaf)
        try:
            assert forms.fields(leaf).sequence == 3
        except InvalidData:
            assert depth > 400


def test_leaves_that_have_no_form_do_not_keep_others_from_having_one() -> None:
    forms = Forms()
    for number in range(200):
        forms.learn(encoded(Event(action="scan", phase="note", dataset="Müller", details={f"column {number}": 1})))
    for number in range(3 * module._LEAVES_A_TRY):
        forms.fields(encoded(Event(action="scan", phase="note", details={f"share {number}": 0.5})))
    for _ in range(3 * module._LEAVES_A_TRY):
        forms.fields(LEAVES[0])
    assert forms.match(LEAVES[0])


def test_texts_with_anything_to_escape_and_of_any_language_have_forms() -> None:
    forms = Forms()
    for text in ('{"a":1}', '{"b":2}'):
        forms.fields(encoded(Event(action="scan", phase="note", dataset="Müller", details={"ciphers": text})))
    for dataset, text in (("", '\\"\\'), ("患者", "\x1f\x0b\r" + '""'), ("\U0001f511", '"é\U0001f511"')):
        leaf = encoded(Event(action="scan", phase="note", dataset=dataset, details={"ciphers": text}))
        for _ in range(2):
            forms.learn(leaf)  # of leaves with more or fewer quotes the form is made anew
        match = forms.match(leaf)
        assert match is not None
        assert fields_of(match) == read(leaf)


def test_truth_is_no_matter_of_form() -> None:
    forms = Forms()
    for sure, old in ((True, True), (False, True), (False, False)):
        forms.fields(encoded(Event(action="scan", phase="note", details={"sure": sure, "old": old})))
    assert forms.match(encoded(Event(action="scan", phase="note", details={"sure": True, "old": False})))
    assert sum(map(len, forms._forms.values())) == 1


def test_no_more_is_remembered_than_is_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHAPES", 4)
    monkeypatch.setattr(module, "_FORMS", 3)
    monkeypatch.setattr(module, "_FORMS_ALIKE", 2)
    monkeypatch.setattr(module, "_TRIES", 10_000)
    forms = Forms()
    for number in range(20):
        more = {f"more {other}": "x" for other in range(number % 4)}
        leaf = encoded(Event(action="scan", phase="note", details={f"column {number}": 1, **more}))
        forms.learn(leaf)
        forms.learn(leaf)
        assert forms.match(leaf)
        assert len(forms._seen) <= 4
        assert sum(map(len, forms._forms.values())) == forms._known <= 3
