"""The release document: values and intervals in the metrics' own units, computed from noisy numbers alone."""

from __future__ import annotations

import copy
import json
import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_airflow.privacy.design import ReleaseDesign
from lepton_airflow.privacy.document import build_document
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
    requested_by=None,
    period_start=None,
    needs_approval=False,
    approver=None,
    approved_at=None,
    reserved_at="2026-11-01T00:00:00+00:00",
    drawn_at="2026-11-01T00:00:01+00:00",
    published_at=None,
)
MEASURE = {"column": "age", "lower": 20, "upper": 100, "granularity": "0.5"}
METRICS = [
    {"name": "visits", "type": "count"},
    {"name": "patients", "type": "count_units"},
    {"name": "years", "type": "sum", **MEASURE},
    {"name": "age", "type": "mean", **MEASURE},
]
NUMBERS = {
    "visits": [[12], [-3]],
    "patients": [[5], [0]],
    "years": [[1001], [-8]],
    "age.sum": [[-200], [50]],
    "age.count": [[10], [-4]],
}


def design_of(**fields: Any) -> ReleaseDesign:
    declared = {
        "privacy_unit": "patient_id",
        "metrics": METRICS,
        "max_groups_per_unit": 1,
        "max_rows_per_unit_and_group": 2,
        "epsilon": 2,
    }
    if "groupings" not in fields:
        declared |= {"group_by": ["ward"], "groups": ["north", "south"]}
    return ReleaseDesign.model_validate({**declared, **fields})


def document_of(
    design: ReleaseDesign, *vectors: dict[str, Any], keys: list[list[Any] | None] | None = None, **release: Any
) -> dict[str, Any]:
    keys = keys or [None] * len(vectors)
    result = {
        "schema": "lepton.draw/2",
        "groupings": {
            grouping.name: {"keys": own, "vectors": numbers}
            for grouping, own, numbers in zip(design.sets, keys, vectors, strict=True)
        },
    }
    plan = design.plan(
        [
            None if grouping.keys == "private" else len(grouping.declared if own is None else own)
            for grouping, own in zip(design.sets, keys, strict=True)
        ]
    )
    values = {name: getattr(RELEASE, name) for name in Release.__dataclass_fields__} | release
    return build_document(design=design, plan=plan, result=result, release=Release(**values), dataset="clinic.visits")


def test_values_are_in_the_metrics_own_units() -> None:
    north, south = document_of(design_of(), NUMBERS)["groupings"][0]["cells"]
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
    document = document_of(design_of(), NUMBERS)
    assert document["schema"] == "lepton.release/2"
    assert (document["dataset"], document["privacy_unit"]) == ("clinic.visits", "patient_id")
    assert (document["noise"], document["backend"], document["confidence"]) == ("laplace", "opendp", 0.95)
    assert "add or remove" in document["neighbours"]
    assert (document["epsilon"], document["delta"]) == ("2", "0")
    assert "approved_by" not in document
    assert document["post_processing"] == {"nonnegative": False, "consistent": False, "decimals": None, "steps": []}
    grouping = document["groupings"][0]
    assert (grouping["name"], grouping["group_by"], grouping["keys"]) == ("ward", ["ward"], "declared")
    assert grouping["bounds"] == {"max_groups_per_unit": 1, "max_rows_per_unit_and_group": 2}
    noise = {part["query"]: part for part in grouping["noise"]}
    # L1: one group, two rows of at most 200 steps each; epsilon 2 over four metrics of equal weight.
    assert noise["years"] == {
        "query": "years",
        "mechanism": "discrete Laplace",
        "epsilon": "0.5",
        "sensitivity": {"l1": 400, "l2": 400.0, "linf": 400},
        "scale": 800.0,
        "step": 0.5,
    }
    parts = [(noise[name]["epsilon"], noise[name]["sensitivity"]["l1"]) for name in ("age.sum", "age.count")]
    assert parts == [("0.25", 160), ("0.25", 2)]
    assert sum(Fraction(metric["epsilon"]) for metric in document["metrics"]) == 2
    assert document["metrics"][2] | {"epsilon": ""} == {
        "name": "years",
        "type": "sum",
        "epsilon": "",
        "column": "age",
        "lower": 20.0,
        "upper": 100.0,
        "granularity": 0.5,
    }
    json.dumps(document, allow_nan=False)


def test_gaussian_noise_is_charged_as_rho() -> None:
    document = document_of(
        design_of(noise="gaussian", delta="1e-6", metrics=METRICS[:2]),
        {name: NUMBERS[name] for name in list(NUMBERS)[:2]},
    )
    assert all("epsilon" not in metric and metric["rho"] > 0 for metric in document["metrics"])
    (visits, _) = document["groupings"][0]["noise"]
    assert visits["mechanism"] == "discrete Gaussian"
    # rho = L2**2 / (2 sigma**2), to the rounding of sigma.
    assert visits["rho"] == pytest.approx(2**2 / (2 * visits["scale"] ** 2), rel=1e-9)


def test_private_groups_come_with_their_threshold() -> None:
    design = design_of(group_by=["ward"], groups="private", delta="1e-6", metrics=METRICS[:1])
    numbers = {"selection": [[70], [90]], "visits": [[100], [120]]}
    grouping = document_of(design, numbers, keys=[[["north"], [None]]])["groupings"][0]
    assert grouping["keys"] == "private"
    assert grouping["selection"]["threshold"] > 1
    assert grouping["selection"]["delta"] == "0.000001"
    assert [part["query"] for part in grouping["noise"]] == ["selection", "visits"]
    assert [cell["group"] for cell in grouping["cells"]] == [{"ward": "north"}, {"ward": None}]


def test_keys_of_a_public_table_are_told_as_such() -> None:
    table = {"name": "wards", "path": "/wards"}
    document = document_of(
        design_of(groups=table, metrics=METRICS[:1]), {"visits": [[1], [2], [3]]}, keys=[[["a"], ["b"], ["c"]]]
    )
    assert document["groupings"][0]["keys"] == "table"
    assert len(document["groupings"][0]["cells"]) == 3


def test_an_approver_is_named() -> None:
    document = document_of(design_of(approval="required"), NUMBERS, needs_approval=True, approver="head")
    assert document["approved_by"] == "head"


def test_histograms_and_quantiles_have_their_own_form() -> None:
    bounds = {"column": "age", "lower": 0, "upper": 160}
    design = design_of(
        metrics=[
            {"name": "ages", "type": "histogram", "column": "age", "edges": [0, 18, 65, 120]},
            {"name": "typical", "type": "quantiles", "bins": 16, "quantiles": ["0.5", "0.25"], **bounds},
        ],
        epsilon=1000,
    )
    # All values in one bin of ten years: the fourth.
    level = [[10_000 if bin == 3 else 0 for bin in range(16)]] * 2
    document = document_of(design, {"ages": [[4, 5, -6], [7, 8, 9]], "typical.level16": level})
    values = document["groupings"][0]["cells"][0]["values"]
    assert [(bin["from"], bin["to"], bin["value"]) for bin in values["ages"]["bins"]] == [
        (0.0, 18.0, 4),
        (18.0, 65.0, 5),
        (65.0, 120.0, -6),
    ]
    assert list(values["typical"]) == ["0.5", "0.25"]
    assert values["typical"]["0.5"] == {"value": 35.0, "interval": [30.0, 40.0]}
    assert values["typical"]["0.25"] == {"value": 32.5, "interval": [30.0, 40.0]}
    assert document["metrics"][0]["edges"] == [0.0, 18.0, 65.0, 120.0]
    assert (document["metrics"][1]["bins"], document["metrics"][1]["quantiles"]) == (16, ["0.5", "0.25"])


def test_rounding_keeps_values_within_their_intervals() -> None:
    exact = document_of(design_of(), NUMBERS)["groupings"][0]["cells"]
    rounded = document_of(design_of(post_processing={"decimals": 0}), NUMBERS)["groupings"][0]["cells"]
    for before, after in zip(exact, rounded, strict=True):
        for name, cell in after["values"].items():
            low, high = cell["interval"]
            was = before["values"][name]["interval"]
            assert all(float(number).is_integer() for number in (cell["value"], low, high))
            assert was[0] - 1 < low <= was[0]
            assert was[1] <= high < was[1] + 1
    # Half to even, as IEEE 754 does.
    assert rounded[0]["values"]["years"]["value"] == 500.0


def test_counts_below_zero_become_zero_when_asked() -> None:
    cells = document_of(design_of(post_processing={"nonnegative": True}), NUMBERS)["groupings"][0]["cells"]
    assert cells[1]["values"]["visits"]["value"] == 0
    assert cells[1]["values"]["visits"]["interval"][0] == 0
    assert cells[0]["values"]["visits"]["value"] == 12
    # Sums can be negative in truth.
    assert cells[1]["values"]["years"]["value"] == -4.0


COLUMNS = st.lists(st.integers(-(2**40), 2**40), min_size=6, max_size=6)


@given(visits=COLUMNS, years=COLUMNS, decimals=st.sampled_from([None, 0, 2]), nonnegative=st.booleans())
def test_consistent_totals_are_exactly_equal(
    visits: list[int], years: list[int], decimals: int | None, nonnegative: bool
) -> None:
    design = design_of(
        metrics=METRICS[:3:2],
        groupings=[
            {"by": ["ward", "sex"], "keys": [["n", "f"], ["n", "m"], ["s", "f"]]},
            {"by": []},
            {"by": ["sex"], "keys": ["f", "m"]},
        ],
        post_processing={"consistent": True, "nonnegative": nonnegative, "decimals": decimals},
    )
    vectors = [
        {f"{name}/visits": [[v] for v in visits[part]], f"{name}/years": [[v] for v in years[part]]}
        for name, part in (("ward-sex", slice(0, 3)), ("all", slice(3, 4)), ("sex", slice(4, 6)))
    ]
    document = document_of(design, *vectors)
    fine, whole, coarse = (grouping["cells"] for grouping in document["groupings"])
    for metric in ("visits", "years"):

        def number(cell: dict[str, Any], name: str = metric) -> Fraction:
            low, high = cell["values"][name]["interval"]
            assert low <= cell["values"][name]["value"] <= high
            # The text is what readers get.
            return Fraction(json.dumps(cell["values"][name]["value"]))

        for cell in coarse:
            inner = [number(own) for own in fine if own["group"]["sex"] == cell["group"]["sex"]]
            assert number(cell) == sum(inner)
        assert number(whole[0]) == sum(map(number, coarse))
        if nonnegative and metric == "visits":
            assert min(map(number, fine)) >= 0


@given(seed=st.integers(0, 2**32))
def test_the_document_depends_on_its_inputs_alone(seed: int) -> None:
    numbers = {name: [[random.Random(seed).randrange(-50, 500)] for _ in range(2)] for name in NUMBERS}
    design = design_of(post_processing={"decimals": 2, "nonnegative": True})
    kept = copy.deepcopy(numbers)
    first = json.dumps(document_of(design, numbers))
    assert numbers == kept
    random.seed(seed + 1)
    again = json.dumps(document_of(ReleaseDesign.model_validate(design.model_dump(mode="json")), kept))
    assert first == again
    # What happens to the release later is not part of it.
    assert json.dumps(document_of(design, numbers, state="published", published_at="2026-12-01")) == first


def test_weights_split_epsilon_exactly() -> None:
    metrics = [{"name": name, "type": "count", "weight": weight} for name, weight in (("a", 1), ("b", 2), ("c", "0.5"))]
    plan = design_of(metrics=metrics, epsilon=1).plan([2])
    assert [query.epsilon for query in plan.groupings[0].queries] == [Fraction(2, 7), Fraction(4, 7), Fraction(1, 7)]
