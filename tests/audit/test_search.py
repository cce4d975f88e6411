"""Searching finds what a plain filter over every event finds, in both stores; following misses nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.audit import log as log_module
from lepton_airflow.audit.canonical import canonical_json, parse_canonical
from lepton_airflow.audit.database import leaf_table
from lepton_airflow.audit.event import Actor, Event
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.merkle import leaf_hash
from lepton_airflow.audit.search import Query, parse_moment, search, tail
from lepton_airflow.errors import InvalidData

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def events(engine: sql.Engine, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """600 events, one every ten minutes, of several principals about several datasets; some that are no events."""

    class Clock(datetime):
        minutes = 0

        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            cls.minutes += 10
            return START + timedelta(minutes=cls.minutes)

    monkeypatch.setattr(log_module, "datetime", Clock)
    for part in range(6):
        actor = Actor(principal=f"p{part % 3}", host="here", on_behalf_of='a "quoted" %_ name')
        log = AuditLog(engine, actor=actor, run_key=f"run/{part}")
        log.append_all(
            [
                Event(
                    action="encrypt" if number % 2 else "decrypt",
                    phase="success" if number % 3 else "denied",
                    dataset=f"clinic.t{number % 4}" if number % 5 else "50%_off",
                    columns=("email", "ssn") if number % 7 else ("größe",),
                    details={"action": "decrypt"},
                )
                for number in range(100)
            ]
        )
    with engine.begin() as connection:
        for name, payload in (("odd", b"{}"), ("odder", b"[1"), ("archived", b"")):
            row = {"event_id": name, "payload": payload.decode(), "leaf_hash": leaf_hash(payload)}
            connection.execute(leaf_table.insert().values(row))
        rows = connection.scalars(sql.select(leaf_table.c.payload).order_by(leaf_table.c.id.desc())).all()
    return [parse_canonical(payload.encode()) for payload in rows[3:]]


QUERIES = [
    {},
    {"dataset": "clinic.t1"},
    {"dataset": "50%_off"},
    {"dataset": "clinic"},
    {"column": "email"},
    {"column": "größe", "principal": "p1"},
    {"principal": "p2", "action": "decrypt", "phase": "denied"},
    {"run_key": "run/4"},
    {"action": "rotate"},
    {"since": START + timedelta(hours=40), "until": START + timedelta(hours=41)},
    {"since": START + timedelta(hours=90), "action": "encrypt"},
    {"until": START + timedelta(hours=2)},
    {"since": START + timedelta(days=400)},
]


def test_a_search_finds_what_a_plain_filter_finds(engine: sql.Engine, events: list[dict[str, Any]]) -> None:
    for fields in QUERIES:
        query = Query(**fields)  # type: ignore[arg-type]
        expected = [event for event in events if query.matches(event)]
        assert list(search(engine, query, limit=10_000)) == expected, fields
        assert list(search(engine, query, limit=3)) == expected[:3]
    assert len(list(search(engine, Query(dataset="clinic.t1"), limit=1000))) == 120


def test_the_tail_is_in_the_order_of_the_log(engine: sql.Engine, events: list[dict[str, Any]]) -> None:
    assert list(tail(engine, count=8)) == events[:5][::-1]  # the last three rows are no events
    assert list(tail(engine, count=0)) == []


def test_following_shows_what_is_committed_later_even_with_a_smaller_id(
    postgresql_engine: sql.Engine, write: Any
) -> None:
    write(postgresql_engine, 3)
    late = parse_canonical(next(iter(_payloads(postgresql_engine))).encode()) | {"event_id": "late", "run_key": "late"}
    payload = canonical_json(late)
    followed: list[dict[str, Any]] = []
    follower = tail(postgresql_engine, count=1, follow=True, pause=0.01)
    followed.append(next(follower))
    with postgresql_engine.connect() as slow:
        transaction = slow.begin()
        slow.execute(
            leaf_table.insert().values(event_id="late", payload=payload.decode(), leaf_hash=leaf_hash(payload))
        )
        ids = write(postgresql_engine, 2)
        followed += islice(follower, 3)
        transaction.commit()
    thread = threading.Thread(target=lambda: followed.append(next(follower)), daemon=True)
    thread.start()
    thread.join(30)
    assert [event["event_id"] for event in followed[1:3]] == ids
    assert followed[-1]["run_key"] == "late"


def _payloads(engine: sql.Engine) -> Iterator[str]:
    with engine.connect() as connection:
        yield from connection.scalars(sql.select(leaf_table.c.payload)).all()


def test_a_time_without_a_zone_is_utc_and_no_time_is_an_error() -> None:
    assert parse_moment("2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)
    assert parse_moment("2026-01-31T12:00:00+01:00") == datetime(2026, 1, 31, 11, tzinfo=UTC)
    with pytest.raises(InvalidData, match="not a time"):
        parse_moment("yesterday")
