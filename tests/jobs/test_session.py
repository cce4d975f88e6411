"""The wrong Java is reported before a JVM can fail with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepton_airflow.errors import WrongJava
from lepton_airflow.jobs.session import check_java


def java_that_says(folder: Path, text: str) -> Path:
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / "java"
    program.write_text(f"#!/bin/sh\necho '{text}' >&2\n")
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize("version", ["1.8.0_402", "11.0.22", "24"])
def test_an_unsupported_java_is_named_with_the_remedy(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = java_that_says(tmp_path / "jdk", f'openjdk version "{version}" 2024-01-16')
    monkeypatch.setenv("JAVA_HOME", str(home))
    with pytest.raises(WrongJava, match="17 or 21") as caught:
        check_java()
    assert str(home) in caught.value.place
    assert "openjdk-17" in caught.value.remedy
    assert caught.value.final


@pytest.mark.parametrize(("version", "major"), [("17.0.15", 17), ("21", 21)])
def test_a_supported_java_passes(version: str, major: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(java_that_says(tmp_path / "jdk", f'openjdk version "{version}" 2025-04-15')))
    assert check_java() == major


def test_no_java_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WrongJava, match="No Java"):
        check_java()
