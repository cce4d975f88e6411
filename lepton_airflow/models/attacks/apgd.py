"""Auto-PGD (Croce, Hein: Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks,
ICML 2020, algorithm 1): gradient ascent with momentum whose step length is halved, example by example, where the search
oscillates or stands still.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lepton_airflow.models.attacks.gradient import View, view
from lepton_airflow.models.attacks.losses import LossName, misled
from lepton_airflow.models.attacks.outcome import Outcome, attack_in_batches
from lepton_airflow.models.batches import Batch
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.perturbation import Perturbation

#: The paper's alpha: the weight of the gradient step against the last move.
MOMENTUM = 0.75
#: The paper's rho: between two checkpoints, at least this share of the steps must have raised the loss.
RISING_SHARE = 0.75


def checkpoints(steps: int) -> tuple[int, ...]:
    """After which steps the step length is looked at again: w_j = ceil(p_j * steps), further and further apart backwards
    in time (section 3.3 of the paper)."""
    # In hundredths, exactly.
    shares = [0, 22]
    while shares[-1] < 100:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 3, 6))
    return tuple(sorted({-(-share * steps // 100) for share in shares if 0 < share <= 100}))


class _State(NamedTuple):
    """One step of the search. [b] each, perturbations and gradients [b, features].

    ``rises`` counts the steps since the last checkpoint that raised the loss; ``halved`` and ``best_then`` remember that
    checkpoint; ``found`` is the first perturbation that misled the model, where ``lost``.
    """

    step: Any
    d: Any
    before: Any
    loss: Any
    gradient: Any
    best: Any
    best_loss: Any
    best_gradient: Any
    length: Any
    rises: Any
    halved: Any
    best_then: Any
    lost: Any
    found: Any


class AutoProjectedGradientDescent:
    """Auto-PGD on one loss, from random starts; with the targeted loss, each attempt pulls towards another class.

    :param model: returns logits; it is called with ``training=False``
    :param steps: gradient steps of each attempt
    :param attempts: random starts; with the targeted loss, classes to pull towards, the likeliest first
    :param batch_size: examples attacked at a time
    :param seed: of the random starts
    :param samples: predictions over which gradients and decisions are averaged
    """

    def __init__(
        self,
        model: Any,
        *,
        perturbation: Perturbation,
        loss: LossName,
        steps: int,
        attempts: int,
        batch_size: int,
        seed: int,
        samples: int = 1,
    ) -> None:
        self._model = model
        self._perturbation = perturbation
        self._loss = loss
        self._steps = steps
        self._attempts = attempts
        self._batch_size = batch_size
        self._seed = seed
        self._samples = samples
        marks = checkpoints(steps)
        # [steps + 1]: the steps since the last checkpoint at each checkpoint, 0 between them.
        self._since: npt.NDArray[np.float32] = np.zeros(steps + 1, np.float32)
        self._since[list(marks)] = np.diff((0, *marks))
        features = len(perturbation.space)
        self.attack = tf.function(
            self._attack,
            autograph=False,
            input_signature=(
                tf.TensorSpec((batch_size, features), tf.float32),
                tf.TensorSpec((batch_size,), tf.int32),
                tf.TensorSpec((batch_size, features), tf.float32),
                tf.TensorSpec((), tf.int32),
                tf.TensorSpec((), tf.float32),
            ),
        )

    def run(self, examples: Examples, epsilon: float) -> Outcome:
        """Attack with radius ``epsilon``."""
        generator = tf.random.Generator.from_seed(self._seed)

        def attempt(number: int, batch: Batch) -> tuple[Any, Any]:
            start = self._perturbation.random(generator, batch.features, epsilon)
            return self.attack(batch.features, batch.labels, start, number, epsilon)  # type: ignore[no-any-return]

        return attack_in_batches(attempt, examples, attempts=self._attempts, batch_size=self._batch_size)

    def _attack(self, x: Any, labels: Any, start: Any, number: Any, epsilon: Any) -> tuple[Any, Any]:
        """One attempt.

        :param number: with the targeted loss, which of the other classes to pull towards, counted from the likeliest
        :returns: which examples were misled, [b], and the examples that did it, or else those of the highest loss, [b,
            features]
        """
        perturbation = self._perturbation
        unmoved = tf.zeros_like(x)
        clean = self._look(x, labels, unmoved, epsilon, targets=labels).logits
        targets = _runner_up(clean, labels, number)

        def look(d: Any) -> View:
            return self._look(x, labels, d, epsilon, targets=targets)

        def step(state: _State) -> tuple[_State]:
            towards = perturbation.project(
                x, perturbation.ascend(state.d, state.gradient, state.length[:, tf.newaxis]), epsilon
            )
            # The first move has no momentum.
            alpha = tf.where(state.step == 1, 1.0, MOMENTUM)
            d = perturbation.project(
                x, state.d + alpha * (towards - state.d) + (1 - alpha) * (state.d - state.before), epsilon
            )
            return (self._judged(state, d, look(d), labels),)

        seen = look(start)
        wrong = misled(clean, labels)
        at_start = misled(seen.logits, labels)
        nothing = tf.zeros_like(seen.losses)
        state = _State(
            step=tf.constant(1),
            d=start,
            before=start,
            loss=seen.losses,
            gradient=seen.gradient,
            best=start,
            best_loss=seen.losses,
            best_gradient=seen.gradient,
            length=nothing + 2 * epsilon,
            rises=nothing,
            halved=tf.zeros_like(wrong),
            best_then=seen.losses,
            lost=wrong | at_start,
            found=tf.where(wrong[:, tf.newaxis], unmoved, start),
        )
        (state,) = tf.while_loop(
            lambda state: (state.step <= self._steps) & ~tf.reduce_all(state.lost),
            step,
            (state,),
            parallel_iterations=1,
        )
        moved = tf.where(state.lost[:, tf.newaxis], state.found, state.best)
        return state.lost, perturbation.apply(x, moved, epsilon)

    def _look(self, x: Any, labels: Any, d: Any, epsilon: Any, *, targets: Any) -> View:
        return view(
            self._model,
            x,
            labels,
            d,
            perturbation=self._perturbation,
            epsilon=epsilon,
            loss=self._loss,
            targets=targets,
            samples=self._samples,
        )

    def _judged(self, state: _State, d: Any, seen: View, labels: Any) -> _State:
        """The state after the move to ``d``: what is best so far, and at a checkpoint the step length."""
        wrong = misled(seen.logits, labels) & ~state.lost
        better = seen.losses > state.best_loss
        best = tf.where(better[:, tf.newaxis], d, state.best)
        best_gradient = tf.where(better[:, tf.newaxis], seen.gradient, state.best_gradient)
        best_loss = tf.where(better, seen.losses, state.best_loss)
        rises = state.rises + tf.cast(seen.losses > state.loss, tf.float32)
        since = tf.gather(tf.constant(self._since), state.step)
        checked = since > 0
        halve = checked & (
            (rises < RISING_SHARE * since)  # condition 1 of the paper: it oscillates
            | (~state.halved & (best_loss == state.best_then))  # condition 2: it stands still
        )
        back = halve[:, tf.newaxis]
        return _State(
            step=state.step + 1,
            d=tf.where(back, best, d),
            before=state.d,
            loss=tf.where(halve, best_loss, seen.losses),
            gradient=tf.where(back, best_gradient, seen.gradient),
            best=best,
            best_loss=best_loss,
            best_gradient=best_gradient,
            length=tf.where(halve, state.length / 2, state.length),
            rises=tf.where(checked, 0.0, rises),
            halved=tf.where(checked, halve, state.halved),
            best_then=tf.where(checked, best_loss, state.best_then),
            lost=state.lost | wrong,
            found=tf.where(wrong[:, tf.newaxis], d, state.found),
        )


def _runner_up(logits: Any, labels: Any, number: Any) -> Any:
    """[b]: the class with the ``number``-th largest logit apart from the true one, counted from 0."""
    true = tf.one_hot(labels, logits.shape[-1], on_value=True, off_value=False)
    others = tf.argsort(tf.where(true, -float("inf"), logits), direction="DESCENDING")
    return tf.gather(others, tf.minimum(number, logits.shape[-1] - 2), axis=1)
