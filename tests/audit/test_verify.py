"""Every kind of tampering, on a real SQLite file and a real PostgreSQL, is found and located."""

from __future__ import annotations

import json
import random
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.audit.checkpoint import Checkpoint, Signer
from lepton_airflow.audit.database import checkpoint_table, connect, leaf_table
from lepton_airflow.audit.event import Actor, Event, LeafEncoder, event_id_of
from lepton_airflow.audit.merkle import leaf_hash, root
from lepton_airflow.audit.sealer import seal
from lepton_airflow.audit.verify import VerificationReport, verify
from lepton_airflow.errors import LeptonError
from lepton_airflow.settings import Settings

SEALED = 33  # (9 + 1) + (9 + 1) + (12 + 1)
UNSEALED = 6
STORES = ("sqlite", "postgresql")
ACTOR = Actor(principal="eve", host="there")
PRODUCER = str(uuid.UUID(int=7, version=4))


@dataclass
class SealedLog:
    """Thirty-three sealed leaves in three checkpoints, six unsealed ones, and two exports."""

    engine: sql.Engine
    signer: Signer
    exports: list[Path]

    def rows(self) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            query = sql.select(leaf_table).order_by(leaf_table.c.id)
            return [dict(row) for row in connection.execute(query).mappings()]

    def event(self, index: int) -> str:
        return next(row["event_id"] for row in self.rows() if row["tree_index"] == index)

    def at(self, index: int) -> str:
        return f"leaf {index} (event {self.event(index)})"

    def execute(self, *statements: Any) -> None:
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(statement)

    def update(self, index: int, **values: Any) -> None:
        self.execute(leaf_table.update().where(leaf_table.c.tree_index == index).values(values))

    def verify(self, exports: list[Path] | None = None) -> VerificationReport:
        return verify(self.engine, verifier=self.signer.verifier, exports=self.exports if exports is None else exports)

    def found(self, exports: list[Path] | None = None) -> dict[str, list[str]]:
        """Positions by kind of finding."""
        report = self.verify(exports)
        kinds: dict[str, list[str]] = {}
        for finding in report.findings:
            kinds.setdefault(finding.kind, []).append(finding.position)
        assert report.ok == (not kinds)
        return kinds


@pytest.fixture(scope="module")
def originals(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SealedLog]:
    """One original for each store, made when it is first asked for and never changed."""
    from lepton_airflow.audit.checkpoint import generate_signer

    made: dict[str, SealedLog] = {}

    def original(store: str) -> SealedLog:
        if store not in made:
            home = tmp_path_factory.mktemp(store)
            settings = Settings(home=home)
            if store == "postgresql":
                url = request.getfixturevalue("new_postgresql_database")()
                settings = Settings(home=home, audit_database=url)
            generate_signer(home / "key", name="test-log")
            log = SealedLog(
                request.getfixturevalue("migrated")(settings), Signer.load(home / "key"), [home / "one", home / "two"]
            )
            write = request.getfixturevalue("write")
            for count in (9, 9, 12):
                write(log.engine, count)
                seal(log.engine, signer=log.signer, exports=log.exports)
            write(log.engine, UNSEALED - 1)
            log.engine.dispose()
            made[store] = log
        return made[store]

    return original


@pytest.fixture(params=STORES)
def log(request: pytest.FixtureRequest, originals: Callable[[str], SealedLog], tmp_path: Path) -> Iterator[SealedLog]:
    """A copy of the original that may be damaged."""
    original = originals(request.param)
    exports = [tmp_path / folder.name for folder in original.exports]
    for source, copy in zip(original.exports, exports, strict=True):
        shutil.copytree(source, copy)
    if request.param == "sqlite":
        shutil.copy(original.engine.url.database or "", tmp_path / "audit.db")
        engine = connect(Settings(home=tmp_path))
    else:
        url = request.getfixturevalue("new_postgresql_database")(template=original.engine.url.database)
        engine = connect(Settings(home=tmp_path, audit_database=url))
    yield SealedLog(engine, original.signer, exports)
    engine.dispose()


@pytest.fixture(params=range(4))
def place(request: pytest.FixtureRequest) -> random.Random:
    """Four times, other positions each time and for each test and store, and the same in every run."""
    return random.Random(request.node.name)


def changed(payload: str) -> str:
    """Another event in the same form: what somebody would write who knows the schema."""
    value = json.loads(payload)
    value["dataset"] = "forged"
    return canonical_json(value).decode()


def renumber(log: SealedLog, first: int, shift: int) -> None:
    """Shift positions; by way of negative numbers, since they are unique."""
    moved = leaf_table.c.tree_index
    log.execute(
        leaf_table.update().where(moved >= first).values(tree_index=-1 - moved),
        leaf_table.update().where(moved < 0).values(tree_index=-1 - moved + shift),
    )


def test_an_untouched_log_verifies(log: SealedLog) -> None:
    report = log.verify()
    assert report.ok
    assert report.findings == ()
    assert (report.tree_size, report.unsealed, report.signed_by) == (SEALED, UNSEALED, "test-log")
    hashes = [leaf_hash(row["payload"].encode()) for row in log.rows()[:SEALED]]
    assert report.root == root(hashes).hex()
    assert report.notes == (f"{UNSEALED} events are not sealed yet: no signed checkpoint covers them.",)


def test_one_changed_byte_of_a_payload_is_located(log: SealedLog, place: random.Random) -> None:
    index = place.randrange(SEALED)
    expected = log.at(index)
    payload = next(row["payload"] for row in log.rows() if row["tree_index"] == index)
    position = place.randrange(len(payload))
    log.update(index, payload=payload[:position] + "~" + payload[position + 1 :])
    assert log.found() == {"edited": [expected]}


def test_a_payload_changed_together_with_its_recorded_hash_is_located(log: SealedLog, place: random.Random) -> None:
    index = place.randrange(SEALED)
    expected = log.at(index)
    payload = changed(next(row["payload"] for row in log.rows() if row["tree_index"] == index))
    log.update(index, payload=payload, leaf_hash=leaf_hash(payload.encode()))
    assert log.found()["edited"] == [expected]


def test_several_edits_are_each_located(log: SealedLog, place: random.Random) -> None:
    indices = sorted(place.sample(range(SEALED), 4))
    expected = [log.at(index) for index in indices]
    for index in indices:
        payload = changed(next(row["payload"] for row in log.rows() if row["tree_index"] == index))
        log.update(index, payload=payload, leaf_hash=leaf_hash(payload.encode()))
    assert sorted(log.found()["edited"]) == sorted(expected)


def test_a_changed_recorded_hash_is_told_apart_from_a_changed_payload(log: SealedLog, place: random.Random) -> None:
    index = place.randrange(SEALED)
    log.update(index, leaf_hash=bytes(32))
    [finding] = log.verify().findings
    assert (finding.kind, finding.position) == ("edited", log.at(index))
    assert "payload is as it was sealed" in finding.text


def test_a_changed_event_id_is_located(log: SealedLog, place: random.Random) -> None:
    index = place.randrange(SEALED)
    log.update(index, event_id=str(uuid.uuid4()))
    assert log.found() == {"edited": [log.at(index)]}


def test_a_deleted_row_is_located_and_its_event_named(log: SealedLog, place: random.Random) -> None:
    index = place.choice([number for number in range(SEALED - 1) if number % 10 != 9])  # not a closing event
    event = log.event(index)
    log.execute(leaf_table.delete().where(leaf_table.c.tree_index == index))
    assert log.found() == {"deleted": [f"leaf {index}"], "missing": [f"event {event}"]}


def test_a_deleted_row_is_located_after_the_others_were_renumbered(log: SealedLog, place: random.Random) -> None:
    index = place.randrange(SEALED - 3)
    log.execute(leaf_table.delete().where(leaf_table.c.tree_index == index))
    renumber(log, index + 1, -1)
    found = log.found()
    assert found["deleted"] == [f"leaf {index}"]
    assert found["moved"] == [f"leaves {index} to {SEALED - 2}"]


def test_an_inserted_row_is_located_after_the_others_were_renumbered(log: SealedLog, place: random.Random) -> None:
    index = place.randrange(1, SEALED - 2)
    renumber(log, index, 1)
    producer = str(uuid.uuid4())
    template = json.loads(log.rows()[0]["payload"])
    template["producer"] = {"id": producer, "sequence": 0, "previous": None}
    template["event_id"] = event_id_of(producer, 0)
    payload = canonical_json(template)
    forged = {"event_id": template["event_id"], "payload": payload.decode(), "leaf_hash": leaf_hash(payload)}
    log.execute(leaf_table.insert().values(**forged, tree_index=index))
    assert log.found()["inserted"] == [log.at(index)]


def test_a_repeated_event_is_an_insertion(log: SealedLog, place: random.Random) -> None:
    index = place.randrange(1, SEALED - 2)
    original = next(row for row in log.rows() if row["tree_index"] == index)
    renumber(log, index + 1, 1)
    copy = {"event_id": "copy", "payload": original["payload"], "leaf_hash": original["leaf_hash"]}
    log.execute(leaf_table.insert().values(**copy, tree_index=index + 1))
    assert log.found()["inserted"] == [f"leaf {index + 1} (event copy)"]


def test_a_row_with_a_position_behind_the_last_checkpoint_is_reported(log: SealedLog) -> None:
    event = next(row for row in log.rows() if row["tree_index"] is None)
    log.execute(leaf_table.update().where(leaf_table.c.id == event["id"]).values(tree_index=SEALED))
    assert log.found() == {"unsigned": [log.at(SEALED)]}


@pytest.mark.parametrize("by", ["position", "contents", "payload"])
def test_two_swapped_rows_are_both_located(log: SealedLog, place: random.Random, by: str) -> None:
    first, second = sorted(place.sample(range(SEALED), 2))
    one, other = (next(row for row in log.rows() if row["tree_index"] == index) for index in (first, second))
    names = {"position": (), "contents": ("payload", "leaf_hash", "event_id"), "payload": ("payload",)}[by]
    if by == "position":
        log.update(first, tree_index=-1)
        log.update(second, tree_index=first)
        log.update(-1, tree_index=second)
    else:
        log.update(first, event_id="elsewhere") if "event_id" in names else None
        log.update(second, **{name: one[name] for name in names})
        log.update(first, **{name: other[name] for name in names})
    assert log.found()["swapped"] == [log.at(first), log.at(second)]


@pytest.mark.parametrize("unmarked", [False, True], ids=["checkpoints left", "checkpoints cut too"])
def test_a_cut_tail_is_located(log: SealedLog, place: random.Random, unmarked: bool) -> None:
    left = place.randrange(SEALED - 1)
    log.execute(leaf_table.delete().where(sql.or_(leaf_table.c.tree_index >= left, leaf_table.c.tree_index.is_(None))))
    if unmarked:
        log.execute(checkpoint_table.delete().where(checkpoint_table.c.tree_size > left))
    found = log.found()
    assert found["truncated"] == [f"leaves {left} to {SEALED - 1}"]
    assert (f"checkpoint {SEALED}" in found.get("checkpoint", [])) == unmarked


def test_a_tail_that_was_taken_out_of_the_tree_is_located(log: SealedLog) -> None:
    log.execute(
        leaf_table.update().where(leaf_table.c.tree_index >= 20).values(tree_index=None),
        checkpoint_table.delete().where(checkpoint_table.c.tree_size > 20),
    )
    assert log.found() == {"checkpoint": [f"checkpoint {SEALED}"], "truncated": [f"leaves 20 to {SEALED - 1}"]}


def rewrite(log: SealedLog) -> None:
    """Write every sealed event anew in good order: right hashes, right chains, right positions."""
    previous: dict[str, str] = {}
    for row in log.rows():
        value = json.loads(changed(row["payload"]))
        producer = value["producer"]
        producer["previous"] = previous.get(producer["id"])
        payload = canonical_json(value)
        previous[producer["id"]] = leaf_hash(payload).hex()
        fields = {"payload": payload.decode(), "leaf_hash": leaf_hash(payload)}
        log.execute(leaf_table.update().where(leaf_table.c.id == row["id"]).values(fields))


def sign_anew(log: SealedLog, signer: Signer) -> None:
    hashes = [row["leaf_hash"] for row in log.rows() if row["tree_index"] is not None]
    for size in (10, 20, SEALED):
        note = Checkpoint("test-log", size, root(hashes[:size])).sign(signer)
        log.execute(checkpoint_table.update().where(checkpoint_table.c.tree_size == size).values(note=note))


def test_a_full_rewrite_is_found(log: SealedLog) -> None:
    rewrite(log)
    assert log.found() == {"rewritten": [f"leaves 0 to {SEALED - 1}"]}


def test_a_full_rewrite_signed_by_another_key_is_found(log: SealedLog) -> None:
    rewrite(log)
    sign_anew(log, Signer("test-log", Ed25519PrivateKey.generate()))
    found = log.found()
    assert found["rewritten"] == [f"leaves 0 to {SEALED - 1}"]
    assert f"checkpoint {SEALED} of the database" in found["signature"]


def test_a_full_rewrite_signed_by_the_stolen_key_is_found_by_the_exports(log: SealedLog) -> None:
    rewrite(log)
    sign_anew(log, log.signer)
    found = log.found()
    assert found["rewritten"] == [f"leaves 0 to {SEALED - 1}"]
    assert found["fork"] == ["checkpoint 10", "checkpoint 20", f"checkpoint {SEALED}"]


def test_a_checkpoint_that_never_was_of_this_log_is_found(log: SealedLog) -> None:
    note = Checkpoint("test-log", 15, bytes(32)).sign(log.signer)
    log.execute(checkpoint_table.insert().values(tree_size=15, note=note, frontier=b""))
    assert log.found() == {"fork": ["checkpoint 15"]}


def test_damaged_and_missing_checkpoints_are_found(log: SealedLog) -> None:
    log.execute(
        checkpoint_table.update().where(checkpoint_table.c.tree_size == 10).values(note="damaged"),
        checkpoint_table.delete().where(checkpoint_table.c.tree_size == 20),
    )
    assert log.found() == {"signature": ["checkpoint 10 of the database"], "checkpoint": ["checkpoint 20"]}


def test_an_emptied_database_is_found(log: SealedLog) -> None:
    log.execute(leaf_table.delete(), checkpoint_table.delete())
    found = log.found()
    assert found["truncated"] == [f"leaves 0 to {SEALED - 1}"]


def test_an_emptied_export_is_found(log: SealedLog) -> None:
    shutil.rmtree(log.exports[1])
    assert log.found() == {"export": [str(log.exports[1])]}


def test_a_damaged_export_is_found(log: SealedLog) -> None:
    file = log.exports[0] / "checkpoints" / f"{20:020}"
    file.write_bytes(b"\xff" + file.read_bytes())
    assert log.found() == {"signature": [str(file)]}


def test_a_damaged_tile_is_not_believed(log: SealedLog) -> None:
    """The first export's hashes are wrong; the second's still locate the edit."""
    tile = next((log.exports[0] / "tile").rglob(str(SEALED)))
    tile.write_bytes(bytes(len(tile.read_bytes())))
    payload = changed(log.rows()[4]["payload"])
    log.update(4, payload=payload, leaf_hash=leaf_hash(payload.encode()))
    assert log.found()["edited"] == [log.at(4)]


def test_without_leaf_hashes_a_thorough_edit_is_narrowed_down_to_a_checkpoint(log: SealedLog) -> None:
    for export in log.exports:
        shutil.rmtree(export / "tile")
    payload = changed(log.rows()[SEALED - 1]["payload"])  # a closing event: no later one names its hash
    log.update(SEALED - 1, payload=payload, leaf_hash=leaf_hash(payload.encode()))
    assert log.found() == {"unlocated": [f"leaves 20 to {SEALED - 1}"]}


def test_an_export_that_is_behind_still_locates_what_it_covers(log: SealedLog) -> None:
    for export in log.exports:
        (export / "tile/0/000.p" / str(SEALED)).unlink()
        (export / "checkpoints" / f"{SEALED:020}").unlink()
        shutil.copy(export / "checkpoints" / f"{20:020}", export / "checkpoint")
    payload = changed(log.rows()[4]["payload"])
    log.update(4, payload=payload, leaf_hash=leaf_hash(payload.encode()))
    report = log.verify()
    assert [(finding.kind, finding.position) for finding in report.findings] == [("edited", log.at(4))]
    assert any("from leaf 20 on" in note for note in report.notes)


def test_an_edit_before_sealing_stays_visible_after_it(log: SealedLog) -> None:
    row = log.rows()[SEALED + 1]
    fields = {"payload": changed(row["payload"])}
    log.execute(leaf_table.update().where(leaf_table.c.id == row["id"]).values(fields))
    assert log.found() == {"edited": [f"unsealed row {row['id']} (event {row['event_id']})"]}
    seal(log.engine, signer=log.signer, exports=log.exports)
    assert log.found() == {"edited": [log.at(SEALED + 1)]}


def test_a_thorough_edit_before_sealing_shows_in_the_producers_chain(log: SealedLog) -> None:
    row = log.rows()[SEALED + 1]
    payload = changed(row["payload"])
    fields = {"payload": payload, "leaf_hash": leaf_hash(payload.encode())}
    log.execute(leaf_table.update().where(leaf_table.c.id == row["id"]).values(fields))
    assert log.found() == {"edited": [f"unsealed row {row['id']} (event {row['event_id']})"]}


def test_an_event_lost_before_sealing_shows_in_the_producers_numbers(log: SealedLog) -> None:
    row = log.rows()[SEALED + 1]
    log.execute(leaf_table.delete().where(leaf_table.c.id == row["id"]))
    assert log.found() == {"missing": [f"event {row['event_id']}"]}
    seal(log.engine, signer=log.signer, exports=log.exports)
    assert log.found() == {"missing": [f"event {row['event_id']}"]}


@pytest.mark.parametrize(
    "payload",
    ["{}", "not json", '{"a": 1}', '{"schema":"other"}', "[]", "null"],
)
def test_a_leaf_that_is_no_event_is_reported(log: SealedLog, payload: str) -> None:
    fields = {"event_id": "strange", "payload": payload, "leaf_hash": leaf_hash(payload.encode())}
    log.execute(leaf_table.insert().values(fields))
    assert [position.split(" ", 3)[3] for position in log.found()["malformed"]] == ["(event strange)"]


def test_an_event_whose_id_is_not_its_producers_is_reported(log: SealedLog) -> None:
    value = json.loads(log.rows()[0]["payload"])
    value["producer"] = {"id": str(uuid.uuid4()), "sequence": 0, "previous": None}
    payload = canonical_json(value | {"event_id": "made up"})
    fields = {"event_id": "made up", "payload": payload.decode(), "leaf_hash": leaf_hash(payload)}
    log.execute(leaf_table.insert().values(fields))
    [position] = log.found()["malformed"]
    assert position.endswith("(event made up)")


def test_a_closing_event_that_does_not_count_its_events_is_reported(log: SealedLog) -> None:
    row = log.rows()[-1]
    value = json.loads(row["payload"])
    value["counts"]["events"] = 3
    payload = canonical_json(value)
    fields = {"payload": payload.decode(), "leaf_hash": leaf_hash(payload)}
    log.execute(leaf_table.update().where(leaf_table.c.id == row["id"]).values(fields))
    assert log.found() == {"malformed": [f"unsealed row {row['id']} (event {row['event_id']})"]}


def test_what_cannot_be_seen_is_said(log: SealedLog) -> None:
    """The last events of a producer that has not closed, cut off before sealing, leave no trace: the note says so."""
    last = log.rows()[-1]["id"]
    log.execute(leaf_table.delete().where(leaf_table.c.id > last - 2))
    report = log.verify()
    assert report.ok
    assert any("1 producers have not closed" in note for note in report.notes)
    assert any("no export" in note for note in log.verify([]).notes)


def test_progress_reaches_the_end(log: SealedLog) -> None:
    seen: list[tuple[int, int]] = []
    verify(
        log.engine,
        verifier=log.signer.verifier,
        exports=log.exports,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (SEALED + UNSEALED, SEALED + UNSEALED)


def contents(log: SealedLog) -> tuple[Any, ...]:
    with log.engine.connect() as connection:
        rows = connection.execute(sql.select(leaf_table).order_by(leaf_table.c.id)).all()
        notes = connection.execute(sql.select(checkpoint_table.c.tree_size, checkpoint_table.c.note)).all()
    return tuple(rows), tuple(notes)


@pytest.mark.parametrize("log", ["sqlite"], indirect=True)
@pytest.mark.parametrize("seed", range(4))
def test_a_changed_byte_anywhere_in_the_file_is_found_or_changes_nothing(log: SealedLog, seed: int) -> None:
    source = random.Random(seed)
    before = contents(log)
    log.engine.dispose()
    file = Path(log.engine.url.database or "")
    good = file.read_bytes()
    for _ in range(40):
        damaged = bytearray(good)
        position = source.randrange(len(good))
        damaged[position] ^= source.randrange(1, 256)
        file.write_bytes(damaged)
        try:
            if log.verify().ok:
                assert contents(log) == before, f"byte {position} changed something, and nobody saw"
        except LeptonError:
            pass  # so badly damaged that it cannot be opened: found
        log.engine.dispose()


@pytest.mark.parametrize("log", ["sqlite"], indirect=True)
def test_a_position_that_was_changed_in_the_row_but_not_in_the_index_is_found(log: SealedLog) -> None:
    """Verification reads positions from the index; who reads the table without it would see another order."""
    row = next(row for row in log.rows() if row["tree_index"] == 17)
    log.engine.dispose()
    file = Path(log.engine.url.database or "")
    damaged = bytearray(file.read_bytes())
    position = damaged.index(row["leaf_hash"]) + 32  # the record's last field
    assert damaged[position] == 17
    damaged[position] = 99
    file.write_bytes(damaged)
    assert "table lepton_audit_leaf" in log.found()["damaged"]


@pytest.mark.parametrize("log", ["sqlite"], indirect=True)
def test_a_changed_byte_of_a_payload_in_the_file_names_its_leaf(log: SealedLog, place: random.Random) -> None:
    positions = [log.at(index) for index in range(SEALED)]
    payloads = [row["payload"].encode() for row in log.rows()]
    log.engine.dispose()
    file = Path(log.engine.url.database or "")
    good = file.read_bytes()
    for _ in range(25):
        index = place.randrange(SEALED)
        damaged = bytearray(good)
        start = good.index(payloads[index])
        damaged[start + place.randrange(len(payloads[index]))] ^= place.randrange(1, 256)
        file.write_bytes(damaged)
        assert log.found() == {"edited": [positions[index]]}
        log.engine.dispose()


def note_of(log: SealedLog, size: int) -> str:
    return (log.exports[0] / "checkpoints" / f"{size:020}").read_text()


def verify_since(log: SealedLog, size: int, exports: list[Path] | None = None) -> VerificationReport:
    exports = log.exports if exports is None else exports
    return verify(log.engine, verifier=log.signer.verifier, exports=exports, since=note_of(log, size))


@pytest.mark.parametrize("size", [10, 20, SEALED])
def test_since_a_checkpoint_only_what_follows_is_read(log: SealedLog, size: int) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(
        log.engine,
        verifier=log.signer.verifier,
        exports=log.exports,
        since=note_of(log, size),
        progress=lambda *done: seen.append(done),
    )
    assert (report.ok, report.tree_size, report.root) == (True, SEALED, log.verify().root)
    assert seen[-1] == (SEALED + UNSEALED - size, SEALED + UNSEALED - size)
    assert any(f"extends the checkpoint of {size} events" in note for note in report.notes)


def test_since_a_checkpoint_payloads_below_it_are_not_read_unless_something_is_wrong_behind_it(
    log: SealedLog, place: random.Random
) -> None:
    below, behind = place.randrange(20), place.randrange(20, SEALED)
    expected = [log.at(below), log.at(behind)]
    payloads = {row["tree_index"]: row["payload"] for row in log.rows()}
    log.update(below, payload=changed(payloads[below]))
    assert verify_since(log, 20).ok
    log.update(behind, payload=changed(payloads[behind]))
    report = verify_since(log, 20)
    assert [(finding.kind, finding.position) for finding in report.findings] == [("edited", at) for at in expected]


@pytest.mark.parametrize("how", ["deleted", "hash", "cut", "fork"])
def test_since_a_checkpoint_that_the_log_does_not_extend_everything_is_read_and_located(
    log: SealedLog, place: random.Random, how: str
) -> None:
    index = place.randrange(9)
    payload = changed(log.rows()[index]["payload"])
    expected = {"deleted": ("deleted", f"leaf {index}"), "hash": ("edited", log.at(index))}
    expected |= {"cut": ("truncated", f"leaves 15 to {SEALED - 1}"), "fork": ("fork", "checkpoint 20")}
    note = note_of(log, 20)
    if how == "deleted":
        log.execute(leaf_table.delete().where(leaf_table.c.tree_index == index))
    elif how == "hash":
        log.update(index, payload=payload, leaf_hash=leaf_hash(payload.encode()))
    elif how == "cut":
        log.execute(leaf_table.delete().where(leaf_table.c.tree_index >= 15))
    else:
        note = Checkpoint("test-log", 20, bytes(32)).sign(log.signer)
    report = verify(log.engine, verifier=log.signer.verifier, exports=log.exports, since=note)
    assert expected[how] in [(finding.kind, finding.position) for finding in report.findings]


def test_an_event_before_the_earlier_checkpoint_is_not_missing(sqlite_engine: sql.Engine, signer: Signer) -> None:
    """A producer that was at work when the earlier checkpoint was signed: its first numbers are below."""
    from lepton_airflow.audit.event import Actor, Event
    from lepton_airflow.audit.log import AuditLog

    log = AuditLog(sqlite_engine, actor=Actor(principal="tester", host="here"), run_key="long")
    ids = [log.append(Event(action="encrypt", phase="note")) for _ in range(40)]
    note = seal(sqlite_engine, signer=signer, exports=[]).sign(signer)
    log.append(Event(action="encrypt", phase="note"))
    log.close()
    seal(sqlite_engine, signer=signer, exports=[])
    assert verify(sqlite_engine, verifier=signer.verifier, exports=[], since=note).ok
    with sqlite_engine.begin() as connection:
        connection.execute(leaf_table.update().where(leaf_table.c.event_id == ids[7]).values(event_id="other"))
    report = verify(sqlite_engine, verifier=signer.verifier, exports=[], since=note)
    assert [(finding.kind, finding.position) for finding in report.findings] == [("missing", f"event {ids[7]}")]


@pytest.mark.parametrize("shift", [-3600, 3600], ids=["back", "into the future"])
def test_a_clock_that_jumps_is_a_warning_with_its_leaf(
    engine: sql.Engine, signer: Signer, monkeypatch: pytest.MonkeyPatch, shift: int, write: Any
) -> None:
    from datetime import datetime, timedelta

    from lepton_airflow.audit import log as module

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=shift)

    write(engine, 3)
    monkeypatch.setattr(module, "datetime", Shifted)
    events = write(engine, 2, close=False)
    seal(engine, signer=signer, exports=[])
    report = verify(engine, verifier=signer.verifier, exports=[])
    assert (report.ok, report.findings) == (True, ())
    late = [("clock", f"leaf {index} (event {event})") for index, event in enumerate(events, 4)]
    assert [(warning.kind, warning.position) for warning in report.warnings] == (late if shift > 0 else late[:1])


def test_since_a_checkpoint_an_older_one_that_never_was_of_this_log_is_found(log: SealedLog) -> None:
    note = Checkpoint("test-log", 15, bytes(32)).sign(log.signer)
    log.execute(checkpoint_table.insert().values(tree_size=15, note=note, frontier=b""))
    report = verify_since(log, 20)
    assert [(finding.kind, finding.position) for finding in report.findings] == [("fork", "checkpoint 15")]


@pytest.mark.parametrize("missing", [False, True], ids=["hash", "row"])
def test_since_a_checkpoint_stored_subtrees_do_not_stand_in_for_a_row_that_is_gone(
    sqlite_engine: sql.Engine, signer: Signer, tmp_path: Path, write: Any, missing: bool
) -> None:
    """A wrong stored subtree is not believed; a right one does not hide that a row below it is gone."""
    from lepton_airflow.audit.database import node_table

    write(sqlite_engine, 599)
    note = seal(sqlite_engine, signer=signer, exports=[tmp_path / "export"]).sign(signer)
    write(sqlite_engine, 9)
    seal(sqlite_engine, signer=signer, exports=[tmp_path / "export"])
    with sqlite_engine.begin() as connection:
        if missing:
            connection.execute(leaf_table.delete().where(leaf_table.c.tree_index == 77))
        else:
            connection.execute(node_table.update().values(hash=bytes(32)))
    report = verify(sqlite_engine, verifier=signer.verifier, exports=[tmp_path / "export"], since=note)
    kinds = [(finding.kind, finding.position) for finding in report.findings]
    assert (("deleted", "leaf 77") in kinds) == missing == (not report.ok)
    assert any("all of it was read" in text for text in report.notes)


@pytest.mark.parametrize("how", ["cut", "deleted", "edited"])
def test_what_an_export_that_is_behind_does_not_cover_is_found_too(
    log: SealedLog, place: random.Random, how: str
) -> None:
    """Both exports know the latest checkpoint but have lost the leaf hashes from leaf 20 on."""
    for export in log.exports:
        (export / "tile/0/000.p" / str(SEALED)).unlink()
    index = place.randrange(20, SEALED - 1)
    at = log.at(index)
    if how == "cut":
        log.execute(leaf_table.delete().where(leaf_table.c.tree_index >= index))
        assert log.found()["truncated"] == [f"leaves {index} to {SEALED - 1}"]
    elif how == "deleted":
        log.execute(leaf_table.delete().where(leaf_table.c.tree_index == index))
        assert log.found()["deleted"] == [f"leaf {index}"]
    else:
        log.update(index, payload=changed(log.rows()[index]["payload"]))
        assert log.found() == {"edited": [at]}


def test_a_number_that_no_producer_can_have_reached_is_told_and_not_counted_up_to(
    engine: sql.Engine, signer: Signer, write: Any
) -> None:
    write(engine, 3)
    number = 2**48 - 1
    encoder = LeafEncoder(actor=ACTOR, run_key="run", producer=PRODUCER)
    event_id = event_id_of(PRODUCER, number)
    payload = encoder.encode(
        Event(action="encrypt", phase="note"),
        event_id=event_id,
        sequence=number,
        previous=bytes(32),
        time="2026-11-25T00:00:00.000000Z",
    )
    with engine.begin() as connection:
        row = {"event_id": event_id, "payload": payload.decode(), "leaf_hash": leaf_hash(payload)}
        connection.execute(leaf_table.insert().values(row))
    seal(engine, signer=signer, exports=[])
    findings = verify(engine, verifier=signer.verifier, exports=[]).findings
    assert {finding.kind for finding in findings} == {"missing"}
    assert len(findings) == 18
    assert findings[-1].position.endswith(f"to {number - 1} of producer {PRODUCER}")


def test_what_is_lost_or_changed_of_a_log_of_the_first_schema_shows(
    engine: sql.Engine, signer: Signer, write_first_schema: Any, write: Any
) -> None:
    lost, *_, renamed, _ = write_first_schema(engine, 5)[1:]
    leaf = leaf_table.c
    with engine.begin() as connection:
        connection.execute(leaf_table.delete().where(leaf.event_id == lost))
        payload = connection.scalar(sql.select(leaf.payload).where(leaf.event_id == renamed))
        # An event id of the next schema in a leaf of the first one.
        other = event_id_of(json.loads(payload)["producer"]["id"], 3)
        forged = payload.replace(renamed, other)
        values = {"event_id": other, "payload": forged, "leaf_hash": leaf_hash(forged.encode())}
        connection.execute(leaf_table.update().where(leaf.event_id == renamed).values(values))
    write(engine, 2)
    seal(engine, signer=signer, exports=[])
    found = {
        (finding.kind, finding.position) for finding in verify(engine, verifier=signer.verifier, exports=[]).findings
    }
    assert found == {
        ("missing", f"event {lost}"),
        ("malformed", f"leaf 2 (event {other})"),
        ("edited", f"leaf 2 (event {other})"),
    }


@pytest.mark.parametrize(
    ("number", "action", "phase"),
    [(0, "producer", "note"), (0, "encrypt", "open"), (2, "producer", "open")],
    ids=["the first does not open", "the first opens something else", "a later one opens"],
)
def test_a_producer_must_open_with_its_first_event_and_with_no_other(
    engine: sql.Engine, signer: Signer, number: int, action: str, phase: Any
) -> None:
    encoder = LeafEncoder(actor=ACTOR, run_key="run", producer=PRODUCER)
    rows: list[dict[str, Any]] = []
    for sequence in range(4):
        right = Event(action="producer", phase="note" if sequence else "open")
        event_id = event_id_of(PRODUCER, sequence)
        payload = encoder.encode(
            Event(action=action, phase=phase) if sequence == number else right,
            event_id=event_id,
            sequence=sequence,
            previous=rows[-1]["leaf_hash"] if rows else None,
            time="2026-11-25T00:00:00.000000Z",
        )
        rows.append({"event_id": event_id, "payload": payload.decode(), "leaf_hash": leaf_hash(payload)})
    with engine.begin() as connection:
        connection.execute(leaf_table.insert(), rows)
    seal(engine, signer=signer, exports=[])
    findings = verify(engine, verifier=signer.verifier, exports=[]).findings
    assert [(finding.kind, finding.position) for finding in findings] == [
        ("malformed", f"leaf {number} (event {rows[number]['event_id']})")
    ]
