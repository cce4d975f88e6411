"""Reading in blocks, with a second process or without, says of every log what reading it row by row says."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.audit import blocks as blocks_module
from lepton_airflow.audit import rows as reading_module
from lepton_airflow.audit import verify as verify_module
from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.audit.checkpoint import Signer
from lepton_airflow.audit.database import leaf_table
from lepton_airflow.audit.event import Actor, Event, LeafEncoder, event_id_of
from lepton_airflow.audit.findings import Finding, Leaf
from lepton_airflow.audit.forms import Forms
from lepton_airflow.audit.merkle import Frontier, leaf_hash, root, subtrees
from lepton_airflow.audit.producers import Producers
from lepton_airflow.audit.sealer import seal
from lepton_airflow.audit.series import Frame, Rows
from lepton_airflow.audit.stretches import Odd, Stretch, stretches_of
from lepton_airflow.audit.verify import VerificationReport, verify

START = datetime(2026, 1, 31, 23, 59, 57, tzinfo=UTC)  # so that a log crosses a month's end
ACTOR = Actor(principal="etl", host="here")
OPENING = Event(action="producer", phase="open")
Payload = dict[str, Any]


def producer_of(number: int) -> str:
    """A producer's id; every part of it differs from those of others."""
    return str(uuid.UUID(int=random.Random(number).getrandbits(128), version=4))


def written(source: random.Random, *, producers: int, events: int) -> list[Payload]:
    """What producers wrote: runs of like events, some of them interleaved, and some closings."""
    leaves: list[Payload] = []
    states: dict[str, tuple[int, bytes | None]] = {}
    current = producer_of(source.getrandbits(128))
    for number in range(events):
        if source.random() < producers / events:
            current = producer_of(source.getrandbits(128))
        elif source.random() < 0.1 and states:
            current = source.choice(list(states))
        sequence, previous = states.get(current, (0, None))
        closing = source.random() < 0.03 and sequence > 0
        event = Event(action="encrypt", phase="note", dataset="été" if source.random() < 0.1 else "visits")
        if sequence == 0:
            event = OPENING
        elif closing:
            event = Event(action="producer", phase="close", counts={"events": sequence})
        leaf = LeafEncoder(actor=ACTOR, run_key="run", producer=current).encode(
            event,
            event_id=event_id_of(current, sequence),
            sequence=sequence,
            previous=previous,
            time=f"{START + timedelta(milliseconds=40 * number):%Y-%m-%dT%H:%M:%S.%f}Z",
        )
        leaves.append(json.loads(leaf))
        states[current] = (sequence + 1, leaf_hash(leaf))
        if closing:
            del states[current]
            current = producer_of(source.getrandbits(128))
    return leaves


def _set(field: str, value: Any) -> Callable[[Payload], Any]:
    return lambda leaf: leaf.__setitem__(field, value)


def _set_producer(field: str, change: Callable[[Any], Any]) -> Callable[[Payload], Any]:
    return lambda leaf: leaf["producer"].__setitem__(field, change(leaf["producer"][field]))


#: What a writer, or who edits before the seal, may do to an event; the tree then has it as it is.
WRONGS: dict[str, Callable[[Payload], Any]] = {
    "time goes back": _set("time", "2026-01-31T23:59:50.000000Z"),
    "time goes far back": _set("time", "2025-01-31T23:59:50.000000Z"),
    "time in the future": _set("time", "2199-01-31T23:59:50.000000Z"),
    "no such day": _set("time", "2026-01-32T00:00:01.000000Z"),
    "no such second": _set("time", "2026-01-31T23:59:61.000000Z"),
    "no such minute": _set("time", "2026-01-31T23:60:00.000000Z"),
    "another form of time": _set("time", "2026-02-01T00:00:01.000+00:00"),
    "no time": _set("time", None),
    "event id": _set("event_id", str(uuid.UUID(int=7, version=5))),
    "event id in capitals": lambda leaf: leaf.__setitem__("event_id", leaf["event_id"].upper()),
    "no event id": _set("event_id", "x"),
    "schema": _set("schema", "lepton.audit.event/3"),
    "first schema": _set("schema", "lepton.audit.event/1"),
    "opens": lambda leaf: leaf.update(action="producer", phase="open", counts={}, dataset=None),
    "phase": _set("phase", "close"),
    "another field": _set("dataset", "visitz"),
    "more fields": _set("zeal", {"a": [1, 2.5]}),
    "more of the producer": lambda leaf: leaf["producer"].__setitem__("x", 1),
    "previous": _set_producer("previous", lambda _: hashlib.sha256(b"x").hexdigest()),
    "previous in capitals": _set_producer("previous", lambda text: text and text.upper()),
    "no previous": _set_producer("previous", lambda _: None),
    "number behind": _set_producer("sequence", lambda number: max(number - 1, 0)),
    "number ahead": _set_producer("sequence", lambda number: number + 1),
    "number ahead, and its id": lambda leaf: (
        _set_producer("sequence", lambda number: number + 1)(leaf),
        leaf.__setitem__("event_id", event_id_of(leaf["producer"]["id"], int(leaf["producer"]["sequence"]))),
    ),
    "closes, and counts wrongly": lambda leaf: leaf.update(
        action="producer", phase="close", counts={"events": leaf["producer"]["sequence"] + 1}, dataset=None
    ),
    "number below zero": _set_producer("sequence", lambda number: -1 - number),
    "number as text": _set_producer("sequence", str),
    "producer": _set_producer("id", lambda _: producer_of(9)),
    "producer in capitals": _set_producer("id", str.upper),
    "inner event id": lambda leaf: leaf["details"].__setitem__("event_id", leaf["event_id"]),
}
#: What may be done to the bytes of an event.
SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "not canonical": lambda payload: payload.replace(b'"sequence":', b'"sequence":0'),
    "space": lambda payload: payload + b" ",
    "no JSON": lambda payload: payload[:-1],
    "repeated field": lambda payload: payload.replace(b'"phase":', b'"phase":"note","phase":'),
    "other bytes at the end": lambda payload: payload[:-1] + b"]",
    "empty": lambda _: b"",
}


def stored(leaves: list[Payload], spoil: dict[int, Callable[[bytes], bytes]]) -> list[dict[str, Any]]:
    made = []
    for number, leaf in enumerate(leaves):
        payload = spoil.get(number, bytes)(canonical_json(leaf))
        row = {"event_id": leaf["event_id"], "payload": payload.decode(), "leaf_hash": leaf_hash(payload)}
        made.append(row)
    return made


def fill(engine: sql.Engine, rows: list[dict[str, Any]], signer: Signer, source: random.Random) -> None:
    """Insert rows and seal them in a few steps; event ids that are there twice become others."""
    seen: set[str] = set()
    for row in rows:
        while row["event_id"] in seen:
            row["event_id"] += "+"
        seen.add(row["event_id"])
    cuts = sorted({0, len(rows), *source.sample(range(1, len(rows)), 3)})
    for first, stop in pairwise(cuts):
        with engine.begin() as connection:
            connection.execute(leaf_table.insert(), rows[first:stop])
        seal(engine, signer=signer, exports=[])


class Prompt(reading_module._Helper):
    """A second process that has said of the file what it has to say before a row is read here: so it is asked for blocks."""

    def __init__(self, database: str, *, patience: int) -> None:
        super().__init__(database, patience=patience)
        assert self.pipe.poll(60)


@pytest.fixture
def all_ways(monkeypatch: pytest.MonkeyPatch) -> Callable[..., VerificationReport]:
    """Verify row by row, in blocks, and in blocks with a second process; the report, which must be one."""

    def reports(engine: sql.Engine, **options: Any) -> Iterator[VerificationReport]:
        with monkeypatch.context() as patch:
            patch.setattr(verify_module, "is_framed", lambda *_, **__: False)
            yield verify(engine, **options)
        with monkeypatch.context() as patch:
            patch.setattr(reading_module, "BLOCK", 16)
            yield verify(engine, **options)
        with monkeypatch.context() as patch:
            patch.setattr(reading_module, "BLOCK", 32)
            patch.setattr(reading_module, "_WORTH_HELP", 0)
            patch.setattr(reading_module, "_processors", lambda: 2)
            patch.setattr(reading_module, "_Helper", Prompt)
            yield verify(engine, **options)

    def verified(engine: sql.Engine, **options: Any) -> VerificationReport:
        by_rows, in_blocks, helped = reports(engine, **options)
        assert in_blocks == by_rows
        assert helped == by_rows
        return by_rows

    return verified


@pytest.mark.parametrize("producers", [1, 3, 30])
def test_a_log_that_nobody_touched_is_reported_alike(
    sqlite_engine: sql.Engine, signer: Signer, all_ways: Callable[..., VerificationReport], producers: int
) -> None:
    source = random.Random(producers)
    leaves = written(source, producers=producers, events=220)
    fill(sqlite_engine, stored(leaves, {}), signer, source)
    report = all_ways(sqlite_engine, verifier=signer.verifier, exports=[])
    assert (report.ok, report.findings, report.warnings) == (True, (), ())


@pytest.mark.parametrize("wrong", [*WRONGS, *SPOILT])
def test_what_was_wrong_before_the_seal_is_reported_alike(
    sqlite_engine: sql.Engine, signer: Signer, all_ways: Callable[..., VerificationReport], wrong: str
) -> None:
    source = random.Random(wrong)
    leaves = written(source, producers=2, events=90)
    spoil = {}
    for number in source.sample(range(len(leaves)), 2):
        if wrong in WRONGS:
            WRONGS[wrong](leaves[number])
        else:
            spoil[number] = SPOILT[wrong]
    for leaf in leaves if source.random() < 0.5 else []:  # who edits may mend what follows
        link(leaf, leaves)
    fill(sqlite_engine, stored(leaves, spoil), signer, source)
    report = all_ways(sqlite_engine, verifier=signer.verifier, exports=[])
    assert report.findings or report.warnings or wrong in HARMLESS


def test_a_leaf_without_a_payload_is_left_to_its_archive_alike(
    sqlite_engine: sql.Engine,
    signer: Signer,
    all_ways: Callable[..., VerificationReport],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = random.Random(3)
    leaves = written(source, producers=2, events=90)
    fill(sqlite_engine, stored(leaves, {5: SPOILT["empty"], 50: SPOILT["empty"]}), signer, source)
    monkeypatch.setattr(verify_module, "archived_stop", lambda _: 10)
    report = all_ways(sqlite_engine, verifier=signer.verifier, exports=[])
    malformed = [finding.position for finding in report.findings if finding.kind == "malformed"]
    assert malformed == [f"leaf 50 (event {leaves[50]['event_id']})"]


#: Alone they break no rule, if what follows was mended or nothing follows; a few times are odd and no more than that.
HARMLESS = {
    "another form of time",
    "no time",
    "no such day",
    "no such second",
    "no such minute",
    "another field",
    "more fields",
    "more of the producer",
    "inner event id",
    "phase",
    "previous in capitals",
    "time goes back",
}


def link(leaf: Payload, leaves: list[Payload]) -> None:
    """Let a leaf name the hash that its predecessor has now."""
    producer = leaf["producer"]
    for other in leaves:
        before = other["producer"]
        if other is leaf:
            return
        if (before["id"], before["sequence"]) == (
            producer["id"],
            producer["sequence"] - 1 if producer["previous"] else 0,
        ):
            producer["previous"] = leaf_hash(canonical_json(other)).hex()


Row = sql.Row[Any]
#: What may be done to the table when it is sealed: a statement, from the row that it changes and another one.
DAMAGES: dict[str, Callable[[Row, Row], sql.Delete | sql.Update]] = {
    "deleted": lambda one, _: leaf_table.delete().where(place == one.tree_index),
    "cut": lambda one, _: leaf_table.delete().where(place >= one.tree_index),
    "payload": lambda one, _: changed(one, payload=one.payload.replace('"etl"', '"eve"')),
    "another's payload": lambda one, other: changed(one, payload=other.payload),
    "no text": lambda one, _: changed(one, payload=b"\xff\x00"),
    "hash": lambda one, other: changed(one, leaf_hash=other.leaf_hash),
    "event id": lambda one, _: changed(one, event_id="other"),
    "event id with a zero": lambda one, _: changed(one, event_id=one.event_id + "\x00"),
    "position below": lambda one, _: changed(one, tree_index=-5),
    "position beyond": lambda one, _: changed(one, tree_index=500),
    "position between": lambda one, other: changed(one, tree_index=between(other.tree_index)),
    # The next block, in which nothing is odd, then has no leaf before it; what is odd comes only later.
    "position between, of a block's last": lambda *_: (
        leaf_table.update().where(place == 31).values(tree_index=between(70))
    ),
}
place = leaf_table.c.tree_index


def between(position: int) -> sql.ColumnElement[Any]:
    return sql.literal_column(f"{position} + 0.5")


def changed(row: Row, **values: Any) -> sql.Update:
    return leaf_table.update().where(leaf_table.c.id == row.id).values(**values)


@pytest.mark.parametrize("exported", [False, True], ids=["no export", "export"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_done_to_the_table_is_reported_alike(
    sqlite_engine: sql.Engine,
    signer: Signer,
    tmp_path: Path,
    all_ways: Callable[..., VerificationReport],
    damage: str,
    exported: bool,
) -> None:
    source = random.Random(damage)
    fill(sqlite_engine, stored(written(source, producers=1, events=100), {}), signer, source)
    places = [tmp_path / "export"] if exported else []
    seal(sqlite_engine, signer=signer, exports=places)
    with sqlite_engine.begin() as connection:
        rows = connection.execute(sql.select(leaf_table).order_by(place)).all()
        one, other, second = source.sample(rows, 3)
        connection.execute(DAMAGES[damage](one, other))
        if source.random() < 0.3:  # damage may come with other damage
            connection.execute(changed(second, payload="x"))
    assert not all_ways(sqlite_engine, verifier=signer.verifier, exports=places).ok


def test_like_events_are_not_checked_one_by_one(
    sqlite_engine: sql.Engine, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = random.Random(1)
    leaves = [leaf for leaf in written(source, producers=1, events=150) if leaf["phase"] != "close"]
    leaves = [leaf for leaf in leaves if leaf["producer"]["id"] == leaves[0]["producer"]["id"]]
    fill(sqlite_engine, stored(leaves, {}), signer, source)
    checked: list[Leaf] = []
    check = Producers.check

    def counted(self: Producers, leaf: Leaf) -> Iterator[Finding]:
        checked.append(leaf)
        return check(self, leaf)

    monkeypatch.setattr(Producers, "check", counted)
    verify(sqlite_engine, verifier=signer.verifier, exports=[])
    assert len(checked) < len(leaves) / 3


BROKEN: dict[str, Callable[[Payload], Any]] = {
    "event id": lambda leaf: leaf.__setitem__("event_id", event_id_of(producer_of(5), 299)),
    "number": _set_producer("sequence", lambda number: number + 1),
    "previous": _set_producer("previous", lambda _: "0" * 64),
    "producer": _set_producer("id", lambda _: producer_of(9)),
    "time": _set("time", "2026-01-31T23:59:57.000000Z"),
    "moment": _set("time", "2026-02-31T23:59:57.000000Z"),
    "closing": lambda leaf: leaf.update(action="producer", phase="close", counts={"events": 300}, dataset=None),
    "closing wrongly": lambda leaf: leaf.update(action="producer", phase="close", counts={"events": 77}, dataset=None),
    "unusual": _set("details", {"share": 0.5}),
}


def closing_leaf() -> bytes:
    producer = producer_of(6)
    return LeafEncoder(actor=ACTOR, run_key="run", producer=producer).encode(
        Event(action="producer", phase="close", counts={"events": 2}),
        event_id=event_id_of(producer, 2),
        sequence=2,
        previous=bytes(32),
        time="2026-01-31T23:59:57.000000Z",
    )


@pytest.mark.parametrize("alike", [True, False], ids=["alike", "unlike"])
@pytest.mark.parametrize("broken", [None, *BROKEN])
def test_a_stretch_ends_where_an_event_is_not_what_must_follow(broken: str | None, alike: bool) -> None:
    producer = producer_of(5)
    payloads: list[bytes] = []
    for number in range(330):
        leaf = LeafEncoder(actor=ACTOR, run_key="run", producer=producer).encode(
            Event(action="encrypt", phase="note", dataset="visits" if alike else f"visits{number % 7}")
            if number
            else OPENING,
            event_id=event_id_of(producer, number),
            sequence=number,
            previous=leaf_hash(payloads[-1]) if payloads else None,
            time=f"{START + timedelta(seconds=number):%Y-%m-%dT%H:%M:%S.%f}Z",
        )
        if number == 300 and broken is not None:
            event = json.loads(leaf)
            BROKEN[broken](event)
            leaf = canonical_json(event)
        payloads.append(leaf)
    ids = [json.loads(payload)["event_id"].encode() for payload in payloads]
    rows = Rows(ids, payloads, [leaf_hash(payload) for payload in payloads])
    forms = Forms()
    for payload in [*payloads[:2], closing_leaf()] * 2:
        forms.learn(payload)
    found = parts_of(rows, first=1000, forms=forms)
    if broken is None:
        assert found == [(1000, 1330)]
    elif broken == "closing":
        assert found == [(1000, 1301), (1301, 1330)]
    elif broken in {"previous", "time"}:
        assert found == [(1000, 1300), (1300, 1330)]
    else:
        assert found == [(1000, 1300), 1300, (1301, 1330)]


def parts_of(rows: Rows, *, first: int, forms: Forms) -> list[tuple[int, int] | int]:
    """Where stretches begin and end, and where leaves are odd."""
    return [
        part.position if isinstance(part, Odd) else (part.first, part.stop)
        for part in stretches_of(rows, first=first, forms=forms)
    ]


def woven(turns: list[int], *, moments: list[float] | None = None) -> Rows:
    """Events that differ, of the producers whose numbers are given, one each; their times in seconds from the start."""
    states: dict[int, list[bytes]] = {}
    ids, payloads = [], []
    for place, turn in enumerate(turns):
        before = states.setdefault(turn, [])
        producer = producer_of(turn)
        ids.append(event_id_of(producer, len(before)).encode())
        moment = START + timedelta(seconds=place if moments is None else moments[place])
        leaf = LeafEncoder(actor=ACTOR, run_key="run", producer=producer).encode(
            Event(action="encrypt", phase="note", dataset=f"visits{place % 7}") if before else OPENING,
            event_id=ids[-1].decode(),
            sequence=len(before),
            previous=leaf_hash(before[-1]) if before else None,
            time=f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z",
        )
        before.append(leaf)
        payloads.append(leaf)
    return Rows(ids, payloads, [leaf_hash(payload) for payload in payloads])


def of_one_producer(events: list[Event]) -> Rows:
    """Rows of a producer that writes these at one moment; instead of the first it opens."""
    producer, payloads = producer_of(5), []
    encoder = LeafEncoder(actor=ACTOR, run_key="run", producer=producer)
    ids = [event_id_of(producer, number) for number in range(len(events))]
    for number, (event, event_id) in enumerate(zip([OPENING, *events[1:]], ids, strict=True)):
        previous, time = leaf_hash(payloads[-1]) if payloads else None, "2026-01-31T23:59:57.000000Z"
        payloads.append(encoder.encode(event, event_id=event_id, sequence=number, previous=previous, time=time))
    return Rows([event_id.encode() for event_id in ids], payloads, [leaf_hash(payload) for payload in payloads])


def knowing(rows: Rows) -> Forms:
    forms = Forms()
    for payload in rows.payloads * 2:
        forms.learn(payload)
    return forms


def test_producers_in_turn_are_one_stretch_with_a_chain_each() -> None:
    rows = woven([5, 6, 7] * 90)
    (stretch,) = stretches_of(rows, first=1000, forms=knowing(rows))
    assert isinstance(stretch, Stretch)
    assert (stretch.first, stretch.stop, len(stretch.chains)) == (1000, 1270, 3)
    assert (stretch.began, stretch.ended, stretch.latest) == (
        START,
        START + timedelta(seconds=269),
        START + timedelta(seconds=269),
    )
    for turn, chain in enumerate(stretch.chains):
        assert chain.producer == producer_of(5 + turn)
        assert (chain.sequence, chain.previous, chain.began) == (0, None, START + timedelta(seconds=turn))
        assert (chain.position, chain.last_sequence, chain.closes) == (1267 + turn, 89, False)
        assert (chain.event_id.encode(), chain.hashed) == (rows.event_ids[267 + turn], rows.hashes[267 + turn])
        assert chain.ended == START + timedelta(seconds=267 + turn)


@pytest.mark.parametrize("changed", [3, 40, 119])
def test_a_change_of_one_of_producers_in_turn_is_seen(changed: int) -> None:
    turns = [5, 6] * 60
    rows, other = woven(turns), woven(turns, moments=[9 + place for place in range(120)])
    forms = knowing(rows)
    rows.payloads[changed] = other.payloads[changed]
    rows.hashes[changed] = other.hashes[changed]
    # It names the hash of another predecessor; and where it has a successor, that names another than its hash.
    cuts = [changed, *([changed + 2] if changed + 2 < 120 else [])]
    assert parts_of(rows, first=0, forms=forms) == [*pairwise([0, *cuts, 120])]


@pytest.mark.parametrize(("back", "parts"), [(600, [(0, 20)]), (600.000001, [(0, 10), (10, 20)])])
def test_a_stretch_ends_where_the_times_of_the_log_go_back_too_far(back: float, parts: list[tuple[int, int]]) -> None:
    # Each event is of another producer: within one no time may go back.
    rows = woven([*range(5, 25)], moments=[3600.0] * 10 + [3600 - back] * 10)
    forms = knowing(rows)
    assert parts_of(rows, first=0, forms=forms) == parts
    first, *_ = stretches_of(rows, first=0, forms=forms)
    assert isinstance(first, Stretch)
    assert first.latest == START + timedelta(seconds=3600)


@pytest.mark.parametrize("late", [599, 601])
def test_a_stretch_with_a_time_in_the_future_is_not_taken_as_a_whole(late: int) -> None:
    now = (datetime.now(UTC) - START).total_seconds()
    rows = woven([5, 6, 7], moments=[now, now + late, now + late - 300])
    (stretch,) = stretches_of(rows, first=0, forms=knowing(rows))
    assert isinstance(stretch, Stretch)
    assert Producers().take(stretch) == (late < 600)


def test_producers_with_gaps_are_reported_in_the_order_in_which_they_closed() -> None:
    """Both lack numbers 1 and 2; in one stretch they go on in one order and close in the other."""
    one, other = producer_of(5), producer_of(6)
    written: dict[str, list[bytes]] = {one: [], other: []}
    leaves: list[Leaf] = []
    for producer, number in [(one, 0), (other, 0), (one, 3), (other, 3), (one, 4), (other, 4), (other, 5), (one, 5)]:
        event = Event(action="encrypt", phase="note", dataset="visits")
        if number == 0:
            event = OPENING
        if number == 5:
            event = Event(action="producer", phase="close", counts={"events": 5})
        before = written[producer]
        payload = LeafEncoder(actor=ACTOR, run_key="run", producer=producer).encode(
            event,
            event_id=event_id_of(producer, number),
            sequence=number,
            previous=leaf_hash(before[-1]) if before else None,
            time="2026-01-31T23:59:57.000000Z",
        )
        before.append(payload)
        hashed, index = leaf_hash(payload), len(leaves)
        leaves.append(Leaf(index, event_id_of(producer, number), payload, hashed, hashed, index))
    singly, together = Producers(), Producers()
    for leaf in leaves:
        assert not [*singly.check(leaf)]
    for leaf in leaves[:4]:
        assert not [*together.check(leaf)]
    rows = Rows(
        [leaf.event_id.encode() for leaf in leaves[4:]],
        [leaf.payload for leaf in leaves[4:]],
        [leaf.actual_hash for leaf in leaves[4:]],
    )
    (stretch,) = stretches_of(rows, first=4, forms=knowing(rows))
    assert isinstance(stretch, Stretch)
    assert together.take(stretch)
    assert [*together.missing()] == [*singly.missing()]
    assert other in next(singly.missing()).text


def test_a_log_that_is_all_breaks_is_not_asked_for_leaf_by_leaf(
    sqlite_engine: sql.Engine, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that go down fill a gap: each is right and follows upon none, so that no stretch can be taken."""
    numbers = [0, *range(299, 0, -1)]
    leaves = woven([5] * 300)
    order = [leaves.payloads[number].decode() for number in numbers]
    rows = [
        {"event_id": leaves.event_ids[number].decode(), "payload": text, "leaf_hash": leaf_hash(text.encode())}
        for number, text in zip(numbers, order, strict=True)
    ]
    with sqlite_engine.begin() as connection:
        connection.execute(leaf_table.insert(), rows)
    seal(sqlite_engine, signer=signer, exports=[])
    monkeypatch.setattr(reading_module, "BLOCK", 64)
    asked: list[Any] = []
    stored_leaves = verify_module.stored_leaves

    def counted(*arguments: Any, **options: Any) -> Any:
        asked.append(options)
        return stored_leaves(*arguments, **options)

    monkeypatch.setattr(verify_module, "stored_leaves", counted)
    verify(sqlite_engine, verifier=signer.verifier, exports=[])
    assert 5 <= len([options for options in asked if options["sealed"]]) <= 6


@pytest.mark.parametrize("every", [2, 3, 7, 11, 30, 100])
def test_breaks_in_like_events_are_not_looked_for_again_and_again(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("visitz", *["visits"] * (every - 1))
    rows = of_one_producer(
        [Event(action="encrypt", phase="note", dataset=kinds[number % every]) for number in range(1000)]
    )
    compared: list[int] = []
    last_time = Frame._last_time

    def counted(self: Frame, rows: Rows, start: int, stop: int, *rest: Any) -> Any:
        compared.append(stop - start)
        return last_time(self, rows, start, stop, *rest)

    monkeypatch.setattr(Frame, "_last_time", counted)
    forms = Forms()
    for payload in rows.payloads[:3] * 2:
        forms.learn(payload)
    assert parts_of(rows, first=0, forms=forms) == [(0, 1000)]
    assert len(compared) <= 70
    assert sum(compared) <= 2 * 1000


@pytest.mark.parametrize("seed", range(25))
def test_producers_are_followed_alike_by_stretches_and_leaf_by_leaf(seed: int) -> None:
    source = random.Random(seed)
    events = written(source, producers=source.choice([1, 3, 30]), events=150)
    forms = Forms()
    for event in events * 2:
        forms.learn(canonical_json(event))
    for number in source.sample(range(len(events)), source.choice([0, 1, 5])):
        WRONGS[source.choice([name for name in WRONGS if name != "number as text"])](events[number])
    for event in events if source.random() < 0.5 else []:
        link(event, events)
    if source.random() < 0.3:  # some are lost, or change places
        del events[source.randrange(len(events))]
        one, other = source.sample(range(len(events)), 2)
        events[one], events[other] = events[other], events[one]
    payloads = [canonical_json(event) for event in events]
    ids = [str(event["event_id"]).encode() for event in events]
    for number in source.sample(range(len(events)), source.choice([0, 0, 2])):
        ids[number] = ids[number].replace(b"-", b"+")
    hashes = [leaf_hash(payload) for payload in payloads]

    def leaf(number: int) -> Leaf:
        hashed = hashes[number]
        return Leaf(number, ids[number].decode(), payloads[number], hashed, hashed, number)

    singly, together = Producers(), Producers()
    expected = [finding for number in range(len(events)) for finding in singly.check(leaf(number))]
    found: list[Finding] = []
    taken = 0
    while (start := taken) < len(events):
        taken = min(start + source.choice([1, 7, 64]), len(events))
        rows = Rows(ids[start:taken], payloads[start:taken], hashes[start:taken])
        for part in stretches_of(rows, first=start, forms=forms):
            if isinstance(part, Odd):
                found += together.check(leaf(part.position))
            elif not together.take(part):
                found += [found for number in range(part.first, part.stop) for found in together.check(leaf(number))]
    assert found == expected
    assert together.open_count == singly.open_count
    assert [*together.missing()] == [*singly.missing()]
    assert vars(together._clock) | {"_now": None} == vars(singly._clock) | {"_now": None}


def test_like_events_without_a_predecessor_vouch_for_nothing() -> None:
    producer, payloads, ids = producer_of(5), [], []
    encoder = LeafEncoder(actor=ACTOR, run_key="run", producer=producer)
    for number in (0, 0, 0, 0, 0, 0, 1, 2):
        ids.append(event_id_of(producer, number))
        time = "2026-01-31T23:59:57.000000Z"
        payloads.append(encoder.encode(OPENING, event_id=ids[-1], sequence=number, previous=None, time=time))
        if number:  # no JSON, but what those before it would be with a predecessor's hash in its place
            named = b"null" + leaf_hash(payloads[-2]).hex().encode()
            payloads[-1] = payloads[-1].replace(b'null,"sequence', named + b',"sequence')
    rows = Rows([event_id.encode() for event_id in ids], payloads, [leaf_hash(payload) for payload in payloads])
    forms = Forms()
    for payload in payloads[:2] * 2:
        forms.learn(payload)
    assert parts_of(rows, first=0, forms=forms) == [*pairwise(range(7)), 6, 7]


def test_of_like_closing_events_each_must_count_right() -> None:
    closing = Event(action="producer", phase="close", counts={"events": 8})
    rows = of_one_producer([Event(action="encrypt", phase="note")] * 3 + [closing] * 8)
    assert parts_of(rows, first=0, forms=knowing(rows)) == [(0, 3), 3, 4, 5, 6, 7, (8, 9), 9, 10]


def test_each_leaf_without_a_form_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    details = [{f"only {number}": 1} if number % 10 == 0 else {} for number in range(40)]
    rows = of_one_producer([Event(action="encrypt", phase="note", details=one) for one in details])
    forms, looked = Forms(), []
    for _ in range(2):
        forms.learn(rows.payloads[1])
    monkeypatch.setattr(forms, "learn", looked.append)
    assert parts_of(rows, first=0, forms=forms) == [0, (1, 10), 10, (11, 20), 20, (21, 30), 30, (31, 40)]
    assert looked == rows.payloads[::10]


@pytest.mark.parametrize("alike", [True, False], ids=["alike", "unlike"])
@pytest.mark.parametrize("place", ["beside", "inside"])
def test_an_event_is_odd_if_the_id_beside_it_is_not_the_one_inside(place: str, alike: bool) -> None:
    producer = producer_of(5)
    encoder = LeafEncoder(actor=ACTOR, run_key="run", producer=producer)
    payloads: list[bytes] = []
    for number in range(30):
        previous = leaf_hash(payloads[-1]) if payloads else None
        dataset = "visits" if alike else f"visits{number % 7}"
        event = Event(action="encrypt", phase="note", dataset=dataset) if number else OPENING
        right = place == "beside" or number != 20
        event_id, time = event_id_of(producer, number if right else 7), "2026-01-31T23:59:57.000000Z"
        payloads.append(encoder.encode(event, event_id=event_id, sequence=number, previous=previous, time=time))
    ids = [event_id_of(producer, number).encode() for number in range(30)]
    ids[20] = ids[20].upper() if place == "beside" else ids[20]
    forms = Forms()
    for payload in payloads[:2] * 2:
        forms.learn(payload)
    rows = Rows(ids, payloads, [leaf_hash(payload) for payload in payloads])
    assert parts_of(rows, first=0, forms=forms) == [(0, 20), 20, (21, 30)]


def test_a_block_carries_only_so_many_payloads(
    sqlite_engine: sql.Engine,
    signer: Signer,
    all_ways: Callable[..., VerificationReport],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = random.Random(4)
    leaves = written(source, producers=3, events=60)
    for leaf in leaves[20:40]:
        leaf["details"]["share"] = 0.5
    fill(sqlite_engine, stored(leaves, {}), signer, source)
    monkeypatch.setattr(blocks_module, "_ODD_BYTES", 2000)
    made: list[Any] = []
    read = reading_module._read
    monkeypatch.setattr(reading_module, "_read", lambda *arguments: made.append(read(*arguments)) or made[-1])
    all_ways(sqlite_engine, verifier=signer.verifier, exports=[])
    assert None in made
    assert any(made)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 64, 100])
def test_subtrees_make_the_root_from_wherever_they_begin(size: int) -> None:
    leaves = [hashlib.sha256(str(number).encode()).digest() for number in range(size + 40)]
    for first in (0, 1, 5, 8, 31, 40):
        frontier = Frontier()
        for hashed in leaves[:first]:
            frontier.append(hashed)
        for level, node in subtrees(leaves[first : first + size], first=first):
            frontier.append(node, level=level)
        assert (frontier.size, frontier.root()) == (first + size, root(leaves[: first + size]))


def test_a_subtree_that_begins_elsewhere_is_refused() -> None:
    frontier = Frontier()
    frontier.append(bytes(32))
    with pytest.raises(ValueError, match="multiple"):
        frontier.append(bytes(32), level=1)


#: What a second process does that fails, as Python; its arguments are those of the real one.
FAILURES = {
    "never starts": "raise SystemExit",
    "ends early": "pipe.send(None); task = pipe.recv(); pipe.send((task.first, None))",
    "never answers": "time.sleep(600)",
    "hangs once it has checked": "pipe.send(None); time.sleep(600)",
    "hangs in the middle of an answer": "os.write(pipe.fileno(), bytes([0, 0, 1, 0, 7])); time.sleep(600)",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_verification_goes_on_without_its_second_process(
    sqlite_engine: sql.Engine, signer: Signer, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    source = random.Random(2)
    fill(sqlite_engine, stored(written(source, producers=3, events=200), {}), signer, source)
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    words = (
        "import os, sys, time; from lepton_airflow.audit.channel import Channel; from lepton_airflow.audit.blocks import *\n"
        f"pipe = Channel(int(sys.argv[2])); {FAILURES[failure]}"
    )
    for name, value in {
        "BLOCK": 8,
        "_WORTH_HELP": 0,
        "_processors": lambda: 2,
        "_PATIENCE": 1,
        "_HELPER": words,
    }.items():
        monkeypatch.setattr(reading_module, name, value)
    monkeypatch.setattr(subprocess, "Popen", Recorded)
    if failure != "never answers":
        monkeypatch.setattr(reading_module, "_Helper", Prompt)
    report = verify(sqlite_engine, verifier=signer.verifier, exports=[])
    assert (report.ok, report.tree_size) == (True, 200)
    assert [process.returncode is not None for process in started] == [True]


def test_the_second_process_starts_without_the_database_library() -> None:
    words = "import sys, lepton_airflow.audit.blocks; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "False\n"
