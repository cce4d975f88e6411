"""The release document: values and intervals in the metrics' own units, computed from noisy numbers alone."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest

from lepton_airflow.privacy.bounds import ContributionBounds
from lepton_airflow.privacy.document import build_document
from lepton_airflow.privacy.metrics import Metric
from lepton_airflow.privacy.plan import BoundedAggregates, ReleasePlan, plan_release
from lepton_airflow.privacy.records import DRAWN, Release

RELEASE = Release(
    run_key="run",
    dataset="clinic.visits",
    unit="patient_id",
    spec_digest="sha256:a",
    state=DRAWN,
    epsilon=Fraction(2),
    delta=Fraction(0),
    principal="analyst",
    reserved_at="2026-11-01T00:00:00+00:00",
    drawn_at="2026-11-01T00:00:01+00:00",
    published_at=None,
)
MEASURE = {"column": "age", "lower": 20, "upper": 100, "granularity": "0.5"}
PLAN = plan_release(
    metrics=[
        Metric(name="visits", type="count"),
        Metric(name="patients", type="count_units"),
        Metric(name="years", type="sum", **MEASURE),
        Metric(name="age", type="mean", **MEASURE),
    ],
    bounds=ContributionBounds(groups=1, rows=2),
    groups=2,
    epsilon=Fraction(2),
)


def document_of(numbers: dict[str, list[int]], plan: ReleasePlan = PLAN) -> dict[str, Any]:
    return build_document(
        release=RELEASE,
        numbers=numbers,
        plan=plan,
        dataset="clinic.visits",
        group_by=("ward",),
        groups=(("north",), ("south",)),
    )


NUMBERS = {
    "visits": [12, -3],
    "patients": [5, 0],
    "years": [1001, -8],
    "age.sum": [-200, 50],
    "age.count": [10, -4],
}


def test_values_are_in_the_metrics_own_units() -> None:
    north, south = document_of(NUMBERS)["cells"]
    assert north["group"] == {"ward": "north"}
    assert {name: cell["value"] for name, cell in north["values"].items()} == {
        "visits": 12,
        "patients": 5,
        "years": 500.5,
        # Midpoint 60, and 200 steps of 0.5 below it over 10 values.
        "age": 50.0,
    }
    # A noisy count below one is taken as one, and a mean stays within its bounds.
    assert south["values"]["age"]["value"] == 85.0
    assert south["values"]["visits"]["value"] == -3


def test_the_header_says_how_the_numbers_were_made() -> None:
    document = document_of(NUMBERS)
    assert document["schema"] == "lepton.release/1"
    assert (document["dataset"], document["privacy_unit"]) == ("clinic.visits", "patient_id")
    assert "add or remove" in document["neighbours"]
    assert document["bounds"] == {"max_groups_per_unit": 1, "max_rows_per_unit_and_group": 2}
    assert (document["epsilon"], document["delta"]) == ("2", "0")
    years = next(metric for metric in document["metrics"] if metric["name"] == "years")
    # L1: one group, two rows of at most 100 each; epsilon 2 over four metrics of equal weight.
    assert years["noise"] == [
        {"query": "years", "mechanism": "discrete Laplace", "epsilon": "0.5", "l1_sensitivity": 200.0, "scale": 400.0}
    ]
    age = next(metric for metric in document["metrics"] if metric["name"] == "age")
    assert [(part["query"], part["epsilon"], part["l1_sensitivity"]) for part in age["noise"]] == [
        ("age.sum", "0.25", 80.0),
        ("age.count", "0.25", 2),
    ]
    assert sum(Fraction(metric["epsilon"]) for metric in document["metrics"]) == 2
    json.dumps(document, allow_nan=False)


def test_weights_split_epsilon_exactly() -> None:
    plan = plan_release(
        metrics=[Metric(name=name, type="count", weight=weight) for name, weight in (("a", 1), ("b", 2), ("c", "0.5"))],
        bounds=ContributionBounds(groups=1, rows=1),
        groups=1,
        epsilon=Fraction(1),
    )
    assert [query.epsilon for query in plan.queries] == [Fraction(2, 7), Fraction(4, 7), Fraction(1, 7)]


def test_every_interval_holds_the_exact_number_in_95_of_100_draws() -> None:
    exact = BoundedAggregates(units=(40, 3), rows=(70, 5), values=((60, 4),), sums=((60 * 130, 4 * 60),))
    draws = 1500
    noisy = {query.name: [0] for query in PLAN.queries}
    covered = dict.fromkeys(["visits", "patients", "years", "age"], 0)
    for query in PLAN.queries:
        # Both groups, many times over, in one draw.
        noisy[query.name] = query.mechanism.add_noise(PLAN.vector(query, exact) * draws)
    truth = {"visits": (70, 5), "patients": (40, 3), "years": (60 * 65.0, 4 * 30.0), "age": (65.0, 30.0)}
    for i in range(draws):
        cells = document_of({name: vector[2 * i : 2 * i + 2] for name, vector in noisy.items()})["cells"]
        for name, values in truth.items():
            for cell, value in zip(cells, values, strict=True):
                low, high = cell["values"][name]["interval"]
                assert low <= cell["values"][name]["value"] <= high
                covered[name] += low <= value <= high
    for name, count in covered.items():
        # Five standard deviations below 95%.
        assert count / (2 * draws) > 0.95 - 5 * 0.004, name


@pytest.mark.parametrize("metric", ["visits", "patients", "years"])
def test_intervals_are_not_wider_than_they_need_to_be(metric: str) -> None:
    query = next(query for query in PLAN.queries if query.name == metric)
    width = query.mechanism.half_width(0.95)
    noise = query.mechanism.add_noise([0] * 20_000)
    assert sum(abs(entry) < width for entry in noise) / len(noise) < 0.96
