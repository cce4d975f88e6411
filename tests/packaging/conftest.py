"""Throw-away environments with the wheel and one extra each, from the locked requirements."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Environment:
    """A virtual environment in a folder of its own, which is also the home of whatever runs in it."""

    folder: Path

    def run(self, program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, with nothing of this process's environment variables but the PATH."""
        binaries = self.folder / "venv" / "bin"
        return subprocess.run(
            [binaries / program, *arguments],
            env={"PATH": f"{binaries}:{os.environ['PATH']}", "HOME": str(self.folder), **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def pip(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run this process's pip on the environment, which has none of its own."""
        command = [sys.executable, "-m", "pip", "--python", self.folder / "venv", *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)

    def install(self, *arguments: str) -> None:
        installed = self.pip("install", "--quiet", "--no-deps", "--no-compile", *arguments)
        assert installed.returncode == 0, installed.stderr


Maker = Callable[[str], Environment]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that a release would publish."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (file,) = folder.iterdir()
    return file


@contextmanager
def _environment(folder: Path, wheel: Path, lock: str) -> Iterator[Environment]:
    environment = Environment(folder)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        requirements = folder / "requirements.txt"
        requirements.write_text(lock)
        environment.install(
            "--require-hashes", "--only-binary", ":all:", "--no-binary", "pyspark", "--requirement", str(requirements)
        )
        environment.install("--no-index", str(wheel))
        yield environment
    finally:
        # A gigabyte that nobody will look at.
        shutil.rmtree(folder / "venv")


@pytest.fixture(scope="module")
def make_environment(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[Maker]:
    """Make an environment with the wheel and what the text of a lock says; it goes when the module's tests are done."""
    with ExitStack() as stack:
        yield lambda lock: stack.enter_context(_environment(tmp_path_factory.mktemp("environment"), wheel, lock))
