"""Writers and sealers killed with SIGKILL at any moment: no acknowledged event is lost, nothing verifies as tampered."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from lepton_airflow.audit.checkpoint import Signer
from lepton_airflow.audit.database import connect, leaf_table
from lepton_airflow.audit.event import Actor, Event
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.sealer import seal
from lepton_airflow.audit.verify import verify
from lepton_airflow.settings import Settings

fork = multiprocessing.get_context("fork")
ROUNDS = 6


def write_for_ever(settings: Settings, acknowledged: int) -> None:
    log = AuditLog(connect(settings), actor=Actor(principal="writer", host="here"), run_key="killed")
    while True:
        event_id = log.append(Event(action="encrypt", phase="note"))
        os.write(acknowledged, event_id.encode())


def seal_for_ever(settings: Settings, signer: Signer, exports: list[Path]) -> None:
    engine = connect(settings)
    while True:
        seal(engine, signer=signer, exports=exports)


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = fork.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    assert process.is_alive(), "it ended before it was killed"
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()


def events(engine: sql.Engine) -> set[str]:
    with engine.connect() as connection:
        return set(connection.scalars(sql.select(leaf_table.c.event_id)))


def test_no_acknowledged_event_is_lost_with_its_writer(
    settings: Settings, engine: sql.Engine, signer: Signer, tmp_path: Path
) -> None:
    exports = [tmp_path / "export"]
    source = random.Random(1)
    acknowledged: set[str] = set()
    engine.dispose()  # children must not inherit open connections
    for _ in range(ROUNDS):
        reading, writing = os.pipe()
        writers = [start(write_for_ever, settings, writing) for _ in range(2)]
        os.close(writing)
        first = os.read(reading, 36)  # they are at work
        time.sleep(source.uniform(0, 0.1))
        for writer in writers:
            kill(writer)
        text = first
        while more := os.read(reading, 65536):
            text += more
        os.close(reading)
        acknowledged |= {text[start : start + 36].decode() for start in range(0, len(text), 36)}
        seal(engine, signer=signer, exports=exports)
        report = verify(engine, verifier=signer.verifier, exports=exports)
        assert report.findings == ()
        assert acknowledged <= events(engine)
        assert report.tree_size + report.unsealed == len(events(engine))
        engine.dispose()
    assert len(acknowledged) > ROUNDS


def test_a_killed_sealer_leaves_a_log_that_verifies_and_that_the_next_one_continues(
    settings: Settings, engine: sql.Engine, signer: Signer, tmp_path: Path, write: Any
) -> None:
    exports = [tmp_path / "one", tmp_path / "two"]
    source = random.Random(2)
    seal(engine, signer=signer, exports=exports)
    for _ in range(ROUNDS):
        engine.dispose()
        sealers = [start(seal_for_ever, settings, signer, exports) for _ in range(2)]
        write(engine, 15)
        time.sleep(source.uniform(0, 0.03))
        for sealer in sealers:
            kill(sealer)
        report = verify(engine, verifier=signer.verifier, exports=exports)
        assert report.findings == ()
    size = seal(engine, signer=signer, exports=exports).tree_size
    report = verify(engine, verifier=signer.verifier, exports=exports)
    assert (report.ok, size, report.notes) == (True, ROUNDS * 16, ())
