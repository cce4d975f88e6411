"""How good a model is while it is being trained: its accuracy on a few fixed examples, as they are and under a short attack.

The short attack is much weaker than the suite that judges the finished model. It ranks epochs; its figures are no claim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_airflow.models.attacks.pgd import ProjectedGradientDescent
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.prediction import correct, prediction_of

_STEPS = 10
_BATCH_SIZE = 256
#: How many training examples progress is measured on where there is no validation split.
_SAMPLE = 256


@dataclass(frozen=True, kw_only=True, order=True)
class Standing:
    """Shares of the examples; the better of two standings is the one with the higher robust accuracy, then clean."""

    robust: float
    clean: float


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What every epoch is measured on.

    :param examples: fixed through the training
    :param epsilon: of the short attack; 0 for models that are trained without one
    :param chooses: whether the best epoch is kept, and not the last one; only examples that are not trained on may choose
    """

    examples: Examples
    perturbation: Perturbation
    epsilon: float
    chooses: bool = True

    @classmethod
    def of_training(cls, examples: Examples, *, perturbation: Perturbation, epsilon: float, seed: int) -> Validation:
        """Progress on a sample of the training examples, which chooses nothing."""
        chosen = np.zeros(len(examples), np.bool_)
        chosen[np.random.default_rng(seed).permutation(len(examples))[:_SAMPLE]] = True
        return cls(examples=examples.take(chosen), perturbation=perturbation, epsilon=epsilon, chooses=False)

    def measure_of(self, model: Any) -> Callable[[], Standing]:
        """A function that measures ``model`` with the weights that it has at that time.

        The attack starts at the examples themselves, so that nothing is random in it and a resumed training measures what the
        killed one would have.
        """
        size = min(_BATCH_SIZE, len(self.examples))
        predict = prediction_of(model, batch_size=size)
        attack = ProjectedGradientDescent(
            model, perturbation=self.perturbation, steps=_STEPS, restarts=1, batch_size=size, seed=0
        )

        def measure() -> Standing:
            clean = float(correct(predict(self.examples.features), self.examples.labels).mean())
            if not self.epsilon:
                return Standing(robust=clean, clean=clean)
            return Standing(robust=float(attack.survivors(self.examples, self.epsilon).mean()), clean=clean)

        return measure
