"""Why a measurement of robustness is not believed, and the checks that need no model: overlapping splits, another file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lepton_airflow.models.examples import Examples
from lepton_airflow.models.intervals import Proportion

RefusalCode = Literal[
    "zero-gradients",
    "black-box-beats-white-box",
    "ce-dlr-gap",
    "not-at-chance-at-large-epsilon",
    "rises-with-epsilon",
    "not-converged",
    "randomness",
    "wrong-logits",
    "outside-threat-model",
    "overlap",
    "artefact-hash",
]

#: Share of test examples that may repeat a training example's features. A test split of hundreds with one coincidence
#: stays below it, copied records do not.
REPEATED_SHARE = 0.01
#: A repeated example is no evidence of a copy where features are so coarse that chance alone would repeat a tenth as many.
COINCIDENCE = 0.1


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One reason not to believe the robust accuracy of a model.

    :param reason: a clause that a person understands, with the numbers behind it
    :param measured: the same numbers for programs
    """

    code: RefusalCode
    reason: str
    measured: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {"code": self.code, "reason": self.reason, "measured": dict(self.measured)}


def overlap(train: Examples, test: Examples) -> tuple[Refusal, ...]:
    """Refuse splits that share privacy units, or records under other names.

    Records count as shared if their features are bit for bit the same. Where features are few and coarse, people agree by chance;
    how many would if each feature were drawn by itself is taken into account.

    :param train: what the model learned from
    :param test: what it is judged by
    """
    found = []
    shared = {train.unit_ids[unit] for unit in np.unique(train.units)} & {
        test.unit_ids[unit] for unit in np.unique(test.units)
    }
    if shared:
        found.append(
            Refusal(
                code="overlap",
                reason=f"{len(shared)} privacy units are in the training data and in the test data",
                measured={"units": len(shared)},
            )
        )
    known = {row.tobytes() for row in train.features}
    repeated = np.array([row.tobytes() in known for row in test.features])
    share = Proportion.of(repeated, test.units)
    expected = _coincidences(train, test)
    if share.interval[0] > REPEATED_SHARE and expected < COINCIDENCE * share.successes:
        found.append(
            Refusal(
                code="overlap",
                reason=f"{share.successes} of {share.examples} test examples repeat the features of a training example "
                f"exactly, where chance would explain {expected:.2g}",
                measured={"repeated": share.successes, "n": share.examples, "by_chance": expected},
            )
        )
    return tuple(found)


def same_data(trained_on: str, test: Examples) -> tuple[Refusal, ...]:
    """Refuse to judge a model by the very examples that it was made from.

    :param trained_on: their digest, as the model's card says
    """
    if test.digest() != trained_on:
        return ()
    return (
        Refusal(
            code="overlap",
            reason=f"the {len(test)} examples are those that the model was trained on",
            measured={"n": len(test)},
        ),
    )


def other_artefact(evaluated: str, shipped: str) -> tuple[Refusal, ...]:
    """Refuse a file that is not the one that was attacked.

    :param evaluated: digest of the file before it was loaded and attacked
    :param shipped: digest of the file that would ship
    """
    if evaluated == shipped:
        return ()
    return (
        Refusal(
            code="artefact-hash",
            reason=f"the model file is {shipped}, the one that was attacked is {evaluated}",
            measured={},
        ),
    )


def _coincidences(train: Examples, test: Examples) -> float:
    """How many test examples would repeat a training example if every feature were independent of the others."""
    logarithm = 0.0
    for column in range(train.features.shape[1]):
        values, counts = np.unique(train.features[:, column], return_counts=True)
        tested, times = np.unique(test.features[:, column], return_counts=True)
        share = dict(zip(values.tolist(), (counts / len(train)).tolist(), strict=True))
        agreement = sum(
            share.get(value, 0.0) * time for value, time in zip(tested.tolist(), times.tolist(), strict=True)
        )
        if agreement == 0:
            return 0.0
        logarithm += float(np.log(agreement / len(test)))
    return float(min(1.0, len(train) * np.exp(logarithm)) * len(test))
