"""Network architectures: from raw features to logits, with the scaling of the inputs as a layer of the network itself, so that
whoever loads the model cannot forget it or use another.

First weights come from seeds, one for each layer, and from nothing else: neither from the process nor from its other models.
"""

from __future__ import annotations

from typing import Any

import keras

from lepton_airflow.models.examples import Features
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.plan import TrainingPlan
from lepton_airflow.models.seeds import derived_seed


def classifier_for(space: InputSpace, *, plan: TrainingPlan, classes: int, seed: int) -> Any:
    """The untrained classifier of an input space: convolutions for images, a multilayer perceptron for tables.

    :param plan: ``hidden`` widths, and ``filters`` for images
    :returns: a Keras model from [b, d] in raw units to logits [b, classes]
    """
    if space.is_image:
        return image_classifier(space, filters=plan.filters, hidden=plan.hidden, classes=classes, seed=seed)
    return tabular_classifier(mean=space.mean, scale=space.scale, hidden=plan.hidden, classes=classes, seed=seed)


def tabular_classifier(*, mean: Features, scale: Features, hidden: tuple[int, ...], classes: int, seed: int) -> Any:
    """A multilayer perceptron over the raw features of a table; its first layer standardises them.

    :param mean: [features]
    :param scale: [features], standard deviations, all above 0
    :param hidden: widths of the hidden layers, ReLU
    :returns: a Keras model from [b, features] in raw units to logits [b, classes]
    """
    return keras.Sequential(
        [
            keras.Input((len(mean),), name="features"),
            keras.layers.Normalization(
                mean=mean.tolist(), variance=(scale.astype("float64") ** 2).tolist(), name="standardise"
            ),
            *dense_layers(hidden, classes=classes, seed=seed),
        ]
    )


def image_classifier(space: InputSpace, *, filters: int, hidden: tuple[int, ...], classes: int, seed: int) -> Any:
    """A small convolutional network over flat images; its first layers give them their shape back and rescale raw pixel
    values to [0, 1].

    Two 3x3 convolutions of ``filters`` channels, pooling by the greatest of 2x2, one of twice the channels, then dense layers.

    :param hidden: widths of the dense hidden layers, ReLU
    :returns: a Keras model from [b, height * width * channels] in raw units to logits [b, classes]
    """
    return keras.Sequential(
        [
            *image_layers(space),
            convolution("convolution_0", filters, seed=seed),
            convolution("convolution_1", filters, seed=seed),
            keras.layers.MaxPooling2D(2, padding="same", name="pool"),
            convolution("convolution_2", 2 * filters, seed=seed),
            keras.layers.Flatten(name="flatten"),
            *dense_layers(hidden, classes=classes, seed=seed),
        ]
    )


def image_layers(space: InputSpace) -> list[Any]:
    """From flat images in raw units to [b, height, width, channels] in [0, 1]."""
    dark, reach = float(space.mean[0]), float(space.scale[0])
    return [
        keras.Input((len(space),), name="features"),
        keras.layers.Reshape(space.shape, name="image"),
        keras.layers.Rescaling(1 / reach, offset=-dark / reach, name="standardise"),
    ]


def convolution(name: str, filters: int, *, seed: int, activation: str = "relu") -> Any:
    """A 3x3 convolution that keeps height and width."""
    initializer = keras.initializers.GlorotUniform(seed=derived_seed(seed, name))
    return keras.layers.Conv2D(
        filters, 3, padding="same", activation=activation, kernel_initializer=initializer, name=name
    )


def dense_layers(hidden: tuple[int, ...], *, classes: int, seed: int) -> list[Any]:
    """Hidden layers with ReLU, and the logits."""
    layers = []
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
    return layers
