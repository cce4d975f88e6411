"""What a training step minimises: one function for each training method.

The inner attacks look at the classifier as it is used (``training=False``), the losses at the classifier as it is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from lepton_airflow.models.attacks.losses import cross_entropy
from lepton_airflow.models.generator import Adversary
from lepton_airflow.models.inner_attack import InnerAttack
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import TrainingPlan
from lepton_airflow.models.seeds import derived_seed

#: Step of the one-step attack as a multiple of epsilon (Wong, Rice, Kolter 2020, section 5).
_FAST_STEP = 1.25


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A loss over batches.

    :param losses: from the model, features [b, d] and labels [b] to the loss of each example, [b], and the logits behind it,
        [b, classes]; it is called inside a ``tf.function`` and a ``tf.GradientTape``
    :param state: the variables that it changes from step to step; a checkpoint must hold them, or the training would go on
        otherwise than it would have
    """

    losses: Callable[[Any, Any, Any], tuple[Any, Any]]
    state: Sequence[Any] = ()

    def __call__(self, model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
        return self.losses(model, x, labels)


def objective_for(
    plan: TrainingPlan, *, perturbation: Perturbation, epsilon: float, classes: int, seed: int
) -> Objective:
    """The objective of a plan's method, with its augmentation.

    :param epsilon: radius of the ball, in the perturbation's units
    :param seed: of random starts, shifts, and the first weights of the adversary of ``generator``
    """
    attack: dict[str, Any] = {"perturbation": perturbation, "epsilon": epsilon, "seed": derived_seed(seed, "attack")}
    match plan.method:
        case "pgd":
            objective = pgd_objective(**attack, steps=plan.steps)
        case "trades":
            objective = trades_objective(**attack, steps=plan.steps, beta=plan.trades_beta)
        case "fast":
            objective = fast_objective(**attack)
        case "generator":
            objective = generator_objective(**attack, plan=plan, classes=classes)
    return augmented(objective, plan=plan, perturbation=perturbation, seed=seed)


def standard_objective() -> Objective:
    """The cross-entropy of the examples as they are."""

    def losses(model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
        logits = model(x, training=True)
        return cross_entropy(logits, labels), logits

    return Objective(losses=losses)


def pgd_objective(
    *, perturbation: Perturbation, epsilon: float, steps: int, seed: int, length: float | None = None
) -> Objective:
    """PGD adversarial training (Madry et al. 2018): the cross-entropy of the worst examples found from a random start.

    :param epsilon: radius of the ball, in the perturbation's units
    :param steps: gradient steps of the inner attack
    :param seed: of the random starts
    :param length: of a gradient step in multiples of epsilon; by default it follows from their number
    """
    attack = InnerAttack(perturbation=perturbation, epsilon=epsilon, steps=steps, seed=seed, length=length)

    def losses(model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
        attacked = attack.examples(model, x, lambda logits: cross_entropy(logits, labels))
        logits = model(attacked, training=True)
        return cross_entropy(logits, labels), logits

    return Objective(losses=losses, state=attack.state)


def fast_objective(*, perturbation: Perturbation, epsilon: float, seed: int) -> Objective:
    """Fast adversarial training (Wong, Rice, Kolter: Fast is better than free, ICLR 2020): one step of 1.25 epsilon from a
    random start, projected back into the ball.

    It can fail suddenly: from one epoch to the next the classifier may learn to mislead the single step and lose all
    robustness (catastrophic overfitting). Choosing the epoch by PGD on a validation split keeps one from before that.
    """
    return pgd_objective(perturbation=perturbation, epsilon=epsilon, steps=1, seed=seed, length=_FAST_STEP)


def trades_objective(*, perturbation: Perturbation, epsilon: float, steps: int, beta: float, seed: int) -> Objective:
    """TRADES (Zhang et al.: Theoretically Principled Trade-off between Robustness and Accuracy, ICML 2019): the cross-entropy of
    the examples as they are, plus ``beta`` times the divergence KL(p(x) || p(x')) to the worst examples x' found.

    The inner attack raises that divergence. It starts at random in the whole ball; the authors' code starts at a small normal
    deviation from x, from which constraints such as whole numbers would lead straight back to x, where the divergence has no
    gradient.

    :param beta: weight of the divergence
    """
    attack = InnerAttack(perturbation=perturbation, epsilon=epsilon, steps=steps, seed=seed)

    def losses(model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
        reference = tf.stop_gradient(model(x, training=False))
        worst = attack.examples(model, x, lambda logits: divergence(logits, reference))
        clean = model(x, training=True)
        attacked = model(worst, training=True)
        return cross_entropy(clean, labels) + beta * divergence(attacked, clean), attacked

    return Objective(losses=losses, state=attack.state)


def generator_objective(
    *, perturbation: Perturbation, epsilon: float, plan: TrainingPlan, classes: int, seed: int
) -> Objective:
    """The min-max of two networks: an adversary learns to make perturbations that raise the classifier's loss, the classifier
    trains against them and, half and half, against PGD's.

    Both learn in the same step: the adversary by one ascent, then the classifier by one descent on the examples that the
    adversary has just made. See :mod:`lepton_airflow.models.generator`.

    :param plan: ``steps`` of PGD, the adversary's width and its learning rate
    """
    attack = InnerAttack(
        perturbation=perturbation, epsilon=epsilon, steps=plan.steps, seed=derived_seed(seed, "starts")
    )
    adversary = Adversary(
        perturbation=perturbation, epsilon=epsilon, plan=plan, classes=classes, seed=derived_seed(seed, "adversary")
    )

    def losses(model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
        made = adversary.learn(model, x, labels)
        found = attack.examples(model, x, lambda logits: cross_entropy(logits, labels))
        against_adversary = model(made, training=True)
        logits = model(found, training=True)
        return (cross_entropy(against_adversary, labels) + cross_entropy(logits, labels)) / 2, logits

    return Objective(losses=losses, state=(*attack.state, *adversary.state))


def augmented(objective: Objective, *, plan: TrainingPlan, perturbation: Perturbation, seed: int) -> Objective:
    """The same objective over shifted images, if the plan shifts them: every image of every batch is moved by up to
    ``plan.shift`` pixels up or down and left or right; what comes in at the edges is dark."""
    space = perturbation.space
    if not plan.shift:
        return objective
    random = tf.random.Generator.from_seed(derived_seed(seed, "shifts"))
    shift, (height, width, channels), dark = plan.shift, space.shape, float(space.mean[0])

    def losses(model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
        edges = [[0, 0], [shift, shift], [shift, shift], [0, 0]]
        wide = tf.pad(tf.reshape(x, (-1, height, width, channels)), edges, constant_values=dark)
        corners = random.uniform((tf.shape(x)[0], 2), maxval=2 * shift + 1, dtype=tf.int32)
        moved = tf.gather(wide, corners[:, :1] + tf.range(height), axis=1, batch_dims=1)
        moved = tf.gather(moved, corners[:, 1:] + tf.range(width), axis=2, batch_dims=1)
        return objective(model, tf.reshape(moved, tf.shape(x)), labels)

    return Objective(losses=losses, state=(*objective.state, random.state))


def divergence(logits: Any, reference: Any) -> Any:
    """[b]: KL(p || q) of the distributions p behind ``reference`` and q behind ``logits``."""
    return tf.reduce_sum(tf.nn.softmax(reference) * (tf.nn.log_softmax(reference) - tf.nn.log_softmax(logits)), axis=-1)
