"""Exports prove themselves with the sealer's public key alone, and what is changed in one is located."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sql

from lepton_airflow.audit.checkpoint import Checkpoint, Signer
from lepton_airflow.audit.database import leaf_table
from lepton_airflow.audit.event import Actor, Event
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.merkle import leaf_hash
from lepton_airflow.audit.ranges import export_range, verify_range
from lepton_airflow.audit.sealer import seal
from lepton_airflow.errors import AuditTampered, InvalidData, TargetExists, UnreadableSource

SIZES = (10, 20, 33)


@pytest.fixture
def notes(engine: sql.Engine, signer: Signer, write: Any) -> dict[int, str]:
    """A log of 33 sealed leaves; its signed checkpoints by size."""
    made = {}
    for count in (9, 9, 12):
        write(engine, count)
        checkpoint = seal(engine, signer=signer, exports=[])
        made[checkpoint.tree_size] = checkpoint.sign(signer)
    write(engine, 2)
    return made


def found(folder: Path, signer: Signer, since: str | None = None) -> list[tuple[str, str]]:
    report = verify_range(folder, verifier=signer.verifier, since=since)
    assert report.ok == (not report.findings)
    return [(finding.kind, finding.position) for finding in report.findings]


@pytest.mark.parametrize(("first", "stop"), [(0, None), (0, 10), (10, 20), (7, 8), (13, 33), (32, 33)])
def test_a_range_verifies_offline(
    engine: sql.Engine, signer: Signer, notes: dict[int, str], tmp_path: Path, first: int, stop: int | None
) -> None:
    folder = tmp_path / "export"
    checkpoint = export_range(engine, folder, verifier=signer.verifier, first=first, stop=stop)
    engine.dispose()
    report = verify_range(folder / "events.parquet", verifier=signer.verifier)
    assert (report.ok, report.tree_size, report.root) == (True, 33, checkpoint.root_hash.hex())
    assert (report.notes == ()) == (stop is None)
    table = pq.read_table(folder / "events.parquet").to_pylist()
    assert [row["tree_index"] for row in table] == list(range(first, stop or 33))
    for row in table:
        event = json.loads(row["payload"])
        assert (row["event_id"], row["action"], row["principal"]) == (event["event_id"], event["action"], "tester")
        assert row["leaf_hash"] == leaf_hash(row["payload"].encode())


def test_an_export_extends_the_checkpoints_on_both_sides_of_it(
    engine: sql.Engine, signer: Signer, notes: dict[int, str], tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    export_range(engine, folder, verifier=signer.verifier, first=10, stop=20)
    for size in SIZES:
        assert found(folder, signer, notes[size]) == []
    forged = Checkpoint("test-log", 20, bytes(32)).sign(signer)
    assert found(folder, signer, forged) == [("fork", "checkpoint 20")]
    unknown = Checkpoint("test-log", 15, bytes(32)).sign(signer)
    assert found(folder, signer, unknown) == [("unlocated", "checkpoint 15")]
    proof = json.loads((folder / "proof.json").read_text())
    proof["older"][0]["checkpoint"] = Checkpoint("test-log", 10, bytes(32)).sign(signer)
    (folder / "proof.json").write_text(json.dumps(proof))
    assert found(folder, signer) == [("fork", "checkpoint 10")]


def rewritten(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    table = pq.read_table(folder / "events.parquet")
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / "events.parquet")


def test_what_is_changed_in_an_export_is_located(
    sqlite_engine: sql.Engine, signer: Signer, write: Any, tmp_path: Path
) -> None:
    write(sqlite_engine, 39)
    seal(sqlite_engine, signer=signer, exports=[])
    good = tmp_path / "good"
    export_range(sqlite_engine, good, verifier=signer.verifier, first=5, stop=35)
    source = random.Random(7)
    for number in range(12):
        place, other = source.sample(range(30), 2)
        folder = tmp_path / str(number)
        shutil.copytree(good, folder)
        events = [row["event_id"] for row in pq.read_table(folder / "events.parquet").to_pylist()]
        here, there = (f"leaf {5 + index} (event {events[index]})" for index in (place, other))

        def change(rows: list[dict[str, Any]], kind: int = number % 4, place: int = place, other: int = other) -> None:
            if kind == 0:
                rows[place]["payload"] = rows[place]["payload"].replace("clinic", "forged")
            elif kind == 1:
                rows[place]["payload"], rows[other]["payload"] = rows[other]["payload"], rows[place]["payload"]
            elif kind == 2:
                del rows[place]
            else:
                rows[place]["leaf_hash"] = bytes(32)

        rewritten(folder, change)
        expected = [{("edited", here)}, {("moved", here), ("moved", there)}, {("deleted", f"leaf {5 + place}")}]
        expected.append({("edited", here)})
        assert expected[number % 4] <= set(found(folder, signer))


def test_a_thorough_change_of_an_export_does_not_verify(
    engine: sql.Engine, signer: Signer, notes: dict[int, str], tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    export_range(engine, folder, verifier=signer.verifier)

    def change(rows: list[dict[str, Any]]) -> None:
        rows[4]["payload"] = rows[4]["payload"].replace("clinic", "forged")
        rows[4]["leaf_hash"] = leaf_hash(rows[4]["payload"].encode())

    rewritten(folder, change)
    assert ("unlocated", "leaves 0 to 32") in found(folder, signer)
    note = folder / "checkpoint"
    note.write_text(note.read_text().replace("33", "32"))
    assert [kind for kind, _ in found(folder, signer)] == ["signature"]


def test_a_damaged_log_is_not_exported(
    engine: sql.Engine, signer: Signer, notes: dict[int, str], tmp_path: Path
) -> None:
    with engine.begin() as connection:
        connection.execute(leaf_table.update().where(leaf_table.c.tree_index == 12).values(payload="{}"))
    with pytest.raises(AuditTampered, match="not those"):
        export_range(engine, tmp_path / "export", verifier=signer.verifier)
    assert not (tmp_path / "export" / "events.parquet").exists()
    export_range(engine, tmp_path / "other", verifier=signer.verifier, first=13)


def test_impossible_exports_are_typed_errors(
    sqlite_engine: sql.Engine, signer: Signer, tmp_path: Path, write: Any
) -> None:
    folder = tmp_path / "export"
    with pytest.raises(InvalidData, match="Nothing is sealed"):
        export_range(sqlite_engine, folder, verifier=signer.verifier)
    write(sqlite_engine, 3)
    seal(sqlite_engine, signer=signer, exports=[])
    with pytest.raises(InvalidData, match="no such leaves"):
        export_range(sqlite_engine, folder, verifier=signer.verifier, stop=5)
    export_range(sqlite_engine, folder, verifier=signer.verifier)
    with pytest.raises(TargetExists):
        export_range(sqlite_engine, folder, verifier=signer.verifier)
    for name in ("proof.json", "events.parquet", "checkpoint"):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        (copy / name).unlink()
        with pytest.raises(UnreadableSource):
            verify_range(copy, verifier=signer.verifier)
    (folder / "events.parquet").write_bytes(b"not Parquet")
    with pytest.raises(UnreadableSource):
        verify_range(folder, verifier=signer.verifier)


def test_an_export_is_verified_without_its_payloads_in_memory(
    sqlite_engine: sql.Engine, signer: Signer, tmp_path: Path
) -> None:
    log = AuditLog(sqlite_engine, actor=Actor(principal="tester", host="here"), run_key="run")
    count, size = 12_000, 4_000
    for _ in range(count // 500):
        log.append_all([Event(action="encrypt", phase="note", details={"text": "x" * size})] * 500)
    log.close()
    seal(sqlite_engine, signer=signer, exports=[])
    export_range(sqlite_engine, tmp_path / "export", verifier=signer.verifier, first=0, stop=None)
    tracemalloc.start()
    try:
        assert verify_range(tmp_path / "export", verifier=signer.verifier).ok
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < count * size / 4
