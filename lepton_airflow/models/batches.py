"""Batches of one fixed shape, so that a compiled step is traced once whatever the number of examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lepton_airflow.models.examples import Features, Labels


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch; the last of a pass is filled up with repeated examples of weight 0.

    :param features: [b, d]
    :param labels: [b]
    :param weights: [b], 1 for an example and 0 for filling
    :param count: how many examples, all at the front
    """

    features: Features
    labels: Labels
    weights: npt.NDArray[np.float32]
    count: int


def padded_batches(
    features: Features, labels: Labels, *, size: int, order: npt.NDArray[np.int64] | None = None
) -> Iterator[Batch]:
    """Cut examples into batches of exactly ``size``.

    :param features: [n, d]
    :param labels: [n]
    :param order: positions of the examples in the order to use; by default as they come
    """
    order = np.arange(len(labels)) if order is None else order
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        rows = np.resize(chosen, size)
        weights = np.zeros(size, np.float32)
        weights[: len(chosen)] = 1
        yield Batch(features=features[rows], labels=labels[rows], weights=weights, count=len(chosen))
