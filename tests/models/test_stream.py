"""What a training step is given, batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lepton_airflow.models.batches import padded_batches
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.stream import stream


def test_a_stream_gives_the_batches_of_every_pass_in_its_order(blobs: Callable[..., Examples]) -> None:
    examples = blobs(10)
    orders = [np.random.default_rng(seed).permutation(10) for seed in (1, 2)]
    given = list(stream(examples, size=4, count=3, orders=orders).as_numpy_iterator())
    wanted = [
        batch for order in orders for batch in padded_batches(examples.features, examples.labels, size=4, order=order)
    ]
    assert len(given) == len(wanted) == 6
    for (features, labels, weights), batch in zip(given, wanted, strict=True):
        assert (features.shape, labels.shape) == ((4, 5), (4,))
        assert weights.tolist() == batch.weights.tolist()
        assert features[: batch.count].tolist() == batch.features[: batch.count].tolist()
        assert labels[: batch.count].tolist() == batch.labels[: batch.count].tolist()


def test_a_rank_with_fewer_examples_fills_its_last_steps_with_nothing(blobs: Callable[..., Examples]) -> None:
    given = list(stream(blobs(8), size=4, count=3, orders=[np.arange(8)]).as_numpy_iterator())
    assert [weights.sum() for _, _, weights in given] == [4, 4, 0]
    assert all(features.shape == (4, 5) for features, _, _ in given)
