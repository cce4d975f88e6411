"""The training loop: one compiled step, batches of one shape, Adam along a cosine; the best epoch is kept, and a killed run
goes on from its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lepton_airflow.models.batches import padded_batches
from lepton_airflow.models.checkpoints import Arrays, Checkpoint, Checkpoints
from lepton_airflow.models.compilation import faster
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.objectives import Objective
from lepton_airflow.models.plan import TrainingPlan
from lepton_airflow.models.ranks import Ranks
from lepton_airflow.models.stream import stream
from lepton_airflow.models.validation import Standing, Validation


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """How an epoch went.

    :param model: which model is being trained
    :param loss: mean over the epoch's examples, as the model saw them: under attack, when it is hardened. Private training tells
        none, for it is an exact statistic of the training data
    :param accuracy: the same for the share classified correctly
    :param standing: clean and robust accuracy on a few fixed examples after the epoch, if somebody asked for them
    """

    model: str
    epoch: int
    epochs: int
    loss: float | None = None
    accuracy: float | None = None
    standing: Standing | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What became of a training.

    :param kept_epoch: the one whose weights the model has
    :param standing: of that epoch, if epochs were measured
    :param xla: whether XLA compiled its steps
    :param resumed_after: the epoch after which a killed try's training was taken up; 0 when there was none
    """

    kept_epoch: int
    standing: Standing | None
    xla: bool = False
    resumed_after: int = 0


def compile_step(
    model: Any,
    optimizer: Any,
    *,
    objective: Objective,
    batch_size: int,
    ranks: Ranks | None = None,
    xla: bool = False,
) -> Any:
    """One training step as one ``tf.function``, inner attack included.

    :param ranks: who else takes the same step with other examples; the batch is then that of all ranks together
    :param xla: whether XLA compiles it
    :returns: a function of features [b, d], labels [b] and weights [b] that updates ``model`` and returns the weighted
        sums of the loss and of the correct answers
    """

    def step(x: Any, labels: Any, weights: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            losses, logits = objective(model, x, labels)
            total = tf.reduce_sum(weights * losses)
            examples = tf.reduce_sum(weights)
            if ranks is not None:
                (examples,) = ranks.sum([examples])
            mean = total / examples
        variables = model.trainable_variables
        gradients = tape.gradient(mean, variables)
        hits = tf.argmax(logits, axis=-1, output_type=tf.int32) == labels
        correct = tf.reduce_sum(weights * tf.cast(hits, tf.float32))
        if ranks is not None:
            total, correct, *gradients = ranks.sum([total, correct, *gradients])
        optimizer.apply(gradients, variables)
        return total, correct

    return tf.function(
        step,
        input_signature=(
            tf.TensorSpec((batch_size, model.input_shape[-1]), tf.float32),
            tf.TensorSpec((batch_size,), tf.int32),
            tf.TensorSpec((batch_size,), tf.float32),
        ),
        # No Python control flow in it depends on a tensor.
        autograph=False,
        jit_compile=xla,
    )


def optimizer_for(plan: TrainingPlan, *, steps: int) -> Any:
    """Adam, whose learning rate falls to 0 along a cosine over ``steps`` steps, with the plan's averaging of weights."""
    schedule = keras.optimizers.schedules.CosineDecay(plan.learning_rate, steps)
    if plan.averaging:
        return keras.optimizers.Adam(schedule, use_ema=True, ema_momentum=plan.averaging)
    return keras.optimizers.Adam(schedule)


def train(
    model: Any,
    examples: Examples,
    *,
    name: str,
    plan: TrainingPlan,
    objective: Objective,
    seed: int,
    report: Callable[[EpochReport], None],
    validation: Validation | None = None,
    checkpoints: Checkpoints | None = None,
    ranks: Ranks | None = None,
) -> TrainingRecord:
    """Train ``model`` in place. It ends with the weights of its last epoch, or of its best one if ``validation`` chooses;
    with ``plan.averaging`` those are the averaged weights.

    :param name: what progress reports and checkpoints call it
    :param seed: of the order of the examples
    :param report: called after every epoch
    :param validation: what every epoch is measured on
    :param checkpoints: where to go on from, and to leave what a later try could go on from
    :param ranks: who else trains the same model; ``examples`` and the plan's batch size are then those of this rank
    :raises ModelTampered: the checkpoint of this training is damaged
    """
    count = len(examples) if ranks is None else ranks.examples
    batches = -(-count // (plan.batch_size * (1 if ranks is None else ranks.count)))
    optimizer = optimizer_for(plan, steps=batches * plan.epochs)
    optimizer.build(model.trainable_variables)
    measure = None if validation is None else validation.measure_of(model)
    state = {"model": model.variables, "optimizer": optimizer.variables, "objective": objective.state}
    progress = _Progress(state)
    binding = f"{examples.digest()} {seed}" if checkpoints else ""
    if checkpoints and (found := checkpoints.load(name, binding=binding)):
        progress.restore(found)
    resumed_after = progress.epoch

    def build(xla: bool) -> Any:
        return compile_step(model, optimizer, objective=objective, batch_size=plan.batch_size, ranks=ranks, xla=xla)

    if ranks is not None:
        # All ranks must take the same step; each would choose for itself.
        progress.xla = False
    if progress.xla is None:
        first = next(padded_batches(examples.features, examples.labels, size=plan.batch_size))
        step, progress.xla = faster(
            build,
            arguments=(first.features, first.labels, first.weights),
            calls=batches * plan.epochs,
            state=[variable for variables in state.values() for variable in variables],
        )
    else:
        step = build(progress.xla)
    epochs = range(resumed_after + 1, plan.epochs + 1)
    # An order of its own for each epoch: nothing of the shuffling needs to be carried from one to the next.
    orders = (np.random.default_rng((seed, epoch)).permutation(len(examples)) for epoch in epochs)
    batches_to_come = iter(stream(examples, size=plan.batch_size, count=batches, orders=orders))
    for epoch in epochs:
        loss = correct = 0.0
        for features, labels, weights in islice(batches_to_come, batches):
            batch_loss, batch_correct = step(features, labels, weights)
            loss += float(batch_loss)
            correct += float(batch_correct)
        with _averaged(model, optimizer):
            standing = measure() if measure else None
            progress.finish(epoch, standing, model, chooses=validation is not None and validation.chooses)
        if checkpoints and (checkpoints.due(name) or epoch == plan.epochs):
            checkpoints.save(name, binding=binding, checkpoint=progress.checkpoint())
        report(
            EpochReport(
                model=name,
                epoch=epoch,
                epochs=plan.epochs,
                loss=loss / count,
                accuracy=correct / count,
                standing=standing,
            )
        )
    model.set_weights(progress.kept)
    return TrainingRecord(
        kept_epoch=progress.kept_epoch,
        standing=progress.kept_standing,
        xla=bool(progress.xla),
        resumed_after=resumed_after,
    )


class _Progress:
    """Everything that a training carries from one epoch to the next.

    :param variables: by what they belong to
    """

    def __init__(self, variables: dict[str, Any]) -> None:
        self._variables = {
            f"{owner}/{position}": variable
            for owner, all_of in variables.items()
            for position, variable in enumerate(all_of)
        }
        self.epoch = 0
        #: Decided once: the two ways round differently and draw other random numbers, and a resumed training must go on as it
        #: began.
        self.xla: bool | None = None
        self.kept: list[Any] = []
        self.kept_epoch = 0
        self.kept_standing: Standing | None = None

    def finish(self, epoch: int, standing: Standing | None, model: Any, *, chooses: bool) -> None:
        """End an epoch, and keep its weights unless an earlier one's are better. Of two equally good ones the later is kept:
        it was trained longer."""
        self.epoch = epoch
        if chooses and standing is not None and self.kept_standing is not None and standing < self.kept_standing:
            return
        self.kept, self.kept_epoch, self.kept_standing = model.get_weights(), epoch, standing

    def checkpoint(self) -> Checkpoint:
        arrays: Arrays = {key: variable.numpy() for key, variable in self._variables.items()}
        arrays |= {f"kept/{position}": array for position, array in enumerate(self.kept)}
        standing = self.kept_standing
        facts = {
            "epoch": self.epoch,
            "xla": self.xla,
            "kept_epoch": self.kept_epoch,
            "kept_standing": None if standing is None else {"robust": standing.robust, "clean": standing.clean},
        }
        return Checkpoint(arrays=arrays, facts=facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        for key, variable in self._variables.items():
            variable.assign(checkpoint.arrays[key])
        count = sum(key.startswith("kept/") for key in checkpoint.arrays)
        self.kept = [checkpoint.arrays[f"kept/{position}"] for position in range(count)]
        self.epoch, self.kept_epoch = checkpoint.facts["epoch"], checkpoint.facts["kept_epoch"]
        self.xla = checkpoint.facts["xla"]
        standing = checkpoint.facts["kept_standing"]
        self.kept_standing = None if standing is None else Standing(**standing)


@contextmanager
def _averaged(model: Any, optimizer: Any) -> Iterator[None]:
    """Meanwhile the model has its averaged weights, if the optimiser averages them."""
    if not optimizer.use_ema:
        yield
        return
    last = model.get_weights()
    optimizer.finalize_variable_values(model.trainable_variables)
    try:
        yield
    finally:
        model.set_weights(last)
