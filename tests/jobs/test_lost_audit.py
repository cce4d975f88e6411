"""An audit database that disappears while a job writes: the job fails, says so, and the old target is as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.access.engine import load_policy
from lepton_airflow.access.guard import Guard
from lepton_airflow.audit.database import connect
from lepton_airflow.audit.event import Actor
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.columnar.publish import Written
from lepton_airflow.errors import AuditUnavailable
from lepton_airflow.jobs.runner import Job
from lepton_airflow.jobs.spec import TargetReference
from lepton_airflow.settings import Settings


@pytest.mark.parametrize("lost", [False, True], ids=["there", "lost"])
def test_a_target_is_replaced_only_while_its_outcome_can_be_recorded(
    spark: Any, home: Settings, tmp_path: Path, lost: bool
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "part-0").write_text("old")
    database = home.home / "audit.db"
    engine = connect(home)
    log = AuditLog(engine, actor=Actor(principal="tester", host="here"), run_key="d/t/r/-1")
    guard = Guard(log=log, policy=load_policy(home), principal="tester", spec_digest="d")
    job = Job(
        name="encrypt_columns",
        settings=home,
        engine=engine,
        guard=guard,
        log=log,
        run_key="d/t/r/-1",
        spec_digest="d",
        principal="tester",
    )

    def write(folder: str | None) -> Written:
        path = Path(str(folder).removeprefix("file:"))
        path.mkdir()
        (path / "part-0").write_text("new")
        if lost:
            database.rename(database.with_name("elsewhere"))
        return Written(1, {})

    def run() -> None:
        with guard.operation(action="encrypt", dataset="clinic", columns=("email",), purpose="test"):
            job.publish(write, TargetReference(name="clinic", path=str(target), mode="overwrite"))

    if lost:
        with pytest.raises(AuditUnavailable, match="gone"):
            run()
    else:
        run()
    assert (target / "part-0").read_text() == ("old" if lost else "new")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lepton", "target"]
    engine.dispose()
