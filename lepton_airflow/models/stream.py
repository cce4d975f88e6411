"""Examples as a ``tf.data`` pipeline: batches of one shape, made in TensorFlow's own threads while the last step is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lepton_airflow.models.examples import Examples

#: Batches that are made ahead.
_AHEAD = 2


def stream(examples: Examples, *, size: int, count: int, orders: Iterable[npt.NDArray[np.int64]]) -> Any:
    """Cut examples into batches of exactly ``size``, pass after pass.

    A pass ends with a batch that is filled up with examples of weight 0, and then with batches of nothing else, if ``count`` is
    more than the examples need. The examples are in memory once more, as a tensor.

    :param count: batches of a pass
    :param orders: for every pass, the positions of the examples in the order to use
    :returns: a ``tf.data.Dataset`` of features [size, d], labels [size] and weights [size], 1 for an example and 0 for filling
    """
    features, labels = tf.constant(examples.features), tf.constant(examples.labels)

    def passes() -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        for order in orders:
            rows = np.resize(order, (count, size))
            weights = np.arange(count * size) < len(order)
            yield rows, weights.reshape(count, size).astype(np.float32)

    # One row of both at a time: the positions of a batch, and its weights.
    positions = tf.data.Dataset.from_generator(
        passes,
        output_signature=(tf.TensorSpec((count, size), tf.int64), tf.TensorSpec((count, size), tf.float32)),
    ).unbatch()
    options = tf.data.Options()
    # There is one thing to do at a time, and the cores belong to the training.
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    return (
        positions.map(lambda rows, weights: (tf.gather(features, rows), tf.gather(labels, rows), weights))
        .prefetch(_AHEAD)
        .with_options(options)
    )
