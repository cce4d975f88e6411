"""Workers of a Spark barrier stage train one model together, or not at all."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from lepton_airflow.errors import ConfigurationError, EmptyTable, JobFailed, SpecError
from lepton_airflow.models import distributed
from lepton_airflow.models.distributed import train_in_barrier_stage
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import TrainingPlan
from lepton_airflow.models.rank import weights_digest
from lepton_airflow.models.training import EpochReport, train
from lepton_airflow.models.validation import Validation

PLAN = TrainingPlan(epochs=3, batch_size=40, learning_rate=0.05, hidden=(8,), workers=2)


def network(features: int = 5) -> Any:
    return keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dense(8, activation="relu", kernel_initializer=keras.initializers.GlorotUniform(seed=1)),
            keras.layers.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(seed=2)),
        ]
    )


def cross_entropy_of(model: Any, seed: int) -> Any:
    from lepton_airflow.models.objectives import standard_objective

    return standard_objective()


def dies_in_one_rank(model: Any, seed: int) -> Any:
    """Rank 1 is killed, as by a machine that ran out of memory."""
    import json

    if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return cross_entropy_of(model, seed)


@pytest.fixture(autouse=True)
def _functions_of_this_file_travel() -> None:
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


def trained_together(spark: Any, model: Any, examples: Examples, **changes: Any) -> list[EpochReport]:
    reports: list[EpochReport] = []
    arguments: dict[str, Any] = {
        "name": "hardened",
        "plan": PLAN,
        "objective": cross_entropy_of,
        "seed": 4,
        "report": reports.append,
    }
    train_in_barrier_stage(spark, model, examples, **(arguments | changes))
    return reports


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns_and_a_dead_rank_stops_all(spark: Any, blobs: Callable[..., Examples]) -> None:
    # One batch an epoch holds every example, so that in which order they come makes no difference.
    examples, plan = blobs(40), PLAN
    alone, together = network(), network()
    reports: list[EpochReport] = []
    train(alone, examples, name="m", plan=plan, objective=cross_entropy_of(alone, 1), seed=9, report=reports.append)
    shared = trained_together(spark, together, examples)
    assert [one.epoch for one in shared] == [1, 2, 3]
    assert [one.loss for one in shared] == pytest.approx([one.loss for one in reports], rel=1e-4)
    assert [one.accuracy for one in shared] == [one.accuracy for one in reports]
    for one, other in zip(alone.get_weights(), together.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    before = weights_digest(together.get_weights())
    # More examples than a batch, and not as many in each rank.
    with pytest.raises(JobFailed, match=r"training\.workers: .*(rank 1 died|failed with)") as caught:
        trained_together(spark, together, blobs(81), objective=dies_in_one_rank)
    assert not caught.value.final
    assert weights_digest(together.get_weights()) == before


def test_what_cannot_be_shared_out_is_refused_before_anything_is_sent(
    spark: Any, blobs: Callable[..., Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, examples = network(), blobs(50)
    with pytest.raises(SpecError, match="batch of 41 examples"):
        trained_together(spark, model, examples, plan=PLAN.model_copy(update={"batch_size": 41}))
    with pytest.raises(EmptyTable, match="39 examples, less than one batch of 40"):
        trained_together(spark, model, blobs(39))
    with pytest.raises(ConfigurationError, match="runs 2 tasks at once, and all 4 ranks"):
        trained_together(spark, model, examples, plan=PLAN.model_copy(update={"workers": 4}))
    monkeypatch.setattr(distributed, "_LARGEST_SHARE", 25 * 5 * 4 - 1)
    with pytest.raises(SpecError, match="2 GiB"):
        trained_together(spark, model, examples)


def test_a_share_holds_each_example_once_and_nobody(blobs: Callable[..., Examples]) -> None:
    from pyspark.cloudpickle import loads

    examples, unit = blobs(101), np.ones(5, np.float32)
    space = InputSpace.free(norm="linf", names="abcde", mean=0 * unit, scale=unit)
    measured = Validation(examples=blobs(7), perturbation=Perturbation(space), epsilon=0.1)
    shares = distributed._shares(
        network(), examples, name="m", plan=PLAN, objective=cross_entropy_of, validation=measured, seed=1
    )
    assert sorted(len(share.examples) for share in shares) == [50, 51]
    together = np.concatenate([share.examples.features for share in shares])
    assert sorted(map(tuple, together)) == sorted(map(tuple, examples.features))
    validations = [loads(share.pickled)[1] for share in shares]
    assert [len(one.examples) for one in validations] == [7, 7]
    sent = [*(share.examples for share in shares), *(one.examples for one in validations)]
    assert {one.unit_ids for one in sent} == {(b"",)}
    assert [share.plan.batch_size for share in shares] == [20, 20]
    assert len({(share.seed, share.objective_seed) for share in shares}) == 2


@pytest.mark.parametrize(
    ("master", "conf", "trusted", "refused"),
    [
        ("local[2]", {}, False, False),
        ("spark://host:7077", {}, False, True),
        ("spark://host:7077", {}, True, False),
        ("spark://host:7077", {"spark.network.crypto.enabled": "true"}, False, False),
        ("yarn", {"spark.ssl.rpc.enabled": "true"}, False, False),
        ("k8s://host", {"spark.network.crypto.enabled": "false"}, False, True),
    ],
)
def test_examples_are_not_sent_over_a_network_in_the_clear(
    master: str, conf: dict[str, str], trusted: bool, refused: bool
) -> None:
    assert distributed.sends_in_the_clear(master, conf, network_is_trusted=trusted) is refused


def test_gradients_leave_a_host_only_over_a_network_that_is_trusted() -> None:
    distributed._require_one_host(["a", "a"], network_is_trusted=False)
    distributed._require_one_host(["a", "b"], network_is_trusted=True)
    with pytest.raises(ConfigurationError, match=r"2 hosts.*training_network: trusted"):
        distributed._require_one_host(["a", "b", "b"], network_is_trusted=False)


def test_ranks_that_end_with_other_weights_are_found_out() -> None:
    weights = network().get_weights()
    other = [array.copy() for array in weights]
    other[0][0, 0] = np.nextafter(other[0][0, 0], np.float32(9), dtype=np.float32)
    digests = [weights_digest(one) for one in (weights, network().get_weights(), other)]
    distributed._require_equal(digests[:2])
    with pytest.raises(JobFailed, match="3 ranks ended with 2 different sets of weights"):
        distributed._require_equal(digests)
    assert weights_digest([weights[0].T]) != weights_digest([weights[0]])
