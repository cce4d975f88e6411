"""Old events move into archives that prove themselves; a payload that is gone without one is a deletion, whoever took it."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lepton_airflow.audit import archive as module
from lepton_airflow.audit.archive import ACTION, archive
from lepton_airflow.audit.archived import Archived
from lepton_airflow.audit.checkpoint import Signer, generate_signer
from lepton_airflow.audit.database import archive_table, connect, leaf_table
from lepton_airflow.audit.event import Actor, Event
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.merkle import leaf_hash
from lepton_airflow.audit.nodes import StoredTree
from lepton_airflow.audit.proofs import prove_events
from lepton_airflow.audit.ranges import export_range, verify_range
from lepton_airflow.audit.sealer import seal
from lepton_airflow.audit.stores import FolderStore
from lepton_airflow.audit.verify import VerificationReport, verify
from lepton_airflow.errors import AuditTampered, AuditUnavailable, InvalidData, LeptonError, TargetExists
from lepton_airflow.settings import Settings

fork = multiprocessing.get_context("fork")


class ArchivingLog:
    """Thirty-three sealed leaves in three checkpoints, an export of those, and a folder for archives."""

    def __init__(self, engine: sql.Engine, signer: Signer, folder: Path, settings: Settings | None = None) -> None:
        self.engine = engine
        self.settings = settings
        self.signer = signer
        self.exports = [folder / "export"]
        self.place = folder / "archives"

    def archive(self, *, place: Path | str | None = None, **until: Any) -> list[Archived]:
        log = AuditLog(self.engine, actor=Actor(principal="keeper", host="here"), run_key="archiving")
        try:
            return archive(self.engine, place or self.place, log=log, signer=self.signer, exports=self.exports, **until)
        finally:
            log.close()

    def verify(self, **options: Any) -> VerificationReport:
        report = verify(self.engine, verifier=self.signer.verifier, exports=self.exports, **options)
        assert report.ok == (not report.findings)
        return report

    def found(self, **options: Any) -> dict[str, list[str]]:
        kinds: dict[str, list[str]] = {}
        for finding in self.verify(**options).findings:
            kinds.setdefault(finding.kind, []).append(finding.position)
        return kinds

    def rows(self) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [
                dict(row) for row in connection.execute(sql.select(leaf_table).order_by(leaf_table.c.id)).mappings()
            ]

    def at(self, index: int) -> str:
        return f"leaf {index} (event {next(row['event_id'] for row in self.rows() if row['tree_index'] == index)})"

    def execute(self, statement: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(statement)

    def empty(self, *indices: int) -> None:
        self.execute(leaf_table.update().where(leaf_table.c.tree_index.in_(indices)).values(payload=""))

    def emptied(self) -> list[int]:
        return [row["tree_index"] for row in self.rows() if not row["payload"]]


@pytest.fixture(scope="module")
def originals(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], ArchivingLog]:
    """One original for each store, made when it is first asked for and never changed."""
    made: dict[str, ArchivingLog] = {}

    def original(store: str) -> ArchivingLog:
        if store not in made:
            home = tmp_path_factory.mktemp(store)
            settings = Settings(home=home)
            if store == "postgresql":
                url = request.getfixturevalue("new_postgresql_database")()
                settings = Settings(home=home, audit_database=url)
            generate_signer(home / "key", name="test-log")
            log = ArchivingLog(request.getfixturevalue("migrated")(settings), Signer.load(home / "key"), home)
            for count in (9, 9, 12):
                request.getfixturevalue("write")(log.engine, count)
                seal(log.engine, signer=log.signer, exports=log.exports)
            log.engine.dispose()
            made[store] = log
        return made[store]

    return original


@pytest.fixture(params=["sqlite", "postgresql"])
def log(
    request: pytest.FixtureRequest, originals: Callable[[str], ArchivingLog], tmp_path: Path
) -> Iterator[ArchivingLog]:
    """A copy of the original that may be changed."""
    original = originals(request.param)
    shutil.copytree(original.exports[0], tmp_path / "export")
    settings = Settings(home=tmp_path)
    if request.param == "sqlite":
        shutil.copy(original.engine.url.database or "", tmp_path / "audit.db")
    else:
        url = request.getfixturevalue("new_postgresql_database")(template=original.engine.url.database)
        settings = Settings(home=tmp_path, audit_database=url)
    engine = connect(settings)
    yield ArchivingLog(engine, original.signer, tmp_path, settings)
    engine.dispose()


@pytest.fixture
def place(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.node.name)


def test_an_archived_log_keeps_its_root_and_goes_on(log: ArchivingLog, write: Any) -> None:
    before = {row["tree_index"]: row for row in log.rows()}
    root = log.verify().root
    [archived] = log.archive(stop=20)
    assert (archived.first, archived.stop, archived.place) == (0, 20, str(log.place))
    folder = log.place / archived.name
    offline = verify_range(folder, verifier=log.signer.verifier)
    assert (offline.ok, offline.root) == (True, root)
    assert log.emptied() == list(range(20))
    after = {row["tree_index"]: row for row in log.rows()}
    for index in range(33):
        kept = {**before[index], "payload": "" if index < 20 else before[index]["payload"]}
        assert {**after[index], "xid": None} == {**kept, "xid": None}
    write(log.engine, 4)
    seal(log.engine, signer=log.signer, exports=log.exports)
    report = log.verify()
    assert (report.findings, report.unsealed) == ((), 0)
    assert any("the archive was read and checked" in note for note in report.notes)
    assert log.archive(stop=20) == []


def test_archiving_is_told_by_sealed_events_before_anything_is_removed(log: ArchivingLog) -> None:
    [archived] = log.archive(stop=20)
    events = [json.loads(row["payload"]) | {"index": row["tree_index"]} for row in log.rows() if row["payload"]]
    told = [event for event in events if event["action"] == ACTION]
    assert [event["phase"] for event in told] == ["intent", "note", "success"]
    assert {event["actor"]["principal"] for event in told} == {"keeper"}
    note = told[1]
    assert note["event_id"] == archived.event_id
    assert note["digests"] == {"archive": f"sha256:{archived.digest}"}
    assert (note["details"]["place"], note["counts"]) == (str(log.place), {"events": 20})
    assert note["index"] is not None, "it is not sealed"


def test_a_long_range_becomes_several_archives(log: ArchivingLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 8)
    assert [(one.first, one.stop) for one in log.archive(stop=20)] == [(0, 8), (8, 16), (16, 20)]
    assert [(one.first, one.stop) for one in log.archive(stop=25)] == [(20, 24), (24, 25)]
    report = log.verify()
    assert (report.findings, len(log.emptied())) == ((), 25)
    assert sum("read and checked" in note for note in report.notes) == 5


def test_only_events_before_a_time_are_archived(log: ArchivingLog) -> None:
    moment = datetime.fromisoformat(json.loads(log.rows()[13]["payload"])["time"])
    [archived] = log.archive(before=moment)
    assert archived.stop == 13
    assert log.archive(before=moment) == []


@pytest.mark.parametrize("kind", ["fsspec memory", "second sqlite", "second postgresql"])
def test_archives_can_be_elsewhere(
    log: ArchivingLog, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    places = {"fsspec memory": f"memory://{uuid.uuid4().hex}", "second sqlite": f"sqlite:///{tmp_path}/other.db"}
    elsewhere = places.get(kind) or request.getfixturevalue("new_postgresql_database")()
    log.archive(stop=20, place=elsewhere)
    report = log.verify()
    assert report.findings == ()
    assert any("the archive was read and checked" in note for note in report.notes)


@pytest.mark.parametrize("exported", [True, False], ids=["with an export", "without"])
def test_payloads_that_are_gone_without_an_archive_are_deleted(
    log: ArchivingLog, place: random.Random, exported: bool
) -> None:
    log.archive(stop=9)
    gone = sorted(place.sample(range(9, 33), 4))
    log.empty(*gone)
    log.exports = log.exports if exported else []
    found = log.found()["deleted"]
    covered: set[int] = set()
    for position in found:
        numbers = [int(word) for word in position.split("(")[0].replace("leaves", "leaf").split() if word.isdigit()]
        covered |= set(range(numbers[0], numbers[-1] + 1))
    assert covered == set(gone)


def test_an_unsealed_payload_that_is_gone_is_deleted(log: ArchivingLog, write: Any) -> None:
    [event, *_] = write(log.engine, 3)
    log.execute(leaf_table.update().where(leaf_table.c.event_id == event).values(payload=""))
    [position] = log.found()["deleted"]
    assert position.endswith(f"(event {event})")


def test_a_forged_payload_in_the_place_of_an_archived_one_is_located(log: ArchivingLog, place: random.Random) -> None:
    payload = log.rows()[1]["payload"].replace("clinic", "forged")
    log.archive(stop=20)
    index = place.randrange(20)
    log.execute(leaf_table.update().where(leaf_table.c.tree_index == index).values(payload=payload))
    assert log.found()["edited"] == [log.at(index)]


def test_a_changed_hash_of_an_archived_leaf_is_located(log: ArchivingLog, place: random.Random) -> None:
    log.archive(stop=20)
    index = place.randrange(20)
    log.execute(leaf_table.update().where(leaf_table.c.tree_index == index).values(leaf_hash=bytes(32)))
    found = log.found()
    assert found["edited"] == [log.at(index)]
    assert found["archive"] == ["archive of leaves 0 to 19"]


def test_a_deleted_or_renamed_archived_row_is_found(log: ArchivingLog, place: random.Random) -> None:
    log.archive(stop=20)
    index = place.randrange(1, 19)
    log.execute(leaf_table.update().where(leaf_table.c.tree_index == index).values(event_id="other"))
    assert log.found() == {"archive": ["archive of leaves 0 to 19"]}
    log.execute(leaf_table.delete().where(leaf_table.c.tree_index == index))
    assert log.found()["deleted"] == [f"leaf {index}"]


@pytest.mark.parametrize("how", ["missing", "unsigned", "other key", "other log", "longer"])
def test_a_statement_that_the_sealer_did_not_sign_covers_nothing(log: ArchivingLog, how: str) -> None:
    """The database's owner takes payloads away and writes that they are archived."""
    [archived] = log.archive(stop=20)
    fields = {**archived.__dict__, "stop": 24}
    match how:
        case "missing":
            note = None
        case "unsigned":
            note = "archived, believe me"
        case "other key":
            note = archived.sign(Signer(log.signer.name, Ed25519PrivateKey.generate()))
        case "other log":
            note = Archived(**{**archived.__dict__, "origin": "another"}).sign(log.signer)
        case _:
            note = Archived(**fields).sign(Signer(log.signer.name, Ed25519PrivateKey.generate()))
    log.execute(archive_table.delete())
    if note is not None:
        log.execute(archive_table.insert().values(first=0, stop=20, note=note))
    found = log.found()
    assert found["deleted"] == ["leaves 0 to 19"]
    assert ("archive" in found) == (note is not None)
    with pytest.raises(LeptonError):
        log.archive(stop=30)


def test_a_statement_does_not_cover_other_leaves(log: ArchivingLog) -> None:
    [archived] = log.archive(stop=10)
    log.execute(archive_table.update().values(stop=20))
    log.empty(*range(10, 20))
    found = log.found()
    assert found["archive"] == ["archive of leaves 0 to 19"]
    assert found["deleted"] == ["leaves 0 to 19"]
    assert isinstance(archived, Archived)


@pytest.mark.parametrize("file", ["events.parquet", "proof.json", "checkpoint"])
def test_a_changed_byte_of_an_archive_is_found(log: ArchivingLog, place: random.Random, file: str) -> None:
    [archived] = log.archive(stop=20)
    path = log.place / archived.name / file
    data = bytearray(path.read_bytes())
    data[place.randrange(len(data))] ^= place.randrange(1, 256)
    path.write_bytes(data)
    assert log.found() == {"archive": ["archive of leaves 0 to 19"]}


def test_an_archive_that_cannot_be_read_is_said_and_where_it_must_be_is_a_finding(
    log: ArchivingLog, tmp_path: Path
) -> None:
    log.archive(stop=20)
    log.place.rename(tmp_path / "moved")
    report = log.verify()
    assert report.ok
    assert any("they were not checked, their hashes were" in note for note in report.notes)
    assert log.found(archives=[tmp_path / "nowhere"]) == {"archive": ["archive of leaves 0 to 19"]}
    report = log.verify(archives=[tmp_path / "moved"])
    assert (report.ok, any("read and checked" in note for note in report.notes)) == (True, True)


def test_the_announcing_event_must_be_in_the_log(log: ArchivingLog) -> None:
    [archived] = log.archive(stop=20)
    fields = {**archived.__dict__, "event_id": "none"}
    log.execute(archive_table.update().values(note=Archived(**fields).sign(log.signer)))
    assert log.found() == {"archive": ["archive of leaves 0 to 19"]}


def test_gaps_of_producers_that_began_in_the_archive_still_show(log: ArchivingLog, write: Any) -> None:
    """One producer's events lie on both sides of the boundary; one that was lost before sealing lies above it."""
    long = AuditLog(log.engine, actor=Actor(principal="tester", host="here"), run_key="long")
    ids = [long.append(Event(action="encrypt", phase="note")) for _ in range(8)]
    log.execute(leaf_table.delete().where(leaf_table.c.event_id == ids[6]))
    log_seal = seal(log.engine, signer=log.signer, exports=log.exports)
    long.close()
    assert log_seal.tree_size == 41
    assert log.found() == {"missing": [f"event {ids[6]}"]}
    log.archive(stop=36)
    assert log.found() == {"missing": [f"event {ids[6]}"]}


def test_verifying_since_a_checkpoint_works_over_an_archive(log: ArchivingLog) -> None:
    log.archive(stop=20)
    notes = {size: (log.exports[0] / "checkpoints" / f"{size:020}").read_text() for size in (10, 33)}
    for size, read in ((10, True), (33, False)):
        report = log.verify(since=notes[size])
        assert report.findings == ()
        assert any("read and checked" in note for note in report.notes) == read


def test_what_needs_an_archived_payload_says_where_it_is(log: ArchivingLog, tmp_path: Path) -> None:
    ids = [row["event_id"] for row in log.rows()]
    log.archive(stop=20)
    with pytest.raises(InvalidData, match=f"archived at {log.place}"):
        prove_events(log.engine, [ids[3]], verifier=log.signer.verifier)
    with pytest.raises(InvalidData, match="archived at"):
        export_range(log.engine, tmp_path / "again", verifier=log.signer.verifier, first=15)
    prove_events(log.engine, [ids[25]], verifier=log.signer.verifier)
    export_range(log.engine, tmp_path / "rest", verifier=log.signer.verifier, first=20)
    with log.engine.connect() as connection:
        StoredTree(connection, size=33).inclusion_path(3)


def test_impossible_ranges_are_typed_errors(log: ArchivingLog) -> None:
    for stop in (0, 34, 99):
        with pytest.raises(InvalidData, match="33 sealed"):
            log.archive(stop=stop)
    with pytest.raises(InvalidData, match="one line"):
        log.archive(stop=3, place="a\nb")
    assert log.emptied() == []


def test_a_tampered_log_is_not_archived(log: ArchivingLog) -> None:
    payload = log.rows()[4]["payload"].replace("clinic", "forged")
    fields = {"payload": payload, "leaf_hash": leaf_hash(payload.encode())}
    log.execute(leaf_table.update().where(leaf_table.c.tree_index == 4).values(fields))
    with pytest.raises(AuditTampered):
        log.archive(stop=20)
    assert log.emptied() == []
    assert not (log.place / "leaves-000000000000-000000000019").exists()


def test_a_place_that_cannot_be_written_removes_nothing(log: ArchivingLog) -> None:
    log.place.write_text("a file where a folder should be")
    with pytest.raises(AuditUnavailable):
        log.archive(stop=20)
    assert log.emptied() == []
    told = [json.loads(row["payload"]) for row in log.rows() if f'"{ACTION}"' in row["payload"]]
    assert [event["phase"] for event in told] == ["intent", "failure"]


def test_what_does_not_read_back_as_it_was_written_removes_nothing(
    log: ArchivingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that acknowledges what it then returns otherwise."""
    write = FolderStore.write

    def damaging(store: FolderStore, name: str, data: bytes) -> None:
        write(store, name, data[:-1] + b"!" if name.endswith("events.parquet") else data)

    monkeypatch.setattr(FolderStore, "write", damaging)
    with pytest.raises(AuditTampered, match="does not verify"):
        log.archive(stop=20)
    assert log.emptied() == []
    monkeypatch.undo()
    with pytest.raises(TargetExists, match="damaged"):
        log.archive(stop=20)
    assert log.emptied() == []


def test_an_archive_of_other_leaves_is_not_taken_for_these(log: ArchivingLog, tmp_path: Path) -> None:
    [archived] = log.archive(stop=5)
    foreign = tmp_path / "foreign"
    shutil.copytree(log.place / archived.name, foreign / "leaves-000000000005-000000000009")
    with pytest.raises(TargetExists):
        log.archive(stop=10, place=foreign)
    assert log.emptied() == list(range(5))


def die_at(target: str, moment: str, number: int) -> Callable[[], None]:
    """Patch a step so that the process kills itself before or after its ``number``-th call."""
    holder = FolderStore if target == "write" else module
    real = getattr(holder, target)
    calls = []

    def step(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if moment == "before" and len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **options)
        if moment == "after" and len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return lambda: setattr(holder, target, step)


STEPS = [
    ("export_range", "before", 1),
    ("export_range", "after", 1),
    *(("write", "after", number) for number in (1, 2, 3)),
    ("_same_leaves", "after", 1),
    ("seal", "before", 1),
    ("seal", "after", 1),
    ("_state", "before", 1),
    ("_state", "after", 1),
    ("check_archive", "after", 1),
    ("_empty", "after", 1),
]


@pytest.mark.parametrize(("target", "moment", "number"), STEPS)
def test_killed_at_any_step_nothing_is_lost_and_archiving_again_completes(
    log: ArchivingLog, target: str, moment: str, number: int
) -> None:
    payloads = {row["tree_index"]: row["payload"] for row in log.rows()}
    log.engine.dispose()

    def work() -> None:
        die_at(target, moment, number)()
        assert log.settings is not None
        ArchivingLog(connect(log.settings), log.signer, log.place.parent).archive(stop=20)

    process = fork.Process(target=work, daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, "it was not killed where it should have been"
    assert log.verify().findings == ()
    left = {row["tree_index"]: row["payload"] for row in log.rows() if row["payload"]}
    archives = [leaf for folder in log.place.glob("leaves-*") for leaf in _archived_payloads(folder)]
    for index, payload in payloads.items():
        assert left.get(index) == payload or (index, payload) in archives
    log.archive(stop=20)
    assert log.emptied() == list(range(20))
    assert log.verify().findings == ()


def _archived_payloads(folder: Path) -> list[tuple[int, str]]:
    import pyarrow.parquet as pq

    file = folder / "events.parquet"
    rows = pq.read_table(file).to_pylist() if file.exists() else []
    return [(row["tree_index"], row["payload"]) for row in rows]


def test_killed_between_two_parts_of_emptying_the_rest_is_emptied_later(
    log: ArchivingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 4)
    [archived] = log.archive(stop=20)
    payloads = dict(_archived_payloads(log.place / archived.name))
    for index in range(8, 20):  # as if it had been killed after two of five parts
        log.execute(leaf_table.update().where(leaf_table.c.tree_index == index).values(payload=payloads[index]))
    assert log.verify().findings == ()
    moved = log.place.rename(log.place.with_name("moved"))
    with pytest.raises(AuditUnavailable, match="not there, so their payloads stay"):
        log.archive(stop=30)
    assert log.emptied() == list(range(8))
    moved.rename(log.place)
    log.archive(stop=20)
    assert log.emptied() == list(range(20))


def test_two_archivers_at_once_archive_each_leaf_once(log: ArchivingLog) -> None:
    barrier = threading.Barrier(2)
    outcomes: list[Any] = []

    def work() -> None:
        barrier.wait()
        try:
            outcomes.append(log.archive(stop=20))
        except LeptonError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(outcome) for outcome in outcomes) == [0, 1]
    assert log.emptied() == list(range(20))
    assert log.verify().findings == ()
