"""What encrypting columns costs: the batch kernels, in Spark, and from Parquet to Parquet.

Each measurement is run against its peers in turn, round after round; a ratio is the median over the rounds of the peer's time
over ours, so above 1 we are faster. Values have 16 to 28 bytes, Spark runs as ``local[2]``. Peers:

- kernels: a per-value Python loop over ``cryptography``'s AESGCM and AESSIV (nonces drawn for a whole batch), and the ``ff3``
  package for FF1;
- in Spark, from a cached table to nowhere: Spark's own ``aes_encrypt``, and an Arrow UDF that does nothing;
- Parquet to Parquet, two of four columns encrypted, with everything that a job does to the data: planning, writing, making the
  files durable, publishing. Peers are Spark copying the table unencrypted, and Spark encrypting it by ``aes_encrypt``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV

from lepton_airflow.columnar.dataset import open_table
from lepton_airflow.columnar.files import uri_of
from lepton_airflow.columnar.publish import Publication, Written
from lepton_airflow.columnar.rewrite import rewrite
from lepton_airflow.encryption.dataframe import protect_columns, reveal_columns
from lepton_airflow.encryption.kernels.ff1 import Ff1Kernel
from lepton_airflow.encryption.kernels.gcm import GcmKernel
from lepton_airflow.encryption.kernels.siv import SivKernel
from lepton_airflow.encryption.planning import plan_protection, protectors_of
from lepton_airflow.encryption.protection import Protection
from lepton_airflow.encryption.roads import Protect
from lepton_airflow.keys.identity import generate_identity
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.keys.reference import KeysetReference

GCM, SIV = Protection(cipher="AES256_GCM"), Protection(cipher="AES256_SIV")
#: Two of the table's four columns.
PROTECTED = {"card": GCM, "email": GCM}

#: Each ratio's measurement and its peer.
RATIOS = {
    "gcm_kernel_vs_loop": ("GCM kernel", "AESGCM loop"),
    "siv_kernel_vs_loop": ("SIV kernel", "AESSIV loop"),
    "ff1_kernel_vs_ff3": ("FF1 kernel", "ff3 loop"),
    "spark_gcm_vs_aes_encrypt": ("Spark, GCM", "Spark, aes_encrypt"),
    "spark_gcm_vs_identity": ("Spark, GCM", "Spark, identity UDF"),
    "spark_siv_vs_identity": ("Spark, SIV", "Spark, identity UDF"),
    "decrypt_vs_encrypt": ("Spark, GCM decrypt", "Spark, GCM"),
    "direct_vs_spark_copy": ("Parquet, direct road", "Parquet, Spark copy"),
    "direct_vs_aes_encrypt": ("Parquet, direct road", "Parquet, aes_encrypt"),
}
TARGETS = dict(zip(RATIOS, (5, 20, 100, 3, 0.7, 0.8, 0.8, 1, 7), strict=True))

Times = dict[str, list[float]]


def measure(steps: Mapping[str, Callable[[], object]], *, rounds: int) -> Times:
    """Seconds of each step in each round, after one round that warms up; every second round goes the other way."""
    times: Times = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name in list(steps) if number % 2 else reversed(steps):
            start = time.perf_counter()
            steps[name]()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def kernels(count: int, rounds: int) -> Times:
    """Nanoseconds per value would depend on the count for none of these; ``ff3`` is so slow that it gets a sample."""
    random = np.random.default_rng(1)
    values = pa.array([random.bytes(int(size)) for size in random.integers(16, 29, count)], pa.binary())
    digits = pa.array([f"{number:016d}" for number in random.integers(0, 10**16, count)])
    sample = digits.to_pylist()[: max(count // 400, 100)]
    key, long_key, bound = os.urandom(32), os.urandom(64), b"clinic.visits, card, string"
    gcm, siv = AESGCM(key), AESSIV(long_key)

    def gcm_loop() -> pa.Array:
        nonces, encrypt = os.urandom(12 * count), gcm.encrypt
        return pa.array(
            [
                nonces[place : place + 12] + encrypt(nonces[place : place + 12], value, bound)
                for place, value in zip(range(0, 12 * count, 12), values.to_pylist(), strict=True)
            ],
            pa.binary(),
        )

    def siv_loop() -> pa.Array:
        return pa.array([siv.encrypt(value, [bound]) for value in values.to_pylist()], pa.binary())

    from ff3 import FF3Cipher

    ff3 = FF3Cipher(key.hex(), "d8e7920afa330a")
    gcm_kernel = GcmKernel(key, prefix=b"", associated_data=bound)
    siv_kernel = SivKernel(long_key, prefix=b"", associated_data=bound)
    ff1_kernel = Ff1Kernel(key, tweak=bound)
    times = measure(
        {
            "GCM kernel": lambda: gcm_kernel.encrypt(values),
            "AESGCM loop": gcm_loop,
            "SIV kernel": lambda: siv_kernel.encrypt(values),
            "AESSIV loop": siv_loop,
            "FF1 kernel": lambda: ff1_kernel.encrypt(digits),
            "ff3 loop": lambda: [ff3.encrypt(text) for text in sample],
        },
        rounds=rounds,
    )
    times["ff3 loop"] = [seconds * count / len(sample) for seconds in times["ff3 loop"]]
    return times


def make_table(spark: Any, path: Path, rows: int) -> None:
    """Four columns: a card number of 16 characters, an e-mail address of 20 to 28, a group and an amount."""
    spark.range(rows).selectExpr(
        "lpad(cast(pmod(hash(id), 1000000000) as string), 16, '4') card",
        "concat(substr(md5(cast(id as string)), 1, 8 + cast(id % 9 as int)), '@example.org') email",
        "concat('group ', id % 50) part",
        "rand(1) * 1000 amount",
    ).repartition(4).write.parquet(str(path))


def keyset_references(folder: Path) -> dict[str, KeysetReference]:
    recipient = generate_identity("bench", identities=folder / "identities", recipients=folder / "recipients")
    keyring = FileKeyring(folder / "keyring")
    references = {}
    for cipher in ("AES256_GCM", "AES256_SIV"):
        keyring.create("bench", cipher=cipher, recipients=[recipient])  # type: ignore[arg-type]
        references[cipher] = KeysetReference(
            keyring=str(keyring.folder),
            name="bench",
            cipher=cipher,  # type: ignore[arg-type]
            identity_file=str(folder / "identities" / "bench.identity.json"),
        )
    return references


def in_spark(spark: Any, table: Path, keysets: Mapping[str, KeysetReference], rounds: int) -> Times:
    from pyspark.sql import functions as F
    from pyspark.sql.functions import arrow_udf

    frame = spark.read.parquet(str(table)).select("email").cache()
    frame.count()
    key = F.lit(os.urandom(32))

    def protected(protection: Protection) -> Any:
        plan = plan_protection(frame.schema, dataset="bench", protections={"email": protection}, keysets=keysets)
        return protect_columns(frame, plan)

    # By way of a file: Spark would take what it holds in its cache for the result of the same plan.
    protected(GCM).write.parquet(str(table.parent / "encrypted"))
    encrypted = spark.read.parquet(str(table.parent / "encrypted")).cache()
    encrypted.count()
    reference = keysets["AES256_GCM"]
    plan = protectors_of(encrypted.schema, keyring=Path(reference.keyring), identity_file=Path(reference.identity_file))
    identity = arrow_udf(_same, "string")

    def run(result: Any) -> Callable[[], None]:
        return lambda: result.write.format("noop").mode("overwrite").save()

    times = measure(
        {
            "Spark, identity UDF": run(frame.select(identity("email"))),
            "Spark, GCM": run(protected(GCM)),
            "Spark, SIV": run(protected(SIV)),
            "Spark, GCM decrypt": run(reveal_columns(encrypted, plan)),
            "Spark, aes_encrypt": run(frame.select(F.aes_encrypt("email", key))),
        },
        rounds=rounds,
    )
    frame.unpersist()
    encrypted.unpersist()
    return times


def _same(values: pa.Array) -> pa.Array:
    return values


def parquet(spark: Any, table: Path, keysets: Mapping[str, KeysetReference], rounds: int) -> Times:
    from pyspark.sql import functions as F

    out = table.parent / "out"
    key = F.lit(os.urandom(32))

    def copy() -> None:
        spark.read.parquet(str(table)).write.parquet(str(out))

    def aes_encrypt() -> None:
        changed = {name: F.aes_encrypt(name, key) for name in PROTECTED}
        spark.read.parquet(str(table)).withColumns(changed).write.parquet(str(out))

    def direct() -> None:
        frame = spark.read.parquet(str(table))
        protectors = plan_protection(frame.schema, dataset="bench", protections=PROTECTED, keysets=keysets)
        opened, change = open_table(frame), Protect(protectors)
        layout = change.layout(opened, compression="snappy", version=spark.version)

        def write(folder: str) -> Written:
            written = rewrite(spark, opened, uri_of(folder), change=change, layout=layout, place="bench")
            return Written(written.rows)

        publication = Publication(spark, str(out), run_key="bench", spec_digest="bench")
        publication.publish(write, mode="errorifexists")

    def afresh(step: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            shutil.rmtree(out, ignore_errors=True)
            step()

        return run

    return measure(
        {
            "Parquet, Spark copy": afresh(copy),
            "Parquet, direct road": afresh(direct),
            "Parquet, aes_encrypt": afresh(aes_encrypt),
        },
        rounds=rounds,
    )


@contextmanager
def worker_memory() -> Iterator[list[float]]:
    """The largest resident memory of a Python worker, in MiB, sampled every 20 ms."""
    largest, over = [0.0], threading.Event()

    def sample() -> None:
        while not over.wait(0.02):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "pyspark.daemon" in " ".join(process.cmdline()):
                        largest[0] = max(largest[0], process.memory_info().rss / 2**20)
                except psutil.Error:
                    continue

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield largest
    finally:
        over.set()
        sampler.join()


def draw(ratios: Mapping[str, float], file: Path) -> None:
    """Each ratio as a bar, on a logarithmic scale, with a mark at what it should reach."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    places = range(len(ratios))
    axes.barh(places, list(ratios.values()), color="#4c72b0")
    axes.plot([TARGETS[name] for name in ratios], places, "|", color="#c44e52", markersize=18, markeredgewidth=2)
    axes.set_yticks(places, list(ratios))
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("peer's time over ours (red: to reach)")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a smaller table and fewer rounds; what Spark needs to start a job then weighs on every ratio",
    )
    parser.add_argument("--rows", type=int, help="rows of the table")
    parser.add_argument("--plot", type=Path, default=Path("dist/benchmarks/encrypt_columns.svg"), metavar="FILE")
    options = parser.parse_args()
    rows, rounds = (300_000, 2) if options.quick else (2_000_000, 5)
    rows = options.rows or rows
    values = 200_000
    times = kernels(values, rounds)
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.memory", "3g")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.log.level", "OFF")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    with tempfile.TemporaryDirectory() as folder, worker_memory() as memory:
        home = Path(folder)
        keysets = keyset_references(home)
        make_table(spark, home / "table", rows)
        times |= in_spark(spark, home / "table", keysets, rounds)
        times |= parquet(spark, home / "table", keysets, rounds)
        spark.stop()
    ratios = {
        name: statistics.median(peer / ours for ours, peer in zip(times[mine], times[theirs], strict=True))
        for name, (mine, theirs) in RATIOS.items()
    }
    for name, seconds in times.items():
        count = rows if name.startswith(("Spark", "Parquet")) else values
        median = statistics.median(seconds)
        print(f"{name:22} {median * 1e3:9.1f} ms  {median / count * 1e9:9.1f} ns a row")
    print()
    for name, ratio in ratios.items():
        print(f"{name:26} {ratio:7.2f}  (to reach: {TARGETS[name]:g})")
    print(f"largest Python worker      {memory[0]:7.0f} MiB")
    draw(ratios, options.plot)
    print(f"plot: {options.plot}")
    result = {
        "benchmark": "encrypt_columns",
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "setup": {
            "rounds": rounds,
            "values": values,
            "rows": rows,
            "worker_mib": round(memory[0]),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
