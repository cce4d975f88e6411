"""One rank of a training: its process, and the sums over all ranks inside it.

TensorFlow's collectives must be set up before it computes anything, and they end with their process. So a rank is a process of
its own, which a task of Spark's starts and outlives; dying, the task takes the process along.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lepton_airflow.errors import JobFailed, LeptonError, from_wire
from lepton_airflow.models.examples import Examples

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from lepton_airflow.models.plan import TrainingPlan
    from lepton_airflow.models.training import EpochReport

PLACE = "training.workers"


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a rank is given.

    :param architecture: the model as Keras serialises it, without weights
    :param weights: the same first weights for every rank
    :param examples: the rank's own
    :param all_examples: how many examples all ranks have
    :param plan: with the rank's batch size
    :param pickled: the objective, a function of the model and ``objective_seed``, and the validation, if there is one. They are
        pickled by themselves, as reading them loads TensorFlow, which a task must not
    :param name: of the model, for reports
    :param seed: of the order of the rank's examples
    """

    architecture: dict[str, Any]
    weights: list[Any]
    examples: Examples
    all_examples: int
    plan: TrainingPlan
    pickled: bytes
    objective_seed: int
    name: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a rank gives back.

    :param digest: of its weights
    :param pickled: the weights, the :class:`TrainingRecord` and the :class:`EpochReport` of every epoch
    """

    digest: str
    pickled: bytes


def weights_digest(weights: Sequence[npt.NDArray[Any]]) -> str:
    """SHA-256 of weights, in their order, bit by bit."""
    state = hashlib.sha256()
    for array in weights:
        state.update(f"{array.shape} {array.dtype.str}".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


@contextmanager
def trained_in_process(share: Share, *, cluster: list[str], rank: int, threads: int) -> Iterator[Trained]:
    """Train in a new process, which lives until the ``with`` statement ends: one that ends early would break off the collectives
    of slower ones.

    :param cluster: the address of every rank
    :param rank: which of them this one is
    :param threads: that TensorFlow may use for one operation
    :raises LeptonError: what went wrong in the process; :class:`JobFailed` if it died
    """
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    process = spawning.Process(target=_main, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        try:
            here.send((share, cluster, rank, threads))
            outcome = here.recv()
        except (EOFError, OSError):
            raise JobFailed(
                f"The process of rank {rank} died.",
                place=PLACE,
                remedy="Try again; see that the worker has enough memory.",
            ) from None
        if isinstance(outcome, str):
            raise from_wire(outcome) or JobFailed("A rank failed.", place=PLACE, remedy="Try again.")
        yield outcome
    finally:
        here.close()
        process.kill()
        process.join()


def _main(connection: Connection) -> None:
    share, cluster, rank, threads = connection.recv()
    threading.Thread(target=_die_with_the_task, args=(connection,), daemon=True).start()
    try:
        outcome: Trained | str = _train(share, cluster=cluster, rank=rank, threads=threads)
    except LeptonError as error:
        outcome = error.to_wire()
    except Exception as error:
        # Texts of other libraries can quote data.
        outcome = JobFailed(
            f"Rank {rank} failed with {type(error).__name__}.", place=PLACE, remedy="Try again."
        ).to_wire()
    connection.send(outcome)
    threading.Event().wait()


def _die_with_the_task(connection: Connection) -> None:
    try:
        connection.recv()
    except (EOFError, OSError):
        os._exit(1)


def _train(share: Share, *, cluster: list[str], rank: int, threads: int) -> Trained:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": cluster}, "task": {"type": "worker", "index": rank}})
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    import keras
    from pyspark.cloudpickle import dumps, loads

    # Whatever layers of our own a model can have must be known to Keras.
    import lepton_airflow.models.architectures  # noqa: F401
    from lepton_airflow.models.training import train

    model = keras.saving.deserialize_keras_object(share.architecture)
    model.set_weights(share.weights)
    objective, validation = loads(share.pickled)
    reports: list[EpochReport] = []
    record = train(
        model,
        share.examples,
        name=share.name,
        plan=share.plan,
        objective=objective(model, share.objective_seed),
        seed=share.seed,
        report=reports.append,
        validation=validation,
        ranks=_Collective(strategy, count=len(cluster), examples=share.all_examples),
    )
    weights = model.get_weights()
    pickled = dumps((weights, record, reports))  # type: ignore[no-untyped-call]
    return Trained(digest=weights_digest(weights), pickled=pickled)


class _Collective:
    """The ranks as a training loop asks for them; see :class:`lepton_airflow.models.ranks.Ranks`."""

    def __init__(self, strategy: Any, *, count: int, examples: int) -> None:
        self._strategy = strategy
        self.count = count
        self.examples = examples

    def sum(self, tensors: list[Any]) -> list[Any]:
        import tensorflow as tf

        def reduce(*parts: Any) -> list[Any]:
            # Collectives need to know the device of what they reduce: that of the replica, where copies are made.
            here = [tf.identity(part) for part in parts]
            return list(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, here))

        return list(self._strategy.run(reduce, args=tuple(tensors)))
