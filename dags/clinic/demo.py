"""``make demo``: set up a clinic's deployment, run its pipeline in Airflow, and show what came of it.

Environment variables choose where: ``LEPTON_DEMO_FOLDER`` (default ``.demo``; a demo that is there is replaced),
``LEPTON_DEMO_AUDIT_DATABASE`` (default SQLite in that folder), ``LEPTON_DEMO_SPARK_MASTER`` (default ``local[*]``).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

DAG = "clinic_privacy_pipeline"
DAGS = Path(__file__).resolve().parent.parent
IDENTITIES = ("etl", "analyst", "trainer", "auditor")
MARKER = ".lepton-demo"

console = Console()


class PeakMemory(threading.Thread):
    """Samples the memory of this process and all its children together, shared pages counted once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0

    def run(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in (me, *me.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            self.bytes = max(self.bytes, total)
            time.sleep(0.5)


class Demo:
    """The demo's folder and the commands that fill it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "lepton"
        self.data = folder / "data"
        self.environment = {
            # Each of its JVMs lives for seconds: what the second compiler would make of their code would never pay.
            "SPARK_SUBMIT_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
            **os.environ,
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_VAR_CLINIC_DATA": str(self.data),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONWARNINGS": "ignore",
            "LEPTON_HOME": str(self.home),
        }

    def run(self, *command: str) -> None:
        """Show a command and run it; the demo ends if it fails."""
        console.print(f"[bold]$ {' '.join(command)}[/]", highlight=False)
        # The commands are this file's own.
        finished = subprocess.run(command, env=self.environment, cwd=DAGS.parent, check=False)  # noqa: S603
        if finished.returncode:
            sys.exit(f"The demo stopped: {command[0]} ended with status {finished.returncode}.")

    def make_deployment(self) -> None:
        """Identities, keys, policy, budget: what the owner of the data does once."""
        database = os.environ.get("LEPTON_DEMO_AUDIT_DATABASE", "sqlite:///audit.db")
        self.run("lepton", "init", "--identity", "owner", "--keyset", "owner", "--audit-database", database)
        for identity in IDENTITIES:
            self.run("lepton", "keys", "identity", identity)
        # The auditor holds no key: who verifies need not be able to read.
        recipients = [part for name in ("owner", "etl", "analyst", "trainer") for part in ("--recipient", name)]
        self.run("lepton", "keys", "create", "clinic", *recipients)
        shutil.copy(Path(__file__).with_name("policy.yaml"), self.home / "policy.yaml")
        self.run("lepton", "budget", "create", "clinic.visits", "--unit", "patient_id", "--epsilon", "5")

    def make_airflow(self) -> None:
        """Airflow's database and the connections of the pipeline."""
        master = os.environ.get("LEPTON_DEMO_SPARK_MASTER", "local[*]")
        host, _, port = master.rpartition(":") if master.startswith("spark://") else (master, "", "")
        connections: dict[str, dict[str, Any]] = {"spark_default": {"conn_type": "spark", "host": host}}
        if port:
            connections["spark_default"]["port"] = int(port)
        password = os.environ.get("LEPTON_AUDIT_DATABASE_PASSWORD")
        for identity in IDENTITIES:
            connection = {"conn_type": "lepton", "extra": json.dumps({"home": str(self.home), "identity": identity})}
            connections[f"lepton_{identity}"] = connection | ({"password": password} if password else {})
        # What operators use that name no connection: the example DAGs, which belong to the same identity.
        connections["lepton_default"] = connections["lepton_etl"]
        file = self.folder / "connections.json"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump(connections, stream)
        self.run("airflow", "db", "migrate")
        self.run("airflow", "connections", "import", str(file))
        file.unlink()

    def run_pipeline(self) -> None:
        """Run the DAG; show its tasks as they start and end, and keep Airflow's whole log in a file."""
        command = ("airflow", "dags", "test", DAG)
        file = self.folder / "airflow.log"
        console.print(f"[bold]$ {' '.join(command)}[/]   (its log: {file})", highlight=False, soft_wrap=True)
        started = {}
        with (
            file.open("w") as log,
            # The command is this file's own.
            subprocess.Popen(  # noqa: S603
                command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process,
            console.status("starting Airflow") as status,
        ):
            for line in process.stdout or ():
                log.write(line)
                if found := re.search(r"\[DAG TEST\] (starting|end) (?:task )?task_id=(\w+)", line):
                    event, task = found.groups()
                    if event == "starting":
                        started[task] = time.monotonic()
                        status.update(f"{task} ...")
                    else:
                        console.print(f"  {task:<14}{time.monotonic() - started[task]:5.0f} s")
                elif found := re.search(r"AirflowFailException: (.*)", line):
                    console.print(found[1], markup=False, style="red", soft_wrap=True)
        if process.returncode:
            sys.exit(f"The demo stopped: the pipeline failed. See {file}.")

    def summarise(self, seconds: float, peak: int) -> None:
        """Print what came of it, and write the report."""
        from clinic.report import Results, write_report

        results = Results.read(self.home, self.data)
        report = self.folder / "report.html"
        write_report(results, report)
        table = Table(show_header=False, title="The clinic's pipeline", title_justify="left")
        for name, value in results.summary():
            table.add_row(name, value)
        table.add_row("took", f"{seconds:.0f} s, at most {peak / 2**30:.1f} GiB of memory")
        console.print(table)
        console.print(f"Report: [bold]{report}[/]", soft_wrap=True)


def main() -> None:
    folder = Path(os.environ.get("LEPTON_DEMO_FOLDER", ".demo")).absolute()
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            sys.exit(f"{folder} is not a demo's folder; set LEPTON_DEMO_FOLDER to another one.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()
    sys.path.insert(0, str(DAGS))
    started = time.monotonic()
    memory = PeakMemory()
    memory.start()
    console.rule("The clinic: real measurements (Wisconsin diagnostic breast cancer), invented identities")
    demo = Demo(folder)
    demo.make_deployment()
    demo.make_airflow()
    console.rule("The pipeline, in Airflow")
    demo.run_pipeline()
    console.rule("What can be proved")
    demo.run("lepton", "audit", "verify")
    demo.run("lepton", "budget", "show")
    demo.summarise(time.monotonic() - started, memory.bytes)


if __name__ == "__main__":
    main()
