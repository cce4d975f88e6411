"""Batches of one shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lepton_airflow.models.batches import padded_batches
from lepton_airflow.models.examples import Examples


@pytest.mark.parametrize("count", [1, 7, 8, 9, 17])
def test_every_batch_has_the_same_shape_and_every_example_comes_once(
    count: int, blobs: Callable[..., Examples]
) -> None:
    examples = blobs(count)
    order = np.random.default_rng(1).permutation(count)
    seen = []
    for batch in padded_batches(examples.features, examples.labels, size=8, order=order):
        assert batch.features.shape == (8, 5)
        assert batch.labels.shape == batch.weights.shape == (8,)
        assert batch.weights.tolist() == [1.0] * batch.count + [0.0] * (8 - batch.count)
        seen += batch.features[: batch.count].tolist()
    assert seen == examples.features[order].tolist()
