"""Sealing: every committed event once, one sealer at a time, exports that stand on their own, refusal to sign over damage."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.audit import writing
from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.audit.checkpoint import Checkpoint, Signer
from lepton_airflow.audit.database import checkpoint_table, leaf_table
from lepton_airflow.audit.export import Export, _tile
from lepton_airflow.audit.merkle import EMPTY_ROOT, leaf_hash, root
from lepton_airflow.audit.sealer import seal
from lepton_airflow.audit.verify import verify
from lepton_airflow.errors import AuditTampered, AuditUnavailable


@pytest.fixture
def exports(tmp_path: Path) -> list[Path]:
    return [tmp_path / "here", tmp_path / "there"]


def checkpoints(engine: sql.Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(sql.select(checkpoint_table.c.tree_size).order_by(checkpoint_table.c.tree_size)))


def execute(engine: sql.Engine, statement: Any) -> None:
    with engine.begin() as connection:
        connection.execute(statement)


def test_an_empty_log_can_be_sealed(engine: sql.Engine, signer: Signer, exports: list[Path]) -> None:
    assert seal(engine, signer=signer, exports=exports) == Checkpoint("test-log", 0, EMPTY_ROOT)
    report = verify(engine, verifier=signer.verifier, exports=exports)
    assert (report.ok, report.tree_size, report.signed_by) == (True, 0, "test-log")


def test_the_root_is_over_the_payloads_in_the_order_of_the_log(
    engine: sql.Engine, signer: Signer, exports: list[Path], write: Any
) -> None:
    write(engine, 5)
    first = seal(engine, signer=signer, exports=exports)
    write(engine, 300)
    second = seal(engine, signer=signer, exports=exports)
    with engine.connect() as connection:
        payloads = list(connection.scalars(sql.select(leaf_table.c.payload).order_by(leaf_table.c.id)))
    hashes = [leaf_hash(payload.encode()) for payload in payloads]
    assert first == Checkpoint("test-log", 6, root(hashes[:6]))
    assert second == Checkpoint("test-log", 307, root(hashes))


def test_sealing_again_without_new_events_signs_nothing(
    engine: sql.Engine, signer: Signer, exports: list[Path], write: Any
) -> None:
    write(engine, 3)
    assert seal(engine, signer=signer, exports=exports) == seal(engine, signer=signer, exports=exports)
    assert checkpoints(engine) == [4]


def test_an_export_alone_proves_the_leaf_hashes(
    sqlite_engine: sql.Engine, signer: Signer, exports: list[Path], write: Any
) -> None:
    for count in (10, 250, 260):
        write(sqlite_engine, count)
        seal(sqlite_engine, signer=signer, exports=exports)
    for folder in exports:
        # Read by hand, as another tool would by the tlog-tiles specification.
        checkpoint = Checkpoint.verify((folder / "checkpoint").read_text(), signer.verifier)
        assert checkpoint.tree_size == 523
        tiles = (folder / "tile/0/000").read_bytes(), (folder / "tile/0/001").read_bytes()
        tail = (folder / "tile/0/002.p/11").read_bytes()
        hashes = b"".join((*tiles, tail))
        assert root(hashes[start : start + 32] for start in range(0, len(hashes), 32)) == checkpoint.root_hash
        sizes = sorted(int(file.name) for file in (folder / "checkpoints").iterdir())
        assert sizes == [11, 262, 523]
        assert Export(folder).leaf_hashes(262) == hashes[: 262 * 32]


@pytest.mark.parametrize(
    ("number", "width", "path"),
    [
        (0, 256, "tile/0/000"),
        (7, 3, "tile/0/007.p/3"),
        (999, 256, "tile/0/999"),
        (1000, 256, "tile/0/x001/000"),
        (1234067, 112, "tile/0/x001/x234/067.p/112"),
    ],
)
def test_tiles_have_the_paths_of_the_specification(number: int, width: int, path: str) -> None:
    assert _tile(number, width) == path


def test_a_lost_export_is_made_anew(engine: sql.Engine, signer: Signer, exports: list[Path], write: Any) -> None:
    for _ in range(3):
        write(engine, 3)
        seal(engine, signer=signer, exports=exports)
    shutil.rmtree(exports[1])
    seal(engine, signer=signer, exports=exports)
    remade = {file.relative_to(exports[1]): file.read_bytes() for file in exports[1].rglob("*") if file.is_file()}
    assert Path("checkpoints/00000000000000000004") in remade
    assert all((exports[0] / name).read_bytes() == data for name, data in remade.items())
    assert verify(engine, verifier=signer.verifier, exports=exports).ok


def test_an_unreachable_export_does_not_lose_the_checkpoint(
    engine: sql.Engine, signer: Signer, exports: list[Path], write: Any
) -> None:
    write(engine, 3)
    exports[1].write_text("a file where a folder should be")
    with pytest.raises(AuditUnavailable, match="export"):
        seal(engine, signer=signer, exports=exports)
    exports[1].unlink()
    checkpoint = seal(engine, signer=signer, exports=exports)
    assert checkpoints(engine) == [4]
    assert Checkpoint.verify((exports[1] / "checkpoint").read_text(), signer.verifier) == checkpoint


def test_an_exported_file_is_never_replaced_by_another_history(tmp_path: Path) -> None:
    export = Export(tmp_path / "export")
    hashes = {"one": bytes(32), "other": bytes(31) + b"x"}
    export.write(since=0, notes=[(1, "log\n1\none")], leaf_hashes=lambda _start, _stop: hashes["one"])
    folder = tmp_path / "export"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(AuditTampered, match="other contents"):
        export.write(since=0, notes=[(1, "log\n1\none")], leaf_hashes=lambda _start, _stop: hashes["other"])
    with pytest.raises(AuditTampered, match="other contents"):
        export.write(since=0, notes=[(1, "log\n1\nother")], leaf_hashes=lambda _start, _stop: hashes["one"])
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_log_that_was_cut_behind_its_export_is_not_signed(
    engine: sql.Engine, signer: Signer, exports: list[Path], write: Any
) -> None:
    for _ in range(2):
        write(engine, 3)
        seal(engine, signer=signer, exports=exports)
    execute(engine, leaf_table.delete().where(leaf_table.c.tree_index >= 4))
    execute(engine, checkpoint_table.delete().where(checkpoint_table.c.tree_size > 4))
    write(engine, 3)
    with pytest.raises(AuditTampered, match="8 events; the database has 4"):
        seal(engine, signer=signer, exports=exports)
    assert checkpoints(engine) == [4]


def test_a_log_of_another_history_than_its_export_is_not_signed(
    engine: sql.Engine, signer: Signer, exports: list[Path], tmp_path: Path, write: Any
) -> None:
    write(engine, 3)
    seal(engine, signer=signer, exports=exports)
    execute(engine, leaf_table.delete())
    execute(engine, checkpoint_table.delete())
    write(engine, 7)
    seal(engine, signer=signer, exports=[tmp_path / "elsewhere"])
    write(engine, 1)
    with pytest.raises(AuditTampered, match="does not have"):
        seal(engine, signer=signer, exports=exports)
    assert checkpoints(engine) == [8]


@pytest.mark.parametrize(
    "damage",
    [
        leaf_table.delete().where(leaf_table.c.tree_index == 3),
        checkpoint_table.delete(),
        checkpoint_table.update().values(note="not a note"),
    ],
    ids=["a sealed leaf is gone", "the checkpoints are gone", "the checkpoint is damaged"],
)
def test_nothing_is_signed_over_damage(
    engine: sql.Engine, signer: Signer, exports: list[Path], write: Any, damage: Any
) -> None:
    write(engine, 3)
    seal(engine, signer=signer, exports=[])
    execute(engine, damage)
    write(engine, 3)
    before = checkpoints(engine)
    with pytest.raises(AuditTampered):
        seal(engine, signer=signer, exports=exports)
    assert checkpoints(engine) == before


def test_another_sealers_key_does_not_continue_the_log(
    engine: sql.Engine, signer: Signer, exports: list[Path], write: Any
) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    write(engine, 3)
    seal(engine, signer=signer, exports=exports)
    with pytest.raises(AuditTampered, match="no valid signature"):
        seal(engine, signer=Signer(signer.name, Ed25519PrivateKey.generate()), exports=exports)


@pytest.mark.parametrize("frontier", [b"", b"x" * 32, b"x" * 31], ids=["missing", "wrong", "short"])
def test_a_wrong_frontier_is_recomputed_not_believed(
    engine: sql.Engine, signer: Signer, exports: list[Path], write: Any, frontier: bytes
) -> None:
    write(engine, 3)
    seal(engine, signer=signer, exports=exports)
    execute(engine, checkpoint_table.update().values(frontier=frontier))
    write(engine, 3)
    seal(engine, signer=signer, exports=exports)
    assert verify(engine, verifier=signer.verifier, exports=exports).ok


def test_sealers_writers_and_verifiers_at_once_lose_and_repeat_nothing(
    engine: sql.Engine, signer: Signer, exports: list[Path], write: Any
) -> None:
    seal(engine, signer=signer, exports=exports)  # until its first checkpoint an export looks emptied
    failures: list[Exception] = []
    writing = threading.Event()

    def attempt(work: Any) -> None:
        try:
            work()
        except Exception as error:
            failures.append(error)

    def seal_until_done() -> None:
        while not writing.is_set():
            seal(engine, signer=signer, exports=exports)

    def verify_until_done() -> None:
        while not writing.is_set():
            assert verify(engine, verifier=signer.verifier, exports=exports).findings == ()

    writers = [threading.Thread(target=attempt, args=(lambda: write(engine, 30),)) for _ in range(3)]
    others = (seal_until_done, seal_until_done, verify_until_done)
    sealers = [threading.Thread(target=attempt, args=(work,)) for work in others]
    for thread in [*writers, *sealers]:
        thread.start()
    for thread in writers:
        thread.join()
    writing.set()
    for thread in sealers:
        thread.join()
    assert failures == []
    assert seal(engine, signer=signer, exports=exports).tree_size == 93
    report = verify(engine, verifier=signer.verifier, exports=exports)
    assert (report.findings, report.tree_size, report.notes) == ((), 93, ())


@pytest.mark.parametrize("place", ["line", "export"])
def test_a_sealer_waits_for_others_only_so_long(
    sqlite_engine: sql.Engine,
    signer: Signer,
    exports: list[Path],
    write: Any,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    monkeypatch.setattr(writing, "_PATIENCE_SECONDS", 0.05)
    write(sqlite_engine, 3)
    exports[0].mkdir()
    lock = Path(f"{sqlite_engine.url.database}-line") if place == "line" else exports[0]
    with writing.first_in_line(lock), pytest.raises(AuditUnavailable, match="kept its place"):
        seal(sqlite_engine, signer=signer, exports=exports)
    assert checkpoints(sqlite_engine) == ([] if place == "line" else [4])
    assert seal(sqlite_engine, signer=signer, exports=exports).tree_size == 4
    assert verify(sqlite_engine, verifier=signer.verifier, exports=exports).ok


def test_on_postgresql_a_seal_leaves_out_what_a_running_transaction_may_still_precede(
    postgresql_engine: sql.Engine, signer: Signer, exports: list[Path], write: Any
) -> None:
    payload = canonical_json({"late": True})
    late = {"event_id": "late", "payload": payload.decode(), "leaf_hash": leaf_hash(payload)}
    with postgresql_engine.connect() as slow:
        transaction = slow.begin()
        slow.execute(leaf_table.insert().values(late))
        write(postgresql_engine, 3)
        assert seal(postgresql_engine, signer=signer, exports=exports).tree_size == 0
        transaction.commit()
    assert seal(postgresql_engine, signer=signer, exports=exports).tree_size == 5
    with postgresql_engine.connect() as connection:
        assert connection.scalar(sql.select(leaf_table.c.tree_index).where(leaf_table.c.event_id == "late")) == 0
