"""An adversary that learns: a network from an example and its class to a perturbation inside the threat model.

Trained in turn with the classifier it makes the min-max problem of adversarial training a game of two networks, as in Lee, Han,
Lee: Generative Adversarial Trainer: Defense to Adversarial Perturbations with GAN (2017, arXiv:1705.03387). Their generator is
given the gradient of the classifier's loss; ours needs none and is given the example and its class, as the perturbing form of
the networks of Baluja and Fischer: Adversarial Transformation Networks: Learning to Generate Adversarial Examples (2017,
arXiv:1703.09387), which are trained against a classifier that stays as it is. Both of them keep perturbations small by a
penalty; here the threat model's projection does, so every perturbation lies in the ball and keeps to the constraints.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from lepton_airflow.models.architectures import convolution, dense_layers, image_layers
from lepton_airflow.models.attacks.losses import cross_entropy
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import TrainingPlan
from lepton_airflow.models.seeds import derived_seed

#: Adam's step. Constant: the classifier that the adversary follows never stops changing.
_LEARNING_RATE = 1e-3


class Adversary:
    """The network, and its learning.

    :param epsilon: radius of the ball, in the perturbation's units
    :param plan: ``hidden`` widths for tables, ``filters`` for images
    :param seed: of its first weights
    """

    def __init__(
        self, *, perturbation: Perturbation, epsilon: float, plan: TrainingPlan, classes: int, seed: int
    ) -> None:
        self._perturbation = perturbation
        self._epsilon = tf.constant(epsilon, tf.float32)
        self._classes = classes
        self.network = adversary_network(perturbation.space, plan=plan, classes=classes, seed=seed)
        self._optimizer = keras.optimizers.Adam(_LEARNING_RATE)
        self._optimizer.build(self.network.trainable_variables)

    @property
    def state(self) -> tuple[Any, ...]:
        """Weights and optimiser, for checkpoints."""
        return (*self.network.variables, *self._optimizer.variables)

    def perturbations(self, x: Any, labels: Any) -> Any:
        """[b, d]: the network's answer, in units of epsilon, inside the ball and the constraints.

        The hyperbolic tangent keeps each feature within epsilon; for the L2 ball the projection shortens the whole.
        """
        raw = self.network([x, tf.one_hot(labels, self._classes)])
        return self._perturbation.project(x, self._epsilon * tf.tanh(raw), self._epsilon)

    def learn(self, model: Any, x: Any, labels: Any) -> Any:
        """One step up the classifier's loss. To be called inside a ``tf.function``.

        :returns: [b, d], the examples made, before the step
        """
        with tf.GradientTape() as tape:
            made = self._perturbation.apply(x, self.perturbations(x, labels), self._epsilon)
            loss = -tf.reduce_mean(cross_entropy(model(made, training=False), labels))
        variables = self.network.trainable_variables
        self._optimizer.apply(tape.gradient(loss, variables), variables)
        return tf.stop_gradient(made)


def adversary_network(space: InputSpace, *, plan: TrainingPlan, classes: int, seed: int) -> Any:
    """From [b, d] in raw units and classes one-hot, [b, classes], to [b, d]; it sees its inputs scaled as the classifier does.

    For images, three 3x3 convolutions over the pixels and one constant plane for each class; for tables a multilayer
    perceptron.
    """
    labels = keras.Input((classes,), name="labels")
    if space.is_image:
        features, *layers = image_layers(space)
        pixels = features
        for layer in layers:
            pixels = layer(pixels)
        height, width, channels = space.shape
        planes = keras.layers.RepeatVector(height * width, name="repeat")(labels)
        planes = keras.layers.Reshape((height, width, classes), name="planes")(planes)
        inner = keras.layers.Concatenate(name="inputs")([pixels, planes])
        for position in range(2):
            inner = convolution(f"convolution_{position}", plan.filters, seed=seed)(inner)
        inner = convolution("perturbation", channels, seed=seed, activation="linear")(inner)
        return keras.Model([features, labels], keras.layers.Flatten(name="flatten")(inner))
    features = keras.Input((len(space),), name="features")
    standardised = keras.layers.Normalization(
        mean=space.mean.tolist(), variance=(space.scale.astype("float64") ** 2).tolist(), name="standardise"
    )(features)
    inner = keras.layers.Concatenate(name="inputs")([standardised, labels])
    for layer in dense_layers(plan.hidden, classes=len(space), seed=derived_seed(seed, "dense")):
        inner = layer(inner)
    return keras.Model([features, labels], inner)
