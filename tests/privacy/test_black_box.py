"""What an attacker who sees released documents can prove about epsilon: never more than is claimed, nearly as much, and far more
than is claimed of a mechanism that is known to be broken.

The tester is given many outputs for each of two neighbouring tables: the numbers of many groups that hold the same, released by
the whole job; noise is drawn for each by itself. On the first half of them it looks for the event that tells the tables apart
best, among thresholds (hockey-stick), single values (histogram) and the low bits of the numbers; on the second half it bounds
that event's probabilities (Clopper, Pearson 1934) and so epsilon from below. Such a bound is exceeded by chance in one test of a
million. Its power: at epsilon 1 and 16,000 outputs of each table it proves at least 0.7, so an epsilon that is claimed 30 % too
low is noticed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from lepton_airflow.audit.database import connect
from lepton_airflow.jobs.runner import run_job
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.mechanisms import DiscreteLaplace
from lepton_airflow.settings import Settings

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


def released(spark: SparkSession, home: Settings, folder: Path, *, extreme: bool) -> dict[str, list[float]]:
    """The numbers of a release by the whole job, by metric: one for each of 16,000 groups that hold the same.

    :param extreme: in every group there is one unit more, which contributes as much as it can
    """
    from pyspark.sql import functions as F

    units = 9 if extreme else 8
    cells = spark.range(OUTPUTS * units).select(
        (F.col("id") % OUTPUTS).cast("int").alias("ward"), F.expr(f"cast(id div {OUTPUTS} as int)").alias("place")
    )
    rows = cells.select(
        "ward",
        F.format_string("p%d-%d", "ward", "place").alias("patient_id"),
        F.explode(
            F.when(F.col("place") == 8, F.array([F.lit(1e9)] * 5)).otherwise(F.array(F.col("place").cast("double")))
        ).alias("age"),
    )
    name = f"clinic.{'extreme' if extreme else 'plain'}"
    rows.write.parquet(str(folder / name))
    engine = connect(home)
    Ledger(engine).create(dataset=name, unit="patient_id", epsilon=Decimal(10), owner="tester")
    engine.dispose()
    measure = {"column": "age", "lower": -10, "upper": 10}
    numbers: dict[str, list[float]] = {}
    for metric in (
        {"name": "count", "type": "count"},
        {"name": "sum", "type": "sum", **measure},
        {"name": "mean", "type": "mean", **measure},
    ):
        file = folder / f"{name}-{metric['name']}.json"
        fields = {
            "source": {"name": name, "path": str(folder / name)},
            "privacy_unit": "patient_id",
            "group_by": ["ward"],
            "groups": list(range(OUTPUTS)),
            "metrics": [metric],
            "max_groups_per_unit": 1,
            "max_rows_per_unit_and_group": 2,
            "epsilon": "1",
            "target": str(file),
            "purpose": "test",
        }
        run_job("release_aggregates", fields, settings=home, run_key=str(file))
        published = json.loads(file.read_text())["groupings"][0]["cells"]
        numbers[metric["name"]] = [float(cell["values"][metric["name"]]["value"]) for cell in published]
    return numbers


@pytest.mark.slow
def test_a_release_proves_no_more_than_its_epsilon(spark: SparkSession, home: Settings, tmp_path: Path) -> None:
    plain, extreme = (released(spark, home, tmp_path, extreme=extreme) for extreme in (False, True))
    for metric, power in (("count", 0.7), ("sum", 0.7), ("mean", 0.0)):
        assert power <= proven_epsilon(plain[metric], extreme[metric]) <= 1, metric


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
