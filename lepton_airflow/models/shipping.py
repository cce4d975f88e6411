"""What is between a champion's folder and the registry: both must say the same of a model before anybody loads it.

The folder is published first and registered afterwards. A job that dies in between leaves a folder that
:func:`require_champion` refuses, and its rerun, which finds its own model published, registers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lepton_airflow.audit.canonical import digest
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.errors import ModelTampered, RegistryError
from lepton_airflow.models.artefact import CARD_FILE, ModelFolder, file_digest
from lepton_airflow.models.registry import Entry, ModelRegistry
from lepton_airflow.models.tracking import measurements


def model_name(folder: ModelFolder, card: Mapping[str, Any]) -> str:
    """Under which name a model is registered: the card's, else the folder's."""
    return str(card.get("name") or folder.path.name)


def register_champion(registry: ModelRegistry, folder: ModelFolder, *, log: AuditLog) -> Entry:
    """Register the model that was just published, and promote it. Doing it again changes nothing.

    To be called after :meth:`~lepton_airflow.models.artefact.ModelFolder.publish`, and also when a rerun finds that an earlier
    try had published.

    :raises ModelTampered: see :meth:`~lepton_airflow.models.artefact.ModelFolder.champion`
    """
    card = _card(folder)
    name, sha256 = model_name(folder, card), card["model"]["sha256"]
    registry.register(
        name,
        sha256=sha256,
        status="challenger",
        card_sha256=file_digest(folder.path / CARD_FILE),
        dataset=card["data"]["dataset"],
        dataset_digest=card["data"]["digest"],
        metrics=measurements(card),
        reason="passed the gate",
        log=log,
    )
    return registry.promote(name, sha256=sha256, reason="passed the gate", log=log)


def register_rejected(
    registry: ModelRegistry,
    *,
    model: str,
    card: Mapping[str, Any],
    reason: str,
    log: AuditLog,
) -> Entry:
    """Register a model that the gate refused; its files are not kept.

    :param model: the name, see :func:`model_name`
    :param card: what its card would have said; the entry has the digest of its canonical JSON
    :param reason: the gate's
    """
    return registry.register(
        model,
        sha256=card["model"]["sha256"],
        status="rejected",
        card_sha256=digest(dict(card)),
        dataset=card["data"]["dataset"],
        dataset_digest=card["data"]["digest"],
        metrics=measurements(card),
        reason=reason,
        log=log,
    )


def require_registered(registry: ModelRegistry, folder: ModelFolder) -> tuple[Entry, dict[str, Any]]:
    """The registry's entry of the model in ``folder`` and the model's card; its files are verified first.

    :raises ModelTampered: see :meth:`~lepton_airflow.models.artefact.ModelFolder.champion`; or the card is not the registered one
    :raises RegistryError: the registry does not know the model
    """
    card = _card(folder)
    name = model_name(folder, card)
    found = registry.find(card["model"]["sha256"], model=name)
    if not found:
        raise RegistryError(
            f"The registry has no model {name!r} with this file.",
            place=str(folder.path),
            remedy="Run the job that published it again; or find out who put it there.",
        )
    if found[0].card_sha256 != file_digest(folder.path / CARD_FILE):
        raise ModelTampered(
            "The model card is not the one that was registered with the model.",
            place=str(folder.path / CARD_FILE),
            remedy="Do not load the model. Keep the folder for the inquiry and train again.",
        )
    return found[0], card


def require_champion(registry: ModelRegistry, folder: ModelFolder) -> Entry:
    """The same, if the model is the champion of its name: an older model in the champion's place is refused too.

    :raises ModelTampered: see :func:`require_registered`
    :raises RegistryError: the registry does not know the model, or another one is the champion
    """
    entry, _ = require_registered(registry, folder)
    if entry.status != "champion":
        raise RegistryError(
            f"The model is {entry.status} and not the champion of {entry.model!r}.",
            place=str(folder.path),
            remedy=f"See `lepton model history {entry.model}`; `lepton model promote` makes it the champion.",
        )
    return entry


def _card(folder: ModelFolder) -> dict[str, Any]:
    card = folder.champion()
    if card is None:
        raise ModelTampered(
            "There is no model.", place=str(folder.path), remedy="Give the folder of a model, or train one."
        )
    return card
