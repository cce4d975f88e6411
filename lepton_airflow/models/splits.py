"""The examples of a retraining in three parts, cut by privacy unit: learned from, choosing the epoch, judged by."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from lepton_airflow.errors import EmptyTable
from lepton_airflow.models.examples import Examples, require_classes, require_disjoint, split_by_unit


@dataclass(frozen=True, kw_only=True)
class Splits:
    """No unit is in two of them.

    :param validation: None when nothing chooses the epoch
    """

    learned_from: Examples
    validation: Examples | None
    held_out: Examples


def split(
    examples: Examples,
    *,
    test_fraction: float,
    validation_fraction: float,
    batch_size: int,
    key: bytes,
    classes: Sequence[str | int | bool],
    dataset: str,
    label: str,
) -> Splits:
    """Cut examples, and see that the parts are fit to be trained on and judged by.

    :param test_fraction: share of the units that are held out
    :param validation_fraction: share of the other units that choose the epoch
    :param key: 32 bytes; under the same key a unit stays on its side, whatever others come or go
    :param dataset: the table's name, for errors
    :param label: the label's column, for errors
    :raises EmptyTable: a part without examples, or fewer to learn from than one batch
    :raises InvalidData: a class that a part has no example of
    """
    learned_from, held_out = split_by_unit(examples, test_fraction=test_fraction, key=key)
    validation = None
    if validation_fraction:
        learned_from, validation = split_by_unit(
            learned_from, test_fraction=validation_fraction, key=hmac.digest(key, b"validation", "sha256")
        )
    require_disjoint(learned_from, held_out, place=dataset)
    if len(learned_from) < batch_size:
        raise EmptyTable(
            f"The training split has {len(learned_from)} examples, less than one batch of {batch_size}.",
            place=dataset,
            remedy="Train on more units, or set a smaller training.batch_size.",
        )
    for part, name in ((learned_from, "training"), (held_out, "test")):
        require_classes(part, classes, place=f"{dataset}.{label} ({name} split)")
    return Splits(learned_from=learned_from, validation=validation, held_out=held_out)
