"""Tries of the direct road's tasks that die or are overtaken: real Spark processes, and signals from outside."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from lepton_airflow.encryption.dataframe import reveal
from lepton_airflow.keys.usage import usage
from lepton_airflow.settings import Settings

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
JOB = Path(__file__).parents[2] / "spark_jobs" / "encrypt_columns.py"
ROWS = 400_000
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("SPARK")},
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "PYSPARK_PYTHON": sys.executable,
    "SPARK_LOCAL_IP": "127.0.0.1",
}


@dataclass(frozen=True)
class Writer:
    """A Python worker that is stopped in the middle of a try, and the file that it is writing."""

    pid: int
    file: Path


def stop_a_writer(roots: Sequence[int], folder: Path, *, running: Callable[[], bool]) -> Writer:
    """Stop the first process below ``roots`` that is seen to write a file of a try below ``folder``."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running():
        for worker in [child for root in roots for child in psutil.Process(root).children(recursive=True)]:
            with suppress(psutil.Error, OSError):
                if _written_by(worker, folder):
                    worker.suspend()
                    # Between the look and the stop the try may have come to its end.
                    while worker.status() != psutil.STATUS_STOPPED:
                        time.sleep(0.001)
                    if files := _written_by(worker, folder):
                        return Writer(worker.pid, files[0])
                    worker.resume()
        time.sleep(0.005)
    pytest.fail("no worker was seen to write")


def _written_by(process: psutil.Process, folder: Path) -> list[Path]:
    opened = [link.readlink() for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    return [path for path in opened if path.is_relative_to(folder) and path.parent.name == "_tries"]


@pytest.fixture(scope="module")
def source(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A table of two files, each for one task; rows have values of their own."""
    path = str(tmp_path_factory.mktemp("source"))
    spark.range(ROWS).selectExpr("id", "sha2(cast(id as string), 224) email", "rand(7) charge").repartition(
        2
    ).write.mode("overwrite").parquet(path)
    return spark.read.parquet(path)


@contextmanager
def encrypting(home: Settings, source: Any, folder: Path, master: str, **conf: str) -> Iterator[subprocess.Popen[str]]:
    """The job on the direct road under spark-submit, in processes of its own, to ``folder``/protected."""
    (folder / "events").mkdir()
    spec = {
        "source": {"name": "clinic.visits_raw", "path": source.inputFiles()[0].rpartition("/")[0]},
        "target": {"name": "clinic.visits", "path": str(folder / "protected")},
        "keyset": "clinic",
        "columns": {"email": {"cipher": "AES256_GCM"}, "charge": {"cipher": "AES256_GCM"}},
        "road": "direct",
        "purpose": "test",
    }
    conf |= {
        "spark.eventLog.enabled": "true",
        "spark.eventLog.compress": "false",
        "spark.eventLog.rolling.enabled": "false",
        "spark.eventLog.dir": (folder / "events").as_uri(),
        "spark.ui.enabled": "false",
    }
    options = [word for name, value in conf.items() for word in ("--conf", f"{name}={value}")]
    arguments = ["--home", str(home.home), "--run-key", "r", "--spec-json", json.dumps(spec)]
    driver = subprocess.Popen(
        [str(BIN / "spark-submit"), "--master", master, *options, str(JOB), *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield driver
    finally:
        if driver.poll() is None:
            driver.kill()
            driver.wait()


def summary_of(driver: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, output[-4000:]
    result: dict[str, Any] = json.loads(output.strip().rpartition("\n")[2])["result"]
    return result


def tries(folder: Path) -> list[dict[str, Any]]:
    """What Spark's event log says of the tries that ended, in the stage that had second ones."""
    (log,) = (folder / "events").iterdir()
    ends = [
        event for event in map(json.loads, log.read_text().splitlines()) if event["Event"] == "SparkListenerTaskEnd"
    ]
    (stage,) = {event["Stage ID"] for event in ends if event["Task Info"]["Attempt"]}
    return [event["Task Info"] for event in ends if event["Stage ID"] == stage]


def assert_every_row_is_there_once(spark: Any, home: Settings, folder: Path, source: Any) -> None:
    protected = spark.read.parquet(str(folder / "protected"))
    assert protected.count() == ROWS
    revealed = reveal(protected, keyring=home.keyring, identity_file=home.identity_file)
    # The sum of the rows' hashes, which no order changes: rows that are lost or there twice do.
    total = "sum(cast(xxhash64(id, email, charge) as decimal(38)))"
    assert revealed.selectExpr(total).collect() == source.selectExpr(total).collect()
    files = sorted(path.name for path in (folder / "protected").iterdir())
    others = {name for name in files if not name.endswith(".parquet")}
    assert others == {"_SUCCESS", "_lepton_commit.json", "._lepton_commit.json.crc"}
    assert [name.split("-")[1] for name in files if name.endswith(".parquet")] == ["00000", "00001"]
    assert sorted(path.name for path in folder.iterdir()) == ["events", "lepton", "protected"]


def reserved(home: Settings) -> list[int]:
    from lepton_airflow.audit.database import connect

    engine = connect(home)
    try:
        return list(usage(engine, "clinic").values())
    finally:
        engine.dispose()


def test_a_worker_killed_in_mid_task_is_followed_by_another_try_and_every_row_is_there_once(
    spark: Any, home: Settings, source: Any, tmp_path: Path
) -> None:
    with encrypting(home, source, tmp_path, "local[2,4]") as driver:
        killed = stop_a_writer([driver.pid], tmp_path, running=lambda: driver.poll() is None)
        assert reserved(home) == [ROWS * 2 * 4], "before the first value is encrypted: values, columns, tries"
        os.kill(killed.pid, signal.SIGKILL)
        assert killed.file.exists(), "what the killed try leaves"
        summary = summary_of(driver)
    assert (summary["rows"], summary["road"]) == (ROWS, "direct")
    ended = {(one["Index"], one["Attempt"], one["Failed"]) for one in tries(tmp_path)}
    number = int(killed.file.name.split("-")[1])
    assert ended == {(number, 0, True), (number, 1, False), (1 - number, 0, False)}
    assert not (tmp_path / "protected" / killed.file.name).exists()
    assert_every_row_is_there_once(spark, home, tmp_path, source)
    assert reserved(home) == [ROWS * 2 * 4]


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[int]]]:
    """A standalone Spark cluster: its URL, and the processes of two workers. Spark runs no speculative try on the host of the
    first one, so each worker has an address of its own."""
    folder = tmp_path_factory.mktemp("cluster")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    master = f"spark://127.0.0.1:{port}"
    processes: list[subprocess.Popen[bytes]] = []

    def start(main: str, *arguments: str, ready: str) -> None:
        log = folder / f"{len(processes)}.log"
        words = ["spark-class", f"org.apache.spark.deploy.{main}", "--webui-port", "0", *arguments]
        with log.open("wb") as output:
            processes.append(
                subprocess.Popen([str(BIN / words[0]), *words[1:]], env=ENVIRONMENT, stdout=output, stderr=output)
            )
        deadline = time.monotonic() + 120
        while ready not in log.read_text():
            if time.monotonic() > deadline or processes[-1].poll() is not None:
                pytest.fail(f"{main} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)

    try:
        start("master.Master", "--host", "127.0.0.1", "--port", str(port), ready="I have been elected leader")
        for host in ("127.0.0.2", "127.0.0.3"):
            options = ["--host", host, "--work-dir", str(folder / host), "--cores", "1", "--memory", "1g"]
            start("worker.Worker", *options, master, ready="Successfully registered with master")
        yield master, [process.pid for process in processes[1:]]
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(timeout=60)


def test_a_slow_try_that_is_overtaken_adds_no_row(
    spark: Any, home: Settings, source: Any, tmp_path: Path, cluster: tuple[str, list[int]]
) -> None:
    master, workers = cluster
    conf = {
        "spark.speculation": "true",
        "spark.speculation.interval": "100ms",
        "spark.speculation.quantile": "0.5",
        "spark.speculation.efficiency.enabled": "false",
        "spark.executor.memory": "512m",
    }
    with encrypting(home, source, tmp_path, master, **conf) as driver:
        slow = stop_a_writer(workers, tmp_path, running=lambda: driver.poll() is None)
        try:
            assert reserved(home) == [ROWS * 2 * 4 * 2], "every try may have a speculative one beside it"
            summary = summary_of(driver)
        finally:
            # It goes on, where Spark has not ended it yet, and finds that its folder is gone.
            with suppress(ProcessLookupError):
                os.kill(slow.pid, signal.SIGCONT)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(slow.pid).wait(timeout=60)
    assert (summary["rows"], summary["road"]) == (ROWS, "direct")
    (overtaking,) = [one for one in tries(tmp_path) if one["Speculative"] and not one["Failed"] and not one["Killed"]]
    assert overtaking["Attempt"] == 1
    assert slow.file.name.split("-")[1] == f"{overtaking['Index']:05d}"
    assert not (tmp_path / "protected" / slow.file.name).exists()
    assert_every_row_is_there_once(spark, home, tmp_path, source)
