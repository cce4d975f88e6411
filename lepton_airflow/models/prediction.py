"""Predictions of any number of examples through a graph of one batch shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lepton_airflow.models.examples import Features

Logits = npt.NDArray[np.float32]

#: From features [n, d] in raw units to logits [n, classes]: all that a black-box attack may see of a model.
Predict = Callable[[Features], Logits]


def prediction_of(model: Any, *, batch_size: int = 256, samples: int = 1) -> Predict:
    """How a Keras model predicts.

    :param model: from [b, d] to logits [b, classes]; it is called with ``training=False``
    :param batch_size: examples predicted at a time
    :param samples: predictions to average over, for models that draw random numbers
    """
    width = int(model.input_shape[-1])

    @tf.function(autograph=False, input_signature=(tf.TensorSpec((batch_size, width), tf.float32),))  # type: ignore[untyped-decorator]
    def step(x: Any) -> Any:
        if samples == 1:
            return model(x, training=False)
        _, total = tf.while_loop(
            lambda sample, _: sample < samples,
            lambda sample, total: (sample + 1, total + model(x, training=False)),
            (tf.constant(1), model(x, training=False)),
            parallel_iterations=1,
        )
        return total / samples

    def predict(features: Features) -> Logits:
        filled = np.zeros((-(-len(features) // batch_size) * batch_size, width), np.float32)
        filled[: len(features)] = features
        batches = [step(filled[start : start + batch_size]).numpy() for start in range(0, len(filled), batch_size)]
        if not batches:
            return np.zeros((0, model.output_shape[-1]), np.float32)
        logits: Logits = np.concatenate(batches)[: len(features)]
        return logits

    return predict


def correct(logits: Logits, labels: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """[n]: whether the largest logit is that of the true class; logits that are no numbers are never correct."""
    right: npt.NDArray[np.bool_] = (logits.argmax(axis=1) == labels) & np.isfinite(logits).all(axis=1)
    return right


def margins(logits: Logits, labels: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """[n]: by how much the true class's logit exceeds the largest other one."""
    others = logits.copy()
    rows = np.arange(len(labels))
    others[rows, labels] = -np.inf
    difference: npt.NDArray[np.float32] = logits[rows, labels] - others.max(axis=1)
    return difference
