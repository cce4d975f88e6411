"""Fixtures that every part of the tests shares: one Spark session and one PostgreSQL server per worker, and a deployment."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import sqlalchemy as sql

from lepton_airflow.settings import SETTINGS_FILE, Settings, load_settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# The same examples in every run, so that whether the tests pass says something of the change that they run for.
# `pytest --hypothesis-profile=default` looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")

os.environ["PYSPARK_PYTHON"] = sys.executable
# The JVMs of tests live for seconds: what the second compiler would make of their code never pays.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xlog:disable"
CLASSES = Path(__file__).parents[1] / ".cache" / "spark-classes.jsa"
if CLASSES.exists():
    JAVA_OPTIONS += f" -XX:SharedArchiveFile={CLASSES}"
os.environ["SPARK_SUBMIT_OPTS"] = os.environ["SPARK_DAEMON_JAVA_OPTS"] = JAVA_OPTIONS
# Tables of the command line are cut to the width of a terminal, which a test does not have.
os.environ["COLUMNS"] = "200"


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[2]")
        .appName("lepton tests")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.io.encryption.enabled", "true")
        .config("spark.sql.shuffle.partitions", "4")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        .config("spark.log.level", "OFF")
        .getOrCreate()
    )
    yield session
    session.stop()


POLICY = """
version: 1
roles:
  everyone: {members: [tester]}
  approvers: {members: [tester, alice, bob]}
grants:
  - id: tests
    role: everyone
    actions: [encrypt, decrypt, release, train, evaluate, promote, rotate, store, restore, repair, verify]
    datasets: ["*"]
    columns: ["*"]
    purposes: [test]
  - id: approvals
    role: approvers
    actions: [approve]
    datasets: ["*"]
    columns: ["*"]
    purposes: [test]
"""


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    """A deployment as `lepton init` makes it: identity ``tester``, keyset ``clinic`` sealed to it, everything granted to it
    for the purpose ``test``; ``alice`` and ``bob`` may approve."""
    import yaml

    from lepton_airflow.audit.database import connect, migrate
    from lepton_airflow.keys.identity import Recipient, generate_identity
    from lepton_airflow.keys.keyring import FileKeyring

    folder = tmp_path / "lepton"
    folder.mkdir()
    (folder / SETTINGS_FILE).write_text(yaml.safe_dump({"identity": "tester"}))
    (folder / "policy.yaml").write_text(POLICY)
    settings = load_settings(folder)
    engine = connect(settings, check_schema=False)
    migrate(engine)
    engine.dispose()
    recipient: Recipient = generate_identity("tester", identities=settings.identities, recipients=settings.recipients)
    for cipher in ("AES256_GCM", "AES256_SIV", "FF1"):
        FileKeyring(settings.keyring).create("clinic", cipher=cipher, recipients=[recipient])
    return settings


@pytest.fixture(scope="session")
def events() -> Callable[..., list[dict[str, Any]]]:
    """Reads the events of a deployment's log, but those that every run has; only those of an action, if one is named."""
    from lepton_airflow.audit.database import connect, leaf_table

    def read(home: Settings, action: str | None = None) -> list[dict[str, Any]]:
        engine = connect(home)
        with engine.connect() as connection:
            payloads = connection.scalars(sql.select(leaf_table.c.payload).order_by(leaf_table.c.id)).all()
        engine.dispose()
        found = [event for event in map(json.loads, payloads) if event["action"] not in ("producer", "policy.load")]
        return [event for event in found if action in (None, event["action"])]

    return read


def _server_binaries() -> Path | None:
    found = shutil.which("postgres")
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *([Path(found).resolve().parent] if found else [])]
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def _is_ready(data: Path) -> bool:
    """The last line of the server's lock file is its state."""
    file = data / "postmaster.pid"
    return file.exists() and file.read_text().rstrip().endswith("ready")


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The URL of a real PostgreSQL cluster's `postgres` database, on a Unix socket; its superuser is `postgres`."""
    binaries = _server_binaries()
    if binaries is None:
        pytest.fail("PostgreSQL is missing: run `docker/setup/system.sh postgresql`")
    # Not under tmp_path: its parents are closed to the user that runs the server.
    folder = Path(tempfile.mkdtemp(prefix="lepton-pg-"))
    user: str | None = None
    if os.geteuid() == 0:  # the server refuses to run as root
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
        shutil.chown(folder, user)
    data = folder / "data"
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
        user=user,
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, "-k", folder, "-h", "", "-F"],
            user=user,
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 60
        while not _is_ready(data):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start: {(folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown
        server.wait(timeout=60)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def new_postgresql_database(postgresql_url: str) -> Callable[..., str]:
    """Makes databases, empty or copies of a template; they go with their server, for dropping waits for a checkpoint."""
    server = sql.create_engine(
        postgresql_url.replace("postgresql:", "postgresql+psycopg:"),
        isolation_level="AUTOCOMMIT",
        poolclass=sql.pool.NullPool,
    )

    def make(template: str = "template1") -> str:
        name = f"lepton_{uuid.uuid4().hex}"
        with server.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return postgresql_url.replace("/postgres?", f"/{name}?")

    return make


@pytest.fixture
def postgresql_database(new_postgresql_database: Callable[..., str]) -> str:
    """The URL of a fresh, empty database."""
    return new_postgresql_database()


def _module(path: str) -> ModuleType:
    """What several parts of the tests use that is no fixture: the tests are no package to import from."""
    file = Path(__file__).parent / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def specification() -> ModuleType:
    """OpenLineage's specification."""
    return _module("lineage/specification.py")


@pytest.fixture(scope="session")
def expected_events() -> ModuleType:
    """The files of expected events beside the example DAGs."""
    return _module("lineage/expected_events.py")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def free_port() -> int:
    """A port of this machine on which nothing listens."""
    return _free_port()


@pytest.fixture(scope="session")
def aws_server() -> Iterator[str]:
    """The URL of a server of AWS's interfaces (moto), a process of its own."""
    port = _free_port()
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "the server did not start"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("whoever runs this may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def events_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where OpenLineage events go, said by the standard environment variables."""
    file = tmp_path / "events.jsonl"
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "file")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(file))
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__APPEND", "true")
    return file
