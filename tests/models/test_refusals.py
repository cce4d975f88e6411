"""Splits that overlap and files that are not the attacked one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lepton_airflow.models.examples import Examples
from lepton_airflow.models.refusals import other_artefact, overlap, same_data


def halves(examples: Examples) -> tuple[Examples, Examples]:
    first = np.arange(len(examples)) < len(examples) // 2
    return examples.take(first), examples.take(~first)


def test_splits_of_different_people_pass(blobs: Callable[..., Examples]) -> None:
    assert overlap(*halves(blobs(400))) == ()


def test_a_shared_unit_is_refused(blobs: Callable[..., Examples]) -> None:
    train, test = halves(blobs(400))
    test = replace(test, units=np.concatenate([[3], test.units[1:]]))
    (refusal,) = overlap(train, test)
    assert (refusal.code, refusal.measured["units"]) == ("overlap", 1)


def test_units_are_known_by_name_and_not_by_position(blobs: Callable[..., Examples]) -> None:
    train, test = halves(blobs(400))
    other_table = replace(test, units=test.units - 200, unit_ids=tuple(f"new {unit}".encode() for unit in range(200)))
    assert overlap(train, other_table) == ()


def test_records_under_another_name_are_refused(blobs: Callable[..., Examples]) -> None:
    train, test = halves(blobs(400))
    copied = test.features.copy()
    copied[:10] = train.features[:10]
    (refusal,) = overlap(train, replace(test, features=copied))
    assert refusal.measured["repeated"] == 10
    one = test.features.copy()
    one[0] = train.features[0]
    assert overlap(train, replace(test, features=one)) == (), "one in 200 may be chance"


def test_people_who_agree_by_chance_on_coarse_features_are_no_copies() -> None:
    draw = np.random.default_rng(4)
    examples = Examples(
        features=draw.integers(0, 3, size=(600, 4)).astype(np.float32),
        labels=np.zeros(600, np.int32),
        units=np.arange(600),
        unit_ids=tuple(f"{unit}".encode() for unit in range(600)),
    )
    train, test = halves(examples)
    assert {row.tobytes() for row in train.features} & {row.tobytes() for row in test.features}
    assert overlap(train, test) == ()


def test_the_very_data_of_the_training_are_refused(blobs: Callable[..., Examples]) -> None:
    examples = blobs(50)
    (refusal,) = same_data(examples.digest(), examples)
    assert refusal.code == "overlap"
    assert same_data(examples.digest(), blobs(50, seed=1)) == ()


def test_another_file_than_the_attacked_one_is_refused() -> None:
    assert other_artefact("sha256:a", "sha256:a") == ()
    (refusal,) = other_artefact("sha256:a", "sha256:b")
    assert refusal.code == "artefact-hash"
    assert "sha256:b" in refusal.reason
