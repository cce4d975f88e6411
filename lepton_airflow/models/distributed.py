"""Training by several workers: the tasks of a Spark barrier stage, which sum their gradients after every step.

Keras' ``fit`` does not work under ``tf.distribute``'s strategies, so the loop is ours (:mod:`lepton_airflow.models.training`);
TensorFlow's collective operations only sum. Each task starts a process of its own for TensorFlow, whose collectives must be set
up before anything else is computed. Every rank begins with the same weights and takes the same step with the same summed
gradients, and that all of them end with equal weights is checked.

What travels: weights and each rank's share of the examples go from the driver to the tasks through Spark, encrypted on the
network where ``spark.network.crypto.enabled`` (or ``spark.ssl.rpc.enabled``) is set; no key does. Gradients go from rank to rank
through TensorFlow's gRPC, which is neither encrypted nor authenticated: see :func:`train_in_barrier_stage`.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lepton_airflow.columnar.failures import errors_for_the_driver
from lepton_airflow.errors import ConfigurationError, EmptyTable, JobFailed, LeptonError, SpecError, from_wire
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.rank import PLACE, Share, Trained, trained_in_process
from lepton_airflow.models.seeds import derived_seed

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from lepton_airflow.models.objectives import Objective
    from lepton_airflow.models.plan import TrainingPlan
    from lepton_airflow.models.training import EpochReport, TrainingRecord
    from lepton_airflow.models.validation import Validation

#: Spark sends what a rank gets in one message of less than 2 GiB.
_LARGEST_SHARE = 2**31 - 2**24


def train_in_barrier_stage(
    session: SparkSession,
    model: Any,
    examples: Examples,
    *,
    name: str,
    plan: TrainingPlan,
    objective: Callable[[Any, int], Objective],
    seed: int,
    report: Callable[[EpochReport], None],
    validation: Validation | None = None,
    network_is_trusted: bool = False,
) -> TrainingRecord:
    """Train ``model`` in place, as :func:`lepton_airflow.models.training.train` does, by ``plan.workers`` tasks at once.

    A step's batch is the ranks' batches together, ``plan.batch_size`` examples; a rank draws its part from its own share of the
    examples, so that steps differ from those of one worker in which examples they meet and not in how many. Dying with one
    rank, the stage fails as a whole and nothing of ``model`` changes; there are no checkpoints, so that a new try begins anew.

    :param objective: called in each rank with its model and a seed of its own; it travels pickled
    :param seed: of the shares, of their order and of the objectives
    :param report: called after the end with the reports of all epochs
    :param validation: what every epoch is measured on, by every rank
    :param network_is_trusted: only then may ranks be on several hosts, for gradients go from host to host in the clear, and
        whoever reaches the ranks' ports can change them. Ranks on one host talk through its loopback device
    :raises SpecError: the batch cannot be cut into equal parts
    :raises EmptyTable: fewer examples than a batch
    :raises ConfigurationError: Spark would send examples in the clear, ranks are on several hosts of a network that is not
        trusted, or the master has too few slots
    :raises JobFailed: a rank died, or ranks ended with different weights; trying again may help
    """
    from pyspark.cloudpickle import loads

    ranks = plan.workers
    if plan.batch_size % ranks:
        raise SpecError(
            f"A batch of {plan.batch_size} examples cannot be cut into {ranks} equal parts.",
            place="training.batch_size",
            remedy="Make it a multiple of training.workers.",
        )
    if len(examples) < plan.batch_size:
        raise EmptyTable(
            f"There are {len(examples)} examples, less than one batch of {plan.batch_size}.",
            place="training.batch_size",
            remedy="Train on more units, or set a smaller batch.",
        )
    _require_slots(session, ranks)
    context = session.sparkContext
    if sends_in_the_clear(str(context.master), dict(context.getConf().getAll()), network_is_trusted=network_is_trusted):
        raise ConfigurationError(
            "Spark would send the ranks' examples over the network in the clear.",
            place=PLACE,
            remedy="Set spark.authenticate and spark.network.crypto.enabled.",
        )
    shares = _shares(model, examples, name=name, plan=plan, objective=objective, validation=validation, seed=seed)
    try:
        stage = context.parallelize(shares, ranks).barrier()
        trained, *_ = stage.mapPartitions(_task(network_is_trusted=network_is_trusted)).collect()
    except Exception as error:
        raise _typed(error) from None
    weights, record, reports = loads(trained.pickled)
    model.set_weights(weights)
    for one in reports:
        report(one)
    return cast("TrainingRecord", record)


def _shares(
    model: Any,
    examples: Examples,
    *,
    name: str,
    plan: TrainingPlan,
    objective: Callable[[Any, int], Objective],
    validation: Validation | None,
    seed: int,
) -> list[Share]:
    """One share for each rank; their sizes differ by one example at most."""
    import keras
    from pyspark.cloudpickle import dumps

    ranks = plan.workers
    largest = -(-len(examples) // ranks) * examples.features.shape[1] * examples.features.itemsize
    if largest > _LARGEST_SHARE:
        raise SpecError(
            f"A rank's share of the examples takes {largest} bytes, and 2 GiB is the most that Spark sends at once.",
            place=PLACE,
            remedy="Train with more workers.",
        )
    architecture = keras.saving.serialize_keras_object(model)
    # Only a driver and the process of a rank may load TensorFlow.
    measured = validation and replace(
        validation, examples=_without_units(validation.examples, np.arange(len(validation.examples)))
    )
    pickled = dumps((objective, measured))  # type: ignore[no-untyped-call]
    order = np.random.default_rng(derived_seed(seed, "shares")).permutation(len(examples))
    return [
        Share(
            architecture=architecture,
            weights=model.get_weights(),
            examples=_without_units(examples, order[rank::ranks]),
            all_examples=len(examples),
            plan=plan.model_copy(update={"batch_size": plan.batch_size // ranks}),
            pickled=pickled,
            objective_seed=derived_seed(seed, f"objective of rank {rank}"),
            name=name,
            seed=derived_seed(seed, f"order of rank {rank}"),
        )
        for rank in range(ranks)
    ]


def _without_units(examples: Examples, chosen: np.typing.NDArray[np.int64]) -> Examples:
    """Whose examples they are is nothing that a rank has to know."""
    return Examples(
        features=examples.features[chosen],
        labels=examples.labels[chosen],
        units=np.zeros(len(chosen), np.int64),
        unit_ids=(b"",),
    )


def _task(*, network_is_trusted: bool) -> Callable[[Iterable[Share]], Iterable[Trained]]:
    def train_share(shares: Iterable[Share]) -> Iterator[Trained]:
        from pyspark import BarrierTaskContext

        with errors_for_the_driver(PLACE):
            (share,) = shares
            context = BarrierTaskContext.get()
            rank = context.partitionId()
            hosts = [info.address.rpartition(":")[0] for info in context.getTaskInfos()]
            _require_one_host(hosts, network_is_trusted=network_is_trusted)
            host = "127.0.0.1" if len(set(hosts)) == 1 else hosts[rank]
            with socket.socket() as probe:
                probe.bind((host, 0))
                cluster = context.allGather(f"{host}:{probe.getsockname()[1]}")
            threads = max((os.cpu_count() or 1) // hosts.count(hosts[rank]), 1)
            with trained_in_process(share, cluster=cluster, rank=rank, threads=threads) as trained:
                _require_equal(context.allGather(trained.digest))
            if rank == 0:
                yield trained

    return train_share


def _require_one_host(hosts: Sequence[str], *, network_is_trusted: bool) -> None:
    if len(set(hosts)) > 1 and not network_is_trusted:
        raise ConfigurationError(
            f"The ranks are on {len(set(hosts))} hosts, between which gradients would travel in the clear.",
            place=PLACE,
            remedy="Train with the workers of one host; or, if nobody else is on that network, say so in the settings: "
            "training_network: trusted.",
        )


def _require_equal(digests: Sequence[str]) -> None:
    if len(set(digests)) > 1:
        raise JobFailed(
            f"{len(digests)} ranks ended with {len(set(digests))} different sets of weights.",
            place=PLACE,
            remedy="Try again; if it comes back, see that all workers have the same hardware and libraries.",
        )


def _require_slots(session: SparkSession, ranks: int) -> None:
    """Spark waits for slots that a cluster may get; a local master gets no more than it has."""
    master = str(session.sparkContext.master)
    found = re.fullmatch(r"local(?:\[\s*(\d+|\*)\s*(?:,.*)?\])?", master)
    if found is None:
        return
    slots = (os.cpu_count() or 1) if found[1] == "*" else int(found[1] or 1)
    if slots < ranks:
        raise ConfigurationError(
            f"The master {master} runs {slots} tasks at once, and all {ranks} ranks must run together.",
            place=PLACE,
            remedy="Give Spark more slots, or train with fewer workers.",
        )


def sends_in_the_clear(master: str, conf: Mapping[str, str], *, network_is_trusted: bool) -> bool:
    """Whether Spark would send examples to other machines without encryption, over a network that others may read.

    :param conf: Spark's
    """
    names = ("spark.network.crypto.enabled", "spark.ssl.rpc.enabled")
    encrypted = any(conf.get(name, "").strip().lower() == "true" for name in names)
    return not (master.startswith("local") or encrypted or network_is_trusted)


def _typed(error: Exception) -> LeptonError:
    return from_wire(str(error)) or JobFailed(
        f"The training stage failed with {type(error).__name__}.", place=PLACE, remedy="Try again."
    )
