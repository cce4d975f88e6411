"""The jobs of the storage from end to end, on Spark and real folders: what survives, what is refused, what the audit says."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.audit.database import connect
from lepton_airflow.errors import (
    AccessDenied,
    AuditUnavailable,
    ConfigurationError,
    EmptyTable,
    InvalidData,
    KeyUnavailable,
    LeptonError,
    NodeUnavailable,
    ShardsLost,
    SpecError,
    StorageError,
    TargetExists,
    UnreadableSource,
)
from lepton_airflow.jobs.runner import run_job
from lepton_airflow.keys.identity import generate_identity
from lepton_airflow.settings import Settings, load_settings
from lepton_airflow.storage.catalogue import Catalogue
from lepton_airflow.storage.manifest import folder_of
from lepton_airflow.storage.nodes import MARKER, Node

FolderOf = Callable[[Node], Path]
Nodes = tuple[Node, ...]


@pytest.fixture
def store(spark: Any, storage: Settings, source: Path) -> Callable[..., dict[str, Any]]:
    def stores(run_key: str = "store", **changes: Any) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "source": {"name": "clinic.visits", "path": str(source)},
            "keyset": "clinic",
            "parity_shards": 2,
            "purpose": "test",
        }
        return run_job("store_dataset", spec | changes, settings=storage, run_key=run_key)

    return stores


@pytest.fixture
def restore(spark: Any, storage: Settings, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def restores(run_key: str = "restore", settings: Settings = storage, **changes: Any) -> dict[str, Any]:
        target = {"name": "clinic.visits", "path": str(tmp_path / "restored")}
        spec: dict[str, Any] = {"dataset": "clinic.visits", "target": target, "purpose": "test"}
        return run_job("restore_dataset", spec | changes, settings=settings, run_key=run_key)

    return restores


@pytest.fixture
def repair(spark: Any, storage: Settings) -> Callable[..., dict[str, Any]]:
    def repairs(run_key: str = "repair", **changes: Any) -> dict[str, Any]:
        spec: dict[str, Any] = {"dataset": "clinic.visits", "purpose": "test"}
        return run_job("repair_storage", spec | changes, settings=storage, run_key=run_key)

    return repairs


def contents(folder: Path) -> dict[str, bytes]:
    """What was to be stored of a folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.startswith(".") and file.name != "_lepton_commit.json"
    }


def on_nodes(nodes: Nodes, folder: FolderOf) -> dict[str, bytes]:
    return {
        f"{node.name}/{file.relative_to(folder(node))}": file.read_bytes()
        for node in nodes
        for file in sorted(folder(node).rglob("*"))
        if file.is_file() and file.name != MARKER
    }


def test_a_dataset_survives_the_loss_of_two_nodes_and_is_made_whole_again(
    store: Any, restore: Any, repair: Any, nodes: Nodes, folder: FolderOf, source: Path, tmp_path: Path
) -> None:
    stored = store()
    assert stored | {"version": "", "manifest": ""} == {
        "dataset": "clinic.visits",
        "version": "",
        "manifest": "",
        "files": 4,
        "bytes": sum(map(len, contents(source).values())),
        "shards": 20,
        "missing": {},
        "removed": [],
        "replayed": False,
    }
    before = on_nodes(nodes, folder)
    for lost in (nodes[0], nodes[3]):
        shutil.rmtree(folder(lost))
    restored = restore()
    assert contents(tmp_path / "restored") == contents(source)
    assert (restored["version"], restored["files"], restored["shards_unreachable"]) == (stored["version"], 4, 8)
    # As long as the nodes are not there, nothing is written in their places.
    counted = repair("away")
    assert (counted["unreachable"], counted["rebuilt"]) == (8, 0)
    assert counted["nodes"] == {"a": {"unreachable": 4}, "d": {"unreachable": 4}}
    assert not folder(nodes[0]).exists()
    for lost in (nodes[0], nodes[3]):
        lost.prepare()
    only_counted = repair("count", repair=False)
    assert (only_counted["missing"], only_counted["rebuilt"]) == (8, 0)
    mended = repair()
    assert (mended["missing"], mended["rebuilt"]) == (8, 8 + 2), "shards, and copies of the manifest"
    assert on_nodes(nodes, folder) == before, "byte for byte as it was"
    again = repair("again")
    assert (again["intact"], again["rebuilt"], again["nodes"]) == (20, 0, {})


def test_damage_is_found_mended_and_counted(
    store: Any, restore: Any, repair: Any, nodes: Nodes, folder: FolderOf, source: Path, tmp_path: Path
) -> None:
    stored = store()
    before = on_nodes(nodes, folder)
    place = folder_of("clinic.visits", stored["version"])
    for number, node in enumerate(nodes[1:3]):
        for file in (folder(node) / place).glob(f"*.0{number + 1}"):
            content = bytearray(file.read_bytes())
            content[len(content) // 3] ^= 1
            file.write_bytes(content)
    (folder(nodes[4]) / place / "manifest.json").write_text("{}")
    (folder(nodes[4]) / place / ("f" * 32 + ".04")).write_text("of a try that did not count")
    restored = restore()
    assert contents(tmp_path / "restored") == contents(source)
    assert restored["shards_damaged"] == 8
    mended = repair()
    assert (mended["damaged"], mended["rebuilt"], mended["leftovers"]) == (8, 9, 1)
    assert mended["nodes"] == {"b": {"damaged": 4}, "c": {"damaged": 4}}
    assert on_nodes(nodes, folder) == before


def test_when_three_nodes_are_lost_so_are_the_data_and_the_target_stays(
    store: Any, restore: Any, repair: Any, nodes: Nodes, folder: FolderOf, tmp_path: Path
) -> None:
    store()
    target = tmp_path / "restored"
    target.mkdir()
    (target / "part-0").write_text("old")
    overwrite = {"name": "clinic.visits", "path": str(target), "mode": "overwrite"}
    for lost in nodes[:3]:
        shutil.rmtree(folder(lost))
    # While they do not answer it may help to try again; an empty node that answers is final.
    for attempt in range(2):
        wanted = (NodeUnavailable, ShardsLost)[attempt]
        for job in (lambda key: restore(key, target=overwrite), repair):
            with pytest.raises(wanted) as caught:
                job(f"{attempt} {job}")
            assert caught.value.final is (attempt == 1)
        assert {file.name: file.read_text() for file in target.iterdir()} == {"part-0": "old"}
        for lost in nodes[:3]:
            lost.prepare()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lepton", "nodes", "restored", "visits"]


def test_the_audit_says_what_was_stored_restored_and_repaired(
    store: Any, restore: Any, repair: Any, storage: Settings, source: Path, events: Any
) -> None:
    stored = store("d/store/r/-1")
    restore("d/restore/r/-1")
    repair("d/repair/r/-1")
    intent, outcome = events(storage, "store")
    assert (intent["phase"], outcome["phase"], outcome["intent"]) == ("intent", "success", intent["event_id"])
    assert (intent["dataset"], intent["columns"], intent["rules"]) == ("clinic.visits", [], ["tests"])
    assert intent["details"] == {
        "source": str(source),
        "keyset": "clinic",
        "nodes": "a b c d e",
        "data_shards": 3,
        "parity_shards": 2,
    }
    told = {"files": 4, "bytes": stored["bytes"]}
    assert outcome["counts"] == {**told, "shards": 20, "shards_missing": 0, "versions_removed": 0}
    assert outcome["digests"] == {"manifest": stored["manifest"]}
    assert outcome["details"] == {"version": stored["version"]}
    _, outcome = events(storage, "restore")
    assert outcome["counts"] == {**told, "shards_damaged": 0, "shards_missing": 0, "shards_unreachable": 0}
    assert (outcome["digests"], outcome["details"]["version"]) == ({"manifest": stored["manifest"]}, stored["version"])
    _, outcome = events(storage, "repair")
    assert outcome["counts"] == {
        "versions": 1,
        "shards": 20,
        "intact": 20,
        **dict.fromkeys(("damaged", "missing", "unreachable", "manifests", "rebuilt", "leftovers", "purged"), 0),
    }


@pytest.mark.parametrize("action", ["store", "restore", "repair"])
def test_without_a_grant_nothing_is_read_or_written(
    store: Any,
    restore: Any,
    repair: Any,
    storage: Settings,
    nodes: Nodes,
    folder: FolderOf,
    tmp_path: Path,
    action: str,
    events: Any,
) -> None:
    if action != "store":
        store()
    before = on_nodes(nodes, folder)
    storage.policy.write_text(storage.policy.read_text().replace(f" {action},", ""))
    with pytest.raises(AccessDenied, match=f"may not {action}"):
        {"store": store, "restore": restore, "repair": repair}[action]("denied")
    assert events(storage, action)[-1]["phase"] == "denied"
    assert on_nodes(nodes, folder) == before
    assert not (tmp_path / "restored").exists()


def test_a_node_learns_nothing_but_names_and_sizes(
    store: Any, storage: Settings, nodes: Nodes, folder: FolderOf, source: Path
) -> None:
    store()
    kept = on_nodes(nodes, folder)
    clear = b"".join(contents(source).values())
    for path, content in kept.items():
        for secret in (b"part-", b"year=2025", b"north", clear[:32], b"Ada" * 10):
            assert secret not in content, path
            assert secret.decode("latin-1") not in path
    engine = connect(storage)
    with engine.connect() as connection:
        tables = "\n".join(map(str, connection.execute(sql.text("SELECT * FROM lepton_stored_dataset")).all()))
    engine.dispose()
    assert "part-" not in tables


def test_a_rerun_finds_what_it_stored_and_restored(
    store: Any, restore: Any, nodes: Nodes, folder: FolderOf, storage: Settings, events: Any
) -> None:
    first, before = store(), on_nodes(nodes, folder)
    assert store() == first | {"replayed": True}
    assert on_nodes(nodes, folder) == before
    restored = restore()
    shutil.rmtree(folder(nodes[0]))
    shutil.rmtree(folder(nodes[1]))
    shutil.rmtree(folder(nodes[2]))
    assert restore() == restored | {"replayed": True}, "nothing is read"
    with pytest.raises(TargetExists):
        restore("another run")
    assert [event["counts"]["files"] for event in events(storage, "store") if event["phase"] == "success"] == [4, 4]


def test_old_versions_go_when_there_are_enough_new_ones(
    store: Any, restore: Any, repair: Any, nodes: Nodes, folder: FolderOf, source: Path, tmp_path: Path
) -> None:
    first = store("1")
    (source / "part-1.bin").write_bytes(b"yy")
    second = store("2")
    # A node that is away keeps what it has until it is back.
    marker = folder(nodes[4]) / MARKER
    marker.rename(marker.with_name("away"))
    third = store("3", keep_versions=2, fewest_shards=4)
    assert (third["removed"], third["missing"]) == ([first["version"]], {"e": 4})
    with pytest.raises(StorageError, match="no stored version"):
        restore("gone", version=first["version"])
    kept = {path.split("/")[2] for path in on_nodes(nodes, folder) if path.startswith("a/")}
    assert kept == {second["version"], third["version"]}
    assert any(first["version"] in path for path in on_nodes(nodes, folder))
    marker.with_name("away").rename(marker)
    mended = repair()
    assert (mended["purged"], mended["missing"], mended["rebuilt"]) == (1, 4, 5)
    assert not any(first["version"] in path for path in on_nodes(nodes, folder))
    assert restore("second", version=second["version"])["version"] == second["version"]
    assert (tmp_path / "restored" / "part-1.bin").read_bytes() == b"yy"


def test_all_nodes_take_part_unless_fewer_are_enough(
    store: Any, restore: Any, nodes: Nodes, folder: FolderOf, source: Path, tmp_path: Path, storage: Settings
) -> None:
    shutil.rmtree(folder(nodes[2]))
    with pytest.raises(NodeUnavailable, match="storage node c"):
        store("all")
    assert on_nodes(nodes, folder) == {}, "nothing of it stays"
    stored = store("four", fewest_shards=4)
    assert stored["missing"] == {"c": 4}
    shutil.rmtree(folder(nodes[0]))
    restore()
    assert contents(tmp_path / "restored") == contents(source)
    with pytest.raises(NodeUnavailable):
        store("too few", fewest_shards=4)


def test_an_older_version_is_not_taken_for_the_newest(
    store: Any, restore: Any, nodes: Nodes, folder: FolderOf, source: Path, tmp_path: Path
) -> None:
    first = store("1")
    (source / "part-1.bin").write_bytes(b"new")
    second = store("2")
    for node in nodes:
        place = folder(node) / "clinic%2Evisits"
        shutil.rmtree(place / second["version"])
        shutil.copytree(place / first["version"], place / second["version"])
    with pytest.raises(ShardsLost, match="No node has its manifest"):
        restore()
    assert not (tmp_path / "restored").exists()


def test_who_has_no_key_restores_nothing(store: Any, restore: Any, storage: Settings, tmp_path: Path) -> None:
    store()
    generate_identity("mallory", identities=storage.identities, recipients=storage.recipients)
    storage.policy.write_text(storage.policy.read_text().replace("members: [tester]", "members: [tester, mallory]"))
    stranger = load_settings(storage.home, {"identity": "mallory"})
    with pytest.raises(KeyUnavailable, match="mallory"):
        restore("stranger", settings=stranger)
    assert not (tmp_path / "restored").exists()
    run_job(
        "repair_storage", {"dataset": "clinic.visits", "purpose": "test"}, settings=stranger, run_key="needs no key"
    )


def test_with_another_database_the_digest_of_the_audit_is_enough(
    store: Any, restore: Any, storage: Settings, source: Path, tmp_path: Path
) -> None:
    from lepton_airflow.audit.database import migrate

    stored = store()
    engine = connect(storage, check_schema=False)
    engine.dispose()
    elsewhere = load_settings(storage.home, {"audit_database": f"sqlite:///{tmp_path}/lepton/new.db"})
    engine = connect(elsewhere, check_schema=False)
    migrate(engine)
    engine.dispose()
    with pytest.raises(StorageError, match="No version"):
        restore("unknown", settings=elsewhere)
    for wrong in ({"manifest": f"sha256:{'0' * 64}"}, {"version": "0" * 32}):
        with pytest.raises(ShardsLost):
            restore(
                str(wrong), settings=elsewhere, **{"version": stored["version"], "manifest": stored["manifest"]} | wrong
            )
    restore("known", settings=elsewhere, version=stored["version"], manifest=stored["manifest"])
    assert contents(tmp_path / "restored") == contents(source)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"parity_shards": 5}, SpecError, "parity_shards"),
        ({"parity_shards": 0}, SpecError, "parity_shards"),
        ({"fewest_shards": 2}, SpecError, "fewest_shards"),
        ({"fewest_shards": 6}, SpecError, "fewest_shards"),
        ({"nodes": ["a", "b", "x"]}, ConfigurationError, "x"),
        ({"nodes": ["a", "b", "b"]}, SpecError, "once"),
        ({"keyset": "nothing"}, KeyUnavailable, "nothing"),
        ({"source": {"name": "clinic.visits", "table": "visits"}}, SpecError, "folder"),
        ({"source": {"name": "clinic.visits", "path": "/nowhere/at/all"}}, UnreadableSource, "clinic.visits"),
        ({"keep_versions": 0}, SpecError, "keep_versions"),
    ],
)
def test_a_mistake_is_told_and_stores_nothing(
    store: Any, nodes: Nodes, folder: FolderOf, changes: dict[str, Any], error: type[LeptonError], named: str
) -> None:
    with pytest.raises(error, match=named):
        store(**changes)
    assert on_nodes(nodes, folder) == {}


def test_an_empty_folder_is_not_stored(store: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyTable):
        store(source={"name": "clinic.visits", "path": str(tmp_path / "empty")})


def test_a_version_is_there_only_while_its_outcome_can_be_recorded(
    store: Any, storage: Settings, nodes: Nodes, folder: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = storage.home / "audit.db"
    put = Node.write

    def write(node: Node, path: str, data: bytes) -> None:
        put(node, path, data)
        if node.name == "e" and database.exists():
            database.rename(database.with_name("elsewhere"))

    monkeypatch.setattr(Node, "write", write)
    with pytest.raises(AuditUnavailable):
        store()
    monkeypatch.undo()
    database.with_name("elsewhere").rename(database)
    engine = connect(storage)
    (entry,) = Catalogue(engine).entries("clinic.visits")
    engine.dispose()
    assert entry.status == "writing"
    assert store()["replayed"] is False
    assert not any(entry.version in path for path in on_nodes(nodes, folder)), "the next try took it back"


KILLED = """
import sys
from lepton_airflow.jobs.runner import run_job
from lepton_airflow.settings import load_settings
from lepton_airflow.storage import storing
put = storing._put_manifest
def slow(*arguments):
    print("all shards are written", flush=True)
    import time; time.sleep(600)
storing._put_manifest = slow
run_job("store_dataset", {spec!r}, settings=load_settings({home!r}), run_key="store")
"""


def test_a_try_that_is_killed_is_taken_back_by_the_next_one(
    store: Any, restore: Any, storage: Settings, nodes: Nodes, folder: FolderOf, source: Path, tmp_path: Path
) -> None:
    spec = {
        "source": {"name": "clinic.visits", "path": str(source)},
        "keyset": "clinic",
        "parity_shards": 2,
        "purpose": "test",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(spec=spec, home=str(storage.home))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert any("all shards are written" in line for line in process.stdout), "it ended before"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    left = {path.split("/")[2] for path in on_nodes(nodes, folder)}
    assert len(left) == 1
    stored = store()
    assert {path.split("/")[2] for path in on_nodes(nodes, folder)} == {stored["version"]}
    restore()
    assert contents(tmp_path / "restored") == contents(source)


def statuses(settings: Settings) -> list[str]:
    engine = connect(settings)
    try:
        return [entry.status for entry in Catalogue(engine).entries()]
    finally:
        engine.dispose()


def test_a_store_that_fails_leaves_nothing_and_is_purged(
    store: Any, storage: Settings, nodes: Nodes, folder: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise KeyError

    monkeypatch.setattr("lepton_airflow.storage.storing._put_manifest", fails)
    with pytest.raises(LeptonError, match="KeyError"):
        store()
    assert on_nodes(nodes, folder) == {}
    assert statuses(storage) == ["purged"]


def test_a_try_that_was_overtaken_leaves_nothing_either(
    store: Any, storage: Settings, nodes: Nodes, folder: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Catalogue.commit

    def overtaken(catalogue: Catalogue, version: str, **options: Any) -> None:
        (mine,) = catalogue.entries("clinic.visits", "writing")
        catalogue.begin("clinic.visits", run_key=mine.run_key, spec_digest=mine.spec_digest, nodes=mine.nodes)
        catalogue.purged(version)
        commit(catalogue, version, **options)

    monkeypatch.setattr(Catalogue, "commit", overtaken)
    with pytest.raises(StorageError, match="took this version back"):
        store()
    assert on_nodes(nodes, folder) == {}
    assert statuses(storage) == ["purged", "writing"]


def test_what_was_never_complete_is_given_up_when_asked(
    store: Any, repair: Any, storage: Settings, nodes: Nodes, folder: FolderOf
) -> None:
    with pytest.raises(StorageError, match="No version"):
        repair("unknown")
    engine = connect(storage)
    entry, _ = Catalogue(engine).begin("clinic.visits", run_key="dead", spec_digest="d", nodes=list("abcde"))
    engine.dispose()
    place = folder_of("clinic.visits", entry.version)
    nodes[0].make_folder(place)
    nodes[0].write(f"{place}/shard", b"x")
    assert repair("now", abandon_after_hours=1)["purged"] == 0
    with sqlite3.connect(storage.home / "audit.db") as database:
        database.execute("UPDATE lepton_stored_dataset SET begun_at = '2026-01-01T00:00:00.000000+00:00'")
    assert repair("not asked")["purged"] == 0
    with pytest.raises(SpecError, match="without repair"):
        repair("only counts", repair=False, abandon_after_hours=1)
    later = repair("later", abandon_after_hours=1)
    assert (later["versions"], later["purged"]) == (0, 1)
    assert on_nodes(nodes, folder) == {}


def test_counting_deletes_nothing(store: Any, repair: Any, storage: Settings, nodes: Nodes, folder: FolderOf) -> None:
    store("1")
    second = store("2")
    with sqlite3.connect(storage.home / "audit.db") as database:
        database.execute("UPDATE lepton_stored_dataset SET status = 'removed' WHERE run_key = '1'")
    before = on_nodes(nodes, folder)
    assert repair("count", repair=False)["purged"] == 0
    assert on_nodes(nodes, folder) == before
    assert repair()["purged"] == 1
    assert {path.split("/")[2] for path in on_nodes(nodes, folder)} == {second["version"]}


def test_of_several_versions_the_loss_is_told_and_the_others_are_mended(
    store: Any, repair: Any, nodes: Nodes, folder: FolderOf
) -> None:
    first, second = store("1"), store("2")
    for node in nodes[:3]:
        shutil.rmtree(folder(node) / folder_of("clinic.visits", first["version"]))
    shutil.rmtree(folder(nodes[4]) / folder_of("clinic.visits", second["version"]))
    with pytest.raises(ShardsLost, match=first["version"]):
        repair()
    assert repair("second", version=second["version"])["intact"] == 20


def test_a_rerun_does_not_remove_its_own_version(store: Any, restore: Any) -> None:
    first = store("1", keep_versions=1)
    store("2")
    again = store("1", keep_versions=1)
    assert (again["replayed"], again["removed"]) == (True, [])
    assert restore(version=first["version"])["version"] == first["version"]


def test_a_node_that_the_settings_lost_is_not_taken_for_cleared(
    store: Any, repair: Any, storage: Settings, nodes: Nodes, folder: FolderOf
) -> None:
    first = store("1")
    with sqlite3.connect(storage.home / "audit.db") as database:
        database.execute("UPDATE lepton_stored_dataset SET status = 'removed'")
    file = storage.home / "lepton.yaml"
    whole = file.read_text()
    file.write_text(whole.replace(f"  e: {folder(nodes[4])}\n", ""))
    fewer = load_settings(storage.home)
    assert [*fewer.storage_nodes] == list("abcd")
    spec = {"dataset": "clinic.visits", "purpose": "test"}
    assert run_job("repair_storage", spec, settings=fewer, run_key="fewer")["purged"] == 0
    assert {path.partition("/")[0] for path in on_nodes(nodes, folder)} == {"e"}
    assert repair()["purged"] == 1
    assert on_nodes(nodes, folder) == {}, first


def test_a_version_that_is_removed_while_it_is_repaired_does_not_come_back(
    store: Any, repair: Any, storage: Settings, nodes: Nodes, folder: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lepton_airflow.storage import repairing

    store()
    checked = repairing.check

    def removed_first(*arguments: Any, **options: Any) -> Any:
        with sqlite3.connect(storage.home / "audit.db") as database:
            database.execute("UPDATE lepton_stored_dataset SET status = 'purged'")
        for node in nodes:
            shutil.rmtree(folder(node) / "clinic%2Evisits")
        return checked(*arguments, **options)

    monkeypatch.setattr(repairing, "check", removed_first)
    assert repair()["versions"] == 0
    assert on_nodes(nodes, folder) == {}


def test_files_that_are_no_table_of_ours_are_stored_all_the_same(store: Any, source: Path) -> None:
    (source / "part-9.parquet").write_bytes(b"PARE" + bytes(100) + (50).to_bytes(4, "little") + b"PARE")
    assert store()["files"] == 5


def test_a_name_that_is_no_text_is_told(store: Any, source: Path) -> None:
    Path(os.fsdecode(bytes(source) + b"/\xff.bin")).write_bytes(b"x")
    with pytest.raises(InvalidData, match="UTF-8"):
        store()
