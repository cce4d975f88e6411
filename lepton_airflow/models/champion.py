"""What a champion's card says of its inputs: to score it on other rows, and to hold a spec for its successor against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lepton_airflow.errors import SpecError, UnreadableSource
from lepton_airflow.models.artefact import MODEL_FILE, ModelFolder
from lepton_airflow.models.plan import ImageColumn
from lepton_airflow.models.threat_model import ThreatModel

if TYPE_CHECKING:
    from lepton_airflow.models.input_space import InputSpace


@dataclass(frozen=True, kw_only=True)
class Champion:
    """A published model, whose files are those that its card describes."""

    folder: ModelFolder
    card: Mapping[str, Any]

    @classmethod
    def open(cls, folder: ModelFolder) -> Champion:
        """Check the model's files against its card, and its signature if one is required.

        :raises UnreadableSource: there is no model
        :raises ModelTampered: see :meth:`ModelFolder.champion`
        :raises TargetExists: what is there is no model of this package
        """
        card = folder.champion()
        if card is None:
            raise UnreadableSource(
                "There is no model.", place=str(folder.path), remedy="Train one first, or correct the path."
            )
        return cls(folder=folder, card=card)

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of the model's file."""
        return str(self.card["model"]["sha256"])

    @property
    def image(self) -> ImageColumn | None:
        """The column of images that it was trained on, if it was."""
        stated = self.card["data"].get("image")
        return None if stated is None else ImageColumn(**stated)

    @property
    def features(self) -> tuple[str, ...]:
        """The columns of a table that it was trained on, in its order; none for images."""
        return () if self.image is not None else tuple(self.card["data"]["features"])

    @property
    def label(self) -> str:
        return str(self.card["data"]["label"])

    @property
    def classes(self) -> tuple[str | int | bool, ...]:
        """In the order of its outputs."""
        return tuple(self.card["data"]["classes"])

    @property
    def privacy_unit(self) -> str:
        return str(self.card["data"]["privacy_unit"])

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of the table that are needed to score it."""
        inputs = self.features if self.image is None else (self.image.column,)
        return (*inputs, self.label, self.privacy_unit)

    @property
    def threat_model(self) -> ThreatModel:
        return ThreatModel(**self.card["threat_model"])

    def space(self) -> InputSpace:
        """The space in which it was defended, in the units of its own training split."""
        import numpy as np

        from lepton_airflow.models.input_space import constrained, image_space

        if self.image is not None:
            return image_space(self.image, threat_model=self.threat_model)
        stated = self.card["preprocessing"]
        mean, scale = (np.array(stated[name], np.float64) for name in ("mean", "scale"))
        return constrained(mean, scale, names=self.features, threat_model=self.threat_model)

    def load(self) -> Any:
        """The Keras model, and not one that was published meanwhile. Call it after
        :func:`lepton_airflow.models.runtime.load_tensorflow`.

        :raises ModelTampered: see :func:`lepton_airflow.models.loading.load_model`
        """
        from lepton_airflow.models.loading import load_model

        return load_model(self.folder.path / MODEL_FILE, sha256=self.digest)


def require_same_inputs(
    card: Mapping[str, Any],
    *,
    features: Sequence[str],
    image: ImageColumn | None,
    classes: Sequence[str | int | bool],
    place: str,
) -> None:
    """Refuse to replace a champion by a model that sees other columns, images of another shape, or other classes.

    Whoever uses the champion would feed its successor the wrong numbers, and the two cannot be compared.

    :param card: the champion's
    :param features: the successor's columns
    :param place: the champion's folder
    :raises SpecError: naming what differs
    """
    data = card["data"]
    stated = data.get("image")
    differences = [
        name
        for name, (old, new) in {
            "features": ([] if stated else list(data["features"]), list(features)),
            "image": (stated, None if image is None else image.model_dump(mode="json")),
            "classes": (list(data["classes"]), list(classes)),
        }.items()
        if old != new
    ]
    if differences:
        raise SpecError(
            f"The champion has other {' and other '.join(differences)}; it stays.",
            place=place,
            remedy="Give the new model a target of its own, or the champion's inputs and classes in their order.",
        )
