"""Network architectures."""

from __future__ import annotations

from typing import Any

import keras

from lepton_airflow.models.examples import Features
from lepton_airflow.models.seeds import derived_seed


def tabular_classifier(*, mean: Features, scale: Features, hidden: tuple[int, ...], classes: int, seed: int) -> Any:
    """A multilayer perceptron over the raw features of a table.

    Standardisation is its first layer, so that whoever loads the model cannot forget it or use another.

    :param mean: [features]
    :param scale: [features], standard deviations, all above 0
    :param hidden: widths of the hidden layers, ReLU
    :returns: a Keras model from [b, features] in raw units to logits [b, classes]
    """
    layers: list[Any] = [
        keras.Input((len(mean),), name="features"),
        keras.layers.Normalization(
            mean=mean.tolist(), variance=(scale.astype("float64") ** 2).tolist(), name="standardise"
        ),
    ]
    for position, width in enumerate((*hidden, classes)):
        last = position == len(hidden)
        layers.append(
            keras.layers.Dense(
                width,
                activation=None if last else "relu",
                kernel_initializer=keras.initializers.GlorotUniform(seed=derived_seed(seed, f"layer {position}")),
                name="logits" if last else f"hidden_{position}",
            )
        )
    return keras.Sequential(layers)
