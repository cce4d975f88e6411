"""The locked requirements: complete in form, alike in version, free of addresses."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
LOCKS = sorted(path.name for path in (REPOSITORY / "requirements").iterdir())
PARTS = {
    "airflow.txt": ("airflow", "postgres"),
    "spark.txt": ("spark", "privacy", "tensorflow", "postgres", "storage"),
}
PYTHONS = ("3.11", "3.12", "3.13")


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """Each requirement of a lock and its hashes."""
    lines = (REPOSITORY / "requirements" / lock).read_text().replace("\\\n", "").splitlines()
    parts = [line.split("--hash=") for line in lines]
    return [(Requirement(requirement.strip()), [text.strip() for text in hashes]) for requirement, *hashes in parts]


def versions(lock: str, python: str) -> dict[str, str]:
    """What a lock installs on Linux with a given Python: name -> version."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "os_name": "posix",
        "platform_system": "Linux",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    found = {}
    for requirement, _ in entries(lock):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{lock} has two versions of {name} for Python {python}"
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            found[name] = pin.version
    return found


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_these_are_the_locks() -> None:
    assert LOCKS == ["airflow.txt", "all.txt", "build.txt", "demo.txt", "spark.txt"]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_is_pinned_and_hashed_and_there_is_nothing_else(lock: str) -> None:
    for requirement, hashes in entries(lock):
        assert requirement.url is None
        assert hashes, requirement.name
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", text) for text in hashes)


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_names_an_index(lock: str) -> None:
    text = (REPOSITORY / "requirements" / lock).read_text()
    assert not re.search(r"://|^\s*-(?!-hash=)|@|#", text, re.MULTILINE)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", [lock for lock in LOCKS if lock != "all.txt"])
def test_a_part_has_the_versions_and_hashes_of_the_whole(lock: str, python: str) -> None:
    assert versions(lock, python).items() <= versions("all.txt", python).items()
    whole = {(entry.name, str(entry.specifier)): set(hashes) for entry, hashes in entries("all.txt")}
    for entry, hashes in entries(lock):
        assert set(hashes) == whole[entry.name, str(entry.specifier)]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", PARTS)
def test_a_part_has_what_its_extras_ask_for(lock: str, python: str, project: dict[str, Any]) -> None:
    found = versions(lock, python)
    extras = project["project"]["optional-dependencies"]
    for text in [*project["project"]["dependencies"], *(text for extra in PARTS[lock] for text in extras[extra])]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), text


def test_the_whole_has_every_extra_and_every_tool(project: dict[str, Any]) -> None:
    found = versions("all.txt", "3.11")
    extras = project["project"]["optional-dependencies"]
    for text in [*(text for extra in extras.values() for text in extra), *project["dependency-groups"]["dev"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), text


def test_the_two_environments_are_apart() -> None:
    airflow, spark = versions("airflow.txt", "3.11"), versions("spark.txt", "3.11")
    assert not {"pyspark", "pyarrow", "numpy", "pandas", "tensorflow", "opendp"} & set(airflow)
    assert not [name for name in spark if name.startswith("apache-airflow")]
    for lock in LOCKS:
        assert "pyspark-client" not in versions(lock, "3.11")


def test_the_wheel_of_the_package_is_built_by_locked_tools(project: dict[str, Any]) -> None:
    found = versions("build.txt", "3.11")
    for text in project["build-system"]["requires"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)])
