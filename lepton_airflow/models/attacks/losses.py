"""What attacks raise: functions of logits [b, classes] that grow as a classifier goes wrong.

Difference of logits ratio, plain and targeted: Croce, Hein: Reliable Evaluation of Adversarial Robustness with an Ensemble of
Diverse Parameter-free Attacks, ICML 2020, sections 4 and 5. It does not change when logits are scaled or shifted, so that a model
cannot hide behind logits so large that the gradient of the cross-entropy vanishes.
"""

from __future__ import annotations

from typing import Any, Literal

import tensorflow as tf

LossName = Literal["cross-entropy", "margin", "dlr", "targeted-dlr"]

#: Keeps ratios finite where logits are equal.
_TINY = 1e-12


def cross_entropy(logits: Any, labels: Any) -> Any:
    """[b]: the cross-entropy of each example."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def margin_loss(logits: Any, labels: Any) -> Any:
    """[b]: by how much the largest other logit exceeds that of the true class; above 0 the model is misled."""
    true = tf.one_hot(labels, logits.shape[-1], on_value=True, off_value=False)
    return tf.reduce_max(tf.where(true, -float("inf"), logits), axis=-1) - _logit_of(logits, labels)


def difference_of_logits_ratio(logits: Any, labels: Any) -> Any:
    """[b]: the margin in units of the distance between the first and the third largest logit. For 3 classes or more."""
    largest = tf.math.top_k(logits, 3).values
    return margin_loss(logits, labels) / (largest[:, 0] - largest[:, 2] + _TINY)


def targeted_difference_of_logits_ratio(logits: Any, labels: Any, targets: Any) -> Any:
    """[b]: the same for the margin between one other class and the true one. For 4 classes or more."""
    largest = tf.math.top_k(logits, 4).values
    spread = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
    return (_logit_of(logits, targets) - _logit_of(logits, labels)) / (spread + _TINY)


def attack_loss(name: LossName, logits: Any, labels: Any, targets: Any) -> Any:
    """[b]: the loss of that name.

    :param targets: [b], the classes that a targeted loss pulls towards; the others pay no heed to them
    """
    match name:
        case "cross-entropy":
            return cross_entropy(logits, labels)
        case "margin":
            return margin_loss(logits, labels)
        case "dlr":
            return difference_of_logits_ratio(logits, labels)
        case "targeted-dlr":
            return targeted_difference_of_logits_ratio(logits, labels, targets)


def misled(logits: Any, labels: Any) -> Any:
    """[b]: whether the largest logit is not that of the true class; so are logits that are no numbers."""
    wrong = tf.argmax(logits, axis=-1, output_type=labels.dtype) != labels
    return wrong | ~tf.reduce_all(tf.math.is_finite(logits), axis=-1)


def _logit_of(logits: Any, classes: Any) -> Any:
    return tf.gather(logits, classes, axis=-1, batch_dims=1)
