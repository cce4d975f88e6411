"""Small private models of diffprivlib 0.6 to hold a privately trained network against, where their bounds hold.

- *Linear regression* of a class's indicator on the features (Zhang, Zhang, Xiao, Yang, Winslett: Functional Mechanism, 2012). The
  library's bound holds for units added, removed or exchanged only as it is called here: one target at a time (the constant
  terms of several are not paid for), without intercept and with bounds symmetric about 0 (the sensitivity of squares is taken
  from the lower bound alone).
- *Gaussian naive Bayes*. Its bound holds for units added or removed, except that the number of all training units is used as it
  is. For a unit exchanged for one of another class it costs twice as much.
- *Logistic regression* does not start with the scikit-learn of this package's lock, and is left out.

Both draw continuous Laplace noise, whose lowest bits tell more than epsilon of whoever sees the parameters. So no model leaves
this module: what is reported is how many held-out examples it classifies correctly. Each unit gives one row.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lepton_airflow.errors import MissingDependency
from lepton_airflow.models.dp_sgd import rows_of_units
from lepton_airflow.models.examples import Examples, Features, Labels
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.intervals import Proportion

Baseline = Literal["linear_regression", "gaussian_naive_bayes"]


def baseline_accuracy(
    kind: Baseline, train: Examples, test: Examples, *, space: InputSpace, classes: int, epsilon: Decimal
) -> Proportion:
    """Train one baseline on the first example of every training unit and count what it gets right.

    :param space: with finite bounds of every feature, to which they are clipped
    :param epsilon: what it costs; linear regression divides it between the classes
    :raises MissingDependency: diffprivlib is not installed
    """
    rows = np.array([unit[0] for unit in rows_of_units(train, most=1)])
    predict = {"linear_regression": _linear_regression, "gaussian_naive_bayes": _gaussian_naive_bayes}[kind]
    predicted = predict(
        _scaled(train.features[rows], space),
        train.labels[rows],
        _scaled(test.features, space),
        classes=classes,
        epsilon=float(epsilon),
    )
    return Proportion.of(predicted == test.labels, test.units)


def _linear_regression(x: Any, labels: Labels, unseen: Any, *, classes: int, epsilon: float) -> npt.NDArray[np.int64]:
    models = _library()
    constant = np.ones((len(x), 1))
    scores = []
    for number in range(classes):
        model = models.LinearRegression(
            epsilon=epsilon / classes, bounds_X=(-1.0, 1.0), bounds_y=(-1.0, 1.0), fit_intercept=False
        )
        model.fit(np.hstack([x, constant]), np.where(labels == number, 1.0, -1.0))
        scores.append(model.predict(np.hstack([unseen, np.ones((len(unseen), 1))])))
    predicted: npt.NDArray[np.int64] = np.argmax(scores, axis=0)
    return predicted


def _gaussian_naive_bayes(
    x: Any, labels: Labels, unseen: Any, *, classes: int, epsilon: float
) -> npt.NDArray[np.int64]:
    model = _library().GaussianNB(epsilon=epsilon, bounds=(-1.0, 1.0))
    model.partial_fit(x, labels, classes=np.arange(classes))
    predicted: npt.NDArray[np.int64] = model.predict(unseen)
    return predicted


def _library() -> Any:
    try:
        from diffprivlib import models
    except ImportError:
        raise MissingDependency(
            "The baselines need diffprivlib, which is not installed.",
            place="training.differential_privacy.baselines",
            remedy='Install it: pip install "lepton-airflow[privacy]".',
        ) from None
    return models


def _scaled(features: Features, space: InputSpace) -> npt.NDArray[np.float64]:
    """From the declared bounds to [-1, 1]."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return np.clip(2 * (features - low) / (high - low) - 1, -1, 1)
