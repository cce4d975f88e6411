"""A real Airflow and a real Spark cluster of one worker, and a watch on all that they write down while they run."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
#: Spark would compress what the search has to read; a leak that is compressed is no smaller leak.
UNCOMPRESSED = {
    "spark.eventLog.enabled": "true",
    "spark.eventLog.compress": "false",
    "spark.shuffle.compress": "false",
    "spark.shuffle.spill.compress": "false",
    "spark.broadcast.compress": "false",
}


def forms(secret: bytes) -> list[bytes]:
    """The secret raw, in hex, as Python shows it, and in base64 at each of the three places where it can begin."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode(), repr(secret)[2:-1].encode()}
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + secret)
        # Only the characters that the neighbours have no bit in: of few of them some would be found anywhere.
        part = encoded[-(-8 * shift // 6) : 8 * (shift + len(secret)) // 6]
        found |= {part, part.replace(b"+", b"-").replace(b"/", b"_")}
    return sorted(found)


class Watch:
    """Keeps what would be gone afterwards: files of Spark's local folders, and the arguments of processes."""

    def __init__(self, folder: Path, watched: Path) -> None:
        self.stash = folder
        self.stash.mkdir()
        self.watched = watched
        self.roots: list[int] = []
        self.arguments: set[bytes] = set()
        self.environments: set[bytes] = set()
        self._kept: set[int] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._loop, args=(work,)) for work in (self._files, self._processes)]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _loop(self, work: Callable[[], None]) -> None:
        while not self._stop.wait(0.05):
            work()

    def _files(self) -> None:
        for folder, _, names in os.walk(self.watched):
            for name in names:
                # A second name keeps the file, and all that is written into it later, when Spark deletes the first.
                with suppress(OSError):
                    path = Path(folder) / name
                    inode = path.stat().st_ino
                    if inode not in self._kept:
                        (self.stash / f"{inode}-{name}").hardlink_to(path)
                        self._kept.add(inode)

    def _processes(self) -> None:
        for root in self.roots:
            with suppress(psutil.Error):
                parent = psutil.Process(root)
                for process in [parent, *parent.children(recursive=True)]:
                    with suppress(OSError):
                        self.arguments.add(Path(f"/proc/{process.pid}/cmdline").read_bytes())
                        self.environments.add(Path(f"/proc/{process.pid}/environ").read_bytes())


class Stage:
    """Where the play takes place; ``run`` starts its programs and ``places`` holds all that they left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.airflow_home = folder / "airflow"
        self.events = folder / "events"
        self.local = folder / "local"
        self.work = folder / "work"
        self.temporary = folder / "local" / "tmp"
        for made in (self.airflow_home, self.events, self.local, self.work, self.temporary):
            made.mkdir()
        self.environment = self._environment()
        self.watch = Watch(folder / "stash", self.local)
        self.outputs: dict[str, bytes] = {}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.master = ""

    def _environment(self) -> dict[str, str]:
        configuration = self.folder / "spark-conf"
        configuration.mkdir()
        lines = {**UNCOMPRESSED, "spark.eventLog.dir": self.events.as_uri(), "spark.ui.enabled": "false"}
        (configuration / "spark-defaults.conf").write_text("".join(f"{key} {lines[key]}\n" for key in lines))
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SPARK", "LEPTON"))},
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_CONF_DIR": str(configuration),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_LOCAL_DIRS": str(self.local),
            "TMPDIR": str(self.temporary),
            "JAVA_TOOL_OPTIONS": f"-Djava.io.tmpdir={self.temporary} {os.environ['SPARK_SUBMIT_OPTS']}",
            "LEPTON_SPARK_LOG_LEVEL": "DEBUG",
            "AIRFLOW_HOME": str(self.airflow_home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(HERE / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        }

    def start_cluster(self) -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        self.master = f"spark://127.0.0.1:{port}"
        package = "org.apache.spark.deploy"
        self._start(
            f"{package}.master.Master", "--host 127.0.0.1", f"--port {port}", ready="I have been elected leader"
        )
        self._start(
            f"{package}.worker.Worker", f"--work-dir {self.work}", "--cores 2", "--memory 1g", self.master,
            ready="Successfully registered with master",
        )  # fmt: skip

    def _start(self, main: str, *arguments: str, ready: str) -> None:
        words = [word for argument in ("--webui-port 0", *arguments) for word in argument.split()]
        log = self.folder / f"{main.rpartition('.')[2]}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [BIN / "spark-class", main, *words], env=self.environment, stdout=output, stderr=output
            )
        self.processes.append(process)
        self.watch.roots.append(process.pid)
        deadline = time.monotonic() + 120
        while ready not in log.read_text():
            if time.monotonic() > deadline or process.poll() is not None:
                pytest.fail(f"{main} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(timeout=60)

    def run(self, name: str, *command: str, **variables: str) -> str:
        """Run a program to its end under the watch; its output becomes the place ``output of <name>``."""
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.watch.roots.append(process.pid)
        output, _ = process.communicate(timeout=600)
        self.watch.roots.remove(process.pid)
        self.outputs[f"output of {name}"] = output
        assert process.returncode == 0, output.decode(errors="replace")[-4000:]
        return output.decode(errors="replace")

    def places(self, **folders: Sequence[Path]) -> dict[str, bytes]:
        """All that was written down or could be seen, by place; and what is in ``folders``, or files, by the name of a place."""
        return {
            **self.outputs,
            **{name.replace("_", " "): b"\n".join(map(_contents, paths)) for name, paths in folders.items()},
            "event logs": _contents(self.events),
            "executor logs": _contents(self.work),
            "cluster logs": b"".join(path.read_bytes() for path in self.folder.glob("*.log")),
            "local folders": _contents(self.watch.stash),
            "process arguments": b"\n".join(self.watch.arguments),
            "process environments": b"\n".join(self.watch.environments),
            "airflow": _contents(self.airflow_home),
        }


def _contents(folder: Path) -> bytes:
    files = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    return b"\n".join(path.read_bytes() for path in files if path.is_file())


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    stage = Stage(folder)
    with stage.watch:
        try:
            stage.start_cluster()
            yield stage
        finally:
            stage.stop()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("stage")) as stage:
        stage.run("airflow db", "airflow", "db", "migrate")
        yield stage


@pytest.fixture(scope="module")
def search() -> Callable[[Mapping[str, bytes], Mapping[str, bytes]], dict[str, list[str]]]:
    def search(places: Mapping[str, bytes], secrets: Mapping[str, bytes]) -> dict[str, list[str]]:
        """Which secrets are found, by place."""
        return {
            place: found
            for place, content in places.items()
            if (found := [name for name, secret in secrets.items() if any(form in content for form in forms(secret))])
        }

    return search


@pytest.fixture(scope="module")
def connections(stage: Stage) -> Callable[[Path], dict[str, str]]:
    """The variables that give Airflow its connections: the Spark cluster, and a Lepton home."""

    def variables(home: Path) -> dict[str, str]:
        host, _, port = stage.master.rpartition(":")
        lepton = {"conn_type": "lepton", "extra": json.dumps({"home": str(home), "identity": "tester"})}
        spark = {"conn_type": "spark", "host": host, "port": int(port)}
        return {
            "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps(spark),
            "AIRFLOW_CONN_LEPTON_TESTER": json.dumps(lepton),
        }

    return variables
