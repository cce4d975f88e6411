"""Projected gradient descent (Madry, Makelov, Schmidt, Tsipras, Vladu: Towards Deep Learning Models Resistant to
Adversarial Attacks, ICLR 2018).

Models return logits, [b, classes]. The attack raises the cross-entropy of the true class; its loop is a
``tf.while_loop`` inside the caller's graph, so that a whole attack is one call into TensorFlow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lepton_airflow.models.batches import padded_batches
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.perturbation import Perturbation

#: Step length as a multiple of epsilon / steps (Madry et al., section 5): enough to cross the ball and to move along
#: its faces.
RELATIVE_STEP = 2.5


def cross_entropy(logits: Any, labels: Any) -> Any:
    """[b]: the cross-entropy of each example."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def strongest_perturbation(
    model: Any, x: Any, labels: Any, *, perturbation: Perturbation, epsilon: Any, steps: int, start: Any
) -> Any:
    """The perturbation after ``steps`` steps, for training on. To be called inside a ``tf.function``.

    :param x: [b, features]
    :param start: [b, features], where the attack begins, inside the ball
    :returns: [b, features], inside the ball
    """
    length = RELATIVE_STEP * epsilon / steps

    def climb(step: Any, d: Any) -> tuple[Any, Any]:
        _, gradient = _logits_and_gradient(model, x, labels, perturbation=perturbation, d=d, epsilon=epsilon)
        return step + 1, perturbation.project(x, perturbation.ascend(d, gradient, length), epsilon)

    _, d = tf.while_loop(lambda step, _: step < steps, climb, (tf.constant(0), start), parallel_iterations=1)
    return tf.stop_gradient(d)


class ProjectedGradientDescent:
    """The attack for evaluation: many steps, several restarts, and an example is lost as soon as one iterate is
    misclassified.

    The first restart begins at the example itself, the others at random points of the ball. Every radius uses the one
    graph that was traced first.

    :param model: returns logits; it is called with ``training=False``
    :param steps: gradient steps of each restart
    :param restarts: attacks on each example
    :param batch_size: examples attacked at a time
    :param seed: of the random starts
    """

    def __init__(
        self, model: Any, *, perturbation: Perturbation, steps: int, restarts: int, batch_size: int, seed: int
    ) -> None:
        self._model = model
        self._perturbation = perturbation
        self._steps = steps
        self._restarts = restarts
        self._batch_size = batch_size
        self._features = int(model.input_shape[-1])
        self._generator = tf.random.Generator.from_seed(seed)
        self.attack = tf.function(
            self._attack,
            input_signature=(
                tf.TensorSpec((batch_size, self._features), tf.float32),
                tf.TensorSpec((batch_size,), tf.int32),
                tf.TensorSpec((), tf.float32),
                tf.TensorSpec((), tf.float32),
            ),
        )

    def survivors(self, examples: Examples, epsilon: float) -> npt.NDArray[np.bool_]:
        """[n]: the examples that are classified correctly, and still are after every restart."""
        kept: list[npt.NDArray[np.bool_]] = []
        for batch in padded_batches(examples.features, examples.labels, size=self._batch_size):
            alive = np.ones(self._batch_size, np.bool_)
            for restart in range(self._restarts):
                start_radius = epsilon if restart else 0.0
                lost, _ = self.attack(batch.features, batch.labels, epsilon, start_radius)
                alive &= ~lost.numpy()
            kept.append(alive[: batch.count])
        return np.concatenate(kept)

    def _attack(self, x: Any, labels: Any, epsilon: Any, start_radius: Any) -> tuple[Any, Any]:
        """One restart.

        :returns: which examples are lost, [b], and their perturbations, [b, features]: those that misled the model, else
            the last ones
        """
        perturbation = self._perturbation
        length = RELATIVE_STEP * epsilon / self._steps

        def misled(logits: Any) -> Any:
            return tf.argmax(logits, axis=-1, output_type=tf.int32) != labels

        def climb(step: Any, d: Any, lost: Any) -> tuple[Any, Any, Any]:
            logits, gradient = _logits_and_gradient(
                self._model, x, labels, perturbation=perturbation, d=d, epsilon=epsilon
            )
            lost = lost | misled(logits)
            moved = perturbation.project(x, perturbation.ascend(d, gradient, length), epsilon)
            return step + 1, tf.where(lost[:, tf.newaxis], d, moved), lost

        start = perturbation.random(self._generator, x, start_radius)
        _, d, lost = tf.while_loop(
            lambda step, *_: step < self._steps,
            climb,
            (tf.constant(0), start, tf.zeros((self._batch_size,), tf.bool)),
            parallel_iterations=1,
        )
        return lost | misled(self._model(perturbation.apply(x, d, epsilon), training=False)), d


def _logits_and_gradient(
    model: Any, x: Any, labels: Any, *, perturbation: Perturbation, d: Any, epsilon: Any
) -> tuple[Any, Any]:
    """The logits of the perturbed examples, and the gradient of their summed cross-entropy over the perturbation."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(d)
        logits = model(perturbation.apply(x, d, epsilon), training=False)
        loss = tf.reduce_sum(cross_entropy(logits, labels))
    return logits, tape.gradient(loss, d)
