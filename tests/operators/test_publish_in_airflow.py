"""Two people and a scheduled Airflow: who triggered a run cannot let its release out, somebody else can."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.audit.checkpoint import Verifier, generate_signer
from lepton_airflow.audit.database import connect, leaf_table
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.receipt import verify_receipt
from lepton_airflow.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PASSWORDS = {"alice": "a-password-of-a-test", "bob": "another-password-of-a-test"}
DAG, RUN = "lepton_approval", "of-alice"
DAG_PATH = f"/api/v2/dags/{DAG}"
RUN_PATH = f"{DAG_PATH}/dagRuns/{RUN}"


@dataclass(frozen=True)
class Api:
    """Airflow's public REST API, as one of its users."""

    url: str
    token: str | None = None

    def __call__(self, method: str, path: str, **fields: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        body = json.dumps(fields).encode() if fields else None
        request = urllib.request.Request(f"{self.url}{path}", data=body, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def login(self, user: str) -> Api:
        answer = self("POST", "/auth/token", username=user, password=PASSWORDS[user])
        return Api(self.url, answer["access_token"])

    def states(self) -> dict[str, str | None]:
        found = self("GET", f"{RUN_PATH}/taskInstances")["task_instances"]
        return {instance["task_id"]: instance["state"] for instance in found}


@pytest.fixture
def visits(tmp_path: Path, home: Settings) -> Path:
    """The data, a budget for it, and a sealer's key."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "raw").mkdir()
    rows = {"patient_id": ["p1", "p2"], "ward": ["north", "south"]}
    pq.write_table(pa.table(rows), tmp_path / "raw" / "visits.parquet")
    home.checkpoint_signer.parent.mkdir(mode=0o700)
    home.checkpoint_verifier.write_text(generate_signer(home.checkpoint_signer, name="lepton-audit") + "\n")
    engine = connect(home)
    Ledger(engine).create(dataset="clinic.visits", unit="patient_id", epsilon=Decimal(2), owner="tester")
    engine.dispose()
    return tmp_path


@pytest.fixture
def api(airflow: Any, home: Settings, visits: Path) -> Iterator[Api]:
    """A scheduled Airflow with two users."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    passwords = visits / "passwords.json"
    passwords.write_text(json.dumps(PASSWORDS))
    lepton = {"conn_type": "lepton", "extra": json.dumps({"home": str(home.home), "identity": "tester"})}
    variables = {
        "AIRFLOW_VAR_LEPTON_DATA": str(visits),
        "AIRFLOW_CONN_LEPTON_TESTER": json.dumps(lepton),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "alice:admin,bob:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
    }
    log = visits / "standalone.log"
    with log.open("w") as output:
        standalone = subprocess.Popen(
            [str(Path(sys.executable).with_name("airflow")), "standalone"],
            env=airflow.environment | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    api = Api(f"http://127.0.0.1:{port}")
    try:
        wait_for(lambda: api.login("alice")("GET", DAG_PATH), seconds=180, log=log)
        # Another test may have made the folder's DAGs known before, and paused, as new ones are.
        api.login("alice")("PATCH", DAG_PATH, is_paused=False)
        yield api
    finally:
        os.killpg(standalone.pid, signal.SIGTERM)
        try:
            standalone.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(standalone.pid, signal.SIGKILL)


def wait_for(condition: Callable[[], Any], *, seconds: float, log: Path | None = None) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass  # it is starting, or does not know the DAG yet
        assert time.monotonic() < deadline, log.read_text()[-20_000:] if log else "too late"
        time.sleep(1)


def approvals(home: Settings) -> list[tuple[str, str]]:
    engine = connect(home)
    with engine.connect() as connection:
        events = [*map(json.loads, connection.execute(sql.select(leaf_table.c.payload)).scalars())]
    engine.dispose()
    return [
        (event["phase"], event["details"]["approver"])
        for event in events
        if event["action"] == "approve" and event["run_key"] == f"{DAG}/release/{RUN}/-1"
    ]


def respond(user: Api, log: Path, *, times: int) -> None:
    """Approve, once the task waits and the scheduler has noticed: before, it takes the task that goes on for a lost one."""
    noticed = f"task_id='approve', run_id='{RUN}'"

    def waits() -> bool:
        parked = sum("Received executor event" in line and noticed in line for line in log.read_text().splitlines())
        return user.states()["approve"] == "awaiting_input" and parked >= times

    wait_for(waits, seconds=200, log=log)
    user("PATCH", f"{RUN_PATH}/taskInstances/approve/-1/hitlDetails", chosen_options=["Approve"])


def test_a_release_is_published_when_another_than_its_requester_approves(
    api: Api, home: Settings, visits: Path
) -> None:
    alice, bob, log = api.login("alice"), api.login("bob"), visits / "standalone.log"
    file, receipt = visits / f"{RUN}.json", visits / f"{RUN}.receipt.json"
    alice("POST", f"{DAG_PATH}/dagRuns", dag_run_id=RUN, logical_date=None)
    respond(alice, log, times=1)
    wait_for(lambda: alice("GET", RUN_PATH)["state"] in ("success", "failed"), seconds=100, log=log)
    # Airflow is content with alice. What follows is not.
    assert alice.states() == {
        "release": "success",
        "approve": "success",
        "publish": "failed",
        "seal": "upstream_failed",
        "receipt": "upstream_failed",
    }
    assert not file.exists()
    assert approvals(home) == [("intent", "alice"), ("failure", "alice")]

    # As the error says: the task is cleared, and somebody else responds.
    alice(
        "POST",
        f"{DAG_PATH}/clearTaskInstances",
        dry_run=False,
        dag_run_id=RUN,
        task_ids=["approve"],
        include_downstream=True,
        only_failed=False,
    )
    respond(bob, log, times=3)
    wait_for(lambda: alice("GET", RUN_PATH)["state"] in ("success", "failed"), seconds=100, log=log)
    assert set(alice.states().values()) == {"success"}
    assert approvals(home)[2:] == [("intent", "bob"), ("success", "bob")]
    released = file.read_bytes()
    assert json.loads(released)["approved_by"] == "bob"
    verified = verify_receipt(
        receipt.read_bytes(), verifier=Verifier.load(home.checkpoint_verifier), release_file=released
    )
    assert verified.claims["requested_by"] == "alice"
    assert (verified.claims["approval"]["approver"], verified.claims["approval"]["known_by"]) == ("bob", "airflow")
    (event,) = alice("GET", f"/api/v2/assets/events?source_dag_id={DAG}")["asset_events"]
    assert (event["source_task_id"], event["extra"]["approver"]) == ("publish", "bob")
