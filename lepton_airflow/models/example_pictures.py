"""Pictures of attacked images for a model card: before, what was added, after.

An attacked image is derived from a person's record and is published with the card, so there are none unless the spec asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lepton_airflow.models.attacks.suite import SuiteResult
from lepton_airflow.models.examples import Examples, Features
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.prediction import Predict

#: Small images are enlarged to about this many pixels, each pixel to a square.
_SIDE = 96


@dataclass(frozen=True, kw_only=True)
class ExamplePicture:
    """One attacked image as three PNG files, with its class and what the model says before and after."""

    original: bytes
    perturbation: bytes
    adversarial: bytes
    label: str
    before: str
    after: str
    size: float

    @property
    def misled(self) -> bool:
        return self.after != self.label


def example_pictures(
    result: SuiteResult,
    examples: Examples,
    *,
    space: InputSpace,
    predict: Predict,
    classes: Sequence[Any],
    count: int,
) -> tuple[ExamplePicture, ...]:
    """Pictures of ``count`` examples that were classified correctly before the attack: as many that were misled as that
    withstood, as far as there are, each class in turn.

    :param predict: the model that was attacked
    :param classes: their names
    """
    chosen = _chosen(result, examples, count)
    before = predict(examples.features[chosen]).argmax(axis=1)
    after = predict(result.adversarial[chosen]).argmax(axis=1)
    return tuple(
        _picture(
            examples.features[row],
            result.adversarial[row],
            space=space,
            epsilon=result.epsilon,
            label=str(classes[examples.labels[row]]),
            before=str(classes[first]),
            after=str(classes[second]),
        )
        for row, first, second in zip(chosen, before, after, strict=True)
    )


def _chosen(result: SuiteResult, examples: Examples, count: int) -> npt.NDArray[np.int64]:
    misled = _by_class(result.clean & ~result.robust, examples)
    withstood = _by_class(result.robust, examples)
    half = min(len(misled), max(count // 2, count - len(withstood)))
    return np.concatenate([misled[:half], withstood[: count - half]])


def _by_class(wanted: npt.NDArray[np.bool_], examples: Examples) -> npt.NDArray[np.int64]:
    """Positions of the wanted examples: the first of each class, then the second of each, and so on."""
    rows = np.flatnonzero(wanted)
    labels = examples.labels[rows]
    rank = np.array([np.count_nonzero(labels[:position] == label) for position, label in enumerate(labels)], np.int64)
    return rows[np.lexsort((labels, rank))]


def _picture(
    original: Features,
    adversarial: Features,
    *,
    space: InputSpace,
    epsilon: float,
    label: str,
    before: str,
    after: str,
) -> ExamplePicture:
    reach = space.high - space.low
    difference = (adversarial - original) / (epsilon * space.unit)
    most = float(np.abs(difference).max())
    return ExamplePicture(
        original=_png((original - space.low) / reach, space.shape),
        # Grey is no change; black and white are the most that any pixel was changed.
        perturbation=_png(0.5 + difference / (2 * most or 1), space.shape),
        adversarial=_png((adversarial - space.low) / reach, space.shape),
        label=label,
        before=before,
        after=after,
        size=most,
    )


def _png(values: npt.NDArray[np.floating[Any]], shape: tuple[int, ...]) -> bytes:
    """Values in [0, 1] as a PNG file; of two or more than four channels the first is shown."""
    pixels = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8).reshape(shape)
    if shape[2] not in (1, 3, 4):
        pixels = pixels[:, :, :1]
    times = max(1, _SIDE // max(shape[:2]))
    enlarged = pixels.repeat(times, axis=0).repeat(times, axis=1)
    png: bytes = tf.io.encode_png(enlarged).numpy()
    return png
