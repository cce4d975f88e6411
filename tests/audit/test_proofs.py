"""Proofs from the store: that they are the RFC's, hold against the signed root, and are refused where they would not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import sqlalchemy as sql

from lepton_airflow.audit.checkpoint import Checkpoint, Signer
from lepton_airflow.audit.database import checkpoint_table, leaf_table, node_table
from lepton_airflow.audit.event import Actor, Event
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.merkle import verify_consistency
from lepton_airflow.audit.proofs import events_of_run, prove_events, prove_extension
from lepton_airflow.audit.sealer import seal
from lepton_airflow.errors import AuditTampered, EventNotSealed, InvalidData


def test_a_stored_event_is_proved_against_the_latest_checkpoint(
    engine: sql.Engine, signer: Signer, write: Callable[..., list[str]]
) -> None:
    ids = write(engine, 5)
    older = seal(engine, signer=signer, exports=[])
    ids += write(engine, 8)
    latest = seal(engine, signer=signer, exports=[])
    write(engine, 1)  # not sealed: no part of the tree
    note, leaves = prove_events(engine, ids, verifier=signer.verifier)
    assert Checkpoint.verify(note, signer.verifier) == latest
    assert leaves.keys() == set(ids)
    for leaf in leaves.values():
        assert leaf.is_in(latest)
        assert not leaf.is_in(older)
        assert not replace(leaf, payload=leaf.payload + " ").is_in(latest)
        for other in {leaf.index - 1, leaf.index + 1, latest.tree_size} - {leaf.index}:
            assert not replace(leaf, index=other).is_in(latest)
    proof = prove_extension(engine, old_size=older.tree_size, size=latest.tree_size)
    assert verify_consistency(
        old_size=older.tree_size,
        old_root=older.root_hash,
        size=latest.tree_size,
        root_hash=latest.root_hash,
        proof=proof,
    )


def test_an_event_that_is_not_sealed_has_no_proof(
    sqlite_engine: sql.Engine, signer: Signer, write: Callable[..., list[str]]
) -> None:
    first = write(sqlite_engine, 1)
    with pytest.raises(EventNotSealed, match="lepton audit seal"):
        prove_events(sqlite_engine, first, verifier=signer.verifier)
    seal(sqlite_engine, signer=signer, exports=[])
    second = write(sqlite_engine, 1)
    with pytest.raises(EventNotSealed) as caught:
        prove_events(sqlite_engine, [*first, *second], verifier=signer.verifier)
    assert second[0] in caught.value.place
    with pytest.raises(InvalidData):
        prove_events(sqlite_engine, ["nobody's"], verifier=signer.verifier)
    with pytest.raises(InvalidData):
        prove_extension(sqlite_engine, old_size=1, size=9)


def test_a_log_that_is_not_the_signed_one_gives_no_proof(
    sqlite_engine: sql.Engine, signer: Signer, write: Callable[..., list[str]]
) -> None:
    ids = write(sqlite_engine, 6)
    seal(sqlite_engine, signer=signer, exports=[])

    def change(statement: sql.Update | sql.Delete, rule: str) -> None:
        with sqlite_engine.connect() as connection, connection.begin() as transaction:
            connection.execute(statement)
            transaction.commit()
        with pytest.raises(AuditTampered, match=rule):
            prove_events(sqlite_engine, ids[1:2], verifier=signer.verifier)

    leaf = leaf_table.c
    payload = sql.func.replace(leaf.payload, "clinic", "clinik")
    change(leaf_table.update().where(leaf.tree_index == 1).values(payload=payload), "not the one that was sealed")
    change(leaf_table.update().where(leaf.tree_index == 3).values(leaf_hash=b"x" * 32), "not those that the latest")
    change(leaf_table.delete().where(leaf.tree_index == 5), "fewer events")
    change(checkpoint_table.update().values(note=checkpoint_table.c.note + "x"), "no valid signature")


def test_the_events_of_a_run_are_found_by_its_key_alone(sqlite_engine: sql.Engine) -> None:
    keys = ['dag "a"/task_1/run%2/-1', 'dag "a"/taskX1/run%2/-1', 'dag "a"/task_1/run%22/-1']
    for key in keys:
        log = AuditLog(sqlite_engine, actor=Actor(principal="p", host="h"), run_key=key)
        log.append(Event(action="release", phase="note", details={"run_key": keys[0]}))
        log.close()
    found = events_of_run(sqlite_engine, keys[0])
    assert [event["phase"] for event in found] == ["open", "note", "close"]
    assert {event["run_key"] for event in found} == {keys[0]}


def test_a_changed_subtree_beside_the_log_spoils_no_proof(
    sqlite_engine: sql.Engine, signer: Signer, write: Callable[..., list[str]]
) -> None:
    """Events 300 and on have the stored subtree of the first 256 in their paths."""
    log = AuditLog(sqlite_engine, actor=Actor(principal="p", host="h"), run_key="run")
    ids = log.append_all([Event(action="encrypt", phase="note")] * 310)
    checkpoint = seal(sqlite_engine, signer=signer, exports=[])
    with sqlite_engine.begin() as connection:
        assert connection.execute(node_table.update().values(hash=bytes(32))).rowcount == 1
    _, leaves = prove_events(sqlite_engine, [ids[3], ids[305]], verifier=signer.verifier)
    assert all(leaf.is_in(checkpoint) for leaf in leaves.values())
