"""What bounding contributions costs: releases beside a plain, non-private aggregation of the same data.

Counts, sums and means of 1,000 groups over 5 million rows of 500,000 units, in Spark as ``local[2]``. Measurements are run
in turn, round after round; a ratio is the median over the rounds of the peer's time over ours, so above 1 we are faster. Measured
are, up to the exact totals that noise is added to:

- the direct road, from Parquet, and the DataFrame road; the peer is Spark's own ``groupBy`` without any privacy;
- the direct road with an encrypted measure, beside the same without and decrypting that measure alone;

and, with everything that a job does but authorisation, from the reservation of budget to the release file: 100,000 groups that
are chosen privately. On request (``--pipelinedp``) PipelineDP, on a Spark of its own, releases 200,000 rows with the same metrics
and bounds, in turn with us, from an environment of its own:
``python -m venv pdp && pdp/bin/pip install pipeline-dp dp-accounting scipy pyspark``.
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
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import functions as F

from lepton_airflow.audit.database import connect, migrate
from lepton_airflow.columnar.batches import read_batches
from lepton_airflow.columnar.dataset import ParquetTable, open_table
from lepton_airflow.columnar.files import uri_of
from lepton_airflow.columnar.publish import Publication, Written
from lepton_airflow.columnar.rewrite import rewrite
from lepton_airflow.columnar.tasks import Task, plan_tasks
from lepton_airflow.encryption.planning import plan_protection, protectors_of
from lepton_airflow.encryption.protection import Protection
from lepton_airflow.encryption.roads import Protect, Reveal
from lepton_airflow.keys.identity import generate_identity
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.keys.reference import KeysetReference
from lepton_airflow.privacy.aggregation import aggregate, new_salt
from lepton_airflow.privacy.design import ReleaseDesign
from lepton_airflow.privacy.draw import draw
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.release import ReleaseOrder, perform
from lepton_airflow.settings import Settings

UNITS_PER_ROW, GROUPS, PRIVATE_GROUPS, PIPELINEDP_ROWS = 1 / 10, 1000, 100_000, 200_000
ROWS_PER_PRIVATE_GROUP = 30
MEASURE = {"column": "value", "lower": 0, "upper": 100}
METRICS = [
    {"name": "rows", "type": "count"},
    {"name": "total", "type": "sum", **MEASURE},
    {"name": "average", "type": "mean", **MEASURE},
]
KEYS = [(f"group {number}",) for number in range(GROUPS)]

#: Each ratio's measurement and its peer, and what it should reach.
RATIOS = {
    "release_vs_plain": ("direct road", "plain groupBy", 0.4),
    "release_dataframe_vs_plain": ("DataFrame road", "plain groupBy", 0.22),
    "release_vs_pipelinedp": ("direct road, 200k rows, noised", "PipelineDP, 200k rows", 10),
}

CLEAR, ENCRYPTED, DECRYPTING = (
    "direct road, measure in clear",
    "direct road, measure encrypted",
    "decrypting the measure",
)

Times = dict[str, list[float]]

PIPELINEDP = """
import sys
import pipeline_dp
rows = [(int(u), g, float(v)) for u, g, v in (line.rstrip("\\n").split("\\t") for line in open(sys.argv[1]))]
try:
    import pyspark
    conf = pyspark.SparkConf().set("spark.ui.showConsoleProgress", "false").set("spark.ui.enabled", "false")
    context = pyspark.SparkContext("local[2]", conf=conf)
    context.setLogLevel("OFF")
    source = context.parallelize(rows, 4).cache()
    source.count()
    backend = pipeline_dp.SparkRDDBackend(context)
except ImportError:
    source, backend = rows, pipeline_dp.LocalBackend()
parameters = pipeline_dp.AggregateParams(
    noise_kind=pipeline_dp.NoiseKind.LAPLACE,
    metrics=[pipeline_dp.Metrics.COUNT, pipeline_dp.Metrics.SUM, pipeline_dp.Metrics.MEAN],
    max_partitions_contributed=5, max_contributions_per_partition=2, min_value=0, max_value=100)
extractors = pipeline_dp.DataExtractors(
    privacy_id_extractor=lambda row: row[0], partition_extractor=lambda row: row[1], value_extractor=lambda row: row[2])
print(type(backend).__name__, flush=True)
for _ in sys.stdin:
    budget = pipeline_dp.NaiveBudgetAccountant(total_epsilon=1, total_delta=1e-9)
    engine = pipeline_dp.DPEngine(budget, backend)
    result = engine.aggregate(source, parameters, extractors, public_partitions=[f"group {i}" for i in range(1000)])
    budget.compute_budgets()
    found = result.collect() if hasattr(result, "collect") else list(result)
    assert len(found) == 1000
    print("done", flush=True)
"""


def design_of(**options: Any) -> ReleaseDesign:
    options = {"group_by": ["grp"], "groups": KEYS, "epsilon": "1", **options}
    return ReleaseDesign(
        privacy_unit="user_id", metrics=METRICS, max_groups_per_unit=5, max_rows_per_unit_and_group=2, **options
    )


def measure(steps: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 1) -> Times:
    """Seconds of each step in each round, after some that warm up; every second round goes the other way."""
    times: Times = {name: [] for name in steps}
    for number in range(rounds + warm_up):
        for name in list(steps) if number % 2 else reversed(steps):
            start = time.perf_counter()
            steps[name]()
            if number >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def make_table(path: Path, rows: int, *, groups: int = GROUPS, units: int | None = None, files: int = 4) -> None:
    """Units, groups and values, uniformly at random."""
    path.mkdir()
    names = pa.array([f"group {number}" for number in range(groups)])
    random = np.random.default_rng(1)
    for number in range(files):
        count = rows // files
        group = pa.array(random.integers(0, groups, count, dtype=np.int32))
        table = pa.table(
            {
                "user_id": random.integers(0, units or max(int(rows * UNITS_PER_ROW), 1), count),
                "grp": pa.DictionaryArray.from_arrays(group, names),
                "value": random.random(count) * 120 - 10,
            }
        )
        pq.write_table(table, path / f"part-{number}.parquet", row_group_size=1 << 20, store_schema=False)


def protect_measure(spark: Any, path: Path, folder: Path) -> Callable[[Any], Reveal]:
    """Write the table with an encrypted measure beside it.

    :returns: what makes the decryption of a DataFrame's measure
    """
    recipient = generate_identity("bench", identities=folder / "identities", recipients=folder / "recipients")
    keyring = FileKeyring(folder / "keyring")
    keyring.create("bench", cipher="AES256_GCM", recipients=[recipient])
    identity = folder / "identities" / "bench.identity.json"
    reference = KeysetReference(
        keyring=str(keyring.folder), name="bench", cipher="AES256_GCM", identity_file=str(identity)
    )
    table = open_table(spark.read.parquet(str(path)))
    protections = {"value": Protection(cipher="AES256_GCM")}
    change = Protect(
        plan_protection(table.schema, dataset="bench", protections=protections, keysets={"AES256_GCM": reference})
    )
    layout = change.layout(table, compression="snappy", version=spark.version)

    def write(place: str) -> Written:
        return Written(rewrite(spark, table, uri_of(place), change=change, layout=layout, place="bench").rows)

    target = Publication(spark, str(folder / "protected"), run_key="bench", spec_digest="bench")
    target.publish(write, mode="errorifexists")
    return lambda frame: Reveal(protectors_of(frame.schema, keyring=keyring.folder, identity_file=identity))


def roads(spark: Any, path: Path) -> dict[str, Callable[[], object]]:
    plan = design_of().plan([GROUPS])

    def plain() -> None:
        spark.read.parquet(str(path)).groupBy("grp").agg(F.count("*"), F.sum("value"), F.avg("value")).collect()

    def released(*, direct: bool) -> None:
        frame = spark.read.parquet(str(path))
        source = open_table(frame) if direct else frame
        aggregate(spark, source, plan=plan, keys=[KEYS], unit="user_id", salt=new_salt(), dataset="bench")

    return {
        "plain groupBy": plain,
        "direct road": lambda: released(direct=True),
        "DataFrame road": lambda: released(direct=False),
    }


def decrypting(
    spark: Any, clear: Path, path: Path, revealing: Callable[[Any], Reveal]
) -> dict[str, Callable[[], object]]:
    plan = design_of().plan([GROUPS])

    def released() -> None:
        frame = spark.read.parquet(str(path))
        aggregate(
            spark,
            open_table(frame),
            plan=plan,
            keys=[KEYS],
            unit="user_id",
            salt=new_salt(),
            dataset="bench",
            reveal=revealing(frame),
        )

    def decrypted() -> None:
        frame = spark.read.parquet(str(path))
        table, reveal = open_table(frame), revealing(frame)
        tasks = plan_tasks(table.row_groups, parallelism=2)

        def work(task: Task) -> int:
            return sum(reveal(batch)[0].num_rows for batch in read_batches(task, None, columns=["value"]))

        spark.sparkContext.parallelize(tasks, len(tasks)).map(work).sum()

    # Of the same rows, in the same rounds: what an encrypted measure adds is the difference.
    return {
        CLEAR: roads(spark, clear)["direct road"],
        ENCRYPTED: released,
        DECRYPTING: decrypted,
    }


def private_groups(spark: Any, path: Path, folder: Path) -> tuple[float, int]:
    """Seconds to release groups that are chosen privately, and how many were published."""
    settings = Settings(home=folder)
    engine = connect(settings, check_schema=False)
    migrate(engine)
    ledger = Ledger(engine)
    ledger.create(dataset="bench", unit="user_id", epsilon=Decimal(3), delta=Decimal("0.001"), owner="bench")
    design = ReleaseDesign.model_validate(
        {
            "privacy_unit": "user_id",
            "metrics": METRICS[:2],
            "group_by": ["grp"],
            "groups": "private",
            "max_groups_per_unit": 1,
            "max_rows_per_unit_and_group": 2,
            "epsilon": "3",
            "delta": "0.00001",
        }
    )
    order = ReleaseOrder(
        run_key="bench",
        spec_digest="bench",
        spec={},
        design=design,
        dataset="bench",
        budget="bench",
        principal="bench",
        requested_by=None,
        file=folder / "release.json",
        mode="errorifexists",
    )

    def open_source(plan: Any, keys: Any) -> Callable[[], Any]:
        table = open_table(spark.read.parquet(str(path)))
        return lambda: aggregate(spark, table, plan=plan, keys=keys, unit="user_id", salt=new_salt(), dataset="bench")

    start = time.perf_counter()
    released = perform(order, ledger=ledger, read_keys=lambda: [None], open_source=open_source)
    seconds = time.perf_counter() - start
    engine.dispose()
    return seconds, sum(released.groups)


def driver_growth(spark: Any, tables: Sequence[Path]) -> list[float]:
    """By how many MiB the driver's Python grows at most as it reads the totals of private groups, table by table."""
    plan = design_of(groups="private", delta="0.00001").plan([None])
    growth = []
    for path in tables:
        table = open_table(spark.read.parquet(str(path)))
        with peak_memory() as peak:
            before = psutil.Process().memory_info().rss / 2**20
            for _ in stream(spark, table, plan):
                time.sleep(0.02)
        growth.append(round(peak[0] - before, 1))
    return growth


def stream(spark: Any, table: ParquetTable, plan: Any) -> Iterator[Any]:
    found = aggregate(spark, table, plan=plan, keys=[None], unit="user_id", salt=1, dataset="bench", partitions=8)
    yield from found[0]


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The largest resident memory of this process, in MiB, sampled every 5 ms."""
    largest, over = [0.0], threading.Event()

    def sample() -> None:
        while not over.wait(0.005):
            largest[0] = max(largest[0], psutil.Process().memory_info().rss / 2**20)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield largest
    finally:
        over.set()
        sampler.join()


def against_pipelinedp(spark: Any, python: str, folder: Path, rounds: int) -> tuple[Times, str]:
    """Both release the same rows, noise included; PipelineDP finds them in its Spark's memory, we read Parquet."""
    path = folder / "small"
    make_table(path, PIPELINEDP_ROWS)
    rows = pq.read_table(path)
    text = "".join(f"{u}\t{g}\t{v}\n" for u, g, v in zip(*(column.to_pylist() for column in rows.columns), strict=True))
    (folder / "rows.tsv").write_text(text)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYSPARK_PYTHON", "SPARK_HOME")}
    plan = design_of().plan([GROUPS])

    def released() -> None:
        table = open_table(spark.read.parquet(str(path)))
        totals = aggregate(spark, table, plan=plan, keys=[KEYS], unit="user_id", salt=new_salt(), dataset="bench")
        draw(plan, totals, keys=[KEYS], declared=[True])

    with subprocess.Popen(
        [python, "-c", PIPELINEDP, str(folder / "rows.tsv")],
        env={**environment, "PYSPARK_PYTHON": python},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
    ) as peer:
        asked, answered = peer.stdin, peer.stdout
        assert asked is not None
        assert answered is not None
        backend = answered.readline().strip()

        def theirs() -> None:
            asked.write("again\n")
            if answered.readline() != "done\n":
                raise RuntimeError("PipelineDP failed.")

        steps = {"direct road, 200k rows, noised": released, "PipelineDP, 200k rows": theirs}
        times = measure(steps, rounds=rounds, warm_up=2)
        asked.close()
    return times, backend


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and only the ratios of the two roads")
    parser.add_argument("--rows", type=int, default=5_000_000, help="rows of the table")
    parser.add_argument("--pipelinedp", metavar="PYTHON", help="the interpreter of an environment with PipelineDP")
    options = parser.parse_args()
    rounds = 2 if options.quick else 7
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.memory", "3g")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.log.level", "OFF")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    setup: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_table(folder / "table", options.rows)
        # The JVM compiles what it runs often: by the second round it is nearly done.
        times = measure(roads(spark, folder / "table"), rounds=rounds, warm_up=2)
        if not options.quick:
            revealing = protect_measure(spark, folder / "table", folder)
            times |= measure(decrypting(spark, folder / "table", folder / "protected", revealing), rounds=rounds)
            added = [a - b for a, b in zip(times[ENCRYPTED], times[CLEAR], strict=True)]
            setup["encrypted_measure_adds_seconds"] = round(statistics.median(added), 3)
            setup["decrypting_it_takes_seconds"] = round(statistics.median(times[DECRYPTING]), 3)
            many = PRIVATE_GROUPS * ROWS_PER_PRIVATE_GROUP
            make_table(folder / "many", many, groups=PRIVATE_GROUPS, units=many)
            seconds, published = private_groups(spark, folder / "many", folder)
            setup |= {"private_groups_seconds": round(seconds, 2), "private_groups_published": published}
            make_table(folder / "more", 4 * many, groups=PRIVATE_GROUPS, units=4 * many)
            growth = driver_growth(spark, [folder / "many", folder / "many", folder / "more"])
            setup["driver_growth_mib"] = {str(many): growth[1], str(4 * many): growth[2]}
        if options.pipelinedp:
            more, setup["pipelinedp_backend"] = against_pipelinedp(spark, options.pipelinedp, folder, rounds)
            times |= more
        spark.stop()
    ratios = {
        name: statistics.median(peer / ours for ours, peer in zip(times[mine], times[theirs], strict=True))
        for name, (mine, theirs, _) in RATIOS.items()
        if mine in times
    }
    for name, seconds_of in times.items():
        print(f"{name:32} {statistics.median(seconds_of) * 1e3:9.1f} ms")
    if not options.quick:
        print(
            f"an encrypted measure adds {setup['encrypted_measure_adds_seconds']:.2f} s "
            f"(to reach: what decrypting it takes, {setup['decrypting_it_takes_seconds']:.2f} s)"
        )
        print(f"{PRIVATE_GROUPS:,} private groups: {published:,} published in {seconds:.1f} s (to reach: 20 s)")
    print()
    for name, ratio in ratios.items():
        print(f"{name:28} {ratio:7.2f}  (to reach: {RATIOS[name][2]:g})")
    result = {
        "benchmark": "release_aggregates",
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "setup": {
            "rounds": rounds,
            "rows": options.rows,
            "groups": GROUPS,
            **setup,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
