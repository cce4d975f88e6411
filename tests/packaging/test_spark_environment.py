"""``pip install`` of the wheel beside PySpark and nothing else: spark-submit works, and there is no Airflow."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# One worker makes the environment.
pytestmark = [pytest.mark.slow]
REPOSITORY = Path(__file__).parents[2]
NAMES = ("Ada", "Bea", "Cara")
POLICY = {
    "version": 1,
    "roles": {"etl": {"members": ["etl"]}},
    "grants": [
        {
            "id": "protect",
            "role": "etl",
            "actions": ["encrypt"],
            "datasets": ["clinic.*"],
            "columns": ["*"],
            "purposes": ["protection"],
        }
    ],
    "denials": [],
}
SPEC = {
    "purpose": "protection",
    "source": {"name": "clinic.raw", "format": "csv", "path": "raw.csv", "options": {"header": "true"}},
    "target": {"name": "clinic.people", "path": "protected"},
    "keyset": "default",
    "columns": {"name": {"cipher": "AES256_GCM"}, "id": {"cipher": "AES256_SIV", "domain": "person"}},
}


def applicable(requirements: list[str], extras: frozenset[str]) -> list[Requirement]:
    parsed = [Requirement(text) for text in requirements]
    environments = [{"extra": extra} for extra in extras or {""}]
    return [one for one in parsed if one.marker is None or any(map(one.marker.evaluate, environments))]


def needed(wheel: Path, extra: str) -> set[str]:
    """The packages that an extra of the wheel needs, directly or not. What each needs in turn, this environment knows."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    queue = applicable(metadata.get_all("Requires-Dist", []), frozenset({"", extra}))
    names: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    while queue:
        requirement = queue.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            names.add(key[0])
            queue += applicable(requires(key[0]) or [], key[1])
    return names


@pytest.fixture(scope="module")
def environment(make_environment: Callable[[str], Any], wheel: Path) -> Any:
    # requirements/spark.txt also has what TensorFlow and the privacy extra need; here is to be only [spark].
    names = needed(wheel, "spark")
    lock = (REPOSITORY / "requirements" / "spark.txt").read_text().replace("\\\n", "")
    lines = [line for line in lock.splitlines() if canonicalize_name(line.partition("==")[0]) in names]
    return make_environment("\n".join(lines))


def test_the_extra_needs_nothing_of_the_others(environment: Any) -> None:
    program = "import importlib.util, sys; print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    found = environment.run("python", "-c", program, "airflow", "tensorflow", "opendp", "sklearn", "pyspark", "pyarrow")
    assert found.stdout == "['pyspark', 'pyarrow']\n", found.stderr
    checked = environment.pip("check")
    assert checked.returncode == 0, checked.stdout


def test_spark_submit_encrypts_a_table(environment: Any) -> None:
    folder = environment.folder
    made = environment.run("lepton", "init", "--home", "home", "--identity", "etl")
    assert made.returncode == 0, made.stderr
    (folder / "home" / "policy.yaml").write_text(yaml.safe_dump(POLICY))
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    (folder / "raw.csv").write_text("id,name,site\n" + "".join(f"{i},{name},north\n" for i, name in enumerate(NAMES)))
    (script,) = folder.glob("venv/lib/*/site-packages/lepton_airflow/spark_jobs/encrypt_columns.py")

    submit = ("--master", "local[1]", "--conf", "spark.ui.enabled=false", str(script), "--spec", "spec.yaml")
    ran = environment.run("spark-submit", *submit, LEPTON_HOME=str(folder / "home"), SPARK_LOCAL_IP="127.0.0.1")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["result"]["rows"] == len(NAMES)

    table = pq.read_table(folder / "protected")
    assert table["site"].to_pylist() == ["north"] * len(NAMES)
    # Tink's prefix: version 1, then the key's id.
    assert {value[:1] for column in ("id", "name") for value in table[column].to_pylist()} == {b"\x01"}
    for file in (folder / "protected").rglob("*"):
        assert not file.is_file() or not any(name.encode() in file.read_bytes() for name in NAMES)
