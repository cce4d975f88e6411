"""Loading a Keras model that somebody else may have written: nothing in its file is run.

A ``.keras`` file is an archive with weights and a configuration, which names the classes that Keras is to build. Keras' safe mode
refuses Python code in it (Lambda layers). Here it may name nothing but Keras' own classes and no layer that loads other files, so
that neither an installed package nor a path gets a say.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lepton_airflow.errors import ModelTampered
from lepton_airflow.models.artefact import file_digest

_CONFIGURATION = "config.json"
#: Layers of Keras that run code or load files that the configuration names.
_REFUSED_CLASSES = frozenset({"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "__lambda__"})


def load_model(file: Path, *, sha256: str) -> Any:
    """Load the Keras model in ``file`` for inference.

    The file is copied first, and the copy is what is checked and loaded: whoever can write to the folder cannot exchange the file
    in between.

    :param sha256: ``sha256:<hex>`` of the file that is meant
    :raises ModelTampered: another file, not a Keras archive, or one that names code outside Keras
    """
    import keras

    with tempfile.TemporaryDirectory(prefix="lepton-model-") as folder:
        copy = Path(folder) / "model.keras"
        try:
            shutil.copyfile(file, copy)
        except OSError as error:
            raise _refused(f"The file cannot be read ({type(error).__name__}).", file) from None
        if file_digest(copy) != sha256:
            raise _refused("The file is not the one that was verified.", file)
        _require_plain(copy, file)
        try:
            return keras.models.load_model(copy, compile=False, safe_mode=True, custom_objects=None)
        except (ValueError, TypeError, OSError, KeyError) as error:
            raise _refused(f"Keras cannot load the file safely ({type(error).__name__}).", file) from None


def _require_plain(copy: Path, file: Path) -> None:
    try:
        with zipfile.ZipFile(copy) as archive:
            configuration = json.loads(archive.read(_CONFIGURATION))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError):
        raise _refused("The file is not a Keras archive.", file) from None
    for node in _nodes(configuration):
        if "class_name" not in node:
            continue
        module, name = node.get("module"), node["class_name"]
        if name in _REFUSED_CLASSES:
            raise _refused(f"The model has a {name}, which runs code or loads files that the file names.", file)
        inside = module is None or (isinstance(module, str) and (module == "keras" or module.startswith("keras.")))
        if not inside or node.get("registered_name") not in (None, name):
            raise _refused("The model names classes that are not of Keras.", file)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _nodes(part)


def _refused(rule: str, file: Path) -> ModelTampered:
    return ModelTampered(rule, place=str(file), remedy="Do not load it by other means. Find out where it comes from.")
