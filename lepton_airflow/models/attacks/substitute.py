"""Attack by a substitute (Papernot, McDaniel, Goodfellow, Jha, Celik, Swami: Practical Black-Box Attacks against Machine Learning,
ASIA CCS 2017): a network learns to answer as the model under attack does, is attacked with gradients, and what was found is tried
on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lepton_airflow.models.architectures import tabular_classifier
from lepton_airflow.models.attacks.outcome import Attack, Outcome
from lepton_airflow.models.attacks.transfer import Transfer
from lepton_airflow.models.batches import padded_batches
from lepton_airflow.models.examples import Examples, Features
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.prediction import Predict
from lepton_airflow.models.seeds import derived_seed

_HIDDEN = (128, 128)
_EPOCHS = 20
_BATCH_SIZE = 64
_LEARNING_RATE = 0.003


class Substitute:
    """Trains a substitute of the model under attack for a radius, attacks it, and transfers what it finds.

    :param predict: all that is known of the model
    :param known: [m, features], what the model is asked about to learn its answers: not the examples under attack
    :param attacks_on: the attacks to make on the substitute
    :param seed: of its weights, of what it is asked, and of the order of its training
    """

    def __init__(
        self,
        predict: Predict,
        *,
        known: Features,
        perturbation: Perturbation,
        attacks_on: Callable[[Any], Sequence[Attack]],
        seed: int,
    ) -> None:
        self._predict = predict
        self._known = known
        self._perturbation = perturbation
        self._attacks_on = attacks_on
        self._seed = seed

    def run(self, examples: Examples, epsilon: float) -> Outcome:
        """Attack with radius ``epsilon``."""
        return Transfer(self._attacks_on(self.substitute(epsilon)), predict=self._predict).run(examples, epsilon)

    def substitute(self, epsilon: float) -> Any:
        """A network that answers as the model does for the known examples and for points of the balls around them."""
        generator = tf.random.Generator.from_seed(derived_seed(self._seed, "questions"))
        shifted = self._perturbation.apply(
            self._known, self._perturbation.random(generator, tf.constant(self._known), epsilon), epsilon
        )
        questions = np.concatenate([self._known, shifted.numpy()])
        answers = tf.nn.softmax(self._predict(questions)).numpy()
        space = self._perturbation.space
        model = tabular_classifier(
            mean=space.mean,
            scale=space.scale,
            hidden=_HIDDEN,
            classes=answers.shape[1],
            seed=derived_seed(self._seed, "weights"),
        )
        _learn(model, questions, answers, seed=derived_seed(self._seed, "order"))
        return model


def _learn(model: Any, questions: Features, answers: Features, *, seed: int) -> None:
    """Fit ``model`` to class probabilities, [m, classes], in place."""
    optimizer = keras.optimizers.Adam(_LEARNING_RATE)
    optimizer.build(model.trainable_variables)

    def step(x: Any, probabilities: Any, weights: Any) -> None:
        with tf.GradientTape() as tape:
            losses = tf.nn.softmax_cross_entropy_with_logits(labels=probabilities, logits=model(x, training=True))
            loss = tf.reduce_sum(weights * losses) / tf.reduce_sum(weights)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    compiled = tf.function(step, autograph=False)
    shuffle = np.random.default_rng(seed)
    positions = np.arange(len(questions), dtype=np.int32)
    for _ in range(_EPOCHS):
        order = shuffle.permutation(len(questions))
        for batch in padded_batches(questions, positions, size=_BATCH_SIZE, order=order):
            compiled(batch.features, answers[batch.labels], batch.weights)
