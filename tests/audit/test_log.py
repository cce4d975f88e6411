"""Appending: durable when it returns, numbered, chained, closed; and refused when it cannot be."""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.audit.canonical import parse_canonical
from lepton_airflow.audit.database import leaf_table
from lepton_airflow.audit.event import Actor, Event, event_id_of
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.merkle import leaf_hash
from lepton_airflow.audit.schema import SCHEMA
from lepton_airflow.errors import AuditUnavailable, InvalidData
from lepton_airflow.settings import Settings

ACTOR = Actor(principal="etl", on_behalf_of="ann", owner="data", team="clinic", host="here", bundle_version="v1")


def open_log(engine: sql.Engine) -> AuditLog:
    return AuditLog(engine, actor=ACTOR, run_key="dag/task/run/0")


def note(**fields: Any) -> Event:
    return Event(action="encrypt", phase="note", **fields)


def rows(engine: sql.Engine) -> list[sql.Row[Any]]:
    with engine.connect() as connection:
        return list(connection.execute(sql.select(leaf_table).order_by(leaf_table.c.id)).all())


def test_a_leaf_says_who_what_and_when_in_canonical_json(engine: sql.Engine) -> None:
    event = Event(
        action="release",
        phase="success",
        dataset="clinic.visits",
        columns=("age", "diagnosis"),
        purpose="statistics",
        rules=("analysts",),
        policy_digest="sha256:00",
        spec_digest="sha256:11",
        counts={"groups": 3},
        digests={"result": "sha256:22"},
        details={"epsilon": 0.5, "note": None, "exact": True},
    )
    event_id = open_log(engine).append(event)
    opening, row = rows(engine)
    leaf = parse_canonical(row.payload.encode())
    assert row.event_id == event_id == leaf.pop("event_id")
    assert row.leaf_hash == leaf_hash(row.payload.encode())
    assert row.tree_index is None
    assert len(leaf.pop("time")) == len("2026-01-01T00:00:00.000000Z")
    assert uuid.UUID(leaf["producer"].pop("id")).version == 4
    assert leaf == {
        "schema": SCHEMA,
        "producer": {"sequence": 1, "previous": opening.leaf_hash.hex()},
        "run_key": "dag/task/run/0",
        "actor": {
            "principal": "etl",
            "on_behalf_of": "ann",
            "owner": "data",
            "team": "clinic",
            "host": "here",
            "bundle_version": "v1",
        },
        "action": "release",
        "phase": "success",
        "dataset": "clinic.visits",
        "columns": ["age", "diagnosis"],
        "purpose": "statistics",
        "intent": None,
        "rules": ["analysts"],
        "policy_digest": "sha256:00",
        "spec_digest": "sha256:11",
        "counts": {"groups": 3},
        "digests": {"result": "sha256:22"},
        "details": {"epsilon": 0.5, "note": None, "exact": True},
    }


def test_a_producer_opens_numbers_chains_and_closes_its_events(engine: sql.Engine) -> None:
    log = open_log(engine)
    for _ in range(2):
        log.append(note())
    log.close()
    log.close()
    stored = rows(engine)
    leaves = [json.loads(row.payload) for row in stored]
    assert [leaf["producer"]["sequence"] for leaf in leaves] == [0, 1, 2, 3]
    assert [leaf["producer"]["previous"] for leaf in leaves[1:]] == [row.leaf_hash.hex() for row in stored[:-1]]
    assert (leaves[0]["action"], leaves[0]["phase"], leaves[0]["producer"]["previous"]) == ("producer", "open", None)
    assert (leaves[3]["action"], leaves[3]["phase"], leaves[3]["counts"]) == ("producer", "close", {"events": 3})
    assert [row.event_id for row in stored] == [event_id_of(log.producer, number) for number in range(4)]
    assert {leaf["producer"]["id"] for leaf in leaves} == {log.producer}


def test_the_opening_is_committed_with_the_first_event_or_not_at_all(engine: sql.Engine) -> None:
    log = open_log(engine)
    with pytest.raises(InvalidData):
        log.append(note(details={"x": float("nan")}))
    assert rows(engine) == []
    ids = log.append_all([note(), note()])
    assert [row.event_id for row in rows(engine)] == [event_id_of(log.producer, 0), *ids]
    log.append(note())
    assert [json.loads(row.payload)["phase"] for row in rows(engine)] == ["open", "note", "note", "note"]


def test_a_closed_log_takes_no_more_events(engine: sql.Engine) -> None:
    log = open_log(engine)
    log.close()
    with pytest.raises(AuditUnavailable, match="closed"):
        log.append(note())
    assert [json.loads(row.payload)["phase"] for row in rows(engine)] == ["open", "close"]


def test_threads_share_a_log_without_losing_or_repeating_a_number(engine: sql.Engine) -> None:
    log = open_log(engine)
    threads = [threading.Thread(target=lambda: [log.append(note()) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [json.loads(row.payload)["producer"]["sequence"] for row in rows(engine)] == list(range(41))


def test_an_event_that_is_no_json_is_refused_and_leaves_no_gap(engine: sql.Engine) -> None:
    log = open_log(engine)
    with pytest.raises(InvalidData):
        log.append(note(details={"x": float("nan")}))
    log.append(note())
    assert [json.loads(row.payload)["producer"]["sequence"] for row in rows(engine)] == [0, 1]


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(InvalidData, match="Unknown phase"):
        Event(action="encrypt", phase="done")  # type: ignore[arg-type]


def test_an_append_to_a_full_database_fails_closed_and_the_next_one_goes_on(sqlite_engine: sql.Engine) -> None:
    log = open_log(sqlite_engine)
    log.append(note())
    with sqlite_engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(AuditUnavailable, match="SQLITE_FULL"):
        log.append(note(details={"filler": "x" * 100_000}))
    with sqlite_engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    log.append(note())
    assert [json.loads(row.payload)["producer"]["sequence"] for row in rows(sqlite_engine)] == [0, 1, 2]


def test_a_locked_database_fails_closed_after_a_bounded_wait(
    sqlite_engine: sql.Engine, sqlite_settings: Settings
) -> None:
    sql.event.listen(sqlite_engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout = 50"))
    sqlite_engine.dispose()
    blocker = sqlite3.connect(sqlite_settings.home / "audit.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(AuditUnavailable, match="SQLITE_BUSY"):
        open_log(sqlite_engine).append(note())
    blocker.close()


def test_an_event_whose_commit_was_reported_lost_but_was_not_keeps_its_number(sqlite_engine: sql.Engine) -> None:
    """The connection breaks after the database has committed and before the client hears of it."""
    engine = sqlite_engine
    log = open_log(engine)

    def commit_and_break(connection: sql.Connection) -> None:
        connection.connection.dbapi_connection.execute("COMMIT")  # type: ignore[union-attr]
        raise sqlite3.OperationalError("the connection is gone")

    log.append(note())
    sql.event.listen(engine, "commit", commit_and_break)
    with pytest.raises(sqlite3.OperationalError):
        log.append(note(details={"which": "lost"}))
    sql.event.remove(engine, "commit", commit_and_break)
    log.append(note(details={"which": "next"}))
    log.close()
    check_that_nothing_was_lost_or_repeated(engine)


@pytest.mark.parametrize("breaks", [1, 2], ids=["once", "and again when it is tried again"])
def test_on_postgresql_too(postgresql_engine: sql.Engine, monkeypatch: pytest.MonkeyPatch, breaks: int) -> None:
    log = open_log(postgresql_engine)
    log.append(note())
    inserter: Any = log._inserter
    insert, left = inserter._execute, [breaks]

    def insert_and_break(rows: Any) -> None:
        try:
            insert(rows)
        finally:
            if left[0]:
                left[0] -= 1
                raise AuditUnavailable("The connection is gone.", place="here", remedy="")

    monkeypatch.setattr(inserter, "_execute", insert_and_break)
    if breaks == 1:
        log.append(note(details={"which": "lost"}))
    else:
        with pytest.raises(AuditUnavailable):
            log.append(note(details={"which": "lost"}))
    log.append_all([note(details={"which": "next"})])
    log.close()
    check_that_nothing_was_lost_or_repeated(postgresql_engine)


def check_that_nothing_was_lost_or_repeated(engine: sql.Engine) -> None:
    leaves = [json.loads(row.payload) for row in rows(engine)]
    assert [leaf["details"].get("which") for leaf in leaves] == [None, None, "lost", "next", None]
    assert [leaf["producer"]["sequence"] for leaf in leaves] == [0, 1, 2, 3, 4]
    assert leaves[3]["producer"]["previous"] == rows(engine)[2].leaf_hash.hex()


def test_several_events_are_committed_together_numbered_and_chained(engine: sql.Engine) -> None:
    log = open_log(engine)
    log.append(note())
    ids = log.append_all([note(counts={"number": number}) for number in range(250)])
    assert log.append_all([]) == []
    log.close()
    stored = rows(engine)
    leaves = [json.loads(row.payload) for row in stored]
    assert [row.event_id for row in stored][2:-1] == ids
    assert [leaf["producer"]["sequence"] for leaf in leaves] == list(range(253))
    assert [leaf["producer"]["previous"] for leaf in leaves[1:]] == [row.leaf_hash.hex() for row in stored[:-1]]
    assert leaves[-1]["counts"] == {"events": 252}


def test_of_several_events_all_are_committed_or_none(engine: sql.Engine) -> None:
    log = open_log(engine)
    log.append(note())
    with engine.begin() as connection:
        stolen = {"event_id": event_id_of(log.producer, 3), "payload": "{}", "leaf_hash": leaf_hash(b"{}")}
        connection.execute(leaf_table.insert().values(stolen))
    with pytest.raises(AuditUnavailable, match="refuses the event"):
        log.append_all([note(), note(), note()])
    assert len(rows(engine)) == 3
    log.append(note())
    assert json.loads(rows(engine)[3].payload)["producer"]["sequence"] == 2


def test_an_event_that_another_rule_of_the_database_forbids_is_a_typed_error(engine: sql.Engine) -> None:
    log = open_log(engine)
    log.append(note())
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql(
                "CREATE TRIGGER full BEFORE INSERT ON lepton_audit_leaf BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        else:
            connection.exec_driver_sql("ALTER TABLE lepton_audit_leaf ADD CHECK (false) NOT VALID")
    with pytest.raises(AuditUnavailable, match="refuses the event"):
        log.append(note())
    assert len(rows(engine)) == 2


def test_a_writer_that_is_stopped_in_line_keeps_others_waiting_only_so_long(
    sqlite_engine: sql.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lepton_airflow.audit import writing

    log = open_log(sqlite_engine)
    monkeypatch.setattr(writing, "_PATIENCE_SECONDS", 0.05)
    with writing.in_line(sqlite_engine), pytest.raises(AuditUnavailable, match="kept its place"):
        log.append(note())
    log.append(note())
    assert len(rows(sqlite_engine)) == 2


def test_a_number_that_somebody_else_has_taken_is_not_taken_over(engine: sql.Engine) -> None:
    log = open_log(engine)
    log.append(note())
    with engine.begin() as connection:
        stolen = {"event_id": event_id_of(log.producer, 2), "payload": "{}", "leaf_hash": leaf_hash(b"{}")}
        connection.execute(leaf_table.insert().values(stolen))
    with pytest.raises(AuditUnavailable, match="Another process"):
        log.append(note())


def test_a_server_that_goes_away_fails_closed(postgresql_engine: sql.Engine) -> None:
    log = open_log(postgresql_engine)
    log.append(note())
    name = postgresql_engine.url.database
    other = sql.create_engine(postgresql_engine.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with other.connect() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        with pytest.raises(AuditUnavailable):
            log.append(note())
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    other.dispose()
    log.append(note())
    assert len(rows(postgresql_engine)) == 3
