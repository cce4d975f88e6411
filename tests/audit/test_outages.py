"""A full disk and a server that disappears: typed, nothing half-written, and no work without its intent."""

from __future__ import annotations

import multiprocessing
import os
import resource
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.access.guard import Guard
from lepton_airflow.access.policy import Policy
from lepton_airflow.audit.checkpoint import Signer
from lepton_airflow.audit.database import connect, leaf_table, migrate
from lepton_airflow.audit.event import Actor, Event
from lepton_airflow.audit.export import Export
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.sealer import seal
from lepton_airflow.audit.verify import verify
from lepton_airflow.errors import AuditTampered, AuditUnavailable, LeptonError
from lepton_airflow.settings import Settings

fork = multiprocessing.get_context("fork")
POLICY = """
version: 1
roles:
  everyone: {members: [tester]}
grants:
  - {id: tests, role: everyone, actions: [decrypt], datasets: ["*"], columns: ["*"], purposes: [test]}
"""


def in_child(work: Callable[[Any], None]) -> Any:
    """Run ``work`` in a process of its own; what it puts into the queue."""
    results = fork.Queue()
    process = fork.Process(target=work, args=(results,))
    process.start()
    result = results.get(timeout=60)
    process.join()
    return result


def no_file_grows_beyond(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def no_file_of_a_process_grows_beyond(size: int, process: int) -> None:
    """The same for somebody else's process, who has to do it."""
    owner = Path(f"/proc/{process}").stat().st_uid
    subprocess.run(["prlimit", f"--pid={process}", f"--fsize={size}:"], user=owner, check=True)


def test_a_full_disk_fails_closed_and_what_was_acknowledged_is_there(
    sqlite_engine: sql.Engine, sqlite_settings: Settings, signer: Signer
) -> None:
    sqlite_engine.dispose()
    file = sqlite_settings.home / "audit.db"

    def write(results: Any) -> None:
        no_file_grows_beyond(file.stat().st_size + 200_000)
        log = AuditLog(connect(sqlite_settings), actor=Actor(principal="tester", host="here"), run_key="full")
        acknowledged = []
        try:
            for _ in range(2000):
                acknowledged += log.append_all([Event(action="encrypt", phase="note")] * 3)
            results.put((None, acknowledged))
        except Exception as error:
            results.put((type(error).__name__, acknowledged))

    failure, acknowledged = in_child(write)
    assert failure == "AuditUnavailable"
    assert len(acknowledged) > 30
    with sqlite_engine.connect() as connection:
        stored = list(connection.scalars(sql.select(leaf_table.c.event_id).order_by(leaf_table.c.id)))
    assert stored[1:] == acknowledged, "the first event opens the producer"
    seal(sqlite_engine, signer=signer, exports=[])
    assert verify(sqlite_engine, verifier=signer.verifier, exports=[]).findings == ()


def test_a_disk_that_is_full_for_the_sealer_signs_nothing(
    sqlite_engine: sql.Engine, sqlite_settings: Settings, signer: Signer, write: Any
) -> None:
    write(sqlite_engine, 600)
    sqlite_engine.dispose()

    def seal_on_full_disk(results: Any) -> None:
        no_file_grows_beyond(40_000)
        try:
            seal(connect(sqlite_settings), signer=signer, exports=[])
            results.put(None)
        except Exception as error:
            results.put(type(error).__name__)

    assert in_child(seal_on_full_disk) == "AuditUnavailable"
    report = verify(sqlite_engine, verifier=signer.verifier, exports=[])
    assert (report.ok, report.tree_size, report.unsealed) == (True, 0, 601)
    assert seal(sqlite_engine, signer=signer, exports=[]).tree_size == 601


def test_a_log_on_a_file_system_without_space_fails_closed_and_goes_on_once_there_is_some(
    small_disk: Path, signer: Signer
) -> None:
    settings = Settings(home=small_disk)
    engine = connect(settings, check_schema=False)
    migrate(engine)
    log = AuditLog(engine, actor=Actor(principal="tester", host="here"), run_key="full")
    acknowledged: list[str] = []

    def fill() -> None:
        while True:
            acknowledged.extend(log.append_all([Event(action="encrypt", phase="note")] * 3))

    with pytest.raises(AuditUnavailable) as caught:
        fill()
    assert not caught.value.final
    assert len(acknowledged) > 30
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    acknowledged.append(log.append(Event(action="encrypt", phase="note")))
    with engine.connect() as connection:
        stored = list(connection.scalars(sql.select(leaf_table.c.event_id).order_by(leaf_table.c.id)))
    assert stored[1:] == acknowledged, "the first event opens the producer"
    log.close()
    seal(engine, signer=signer, exports=[])
    assert verify(engine, verifier=signer.verifier, exports=[]).findings == ()
    engine.dispose()


def test_an_export_to_a_file_system_without_space_is_made_up_for_and_never_half_there(
    sqlite_engine: sql.Engine, signer: Signer, write: Any, small_disk: Path
) -> None:
    filler, export = small_disk / "filler", small_disk / "export"
    write(sqlite_engine, 300)
    seal(sqlite_engine, signer=signer, exports=[export])
    write(sqlite_engine, 900)
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    assert shutil.disk_usage(small_disk).free == 0
    for room in (0, 8192, 20480):  # so that it ends in other places
        os.truncate(filler, filler.stat().st_size - room)
        with pytest.raises(AuditUnavailable):
            seal(sqlite_engine, signer=signer, exports=[export])
        # The log itself is sealed; what the export has is sound, and older.
        report = verify(sqlite_engine, verifier=signer.verifier, exports=[export])
        assert (report.findings, report.tree_size) == ((), 1202)
    filler.unlink()
    seal(sqlite_engine, signer=signer, exports=[export])
    assert Export(export).leaf_hashes(1202) is not None
    assert verify(sqlite_engine, verifier=signer.verifier, exports=[export]).findings == ()


def test_a_server_whose_files_cannot_grow_fails_closed_and_what_was_acknowledged_is_there(
    postgresql_engine: sql.Engine, signer: Signer
) -> None:
    log = AuditLog(postgresql_engine, actor=Actor(principal="tester", host="here"), run_key="full")
    acknowledged = [log.append(Event(action="encrypt", phase="note"))]
    with postgresql_engine.connect() as connection:
        query = (
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
        )
        processes = list(connection.exec_driver_sql(query).scalars())
    for process in processes:
        # Above the 16 MiB of a segment of the write-ahead log, which is made as a whole.
        no_file_of_a_process_grows_beyond(17 * 2**20, process)

    def fill() -> None:
        for _ in range(60):
            filler = {"filler": secrets.token_hex(250_000)}  # hardly compresses
            acknowledged.append(log.append(Event(action="encrypt", phase="note", details=filler)))

    with pytest.raises(AuditUnavailable) as caught:
        fill()
    assert not caught.value.final
    assert len(acknowledged) > 20
    with postgresql_engine.connect() as connection:
        stored = list(connection.scalars(sql.select(leaf_table.c.event_id).order_by(leaf_table.c.id)))
    assert stored[1:] == acknowledged, "the first event opens the producer"
    postgresql_engine.dispose()  # the next server processes have no limit
    log.append(Event(action="encrypt", phase="note"))
    log.close()
    seal(postgresql_engine, signer=signer, exports=[])
    report = verify(postgresql_engine, verifier=signer.verifier, exports=[])
    assert (report.findings, report.tree_size) == ((), len(acknowledged) + 3)


@pytest.mark.parametrize(
    ("state", "error"), [("XX001", AuditTampered), ("XX002", AuditTampered), ("XX000", AuditUnavailable)]
)
def test_damage_that_the_server_reports_is_final_and_its_other_failures_are_not(
    postgresql_engine: sql.Engine, state: str, error: type[LeptonError]
) -> None:
    with postgresql_engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION 'invalid page' USING ERRCODE = '{state}'; END $$"
        )
        connection.exec_driver_sql("CREATE TRIGGER fail BEFORE INSERT ON lepton_audit_leaf EXECUTE FUNCTION fail()")
    log = AuditLog(postgresql_engine, actor=Actor(principal="tester", host="here"), run_key="damaged")
    with pytest.raises(error, match=state) as caught:
        log.append(Event(action="encrypt", phase="note"))
    assert caught.value.final == (error is AuditTampered)


@contextmanager
def away(engine: sql.Engine) -> Iterator[None]:
    """The server ends every connection to the database and takes no new one."""
    name = engine.url.database
    other = sql.create_engine(engine.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with other.connect() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        yield
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    other.dispose()


@contextmanager
def removed(engine: sql.Engine) -> Iterator[None]:
    """SQLite's file is moved away while connections to it are open."""
    file = Path(engine.url.database or "")
    elsewhere = file.with_name("elsewhere")
    file.rename(elsewhere)
    yield
    assert not file.exists(), "a new database was made in its place"
    elsewhere.rename(file)


@pytest.mark.parametrize("when", ["before the intent", "during the work"])
def test_a_database_that_disappears_stops_the_operation(
    engine: sql.Engine, signer: Signer, tmp_path: Path, when: str
) -> None:
    gone = away if engine.dialect.name == "postgresql" else removed
    (tmp_path / "policy.yaml").write_text(POLICY)
    policy = Policy.load(tmp_path / "policy.yaml")
    log = AuditLog(engine, actor=Actor(principal="tester", host="here"), run_key="run")
    guard = Guard(log=log, policy=policy, principal="tester", spec_digest="d")
    log.append(Event(action="encrypt", phase="note"))
    worked = []

    def operate() -> None:
        with guard.operation(action="decrypt", dataset="clinic", columns=("email",), purpose="test"):
            worked.append(True)
            if when == "during the work":
                outage.enter_context(gone(engine))

    from contextlib import ExitStack

    with ExitStack() as outage:
        if when == "before the intent":
            outage.enter_context(gone(engine))
        with pytest.raises(AuditUnavailable) as caught:
            operate()
        assert not caught.value.final, "a retry may help"
    assert bool(worked) == (when == "during the work")
    log.close()
    seal(engine, signer=signer, exports=[])
    report = verify(engine, verifier=signer.verifier, exports=[])
    assert (report.findings, report.tree_size) == ((), 4 if worked else 3)
