"""What parsing the example DAG costs, against an empty DAG that only imports airflow.sdk.

Each parse is a fresh interpreter, as in Airflow's DAG processor; the two are measured in turn and their medians compared.
The ratio is the empty DAG's time over ours: 1 means that the operators cost nothing to parse.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DAGS = Path(__file__).resolve().parent.parent / "dags"
EMPTY = """
from airflow.sdk import dag

@dag(schedule=None)
def empty():
    pass

empty()
"""


def seconds(file: Path, environment: dict[str, str]) -> float:
    """Wall time of one interpreter that imports ``file``, in seconds."""
    program = f"import sys; sys.path.insert(0, {str(file.parent)!r}); import {file.stem}"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 rounds in place of 15, and none to warm up")
    quick = parser.parse_args().quick
    rounds = 2 if quick else 15
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty_dag.py"
        empty.write_text(EMPTY)
        environment = {**os.environ, "AIRFLOW_HOME": folder, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        ours = DAGS / "clinic_privacy_pipeline.py"
        times: dict[str, list[float]] = {"empty": [], "clinic": []}
        for number in range(rounds if quick else rounds + 1):
            for name, file in (("empty", empty), ("clinic", ours)):
                taken = seconds(file, environment)
                # The first round fills the caches of compiled modules.
                if quick or number:
                    times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"empty DAG   {medians['empty']:.2f} s")
    print(f"example DAG {medians['clinic']:.2f} s, {medians['clinic'] / medians['empty']:.2f} times the empty one")
    result = {
        "benchmark": "parse_dag",
        "ratios": {"parse_vs_empty_dag": round(medians["empty"] / medians["clinic"], 3)},
        "setup": {"rounds": rounds, "python": platform.python_version(), "cores": os.cpu_count()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
