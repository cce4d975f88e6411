"""What the audit log costs: appending against a bare INSERT, batches against single events, verifying against hashing.

PostgreSQL (a cluster of its own, made for the run, with fsync on) has 32 writers, each with its own connection. A bare writer
does INSERT and COMMIT of a payload and a hash of the same size into a table with nothing but a primary key; ours chains, hashes
and appends events. They run in turn, round after round; a ratio is the median over the rounds of our rate over the peer's,
so 1 means that the log costs nothing. Then a sealer runs beside single writers; the sealing delay is how long a
probe event waits until a signed checkpoint covers it. SQLite has 8 writers. The peer of verification is one pass of ``hashlib``
over the same payloads, in memory already, with the same Merkle tree: RFC 6962 leaves and nodes. The peer is one process;
verification, which also reads the rows, follows the producers and lets SQLite check its file, uses a second one. Its log is that
of producers with 998 like events each. In the setup are the ratios of others: ``mixed_vs_hashing`` of producers with 998 events,
of which no two neighbours are alike, ``jobs_vs_hashing`` of producers with 4 such events, as most jobs have.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import pwd
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from lepton_airflow.audit.checkpoint import Signer, generate_signer
from lepton_airflow.audit.database import connect, leaf_table, migrate, reading
from lepton_airflow.audit.event import Actor, Event, LeafEncoder
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.merkle import verify_inclusion
from lepton_airflow.audit.nodes import StoredTree
from lepton_airflow.audit.sealer import seal
from lepton_airflow.audit.verify import verify
from lepton_airflow.settings import Settings

TARGETS = {"pg_append_vs_bare_insert": 0.6, "pg_batch_vs_single": 8, "verify_vs_hashing": 0.5}
WRITERS, SQLITE_WRITERS, BATCH = 32, 8, 100
ACTOR = Actor(principal="etl", host="worker-1", on_behalf_of="ann", owner="data", bundle_version="v12")
EVENT = Event(
    action="decrypt",
    phase="success",
    dataset="clinic.visits",
    columns=("ssn", "email"),
    purpose="billing",
    intent=str(uuid.UUID(int=1)),
    rules=("billing-may-decrypt",),
    policy_digest=f"sha256:{'0' * 64}",
    spec_digest=f"sha256:{'1' * 64}",
    counts={"rows": 1000},
)
fork = multiprocessing.get_context("fork")


@contextmanager
def postgresql() -> Iterator[str]:
    """The URL of a fresh cluster on a Unix socket."""
    found = shutil.which("postgres")
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *([Path(found).resolve().parent] if found else [])]
    binaries = next(folder for folder in folders if (folder / "initdb").exists())
    folder = Path(tempfile.mkdtemp(prefix="lepton-bench-"))
    user: str | None = None
    if os.geteuid() == 0:  # the server refuses to run as root
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
        shutil.chown(folder, user)
    data = folder / "data"
    quiet: dict[str, Any] = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
    subprocess.run(initdb, check=True, **quiet)
    server = subprocess.Popen([binaries / "postgres", "-D", data, "-k", folder, "-h", ""], **quiet)
    try:
        while not (data / "postmaster.pid").exists() or "ready" not in (data / "postmaster.pid").read_text():
            time.sleep(0.1)
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
        shutil.rmtree(folder)


def bare_writer(settings: Settings) -> Callable[[], int]:
    import psycopg

    url = sql.make_url(settings.audit_database)
    connection = psycopg.connect(host=str(url.query["host"]), user=url.username, dbname=url.database)
    encoder = LeafEncoder(actor=ACTOR, run_key="dag/task/run/0", producer=str(uuid.uuid4()))
    moment = "2026-11-24T00:00:00.000000Z"
    leaf = encoder.encode(EVENT, event_id=str(uuid.uuid4()), sequence=100, previous=bytes(32), time=moment)
    payload, hashed = leaf.decode(), bytes(32)

    def write() -> int:
        connection.execute("INSERT INTO bare (payload, leaf_hash) VALUES (%s, %s)", (payload, hashed))
        connection.commit()
        return 1

    return write


def single_writer(settings: Settings) -> Callable[[], int]:
    log = AuditLog(connect(settings, check_schema=False), actor=ACTOR, run_key="dag/task/run/0")

    def write() -> int:
        log.append(EVENT)
        return 1

    return write


def batch_writer(settings: Settings) -> Callable[[], int]:
    log = AuditLog(connect(settings, check_schema=False), actor=ACTOR, run_key="dag/task/run/0")
    events = [replace(EVENT, counts={"rows": number}) for number in range(BATCH)]
    return lambda: len(log.append_all(events))


def run(
    kind: Callable[[Settings], Callable[[], int]], settings: Settings, *, writers: int, seconds: float
) -> tuple[float, list[float]]:
    """Events a second of ``writers`` processes together, and how long each write took; after one write that warms up."""
    barrier, results = fork.Barrier(writers), fork.Queue()

    def work() -> None:
        write = kind(settings)
        write()
        barrier.wait()
        start = now = time.perf_counter()
        count, taken = 0, []
        while now - start < seconds:
            count += write()
            before, now = now, time.perf_counter()
            taken.append(now - before)
        results.put((count / (now - start), taken))

    processes = [fork.Process(target=work) for _ in range(writers)]
    for process in processes:
        process.start()
    rates = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(rate for rate, _ in rates), sorted(taken for _, each in rates for taken in each)


def percentile(values: list[float], share: float) -> float:
    return values[min(int(len(values) * share), len(values) - 1)]


def sealing_delay(settings: Settings, signer: Signer, seconds: float) -> float:
    """The longest wait of a probe event for its seal, in seconds, while 32 writers are at work and a sealer in a loop."""
    engine = connect(settings)
    # What earlier rounds left is sealed first: it is no delay of the probes.
    seal(engine, signer=signer, exports=[])
    engine.dispose()
    over, delays = fork.Event(), fork.Queue()

    def seal_for_ever() -> None:
        engine = connect(settings)
        while not over.is_set():
            seal(engine, signer=signer, exports=[])
            over.wait(0.1)

    def probe() -> None:
        engine = connect(settings)
        log = AuditLog(engine, actor=ACTOR, run_key="probe")
        query = sql.select(leaf_table.c.tree_index).where(leaf_table.c.event_id == sql.bindparam("event_id"))
        longest = 0.0
        while not over.is_set():
            event_id = log.append(EVENT)
            start = time.perf_counter()
            placed = None
            while placed is None and not over.is_set():
                time.sleep(0.01)
                with reading(engine) as connection:
                    placed = connection.scalar(query, {"event_id": event_id})
            # Of the last event, which is not sealed when all is over, the wait so far counts.
            longest = max(longest, time.perf_counter() - start)
        delays.put(longest)

    processes = [fork.Process(target=work) for work in (seal_for_ever, probe)]
    for process in processes:
        process.start()
    run(single_writer, settings, writers=WRITERS, seconds=seconds)
    over.set()
    longest: float = delays.get()
    for process in processes:
        process.join()
    return longest


def hash_alone(payloads: list[bytes]) -> bytes:
    """The Merkle tree of RFC 6962 over payloads with ``hashlib`` and nothing else."""
    sha256 = hashlib.sha256
    edge: list[bytes] = []
    for size, payload in enumerate(payloads):
        hashed = sha256(b"\x00" + payload).digest()
        while size & 1:
            hashed = sha256(b"\x01" + edge.pop() + hashed).digest()
            size >>= 1
        edge.append(hashed)
    top = edge.pop()
    while edge:
        top = sha256(b"\x01" + edge.pop() + top).digest()
    return top


def verification(home: Path, signer: Signer, leaves: int, rounds: int, *, events: list[Event]) -> dict[str, float]:
    """Verifying against hashing, median ratio and rate.

    :param events: what every producer writes between its opening and its closing event
    """
    home.mkdir()
    engine = connect(Settings(home=home), check_schema=False)
    migrate(engine)
    for _ in range(leaves // (len(events) + 2)):
        log = AuditLog(engine, actor=ACTOR, run_key="dag/task/run/0")
        log.append_all(events)
        log.close()
    seal(engine, signer=signer, exports=[])
    with reading(engine) as connection:
        payloads = [
            text.encode() for text in connection.scalars(sql.select(leaf_table.c.payload).order_by("tree_index"))
        ]
    ratios, rates = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        root = hash_alone(payloads)
        hashing = time.perf_counter() - start
        start = time.perf_counter()
        report = verify(engine, verifier=signer.verifier, exports=[])
        taken = time.perf_counter() - start
        assert (report.ok, report.root) == (True, root.hex()), "the benchmark's log does not verify"
        ratios.append(hashing / taken)
        rates.append(leaves / taken)
    engine.dispose()
    return {"ratio": statistics.median(ratios), "rate": statistics.median(rates)}


def inclusion(home: Path, signer: Signer, leaves: int) -> float:
    """Median milliseconds for one checked inclusion proof from a log of so many leaves (hashes alone: proofs read no payload)."""
    home.mkdir()
    engine = connect(Settings(home=home), check_schema=False)
    migrate(engine)
    with engine.begin() as connection:
        for first in range(0, leaves, 50_000):
            rows = (
                (f"{number:x}", "", hashlib.sha256(number.to_bytes(8, "big")).digest())
                for number in range(first, min(first + 50_000, leaves))
            )
            values = [dict(zip(("event_id", "payload", "leaf_hash"), row, strict=True)) for row in rows]
            connection.execute(leaf_table.insert(), values)
    checkpoint = seal(engine, signer=signer, exports=[])
    taken = []
    for number in range(20):
        index = (number * 7919 * 104_729) % leaves
        start = time.perf_counter()
        with reading(engine) as connection:
            tree = StoredTree(connection, size=leaves)
            path = tree.inclusion_path(index)
        leaf = hashlib.sha256(index.to_bytes(8, "big")).digest()
        root = checkpoint.root_hash
        assert verify_inclusion(leaf=leaf, index=index, size=leaves, proof=path, root_hash=root), "no proof"
        taken.append((time.perf_counter() - start) * 1e3)
    engine.dispose()
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, and smaller logs")
    quick = parser.parse_args().quick
    rounds, seconds, leaves, tree = (2, 1.0, 100_000, 100_000) if quick else (5, 4.0, 200_000, 1_000_000)
    rates: dict[str, list[float]] = {"bare": [], "single": [], "batch": []}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        generate_signer(home / "checkpoint.key", name="bench")
        signer = Signer.load(home / "checkpoint.key")
        with postgresql() as url:
            settings = Settings(home=home, audit_database=url)
            engine = connect(settings, check_schema=False)
            migrate(engine)
            with engine.begin() as connection:
                connection.exec_driver_sql(
                    "CREATE TABLE bare (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload text, leaf_hash bytea)"
                )
            engine.dispose()
            slowest = []
            kinds = {"bare": bare_writer, "single": single_writer, "batch": batch_writer}
            for number in range(rounds):
                for name in list(kinds) if number % 2 else reversed(kinds):
                    rate, taken = run(kinds[name], settings, writers=WRITERS, seconds=seconds)
                    rates[name].append(rate)
                    if name == "single":
                        slowest.append(percentile(taken, 0.99))
            delay = sealing_delay(settings, signer, seconds)
        # The server is gone: it would clean its tables beside what follows.
        (home / "sqlite").mkdir()
        local = Settings(home=home / "sqlite")
        migrate(connect(local, check_schema=False))
        rate, taken = run(single_writer, local, writers=SQLITE_WRITERS, seconds=2 * seconds)
        engine = connect(local)
        with reading(engine) as connection:
            stored = connection.scalar(sql.select(sql.func.count()).select_from(leaf_table))
        engine.dispose()
        # Each writer has opened its producer, and written one event that was not counted.
        lost = len(taken) + 2 * SQLITE_WRITERS - (stored or 0)
        others = [replace(EVENT, counts={"rows": number % 7}) for number in range(998)]
        verified = verification(home / "alike", signer, leaves, rounds, events=[EVENT] * 998)
        mixed = verification(home / "mixed", signer, leaves // 4, rounds, events=others)
        jobs = verification(home / "jobs", signer, leaves // 8, rounds, events=others[:4])
        proof = inclusion(home / "inclusion", signer, tree)
    ratios = {
        "pg_append_vs_bare_insert": statistics.median(
            ours / bare for ours, bare in zip(rates["single"], rates["bare"], strict=True)
        ),
        "pg_batch_vs_single": statistics.median(
            batch / single for batch, single in zip(rates["batch"], rates["single"], strict=True)
        ),
        "verify_vs_hashing": verified["ratio"],
    }
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"PostgreSQL, {WRITERS} writers, bare INSERT   {medians['bare']:9.0f} a second")
    print(f"PostgreSQL, {WRITERS} writers, single events {medians['single']:9.0f} a second")
    print(f"PostgreSQL, {WRITERS} writers, batches       {medians['batch']:9.0f} a second")
    p99 = statistics.median(slowest) * 1e3
    print(f"99% of single events within          {p99:9.1f} ms (to reach: 100)")
    print(f"longest wait for a seal              {delay * 1e3:9.0f} ms (to reach: 1000)")
    print(f"SQLite, {SQLITE_WRITERS} writers                    {rate:9.0f} a second, {lost} lost")
    print(f"longest wait on SQLite               {taken[-1] * 1e3:9.0f} ms (to reach: 2000)")
    print(f"verifying {leaves:,} like events      {verified['rate']:9.0f} a second")
    print(f"verifying {leaves // 4:,} events that differ {mixed['rate']:9.0f} a second")
    print(f"verifying {leaves // 8:,} events, 6 a job    {jobs['rate']:9.0f} a second")
    print(f"inclusion proof from {tree:,} leaves {proof:9.1f} ms (to reach: 50)\n")
    for name, ratio in ratios.items():
        print(f"{name:26} {ratio:7.2f}  (to reach: {TARGETS[name]:g})")
    result = {
        "benchmark": "audit_log",
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "setup": {
            "rounds": rounds,
            "writers": WRITERS,
            "leaves": leaves,
            "mixed_vs_hashing": round(mixed["ratio"], 3),
            "jobs_vs_hashing": round(jobs["ratio"], 3),
            "p99_ms": round(p99, 1),
            "sealing_delay_ms": round(delay * 1e3),
            "sqlite_longest_wait_ms": round(taken[-1] * 1e3),
            "inclusion_ms": round(proof, 1),
            "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
