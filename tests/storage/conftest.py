"""Storage nodes in folders, and a deployment that knows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lepton_airflow.settings import SETTINGS_FILE, Settings, load_settings
from lepton_airflow.storage.nodes import Node


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Node, ...]:
    """Five prepared nodes: ``a`` to ``e``."""
    made = tuple(Node(name, (tmp_path / "nodes" / name).as_uri()) for name in "abcde")
    for node in made:
        node.prepare()
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Node], Path]:
    """The folder of a node."""
    return lambda node: tmp_path / "nodes" / node.name


@pytest.fixture
def storage(home: Settings, nodes: tuple[Node, ...], tmp_path: Path) -> Settings:
    """The deployment, with these nodes in its settings."""
    places = {node.name: str(tmp_path / "nodes" / node.name) for node in nodes}
    (home.home / SETTINGS_FILE).write_text(yaml.safe_dump({"identity": "tester", "storage_nodes": places}))
    return load_settings(home.home)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of files: of several stripes, of one byte, of none, in folders, and such as are not stored."""
    path = tmp_path / "visits"
    files = {
        "part-0.bin": bytes(range(256)) * 40_000,
        "part-1.bin": b"x",
        "year=2025/site=north & west/part-2.bin": b"Ada" * 100_000,
        "_SUCCESS": b"",
        ".part-0.bin.crc": b"not stored",
        "_lepton_commit.json": b"{}",
    }
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path
