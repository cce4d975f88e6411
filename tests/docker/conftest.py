"""The compose file, and as much of it as runs without containers: its scripts, its volumes and its PostgreSQL server."""

from __future__ import annotations

import getpass
import os
import pwd
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"
HOST = "postgres"


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


@dataclass(frozen=True)
class Stack:
    """The services' mounts as folders and files of this machine. A process of the server runs as ``user``."""

    compose: dict[str, Any]
    folder: Path
    user: str
    address: str

    def run(self, service: str, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a service's command with the service's environment; paths inside its container become paths here."""
        environment = self.compose["services"][service].get("environment", {})
        localised = {name: self.here(service, value) for name, value in environment.items()}
        return subprocess.run(
            [self.here(service, word) for word in command],
            env={**os.environ, **localised, **options.pop("variables", {})},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            **options,
        )

    def here(self, service: str, text: str) -> str:
        """``text`` with the paths of the service's mounts replaced."""
        for mount in self.compose["services"][service]["volumes"]:
            source, target = mount.split(":")[:2]
            text = text.replace(target, str(self.folder / "mounts" / Path(source).name))
        return text

    def url(self, variable: str) -> str:
        """A database URL of the demo service; the host's name stays, its address is the server's."""
        return f"{self.here('demo', self.compose['services']['demo']['environment'][variable])}&hostaddr={self.address}"


def _binaries() -> Path:
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.environ["PATH"].split(os.pathsep))]
    found = next((folder for folder in folders if (folder / "initdb").exists()), None)
    if found is None:
        pytest.fail("no PostgreSQL server is installed: run docker/setup/system.sh postgresql")
    return found


@pytest.fixture(scope="session")
def stack(compose: dict[str, Any]) -> Iterator[Stack]:
    """Mounts with the secrets that the service ``secrets`` makes."""
    # Not under tmp_path: its parents are closed to the user that runs the server, which must not be root.
    folder = Path(tempfile.mkdtemp(prefix="lepton-stack-"))
    folder.chmod(0o755)
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = getpass.getuser() if os.geteuid() else "postgres" if "postgres" in names else "nobody"
    (folder / "mounts").mkdir()
    for service in compose["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            local = folder / "mounts" / Path(source).name
            if source.startswith("."):
                shutil.copy(DOCKER / source, local)
            else:
                local.mkdir(exist_ok=True)
    # An address that no other server of this machine listens on, so that the port can stay what the password file says.
    address = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.{random.randrange(2, 255)}"
    stack = Stack(compose=compose, folder=folder, user=user, address=address)
    owners = {"POSTGRES_OWNER": user, "LEPTON_OWNER": str(os.getuid())}
    made = stack.run("secrets", compose["services"]["secrets"]["entrypoint"], variables=owners)
    assert made.returncode == 0, made.stderr
    yield stack
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgresql(stack: Stack) -> Iterator[Stack]:
    """The service ``postgres``: the compose file's command and databases, run by this machine's PostgreSQL."""
    binaries = _binaries()
    user = stack.user if os.geteuid() == 0 else None
    data, socket = stack.folder / "data", stack.folder / "socket"
    for folder in (data, socket):
        folder.mkdir()
        shutil.chown(folder, stack.user)
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", stack.user, "-E", "UTF8", "--locale=C", "-N"],
        user=user,
        cwd=data,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    _, *options = (stack.here("postgres", word) for word in stack.compose["services"]["postgres"]["command"])
    command = [binaries / "postgres", "-D", data, *options, f"--unix_socket_directories={socket}"]
    log = stack.folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, f"--listen_addresses={stack.address}", "-F"], user=user, cwd=data, stdout=output, stderr=output
        )
    try:
        lock = data / "postmaster.pid"
        deadline = time.monotonic() + 60
        while not (lock.exists() and lock.read_text().rstrip().endswith("ready")):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        made = stack.run(
            "postgres",
            ["/docker-entrypoint-initdb.d/databases.sh"],
            variables={"POSTGRES_USER": stack.user, "PGHOST": str(socket)},
            user=user,
        )
        assert made.returncode == 0, made.stderr
        yield stack
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown
        server.wait(timeout=60)
