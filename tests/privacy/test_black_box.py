"""What an attacker who sees released documents can prove about epsilon: never more than is claimed, nearly as much, and far more
than is claimed of a mechanism that is known to be broken.

The tester is given many outputs for each of two neighbouring tables. On the first half of them it looks for the event that tells
the tables apart best, among thresholds (hockey-stick), single values (histogram) and the low bits of the numbers; on the second
half it bounds that event's probabilities (Clopper, Pearson 1934) and so epsilon from below. Such a bound is exceeded by chance in
one test of a million. Its power: at epsilon 1 and 16,000 outputs of each table it proves at least 0.7, so an epsilon that is
claimed 30 % too low is noticed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats

from lepton_airflow.privacy.aggregation import aggregate
from lepton_airflow.privacy.design import ReleaseDesign
from lepton_airflow.privacy.document import build_document
from lepton_airflow.privacy.draw import draw
from lepton_airflow.privacy.mechanisms import DiscreteLaplace
from lepton_airflow.privacy.records import DRAWN, Release

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

OUTPUTS = 16_000
CHANCE = 1e-6
#: An event over outputs.
Event = Callable[[float], bool]


def proven_epsilon(first: Sequence[float], second: Sequence[float], *, delta: float = 0.0) -> float:
    """A lower bound of epsilon that holds with probability 1 - 1e-6, from outputs of two neighbouring tables."""
    half = len(first) // 2
    best = 0.0
    for one, other in ((first, second), (second, first)):
        events = events_of([*one[:half], *other[:half]])
        scores = [score(event, one[:half], other[:half]) for event in events]
        event = events[int(np.argmax(scores))]
        hits, misses = sum(map(event, one[half:])), sum(map(event, other[half:]))
        n = len(one) - half
        # Two directions, two tails.
        low = stats.beta.ppf(CHANCE / 4, hits, n - hits + 1) if hits else 0.0
        high = stats.beta.ppf(1 - CHANCE / 4, misses + 1, n - misses) if misses < n else 1.0
        if low > delta:
            best = max(best, math.log((low - delta) / high))
    return best


def score(event: Event, one: Sequence[float], other: Sequence[float]) -> float:
    """A pessimistic guess of what the event will prove."""
    hits, misses = sum(map(event, one)), sum(map(event, other))
    return math.log(max(hits - 5 * math.sqrt(hits), 1e-9) / (misses + 5 * math.sqrt(misses) + 14))


def events_of(outputs: Sequence[float]) -> list[Event]:
    cuts = np.unique(np.quantile(outputs, np.linspace(0.02, 0.98, 25)))
    common = [value for value, count in Counter(outputs).most_common(20) if count > 50]
    events: list[Event] = []
    for cut in cuts:
        events += [lambda x, c=cut: x >= c, lambda x, c=cut: x <= c]
    events += [lambda x, v=value: x == v for value in common]
    # Numbers near zero whose low bits the sum with a larger number would have lost.
    events += [
        lambda x, s=scale: abs(x) < 0.5 and (x * s) != math.floor(x * s) for scale in (2.0**52, 2.0**53, 2.0**54)
    ]
    return events


def design_of(metric: dict[str, Any], **more: Any) -> ReleaseDesign:
    fields: dict[str, Any] = {
        "privacy_unit": "unit",
        "metrics": [metric],
        "max_groups_per_unit": 1,
        "max_rows_per_unit_and_group": 2,
        "epsilon": "1",
    }
    return ReleaseDesign.model_validate(fields | more)


def released(spark: SparkSession, rows: Sequence[tuple[str, float]], design: ReleaseDesign) -> list[float]:
    """The first number of many releases of one table: aggregated by the job's plan, noised and published by its code."""
    plan = design.plan([1])
    frame = spark.createDataFrame(list(rows), "unit string, value double")
    totals = aggregate(
        spark, frame, plan=plan, keys=[((),)], unit="unit", salt=1, dataset="clinic.visits", unit_is_encrypted=False
    )
    stamp = Release(
        run_key="run",
        dataset="clinic.visits",
        unit="unit",
        spec_digest="sha256:a",
        state=DRAWN,
        epsilon=Fraction(1),
        delta=Fraction(0),
        principal="analyst",
        requested_by=None,
        needs_approval=False,
        approver=None,
        approved_at=None,
        period_start=None,
        reserved_at="2026-11-22T00:00:00+00:00",
        drawn_at="2026-11-22T00:00:00+00:00",
        published_at=None,
    )
    numbers = []
    for _ in range(OUTPUTS):
        result = draw(plan, totals, keys=[((),)], declared=[True])
        document = build_document(design=design, plan=plan, result=result, release=stamp, dataset="clinic.visits")
        numbers.append(float(document["groupings"][0]["cells"][0]["values"]["m"]["value"]))
    return numbers


#: Eight units, and one more that contributes as much as it can.
TABLE = [(f"u{i}", float(i)) for i in range(8)]
NEIGHBOUR = [*TABLE, *[("extreme", 1e9)] * 5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "power"),
    [
        ({"name": "m", "type": "count"}, 0.7),
        ({"name": "m", "type": "sum", "column": "value", "lower": -10, "upper": 10}, 0.7),
        # Half of its epsilon is in the count, which one number shows little of.
        ({"name": "m", "type": "mean", "column": "value", "lower": -10, "upper": 10}, 0.0),
    ],
    ids=["count", "sum", "mean"],
)
def test_a_release_proves_no_more_than_its_epsilon(spark: SparkSession, metric: dict[str, Any], power: float) -> None:
    design = design_of(metric)
    proven = proven_epsilon(released(spark, TABLE, design), released(spark, NEIGHBOUR, design))
    assert power <= proven <= 1


def test_noise_of_a_too_small_scale_is_caught() -> None:
    """The tester's power, without the rest of the job: epsilon 1.4 where 1 is claimed."""
    mechanism = DiscreteLaplace(1 / 1.4)
    assert proven_epsilon(mechanism.add_noise([8] * OUTPUTS), mechanism.add_noise([9] * OUTPUTS)) > 1


@pytest.mark.parametrize("name", ["Laplace", "LaplaceTruncated"])
def test_the_continuous_mechanisms_of_diffprivlib_are_caught(name: str) -> None:
    """The positive control: claimed epsilon 1, and the low bits of a double prove more. Releases refuse these by name."""
    from diffprivlib import mechanisms

    bounds = {"lower": -1000, "upper": 1000} if name == "LaplaceTruncated" else {}
    mechanism = getattr(mechanisms, name)(epsilon=1, sensitivity=1, **bounds)
    outputs = [[float(mechanism.randomise(value)) for _ in range(OUTPUTS)] for value in (0, 1)]
    assert proven_epsilon(*outputs) > 3
