"""Known keys and known plaintexts are planted, real Airflow and Spark run, and everything they leave behind is searched.

Searched are explain, the event log, the logs of drivers and executors, Spark's local folders, XCom, rendered fields, and
the arguments and environments of all processes, for each secret raw, in hex and in base64. That the search would find a
leak in each of these places is shown by programs that leak on purpose.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import sqlite3
import struct
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from tink.proto import aes_gcm_hkdf_streaming_pb2, tink_pb2

from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.keys.cipher import Cipher
from lepton_airflow.keys.identity import Identity
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.settings import SETTINGS_FILE, Settings
from lepton_airflow.storage.manifest import MANIFEST, Manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

HERE = Path(__file__).parent
ROWS = 2_000
#: Folders of the data: in the first no secret may be, in the second no key.
PROTECTED = ("protected", "protected directly", "rotated", "rotated again", "sorted")
DECRYPTED = ("decrypted", "decrypted directly", "restored")
NODES = ("node 1", "node 2", "node 3")

Search = Callable[[Mapping[str, bytes], Mapping[str, bytes]], dict[str, list[str]]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Settings:
    """A home as `lepton init` makes it, for the identity ``tester``, and storage nodes."""
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
                "actions": ["encrypt", "decrypt", "rotate", "train", "evaluate", "store", "restore"],
                "datasets": ["*"],
                "columns": ["*"],
                "purposes": ["test"],
            }
        ],
    }
    file = folder / SETTINGS_FILE
    nodes = {name.replace(" ", "-"): str(data / name) for name in NODES}
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "storage_nodes": nodes}))
    result = CliRunner().invoke(app, ["storage", "prepare", "--home", str(folder)])
    assert result.exit_code == 0, result.output
    settings = load_settings(folder)
    settings.policy.write_text(yaml.safe_dump(policy))
    return settings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def values(data: Path) -> dict[str, bytes]:
    """The values of a table that is written to ``data``/raw, by name."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    readings = [secrets.randbelow(2**52) / 2**40 for _ in range(ROWS)]
    table = {
        "email": [f"{secrets.token_hex(6)}@planted.example" for _ in range(ROWS)],
        "patient": [f"planted-{secrets.token_hex(8)}" for _ in range(ROWS)],
        "phone": [str(secrets.randbelow(10**16) + 10**16) for _ in range(ROWS)],
        "card": [secrets.randbelow(2**62) + 2**62 for _ in range(ROWS)],
        "reading": readings,
    }
    (data / "raw").mkdir()
    # What a model can learn.
    diagnosis = ["ill" if reading > 2**11 else "well" for reading in readings]
    pq.write_table(pa.table({**table, "diagnosis": diagnosis}), data / "raw" / "visits.parquet")
    found = {}
    # The first, some in between and the last: no batch or partition is without one.
    for row in (*range(0, ROWS, 250), ROWS - 1):
        email, patient, phone, card, reading = (column[row] for column in table.values())
        found |= {f"email of row {row}": email.encode(), f"patient of row {row}": patient.encode()}
        found |= {f"phone of row {row}": phone.encode(), f"card of row {row} in digits": str(card).encode()}
        for order in ("big", "little"):
            found[f"card of row {row}, {order}-endian"] = card.to_bytes(8, order)
            found[f"reading of row {row}, {order}-endian"] = struct.pack({"big": ">d", "little": "<d"}[order], reading)
        # As a model sees it.
        found[f"features of row {row}"] = np.array([card, reading], "<f4").tobytes()
    return found


@pytest.fixture(scope="module")
def places(
    stage: Any, home: Settings, data: Path, values: dict[str, bytes], connections: Callable[[Path], dict[str, str]]
) -> dict[str, bytes]:
    """What Airflow and spark-submit left behind after each job on both roads, and a session that shuffles and explains."""
    variables = connections(home.home) | {"AIRFLOW_VAR_LEPTON_DATA": str(data)}
    stage.run("airflow", "airflow", "dags", "test", "lepton_canary", **variables)
    application = str(HERE / "applications" / "session.py")
    stage.run("the session", "spark-submit", "--master", stage.master, application, str(home.home), str(data))
    with sqlite3.connect(home.home / "audit.db") as database:
        audit = "\n".join(database.iterdump()).encode()
    return {
        **stage.places(
            keyring=[home.keyring],
            protected_tables=[data / name for name in PROTECTED],
            decrypted_tables=[data / name for name in DECRYPTED],
            models=[data / "models"],
            storage_nodes=[data / name for name in NODES],
        ),
        "audit": audit,
    }


@pytest.fixture(scope="module")
def planted(places: dict[str, bytes], home: Settings, data: Path, values: dict[str, bytes]) -> dict[str, bytes]:
    """Every secret by name: the values, the identity's private key and, now that the jobs are over, every key there was."""
    private = base64.b64decode(json.loads(home.identity_file.read_text())["private_key"])
    found = values | {"identity: ML-KEM-768 seed": private[:64], "identity: X25519 scalar": private[64:]}
    identity = Identity.load(home.identity_file)
    for cipher in get_args(Cipher):
        keyset = FileKeyring(home.keyring).open("clinic", cipher=cipher, identity=identity)
        assert len(keyset.keys) == 2, "the one of the table's first protection, and the one after its rotation"
        for number, key_id in enumerate(keyset.keys, 1):
            material = keyset.material(key_id)
            for start in range(0, len(material), 32):
                found[f"{cipher} key {number}, bytes {start} to {start + 31}"] = material[start : start + 32]
    found["the key of the stored version"] = version_key(data / NODES[0], home, identity)
    return found


def version_key(node: Path, home: Settings, identity: Identity) -> bytes:
    """The key under which the shards' content is encrypted, opened with the keyset."""
    (file,) = node.rglob(MANIFEST)
    manifest = Manifest.from_bytes(file.read_bytes())
    keyset = FileKeyring(home.keyring).open("clinic", cipher="AES256_GCM", identity=identity)
    place = {"format": "lepton.stored-key/1", "dataset": manifest.dataset, "version": manifest.version}
    clear = keyset.aead().decrypt(
        base64.b64decode(json.loads(manifest.encrypted_key)["encryptedKeyset"]), canonical_json(place)
    )
    (key,) = tink_pb2.Keyset.FromString(clear).key
    return bytes(aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey.FromString(key.key_data.value).key_value)


def test_no_key_is_left_anywhere_and_no_plaintext_but_in_the_decrypted_tables(
    places: dict[str, bytes], planted: dict[str, bytes], values: dict[str, bytes], search: Search
) -> None:
    found = search(places, planted)
    decrypted = found.pop("decrypted tables")
    assert found == {}
    # There they must be, which also shows that the search reads such files.
    elsewhere = ("in digits", "big-endian")
    assert set(decrypted) == {name for name in values if not name.endswith(elsewhere) and "features" not in name}


def test_every_place_was_really_looked_into(stage: Any, places: dict[str, bytes], data: Path) -> None:
    for place, text in {
        "output of airflow": b"spark-submit",
        "output of the session": b"== Optimized Logical Plan ==",
        "event logs": b"physicalPlanDescription",
        "executor logs": b"Running task",
        "cluster logs": b"Launching executor",
        "process arguments": b"CoarseGrainedExecutorBackend",
        "process environments": b"LEPTON_HOME",
        "airflow": b"return_value",
        "audit": b"lepton_audit_leaf",
        "keyring": b"clinic",
        "protected tables": b"AES256_GCM",
        "models": b"lepton.model-card/",
        "storage nodes": b"lepton.stored-dataset/1",
    }.items():
        assert text in places[place], place
    for job in (b"encrypt_columns.py", b"decrypt_columns.py", b"rotate_keys.py", b"pyspark.daemon"):
        assert job in places["process arguments"], job
    for action, road in product((b"encrypt", b"decrypt", b"rotate"), (b"direct", b"dataframe")):
        done = re.findall(rb'\{"action":"%s".*"phase":"success".*' % action, places["audit"])
        assert any(b'"road":"%s"' % road in event for event in done), (action, road)
    for action in (b"train", b"evaluate", b"store", b"restore"):
        assert re.search(rb'\{"action":"%s".*"phase":"success"' % action, places["audit"]), action
    for table in (*PROTECTED, *DECRYPTED):
        assert list((data / table).glob("*.parquet")), table
    shuffled = [path for path in stage.watch.stash.iterdir() if "shuffle_" in path.name and path.stat().st_size]
    assert shuffled, "the shuffle files were kept"
    with sqlite3.connect(stage.airflow_home / "airflow.db") as database:
        stored = {
            table: database.execute(f"select count(*) from {table}").fetchone()[0]
            for table in ("xcom", "rendered_task_instance_fields")
        }
    assert all(count >= 3 for count in stored.values()), stored


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
    key = planted["AES256_GCM key 1, bytes 0 to 31"]
    stage.run(
        "airflow leaks",
        *("airflow", "dags", "test", "lepton_leaks"),
        **connections(home.home),
        AIRFLOW_VAR_CANARY_RENDERED=key.hex(),
        AIRFLOW_VAR_CANARY_RETURNED=base64.b64encode(b"x" + key + b"y").decode(),
    )
    application = str(HERE / "applications" / "leaks.py")
    value = planted["email of row 0"].decode()
    arguments = (str(data / "raw"), str(data / "leaked"), key.hex(), value)
    stage.run("leaks", *("spark-submit", "--master", stage.master), application, *arguments)
    return stage.places()


def test_the_search_finds_what_leaks_in_every_place(
    stage: Any, leaked: dict[str, bytes], planted: dict[str, bytes], search: Search
) -> None:
    found = search(leaked, planted)
    key, email = "AES256_GCM key 1, bytes 0 to 31", "email of row 0"
    assert key in found["output of leaks"], "explain shows the key of aes_encrypt"
    assert email in found["output of leaks"]
    assert key in found["event logs"]
    assert key in found["process arguments"]
    assert key in found["process environments"]
    assert email in found["executor logs"]
    assert email in found["local folders"], "a shuffle without I/O encryption"
    assert "card of row 0, little-endian" in found["local folders"]
    assert "patient of row 0" in found["executor logs"], "a worker of the direct road that prints"
    assert "phone of row 0" in found["local folders"], "a worker of the direct road that writes a temporary file"
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
