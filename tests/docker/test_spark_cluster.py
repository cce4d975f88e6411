"""The compose file's Spark cluster, on this machine: the secret lets applications in, and only it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# One worker starts the cluster.
pytestmark = [pytest.mark.slow]
BIN = Path(sys.executable).parent
APPLICATION = """
from pyspark.sql import SparkSession
session = SparkSession.builder.getOrCreate()
print("sum", session.sparkContext.parallelize(range(10), 2).map(lambda number: 2 * number).sum())
session.stop()
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Cluster:
    def __init__(self, stack: Any, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []

    def environment(self, service: str, home: Path) -> dict[str, str]:
        variables = self.stack.compose["services"][service]["environment"]
        home.mkdir(exist_ok=True)
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SPARK", "PYSPARK"))},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYSPARK_PYTHON": sys.executable,
            "HOME": str(home),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_MASTER_WEBUI_PORT": "0",
            "SPARK_WORKER_WEBUI_PORT": "0",
            "SPARK_SECRET_FILE": self.stack.here(service, variables["SPARK_SECRET_FILE"]),
        }

    def start(self, service: str) -> None:
        """Start a service with the image's entry point and the compose file's command."""
        command = " ".join(self.stack.compose["services"][service]["command"])
        command = command.replace("spark-master", "127.0.0.1").replace("7077", str(self.port))
        command = re.sub(r"/tmp/spark\b", str(self.folder / "work"), command)
        entry = Path(__file__).parents[2] / "docker" / "spark" / "entrypoint.sh"
        with (self.folder / f"{service}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [entry, *command.split()],
                    env=self.environment(service, self.folder / service),
                    stdout=log,
                    stderr=log,
                )
            )

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text()

    def submit(self, application: Path, home: Path, secret: Path) -> subprocess.Popen[str]:
        entry = Path(__file__).parents[2] / "docker" / "spark" / "entrypoint.sh"
        return subprocess.Popen(
            [
                entry,
                "spark-submit",
                "--master",
                f"spark://127.0.0.1:{self.port}",
                "--conf",
                "spark.ui.enabled=false",
                application,
            ],
            env=self.environment("demo", home) | {"SPARK_SECRET_FILE": str(secret)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self, service: str, text: str) -> None:
        deadline = time.monotonic() + 180
        while text not in self.log(service):
            if time.monotonic() > deadline or self.processes[-1].poll() is not None:
                pytest.fail(f"{service} did not start: {self.log(service)[-2000:]}")
            time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(stack, tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start("spark-master")
        cluster.wait("spark-master", "I have been elected leader")
        cluster.start("spark-worker")
        cluster.wait("spark-worker", "Successfully registered with master")
        yield cluster
    finally:
        for process in cluster.processes:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


@pytest.fixture
def application(tmp_path: Path) -> Path:
    file = tmp_path / "application.py"
    file.write_text(APPLICATION)
    return file


def test_an_application_with_the_secret_runs_and_the_secret_is_in_no_argument_or_log(
    cluster: Cluster, application: Path, tmp_path: Path
) -> None:
    secret = cluster.stack.folder / "mounts" / "spark-secrets" / "cluster.secret"
    arguments = [Path(f"/proc/{process.pid}/cmdline").read_text() for process in cluster.processes]
    output, errors = cluster.submit(application, tmp_path / "home", secret).communicate(timeout=300)
    assert "sum 90" in output, errors[-2000:]
    executors = [path.read_text() for path in (cluster.folder / "work").glob("*/*/std*")]
    assert executors
    for text in (output, errors, cluster.log("spark-master"), cluster.log("spark-worker"), *arguments, *executors):
        assert secret.read_text().strip() not in text


def test_an_application_with_another_secret_is_turned_away(cluster: Cluster, application: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("guess\n")
    driver = cluster.submit(application, tmp_path / "home", other)
    assert driver.stderr is not None
    # Spark would try three times, 20 seconds each; the first refusal says it.
    refused = any("Failed to connect to master" in line for line in driver.stderr)
    driver.terminate()
    output, _ = driver.communicate(timeout=60)
    assert refused
    assert "sum" not in output
