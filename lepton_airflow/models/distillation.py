"""Robust distillation: one student learns what a teacher, such as an ensemble, answers, and to keep answering it under attack
(Goldblum, Fowl, Feizi, Goldstein: Adversarially Robust Distillation, AAAI 2020).

Distilling without the attack hands down the teacher's accuracy and not its robustness.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from lepton_airflow.models.attacks.losses import cross_entropy
from lepton_airflow.models.inner_attack import InnerAttack
from lepton_airflow.models.objectives import Objective, augmented, divergence
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import TrainingPlan
from lepton_airflow.models.seeds import derived_seed

#: Softens the teacher's answers, so that what it thinks of the other classes is learned too.
TEMPERATURE = 2.0
#: Weight of the teacher's answers; the rest is that of the labels.
TEACHER_WEIGHT = 0.9


def distillation_objective(
    teacher: Any,
    *,
    plan: TrainingPlan,
    perturbation: Perturbation,
    epsilon: float,
    seed: int,
    temperature: float = TEMPERATURE,
    teacher_weight: float = TEACHER_WEIGHT,
) -> Objective:
    """What to train a student with: ``train(student, examples, objective=distillation_objective(teacher, ...), ...)``.

    For an example x with label y and temperature T it is
    ``w T^2 KL(teacher(x) / T || student(x') / T) + (1 - w) CE(student(x), y)``, where x' is where an attack on the student's
    cross-entropy ends. T^2 keeps the gradients' size whatever T (Hinton, Vinyals, Dean 2015).

    :param teacher: a Keras model from [b, d] to logits [b, classes]; it answers for x, not for x', and is not trained
    :param plan: ``steps`` of the attack, and the augmentation
    :param epsilon: radius of the ball, in the perturbation's units
    :param seed: of random starts and shifts
    :param temperature: above 0
    :param teacher_weight: w, from 0 to 1
    """
    attack = InnerAttack(
        perturbation=perturbation, epsilon=epsilon, steps=plan.steps, seed=derived_seed(seed, "attack")
    )

    def losses(model: Any, x: Any, labels: Any) -> tuple[Any, Any]:
        taught = tf.stop_gradient(teacher(x, training=False))
        worst = attack.examples(model, x, lambda logits: cross_entropy(logits, labels))
        attacked = model(worst, training=True)
        learned = temperature**2 * divergence(attacked / temperature, taught / temperature)
        if teacher_weight == 1:
            return learned, attacked
        own = cross_entropy(model(x, training=True), labels)
        return teacher_weight * learned + (1 - teacher_weight) * own, attacked

    return augmented(Objective(losses=losses, state=attack.state), plan=plan, perturbation=perturbation, seed=seed)
