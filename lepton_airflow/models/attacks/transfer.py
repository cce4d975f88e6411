"""Transfer: what misleads another model is tried on this one (Papernot, McDaniel, Goodfellow: Transferability in Machine
Learning, 2016). It needs no gradients of the model under attack, so that it gets past those that are masked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lepton_airflow.models.attacks.outcome import Attack, Outcome
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.prediction import Predict, correct


class Transfer:
    """Tries on one model what attacks on others came to, whether they misled those or not.

    :param attacks: on other models
    :param predict: how the model under attack predicts
    """

    def __init__(self, attacks: Sequence[Attack], *, predict: Predict) -> None:
        self._attacks = tuple(attacks)
        self._predict = predict

    def run(self, examples: Examples, epsilon: float) -> Outcome:
        """Attack with radius ``epsilon``."""
        misled = np.zeros(len(examples), np.bool_)
        features = examples.features.copy()
        for attack in self._attacks:
            left = np.flatnonzero(~misled)
            tried = attack.run(examples.take(~misled), epsilon).features
            features[left] = tried
            misled[left] = ~correct(self._predict(tried), examples.labels[left])
        return Outcome(misled=misled, features=features)
