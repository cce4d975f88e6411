"""Begin a training with the weights of the champion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lepton_airflow.errors import InvalidData

#: The layer that scales the inputs belongs to the new training split, not to the champion's.
_SCALING = "standardise"


def start_from(
    model: Any,
    champion: Any,
    *,
    features: Sequence[str],
    champion_features: Sequence[str],
    classes: Sequence[str | int | bool],
    champion_classes: Sequence[str | int | bool],
    place: str,
) -> None:
    """Copy the champion's weights into ``model``, all but the scaling of the inputs.

    :param champion: loaded from a file whose hash has been checked
    :param features: of the new model, in the order of its inputs
    :param classes: of the new model, in the order of its outputs
    :param place: the champion's folder, for errors
    :raises InvalidData: the champion has other features, classes or layers; ``model`` is left as it was
    """
    for what, ours, theirs in (("features", features, champion_features), ("classes", classes, champion_classes)):
        # A class True is no class 1.
        if [(type(name), name) for name in ours] != [(type(name), name) for name in theirs]:
            raise _unfit(f"The champion has other {what}, or has them in another order.", place)
    layers = {layer.name: [array.shape for array in layer.get_weights()] for layer in model.layers}
    theirs_layers = {layer.name: [array.shape for array in layer.get_weights()] for layer in champion.layers}
    if layers != theirs_layers:
        named = sorted(name for name in layers.keys() | theirs_layers if layers.get(name) != theirs_layers.get(name))
        raise _unfit(f"The champion's layers have another form: {', '.join(named)}.", place)
    for layer in model.layers:
        if layer.name != _SCALING:
            layer.set_weights(champion.get_layer(layer.name).get_weights())


def _unfit(rule: str, place: str) -> InvalidData:
    return InvalidData(
        rule,
        place=place,
        remedy="Set training.warm_start to false, or describe the new model as the champion's.",
    )
