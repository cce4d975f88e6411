"""What storing in encrypted shards costs: 3 data and 2 parity shards on five nodes, of which any two may be lost.

Each measurement is run against its peers in turn, round after round; a ratio is the median over the rounds of the peer's time
over ours, so above 1 we are faster. Everything runs in tasks of the same Spark session (``local[2]``), a task for each of eight
files, and every file is made durable (fsync) before it counts. The nodes are folders of one disk. Peers:

- three encrypted copies, which survive the loss of two places too: each file is encrypted once, as ours are (Tink's streaming
  AEAD), and written to three folders; restored from one of them;
- one plain copy, which survives nothing;
- restoring with all nodes there, for restoring when two of them are lost.

``stored_bytes`` is what a byte of data takes, ours and that of the three copies.
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
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lepton_airflow.keys.identity import generate_identity
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.keys.reference import KeysetReference
from lepton_airflow.storage.envelope import Source, VersionKey
from lepton_airflow.storage.manifest import Code, Manifest, folder_of
from lepton_airflow.storage.nodes import Node
from lepton_airflow.storage.restoring import restore
from lepton_airflow.storage.storing import store

FILES = 8
CODE = Code(3, 2)
_READ = 1 << 20
_VERSION = "0" * 32

#: Each ratio's measurement and its peer.
RATIOS = {
    "store_vs_three_encrypted_copies": ("store", "store three copies"),
    "store_vs_plain_copy": ("store", "plain copy"),
    "restore_vs_encrypted_copy": ("restore", "restore a copy"),
    "restore_vs_plain_copy": ("restore", "plain copy"),
    "restore_two_lost_vs_whole": ("restore, two nodes lost", "restore"),
}


def copy_plain(source: str, target: str) -> None:
    with open(source, "rb") as data, open(target, "wb") as sink:  # noqa: PTH123
        while part := data.read(_READ):
            sink.write(part)
        sync(sink)


def sync(sink: Any) -> None:
    sink.flush()
    os.fsync(sink.fileno())


class _Sinks(Source):
    """Several files at once, as Tink's stream wants them; and one to read from."""

    def __init__(self, *files: Any) -> None:
        self._files = files

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        for file in self._files:
            file.write(data)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        return int(self._files[0].readinto(buffer))


def copy_encrypted(keyset: KeysetReference, text: str, source: str, targets: list[str]) -> None:
    key = opened(keyset, text)
    sinks = [open(target, "wb") for target in targets]  # noqa: PTH123, SIM115
    with open(source, "rb") as data, key.encrypting(_Sinks(*sinks), Path(source).name) as clear:  # noqa: PTH123
        while part := data.read(_READ):
            clear.write(part)
    for sink in sinks:
        sync(sink)
        sink.close()


def restore_encrypted(keyset: KeysetReference, text: str, copy: str, target: str) -> None:
    key = opened(keyset, text)
    with (
        open(copy, "rb") as data,  # noqa: PTH123
        open(target, "wb") as sink,  # noqa: PTH123
        key.decrypting(_Sinks(data), Path(copy).name) as clear,
    ):
        while part := clear.read(_READ):
            sink.write(part)
        sync(sink)


def opened(keyset: KeysetReference, text: str) -> VersionKey:
    unsealed = keyset.open()
    return VersionKey.open(text, keyset=unsealed, key_id=unsealed.primary_key_id, dataset="bench", version=_VERSION)


class Bench:
    """The folders and the measurements; each is a function that does its work once, into fresh places."""

    def __init__(self, folder: Path, spark: Any, megabytes: int) -> None:
        self.folder = folder
        self.spark = spark
        self.source = folder / "source"
        self.source.mkdir()
        for number in range(FILES):
            with (self.source / f"part-{number}").open("wb") as file:
                for _ in range(megabytes // FILES):
                    file.write(os.urandom(1 << 20))
        recipient = generate_identity("bench", identities=folder / "identities", recipients=folder / "recipients")
        FileKeyring(folder / "keyring").create("bench", cipher="AES256_GCM", recipients=[recipient])
        identity = next((folder / "identities").iterdir())
        self.keyset = KeysetReference(str(folder / "keyring"), "bench", "AES256_GCM", str(identity))
        self.text = VersionKey.generate("bench", _VERSION).encrypted(self.keyset.open())
        self.nodes = tuple(Node(f"n{number}", (folder / "nodes" / f"n{number}").as_uri()) for number in range(5))
        for node in self.nodes:
            node.prepare()
        self.manifest: Manifest | None = None

    def places(self, name: str) -> Path:
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def each_file(self, work: Callable[[str], None]) -> None:
        names = [f"part-{number}" for number in range(FILES)]
        self.spark.sparkContext.parallelize(names, FILES).map(work).collect()

    def plain_copy(self) -> None:
        source, target = str(self.source), str(self.places("plain"))
        self.each_file(lambda name: copy_plain(f"{source}/{name}", f"{target}/{name}"))

    def store_three_copies(self) -> None:
        source, keyset, text = str(self.source), self.keyset, self.text
        places = [str(self.places(f"copy-{number}")) for number in range(3)]
        self.each_file(
            lambda name: copy_encrypted(keyset, text, f"{source}/{name}", [f"{place}/{name}" for place in places])
        )

    def restore_copy(self) -> None:
        copies, target, keyset, text = str(self.folder / "copy-0"), str(self.places("back")), self.keyset, self.text
        self.each_file(lambda name: restore_encrypted(keyset, text, f"{copies}/{name}", f"{target}/{name}"))

    def store(self) -> None:
        if self.manifest is not None:
            for node in self.nodes:
                node.delete_folder(self.manifest.folder)
        started = time.perf_counter()
        stored = store(
            self.spark,
            self.source.as_uri(),
            dataset="bench",
            version=uuid.uuid4().hex,
            nodes=self.nodes,
            code=CODE,
            fewest=5,
            keyset=self.keyset,
        )
        self.manifest = stored.manifest
        self.elapsed = time.perf_counter() - started

    def restore(self, nodes: tuple[Node, ...] | None = None) -> None:
        assert self.manifest is not None
        target = self.folder / "restored"
        shutil.rmtree(target, ignore_errors=True)
        started = time.perf_counter()
        restore(self.spark, self.manifest, target.as_uri(), nodes=nodes or self.nodes, keyset=self.keyset)
        for file in target.iterdir():
            with file.open("rb") as content:
                os.fsync(content.fileno())
        self.elapsed = time.perf_counter() - started

    def stored_bytes(self) -> int:
        assert self.manifest is not None
        place = folder_of("bench", self.manifest.version)
        return sum(
            file.stat().st_size for node in self.nodes for file in (self.folder / "nodes" / node.name / place).iterdir()
        )


def measure(bench: Bench, rounds: int) -> dict[str, list[float]]:
    measurements: dict[str, Callable[[], None]] = {
        "plain copy": bench.plain_copy,
        "store three copies": bench.store_three_copies,
        "store": bench.store,
        "restore a copy": bench.restore_copy,
        "restore": bench.restore,
        "restore, two nodes lost": lambda: bench.restore(bench.nodes[2:]),
    }
    times: dict[str, list[float]] = {name: [] for name in measurements}
    for number in range(rounds + 1):
        for name, work in measurements.items():
            # What others wrote before is not to be waited for in this one's fsync.
            os.sync()
            bench.elapsed = 0.0
            started = time.perf_counter()
            work()
            elapsed = bench.elapsed or time.perf_counter() - started
            if number:  # the first round warms up
                times[name].append(elapsed)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less data and fewer rounds")
    options = parser.parse_args()
    megabytes, rounds = (64, 3) if options.quick else (512, 7)
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.log.level", "OFF")
        .config("spark.io.encryption.enabled", "true")
        .getOrCreate()
    )
    folder = Path(tempfile.mkdtemp(prefix="lepton-shards-"))
    try:
        bench = Bench(folder, spark, megabytes)
        times = measure(bench, rounds)
        stored = bench.stored_bytes() / (megabytes << 20)
    finally:
        spark.stop()
        shutil.rmtree(folder)
    for name, seconds in times.items():
        rate = megabytes / statistics.median(seconds)
        print(f"{name:<26} {statistics.median(seconds):7.2f} s  {rate:6.0f} MB of data a second")
    ratios = {
        name: round(statistics.median(peer / own for own, peer in zip(times[ours], times[peers], strict=True)), 2)
        for name, (ours, peers) in RATIOS.items()
    }
    setup = {
        "megabytes": megabytes,
        "files": FILES,
        "rounds": rounds,
        "stored_bytes": {"shards": round(stored, 3), "three copies": 3.0},
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    print(json.dumps({"benchmark": "encrypted_shards", "ratios": ratios, "setup": setup}))


if __name__ == "__main__":
    main()
