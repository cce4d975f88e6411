"""The champion's folder: replaced as one, never lost, never confused with something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.errors import ModelTampered, TargetExists
from lepton_airflow.models.artefact import CARD_FILE, CARD_FORMAT, MODEL_FILE, ModelFolder, file_digest


def publish(folder: ModelFolder, *, run_key: str = "run 1", content: bytes = b"weights") -> dict[str, Any]:
    with folder.staging(run_key) as staging:
        (staging / MODEL_FILE).write_bytes(content)
        card = {
            "format": CARD_FORMAT,
            "run_key": run_key,
            "spec_digest": "sha256:1",
            "model": {"sha256": file_digest(staging / MODEL_FILE)},
        }
        folder.publish(staging, card)
    return card


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "lock" and path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "models" / "diagnosis")


def test_a_first_model_becomes_the_champion(folder: ModelFolder) -> None:
    assert folder.champion() is None
    card = publish(folder)
    assert folder.champion() == card
    assert names(folder.path.parent) == {f"diagnosis/{MODEL_FILE}", f"diagnosis/{CARD_FILE}"}


def test_a_new_champion_replaces_the_old_one(folder: ModelFolder) -> None:
    publish(folder)
    card = publish(folder, run_key="run 2", content=b"other weights")
    assert folder.champion() == card
    assert (folder.path / MODEL_FILE).read_bytes() == b"other weights"
    assert names(folder.path.parent) == {f"diagnosis/{MODEL_FILE}", f"diagnosis/{CARD_FILE}"}


def test_only_the_run_that_published_finds_its_model(folder: ModelFolder) -> None:
    card = publish(folder)
    assert folder.committed(run_key="run 1", spec_digest="sha256:1") == card
    assert folder.committed(run_key="run 2", spec_digest="sha256:1") is None
    assert folder.committed(run_key="run 1", spec_digest="sha256:2") is None


def test_what_fails_before_publishing_leaves_nothing(folder: ModelFolder) -> None:
    card = publish(folder)

    def fail_half_way() -> None:
        with folder.staging("run 2") as staging:
            (staging / MODEL_FILE).write_bytes(b"half of a mod")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert folder.champion() == card
    assert names(folder.path.parent) == {f"diagnosis/{MODEL_FILE}", f"diagnosis/{CARD_FILE}"}


def test_what_a_killed_try_left_is_gone_in_the_next(folder: ModelFolder) -> None:
    with folder.staging("run 1") as staging:
        (staging / "left.over").write_bytes(b"from a killed try")
        with folder.staging("run 1") as again:
            assert again == staging
            assert list(again.iterdir()) == []
            with folder.staging("run 2") as other:
                assert other != again


def test_a_crash_between_the_two_renames_loses_no_champion(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = publish(folder)
    rename = Path.rename

    def crash_at_the_second(self: Path, target: Path) -> Path:
        if target == folder.path:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            publish(folder, run_key="run 2", content=b"other weights")
    assert not folder.path.exists()
    assert folder.champion() == card, "the next look restores it"
    card = publish(folder, run_key="run 3", content=b"third weights")
    assert folder.champion() == card


def test_everything_is_durable_before_the_old_champion_goes(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder)
    steps: list[str] = []
    module = "lepton_airflow.models.artefact"
    durable = __import__(module, fromlist=["_make_durable"])._make_durable
    rename, remove = Path.rename, __import__("shutil").rmtree

    def note_durable(path: Path) -> None:
        steps.append(f"durable {path.name}")
        durable(path)

    def note_rename(self: Path, target: Path) -> Path:
        steps.append(f"rename to {target.name}")
        return rename(self, target)

    def note_remove(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            steps.append(f"remove {path.name}")
        remove(path, ignore_errors=ignore_errors)

    with monkeypatch.context() as patch:
        patch.setattr(f"{module}._make_durable", note_durable)
        patch.setattr(Path, "rename", note_rename)
        patch.setattr(f"{module}.shutil.rmtree", note_remove)
        publish(folder, run_key="run 2")
    assert steps.index(f"durable {MODEL_FILE}") < steps.index("rename to previous")
    assert steps.index(f"durable {CARD_FILE}") < steps.index("rename to previous")
    assert steps.index("rename to diagnosis") < steps.index("durable models") < steps.index("remove previous")


def test_a_changed_model_file_is_not_taken_for_the_champion(folder: ModelFolder) -> None:
    publish(folder)
    (folder.path / MODEL_FILE).write_bytes(b"weightz")
    with pytest.raises(ModelTampered, match=r"model\.keras"):
        folder.committed(run_key="run 1", spec_digest="sha256:1")


def test_a_file_that_changed_after_it_was_attacked_is_not_published(folder: ModelFolder) -> None:
    card = publish(folder)
    with folder.staging("run 2") as staging:
        (staging / MODEL_FILE).write_bytes(b"attacked")
        new = card | {"model": {"sha256": file_digest(staging / MODEL_FILE)}}
        (staging / MODEL_FILE).write_bytes(b"swapped")
        with pytest.raises(ModelTampered):
            folder.publish(staging, new)
    assert folder.champion() == card


@pytest.mark.parametrize("card", [None, "{", "[]", "{}", json.dumps({"format": "something else"})])
def test_a_folder_that_is_no_model_is_left_alone(folder: ModelFolder, card: str | None) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / "thesis.tex").write_text("years of work")
    if card is not None:
        (folder.path / CARD_FILE).write_text(card)
    with pytest.raises(TargetExists):
        folder.champion()
    with pytest.raises(TargetExists):
        publish(folder)
    assert (folder.path / "thesis.tex").read_text() == "years of work"
