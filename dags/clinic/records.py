"""The clinical table of the example.

The 569 patients' 30 measurements and diagnoses are real: the Wisconsin diagnostic breast cancer records (Street, Wolberg and
Mangasarian, 1993), which scikit-learn ships. Everything that identifies a person is NOT: patient ids, names, e-mail addresses,
phone and insurance numbers, sites, visit dates and the number of visits are generated here from a fixed seed. The visits of a
patient repeat that patient's measurements.
"""

from __future__ import annotations

import os
import random
import shutil
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

#: Names of the 30 measurements, as columns.
STATISTICS = ("mean", "error", "worst")
QUANTITIES = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave_points",
    "symmetry",
    "fractal_dimension",
)
MEASUREMENTS = tuple(f"{statistic}_{quantity}" for statistic in STATISTICS for quantity in QUANTITIES)
SITES = ("north", "south", "east", "west")
DIAGNOSES = ("malignant", "benign")
MAXIMUM_VISITS = 4

_FIRST_NAMES = (
    "Ada",
    "Bea",
    "Cara",
    "Dana",
    "Edda",
    "Finja",
    "Gesa",
    "Hanna",
    "Ida",
    "Jule",
    "Karla",
    "Lina",
    "Mara",
    "Nora",
)
_LAST_NAMES = (
    "Albers",
    "Brandt",
    "Claasen",
    "Dirks",
    "Ehlers",
    "Falk",
    "Gerdes",
    "Harms",
    "Iversen",
    "Jansen",
    "Kruse",
    "Lorenz",
)
_SEED = 1993


def visits() -> pa.Table:
    """The table: one row a visit, 1 to 4 visits a patient; columns ``visit_id``, identity, ``site``, ``visit_date``,
    ``diagnosis`` and the 30 measurements (float64, in the units of the original records)."""
    import pyarrow as pa
    from sklearn.datasets import load_breast_cancer

    records = load_breast_cancer()
    # Seeded on purpose: invented identities, the same ones each time.
    invent = random.Random(_SEED)  # noqa: S311
    rows = []
    for number, (measured, label) in enumerate(zip(records.data, records.target, strict=True)):
        first, last = invent.choice(_FIRST_NAMES), invent.choice(_LAST_NAMES)
        person = {
            "patient_id": f"P-{invent.randrange(10**6):06d}-{number:03d}",
            "name": f"{first} {last}",
            "email": f"{first}.{last}.{number}@example.org".lower(),
            # 555 01xx is kept for fiction.
            "phone": f"+1 {invent.randrange(200, 999)} 555 01{invent.randrange(100):02d}",
            "insurance_number": f"{invent.choice('ABCDEFGH')}{invent.randrange(10**9):09d}",
            "site": invent.choice(SITES),
        }
        for _ in range(invent.randint(1, MAXIMUM_VISITS)):
            rows.append(
                {
                    "visit_id": len(rows) + 1,
                    **person,
                    "visit_date": date(2025, 1, 1) + timedelta(days=invent.randrange(365)),
                    "diagnosis": DIAGNOSES[label],
                    **dict(zip(MEASUREMENTS, map(float, measured), strict=True)),
                }
            )
    return pa.Table.from_pylist(rows)


def land(folder: str) -> int:
    """Write the table in the clear to ``folder`` as Parquet, all of it or nothing; returns the number of rows."""
    import pyarrow.parquet as pq

    table = visits()
    target = Path(folder)
    staging = target.with_name(f".{target.name}.staging-{os.getpid()}")
    staging.mkdir(parents=True)
    pq.write_table(table, staging / "visits.parquet")
    if target.exists():
        shutil.rmtree(target)
    staging.rename(target)
    return int(table.num_rows)
