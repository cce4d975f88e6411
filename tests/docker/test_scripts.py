"""Every shell script is sound, and does what the containers rely on."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in REPOSITORY.glob("docker/**/*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_script_parses_stops_at_errors_and_can_be_run(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert script.stat().st_mode & stat.S_IXUSR
    parsed = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert parsed.returncode == 0, parsed.stderr


def test_shellcheck_finds_nothing() -> None:
    program = Path(sys.executable).with_name("shellcheck")
    checked = subprocess.run([program, *SCRIPTS], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


def test_secrets_are_private_files_and_each_service_has_only_its_own(stack: Any) -> None:
    mounts = stack.folder / "mounts"
    held = {
        volume: {path.name for path in (mounts / volume).iterdir()} for volume in ("client-secrets", "spark-secrets")
    }
    assert held == {"client-secrets": {"authority.crt", "pgpass"}, "spark-secrets": {"cluster.secret"}}
    files = list(mounts.glob("*-secrets/*"))
    assert {mode(path) for path in files} == {"0600"}
    # The authority's key is nowhere: nobody can make a second certificate for the server.
    assert [path.name for path in files if "KEY" in path.read_text()] == ["server.key"]
    # Every password is its own.
    passwords = [path.read_text() for path in files if path.suffix in (".password", ".secret")]
    assert len(passwords) == len(set(passwords)) == 4


def test_making_the_secrets_again_keeps_them(stack: Any) -> None:
    files = sorted((stack.folder / "mounts").glob("*-secrets/*"))
    before = [path.read_bytes() for path in files]
    again = stack.run("secrets", stack.compose["services"]["secrets"]["entrypoint"])
    assert (again.returncode, again.stdout) == (0, "The secrets are there already.\n")
    assert [path.read_bytes() for path in files] == before


def entrypoint(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [REPOSITORY / "docker" / "spark" / "entrypoint.sh", *command],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_entry_point_hands_spark_the_secret_in_a_private_file_and_runs_the_command(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    seen = entrypoint("printenv", "SPARK_CONF_DIR", HOME=str(tmp_path), SPARK_SECRET_FILE=str(secret))
    assert seen.returncode == 0, seen.stderr
    properties = Path(seen.stdout.strip()) / "spark-defaults.conf"
    assert mode(properties) == "0600"
    settings = [line.split(None, 1) for line in properties.read_text().splitlines() if line and line[0] != "#"]
    assert dict(settings)["spark.authenticate.secret"] == "s3cret"
    assert dict(settings)["spark.authenticate"] == dict(settings)["spark.network.crypto.enabled"] == "true"
    # What the command writes is not more private than it asks for.
    assert entrypoint("sh", "-c", "umask", HOME=str(tmp_path), SPARK_SECRET_FILE=str(secret)).stdout == "0022\n"


def test_the_entry_point_leaves_spark_alone_without_a_cluster(tmp_path: Path) -> None:
    seen = entrypoint("printenv", "SPARK_CONF_DIR", HOME=str(tmp_path))
    assert (seen.returncode, seen.stdout, list(tmp_path.iterdir())) == (1, "", [])


def test_the_entry_point_runs_nothing_when_the_secret_is_missing(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    seen = entrypoint("echo", "ran", HOME=str(tmp_path), SPARK_SECRET_FILE=missing)
    assert seen.returncode != 0
    assert seen.stdout == ""
    assert missing in seen.stderr


@pytest.fixture
def demo_image(tmp_path: Path) -> Path:
    """The demo image's /opt/lepton, and a `python` that says what it is asked to run."""
    shutil.copytree(REPOSITORY / "docker" / "demo", tmp_path / "demo")
    shutil.copytree(REPOSITORY / "dags", tmp_path / "dags")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\ntest -f "$1" && echo "runs $(realpath "$1")"\n')
    python.chmod(0o755)
    return tmp_path


def run_demo(image: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [image / "demo" / "run.sh"],
        env={"PATH": f"{image / 'bin'}:{os.environ['PATH']}", "LEPTON_DEMO_FOLDER": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_demo_runs_and_says_how_to_fetch_the_report(demo_image: Path) -> None:
    ran = run_demo(demo_image, demo_image / "volume" / "demo")
    assert ran.returncode == 0, ran.stderr
    assert f"runs {demo_image}/dags/clinic/demo.py\n" in ran.stdout
    assert f"cat {demo_image}/volume/demo/report.html" in ran.stdout


def test_the_demo_does_not_wipe_an_earlier_one(demo_image: Path) -> None:
    folder = demo_image / "volume" / "demo"
    folder.mkdir(parents=True)
    ran = run_demo(demo_image, folder)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "down --volumes" in ran.stderr


@pytest.mark.parametrize("script", ["docker/setup/system.sh", "docker/secrets.sh", "docker/spark/entrypoint.sh"])
def test_a_script_without_its_arguments_changes_nothing(script: str, tmp_path: Path) -> None:
    ran = subprocess.run([REPOSITORY / script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1, 2)
    assert list(tmp_path.iterdir()) == []


def test_what_is_installed_is_not_installed_again() -> None:
    """On a machine that has run `make setup` and `make test` before, neither asks for a package."""
    for what in ("java", "postgresql", "softhsm", "venv"):
        ran = subprocess.run(
            [REPOSITORY / "docker" / "setup" / "system.sh", what], capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stdout) == (0, "")


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    ran = subprocess.run(
        [REPOSITORY / "docker" / "setup" / "venv.sh", tmp_path / "venv"],
        env={"PATH": os.environ["PATH"], "PYTHON": str(old)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert f"{old} is not Python 3.11" in ran.stderr
    assert not (tmp_path / "venv").exists()
