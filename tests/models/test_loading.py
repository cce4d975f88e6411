"""A model file is loaded only if it is the one that was verified and names nothing but Keras' own layers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from lepton_airflow.errors import ModelTampered
from lepton_airflow.models.artefact import CARD_FORMAT, MODEL_FILE, ModelFolder, file_digest
from lepton_airflow.models.loading import load_model


def network() -> Any:
    layers = [
        keras.Input((3,)),
        keras.layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 4.0, 4.0]),
        keras.layers.Dense(2),
    ]
    return keras.Sequential(layers)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.keras"
    network().save(path)
    return path


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The archive with a configuration that ``change`` has had its way with."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    configuration = json.loads(parts["config.json"])
    change(configuration)
    parts["config.json"] = json.dumps(configuration).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def dense(configuration: dict[str, Any]) -> dict[str, Any]:
    layer: dict[str, Any] = configuration["config"]["layers"][-1]
    assert layer["class_name"] == "Dense"
    return layer


def test_the_champion_is_loaded_from_what_was_verified(tmp_path: Path) -> None:
    folder, model = ModelFolder(tmp_path / "diagnosis"), network()
    with folder.staging("run 1") as staging:
        model.save(staging / MODEL_FILE)
        card = {"format": CARD_FORMAT, "model": {"sha256": file_digest(staging / MODEL_FILE)}}
        folder.publish(staging, card)
    points = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(folder.load()(points), model(points))
    assert folder.int8() is None
    with pytest.raises(ModelTampered, match="no model"):
        ModelFolder(tmp_path / "empty").load()


def test_a_file_exchanged_after_it_was_verified_is_not_loaded(saved: Path) -> None:
    digest = file_digest(saved)
    network().save(saved)
    with pytest.raises(ModelTampered, match="not the one that was verified"):
        load_model(saved, sha256=digest)
    saved.unlink()
    with pytest.raises(ModelTampered, match="cannot be read"):
        load_model(saved, sha256=digest)


def test_python_code_in_the_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2)]).save(path)
    with pytest.raises(ModelTampered, match="Lambda"):
        load_model(path, sha256=file_digest(path))


def test_classes_outside_keras_are_refused_even_if_they_are_registered(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable(package="somebody")
    class Doubling(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x * 2

    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((3,)), Doubling()]).save(path)
    with pytest.raises(ModelTampered, match="not of Keras"):
        load_model(path, sha256=file_digest(path))


@pytest.mark.parametrize(
    "change",
    [
        lambda configuration: dense(configuration).update(module="os", class_name="system"),
        lambda configuration: dense(configuration).update(module="kerastrojan.layers"),
        lambda configuration: dense(configuration).update(class_name="TFSMLayer", config={"filepath": "/elsewhere"}),
        lambda configuration: dense(configuration)["config"].update(
            kernel_initializer={"module": "builtins", "class_name": "exec", "config": {}, "registered_name": "exec"}
        ),
        lambda configuration: dense(configuration).update(class_name="NoSuchLayer"),
    ],
)
def test_a_configuration_that_names_other_code_is_refused(
    saved: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    path = edited(saved, change)
    with pytest.raises(ModelTampered):
        load_model(path, sha256=file_digest(path))


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_model_is_refused(saved: Path, content: bytes) -> None:
    saved.write_bytes(content)
    with pytest.raises(ModelTampered, match="not a Keras archive"):
        load_model(saved, sha256=file_digest(saved))
