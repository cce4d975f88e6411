"""Known keys and known plaintexts are planted, real Airflow and Spark run, and everything they leave behind is searched.

Searched are explain, the event log, the logs of drivers and executors, Spark's local folders, XCom, rendered fields, and
the arguments and environments of all processes, for each secret raw, in hex and in base64. That the search would find a
leak in each of these places is shown by programs that leak on purpose.
"""

from __future__ import annotations

import base64
import json
import secrets
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lepton_airflow.keys.identity import Identity
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("airflow"), pytest.mark.timeout(1800)]

HERE = Path(__file__).parent
JOBS = HERE.parents[1] / "spark_jobs"
ROWS = 2_000

Search = Callable[[Mapping[str, bytes], Mapping[str, bytes]], dict[str, list[str]]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home as `lepton init` makes it, for the identity ``tester``."""
    from typer.testing import CliRunner

    from lepton_airflow.cli import app
    from lepton_airflow.settings import load_settings

    folder = tmp_path_factory.mktemp("home")
    result = CliRunner().invoke(app, ["init", "--home", str(folder), "--identity", "tester", "--keyset", "clinic"])
    assert result.exit_code == 0, result.output
    policy = {
        "version": 1,
        "roles": {"everyone": {"members": ["tester"]}},
        "grants": [
            {
                "id": "tests",
                "role": "everyone",
                "actions": ["encrypt", "decrypt", "rotate"],
                "datasets": ["*"],
                "columns": ["*"],
                "purposes": ["test"],
            }
        ],
    }
    settings = load_settings(folder)
    settings.policy.write_text(yaml.safe_dump(policy))
    return settings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def planted(home: Settings, data: Path) -> dict[str, bytes]:
    """Every secret by name: the keys in use, and the values of a table that is written to ``data``/raw."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    emails = [f"{secrets.token_hex(6)}@planted.example" for _ in range(ROWS)]
    patients = [f"planted-{secrets.token_hex(8)}" for _ in range(ROWS)]
    cards = [secrets.randbelow(2**62) + 2**62 for _ in range(ROWS)]
    (data / "raw").mkdir()
    pq.write_table(pa.table({"email": emails, "patient": patients, "card": cards}), data / "raw" / "visits.parquet")

    private = base64.b64decode(json.loads(home.identity_file.read_text())["private_key"])
    found = {"identity: ML-KEM-768 seed": private[:64], "identity: X25519 scalar": private[64:]}
    identity = Identity.load(home.identity_file)
    for cipher in ("AES256_GCM", "AES256_SIV"):
        keyset = FileKeyring(home.keyring).open("clinic", cipher=cipher, identity=identity)
        material = keyset.material(keyset.primary_key_id)
        for start in range(0, len(material), 32):
            found[f"{cipher} key, bytes {start} to {start + 31}"] = material[start : start + 32]
    # The first, some in between and the last: no batch or partition is without one.
    for row in range(0, ROWS, 250):
        found[f"email of row {row}"] = emails[row].encode()
        found[f"patient of row {row}"] = patients[row].encode()
        found[f"card of row {row} in digits"] = str(cards[row]).encode()
        found[f"card of row {row}, big-endian"] = cards[row].to_bytes(8, "big")
        found[f"card of row {row}, little-endian"] = cards[row].to_bytes(8, "little")
    return found


@pytest.fixture(scope="module")
def places(
    stage: Any, home: Settings, data: Path, planted: dict[str, bytes], connections: Callable[[Path], dict[str, str]]
) -> dict[str, bytes]:
    """What Airflow and spark-submit left behind after protecting, decrypting, shuffling and protecting again."""
    variables = connections(home.home) | {"AIRFLOW_VAR_LEPTON_DATA": str(data)}
    stage.run("airflow", "airflow", "dags", "test", "lepton_canary", **variables)
    spec = {
        "source": {"name": "clinic.visits_raw", "path": str(data / "raw")},
        "target": {"name": "clinic.visits", "path": str(data / "submitted")},
        "keyset": "clinic",
        "columns": {
            "email": {"cipher": "AES256_GCM"},
            "card": {"cipher": "AES256_GCM"},
            "patient": {"cipher": "AES256_SIV"},
        },
        "purpose": "test",
    }
    (data / "spec.yaml").write_text(yaml.safe_dump(spec))
    submit = ("spark-submit", "--master", stage.master)
    job = str(JOBS / "encrypt_columns.py")
    stage.run("the job", *submit, job, "--home", str(home.home), "--spec", str(data / "spec.yaml"))
    application = str(HERE / "applications" / "shuffle.py")
    files = (str(home.keyring), str(home.identity_file), str(data / "protected"), str(data / "sorted"))
    stage.run("the shuffle", *submit, application, *files)
    return stage.places()


def test_no_key_and_no_plaintext_is_left_anywhere(
    places: dict[str, bytes], planted: dict[str, bytes], search: Search
) -> None:
    assert search(places, planted) == {}


def test_every_place_was_really_looked_into(stage: Any, places: dict[str, bytes]) -> None:
    for place, text in {
        "output of airflow": b"spark-submit",
        "output of the job": b"DEBUG",
        "output of the shuffle": b"== Optimized Logical Plan ==",
        "event logs": b"physicalPlanDescription",
        "executor logs": b"Running task",
        "cluster logs": b"Launching executor",
        "process arguments": b"CoarseGrainedExecutorBackend",
        "process environments": b"LEPTON_HOME",
        "airflow": b"return_value",
    }.items():
        assert text in places[place], place
    assert b"pyspark.daemon" in places["process arguments"]
    shuffled = [path for path in stage.watch.stash.iterdir() if "shuffle_" in path.name and path.stat().st_size]
    assert shuffled, "the shuffle files were kept"
    with sqlite3.connect(stage.airflow_home / "airflow.db") as database:
        stored = {
            table: database.execute(f"select count(*) from {table}").fetchone()[0]
            for table in ("xcom", "rendered_task_instance_fields")
        }
    assert all(stored.values()), stored


@pytest.fixture(scope="module")
def leaked(
    places: dict[str, bytes],
    stage: Any,
    home: Settings,
    data: Path,
    planted: dict[str, bytes],
    connections: Callable[[Path], dict[str, str]],
) -> dict[str, bytes]:
    """The same places after programs that leak on purpose; only after the others were searched."""
    key = planted["AES256_GCM key, bytes 0 to 31"]
    stage.run(
        "airflow leaks",
        *("airflow", "dags", "test", "lepton_leaks"),
        **connections(home.home),
        AIRFLOW_VAR_CANARY_RENDERED=key.hex(),
        AIRFLOW_VAR_CANARY_RETURNED=base64.b64encode(b"x" + key + b"y").decode(),
    )
    application = str(HERE / "applications" / "leaks.py")
    value = planted["email of row 0"].decode()
    stage.run("leaks", *("spark-submit", "--master", stage.master), application, str(data / "raw"), key.hex(), value)
    return stage.places()


def test_the_search_finds_what_leaks_in_every_place(
    stage: Any, leaked: dict[str, bytes], planted: dict[str, bytes], search: Search
) -> None:
    found = search(leaked, planted)
    key, email = "AES256_GCM key, bytes 0 to 31", "email of row 0"
    assert key in found["output of leaks"], "explain shows the key of aes_encrypt"
    assert email in found["output of leaks"]
    assert key in found["event logs"]
    assert key in found["process arguments"]
    assert key in found["process environments"]
    assert email in found["executor logs"]
    assert email in found["local folders"], "a shuffle without I/O encryption"
    assert "card of row 0, little-endian" in found["local folders"]
    assert key in found["airflow"]
    with sqlite3.connect(stage.airflow_home / "airflow.db") as database:
        tables = {
            "xcom": b"\n".join(str(row).encode() for row in database.execute("select value from xcom")),
            "rendered fields": b"\n".join(
                str(row).encode()
                for row in database.execute("select rendered_fields from rendered_task_instance_fields")
            ),
        }
    assert search(tables, planted) == {"xcom": [key], "rendered fields": [key]}
