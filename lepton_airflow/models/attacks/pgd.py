"""Projected gradient descent (Madry, Makelov, Schmidt, Tsipras, Vladu: Towards Deep Learning Models Resistant to Adversarial
Attacks, ICLR 2018).

Models return logits, [b, classes]. The attack raises the cross-entropy of the true class; its loop is a ``tf.while_loop`` inside
the caller's graph, so that a whole attack is one call into TensorFlow.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from lepton_airflow.models.attacks.gradient import view
from lepton_airflow.models.attacks.losses import misled
from lepton_airflow.models.attacks.outcome import Outcome, attack_in_batches
from lepton_airflow.models.batches import Batch
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.input_space import Mask
from lepton_airflow.models.perturbation import Perturbation

#: Step length as a multiple of epsilon / steps (Madry et al., section 5): enough to cross the ball and to move along
#: its faces.
RELATIVE_STEP = 2.5


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
    :param samples: predictions over which gradients and decisions are averaged
    """

    def __init__(
        self,
        model: Any,
        *,
        perturbation: Perturbation,
        steps: int,
        restarts: int,
        batch_size: int,
        seed: int,
        samples: int = 1,
    ) -> None:
        self._model = model
        self._perturbation = perturbation
        self._steps = steps
        self._restarts = restarts
        self._batch_size = batch_size
        self._seed = seed
        self._samples = samples
        features = len(perturbation.space)
        self.attack = tf.function(
            self._attack,
            autograph=False,
            input_signature=(
                tf.TensorSpec((batch_size, features), tf.float32),
                tf.TensorSpec((batch_size,), tf.int32),
                tf.TensorSpec((batch_size, features), tf.float32),
                tf.TensorSpec((), tf.float32),
            ),
        )

    def run(self, examples: Examples, epsilon: float) -> Outcome:
        """Attack with radius ``epsilon``."""
        generator = tf.random.Generator.from_seed(self._seed)

        def restart(number: int, batch: Batch) -> tuple[Any, Any]:
            start = self._perturbation.random(generator, batch.features, epsilon if number else 0.0)
            return self.attack(batch.features, batch.labels, start, epsilon)  # type: ignore[no-any-return]

        return attack_in_batches(restart, examples, attempts=self._restarts, batch_size=self._batch_size)

    def survivors(self, examples: Examples, epsilon: float) -> Mask:
        """[n]: the examples that are classified correctly, and still are after every restart."""
        return ~self.run(examples, epsilon).misled

    def _attack(self, x: Any, labels: Any, start: Any, epsilon: Any) -> tuple[Any, Any]:
        """One restart.

        :returns: which examples were misled, [b], and the examples that did it, or else the last ones, [b, features]
        """
        perturbation = self._perturbation
        length = RELATIVE_STEP * epsilon / self._steps

        def look(d: Any) -> Any:
            return view(self._model, x, labels, d, perturbation=perturbation, epsilon=epsilon, samples=self._samples)

        def climb(step: Any, d: Any, lost: Any) -> tuple[Any, Any, Any]:
            seen = look(d)
            lost = lost | misled(seen.logits, labels)
            moved = perturbation.project(x, perturbation.ascend(d, seen.gradient, length), epsilon)
            return step + 1, tf.where(lost[:, tf.newaxis], d, moved), lost

        _, d, lost = tf.while_loop(
            lambda step, _, lost: (step < self._steps) & ~tf.reduce_all(lost),
            climb,
            (tf.constant(0), start, tf.zeros((self._batch_size,), tf.bool)),
            parallel_iterations=1,
        )
        return lost | misled(look(d).logits, labels), perturbation.apply(x, d, epsilon)
