"""Ensembles: several networks that answer as one.

The average is over logits and not over probabilities. A network that is sure outvotes others either way, but gradients pass
through a mean of logits without a softmax that may have saturated, so an attack on the ensemble sees every member.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from lepton_airflow.errors import InvalidData


def averaged(models: Sequence[Any]) -> Any:
    """One Keras model whose logits are the mean of the members'; it is saved and loaded like any other.

    The members are copied: training one of them afterwards changes nothing here.

    :param models: at least two, each from [b, d] to logits [b, classes]
    :returns: a Keras model from [b, d] to logits [b, classes]
    :raises InvalidData: fewer than two, or members that differ in their inputs or outputs
    """
    shapes = {(model.input_shape, model.output_shape) for model in models}
    if len(models) < 2 or len(shapes) > 1:
        raise InvalidData(
            "An ensemble has at least two members, all with the same features and classes.",
            place="ensemble",
            remedy="Train its members on one table, with one list of classes.",
        )
    features = keras.Input(models[0].input_shape[1:], name="features")
    members = [_copied(model, name=f"member_{position}") for position, model in enumerate(models)]
    logits = keras.layers.Average(name="logits")([member(features) for member in members])
    return keras.Model(features, logits, name="ensemble")


def _copied(model: Any, *, name: str) -> Any:
    """A model of its own with the same layers and weights."""
    copy = type(model).from_config({**model.get_config(), "name": name})
    copy.set_weights(model.get_weights())
    return copy
