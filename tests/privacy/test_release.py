"""A release happens once: whatever is killed, raced or repeated, one answer is published and paid once."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_airflow.audit.database import connect
from lepton_airflow.errors import (
    ApprovalMissing,
    AuditUnavailable,
    BudgetExhausted,
    MissingColumn,
    RunKeyConflict,
    TargetExists,
)
from lepton_airflow.privacy import release as release_module
from lepton_airflow.privacy.design import ReleaseDesign
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.plan import ReleasePlan
from lepton_airflow.privacy.records import DRAWN, RELEASED, RESERVED
from lepton_airflow.privacy.release import Aggregation, GroupKeys, Released, ReleaseOrder, publish
from lepton_airflow.privacy.release import perform as perform_release
from lepton_airflow.privacy.release_file import write_release_file
from lepton_airflow.settings import Settings

DATASET, UNIT = "clinic.visits", "patient_id"
#: Units and rows of two groups.
EXACT = np.array([[1_000_003, 2_000_003], [5, 9]], dtype=np.int64)
KEYS = ((("north",), ("south",)),)


def order_of(
    file: Path,
    *,
    run_key: str = "run",
    spec: str = "sha256:a",
    epsilon: str = "0.01",
    mode: str = "errorifexists",
    **design: Any,
) -> ReleaseOrder:
    fields: dict[str, Any] = {
        "privacy_unit": UNIT,
        "group_by": ["ward"],
        "groups": ["north", "south"],
        "metrics": [{"name": "visits", "type": "count"}, {"name": "patients", "type": "count_units"}],
        "max_groups_per_unit": 2,
        "max_rows_per_unit_and_group": 3,
        "epsilon": epsilon,
    }
    return ReleaseOrder(
        run_key=run_key,
        spec_digest=spec,
        spec={},
        design=ReleaseDesign.model_validate(fields | design),
        dataset=DATASET,
        budget=DATASET,
        principal="analyst",
        requested_by="ada",
        file=file,
        mode=mode,  # type: ignore[arg-type]
    )


def perform(
    order: ReleaseOrder,
    *,
    ledger: Ledger,
    open_source: Callable[[], Aggregation],
    read_keys: Callable[[], GroupKeys] = lambda: KEYS,
) -> Released:
    def opened(_plan: ReleasePlan, _keys: GroupKeys) -> Aggregation:
        return open_source()

    return perform_release(order, ledger=ledger, read_keys=read_keys, open_source=opened)


def source() -> Aggregation:
    return lambda: [EXACT]


def untouchable() -> Aggregation:
    raise AssertionError("the source must not be opened")


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(1), owner="officer")
    return ledger


def spent(ledger: Ledger) -> Fraction:
    balance = ledger.balance(dataset=DATASET, unit=UNIT)
    return balance.epsilon - balance.left


def test_a_retry_publishes_the_same_bytes_and_does_not_open_the_source(funded: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "out" / "release.json"
    first = perform(order_of(file), ledger=funded, open_source=source)
    content = file.read_bytes()
    again = perform(order_of(file), ledger=funded, open_source=untouchable)
    assert (first.replayed, again.replayed) == (False, True)
    assert file.read_bytes() == content
    file.unlink()
    perform(order_of(file), ledger=funded, open_source=untouchable)
    assert file.read_bytes() == content
    assert first.digest == again.digest
    assert spent(funded) == Fraction(1, 100)


def test_overspending_is_refused_before_the_source_is_opened(funded: Ledger, tmp_path: Path) -> None:
    with pytest.raises(BudgetExhausted):
        perform(order_of(tmp_path / "release.json", epsilon="1.01"), ledger=funded, open_source=untouchable)
    assert not (tmp_path / "release.json").exists()


def test_a_changed_spec_under_the_run_key_is_refused(funded: Ledger, tmp_path: Path) -> None:
    perform(order_of(tmp_path / "release.json"), ledger=funded, open_source=source)
    with pytest.raises(RunKeyConflict):
        perform(order_of(tmp_path / "other.json", spec="sha256:b"), ledger=funded, open_source=untouchable)
    assert spent(funded) == Fraction(1, 100)


def test_another_runs_file_is_kept_and_nothing_is_spent_on_it(funded: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "release.json"
    perform(order_of(file), ledger=funded, open_source=source)
    content = file.read_bytes()
    with pytest.raises(TargetExists, match=r"release\.json"):
        perform(order_of(file, run_key="next"), ledger=funded, open_source=untouchable)
    assert file.read_bytes() == content
    assert funded.find("next") is None
    perform(order_of(file, run_key="next", mode="overwrite"), ledger=funded, open_source=source)
    assert json.loads(file.read_text())["run_key"] == "next"


def test_a_file_that_appears_while_the_release_runs_is_kept(funded: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "release.json"

    def slow() -> Aggregation:
        file.write_text("somebody else's")
        return source()

    with pytest.raises(TargetExists):
        perform(order_of(file), ledger=funded, open_source=slow)
    assert file.read_text() == "somebody else's"
    assert [path.name for path in tmp_path.glob(".release.json*")] == []
    file.unlink()
    assert perform(order_of(file), ledger=funded, open_source=untouchable).replayed


@pytest.mark.parametrize("step", ["draw", "publish"])
def test_without_the_ledger_nothing_is_drawn_and_nothing_is_published(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    engine = connect(home)
    ledger, file, database = Ledger(engine), tmp_path / "release.json", home.home / "audit.db"
    ledger.create(dataset=DATASET, unit=UNIT, epsilon=Decimal(1), owner="officer")

    def lose() -> None:
        database.rename(tmp_path / "aside")

    def lost_source() -> Aggregation:
        if step == "draw":
            lose()
        return source()

    document = release_module.build_document
    if step == "publish":
        monkeypatch.setattr(release_module, "build_document", lambda **fields: lose() or document(**fields))
    with pytest.raises(AuditUnavailable, match="gone"):
        perform(order_of(file), ledger=ledger, open_source=lost_source)
    assert not file.exists()
    monkeypatch.undo()
    (tmp_path / "aside").rename(database)
    released = perform(order_of(file), ledger=ledger, open_source=untouchable if step == "publish" else source)
    assert (released.replayed, spent(ledger)) == (step == "publish", Fraction(1, 100))
    engine.dispose()


def test_a_source_that_cannot_be_opened_costs_nothing(funded: Ledger, tmp_path: Path) -> None:
    def missing() -> Aggregation:
        raise MissingColumn("There is no column age.", place=DATASET, remedy="Mend the spec.")

    with pytest.raises(MissingColumn):
        perform(order_of(tmp_path / "release.json"), ledger=funded, open_source=missing)
    release = funded.find("run")
    assert release is not None
    assert release.state == RELEASED
    # The mended spec has another digest, and the same run key can have it.
    perform(order_of(tmp_path / "release.json", spec="sha256:mended"), ledger=funded, open_source=source)


def test_an_aggregation_that_fails_keeps_its_reservation(funded: Ledger, tmp_path: Path) -> None:
    def failing() -> list[Any]:
        raise RuntimeError("an executor died")

    with pytest.raises(RuntimeError):
        perform(order_of(tmp_path / "release.json"), ledger=funded, open_source=lambda: failing)
    release = funded.find("run")
    assert release is not None
    assert release.state == RESERVED
    assert not perform(order_of(tmp_path / "release.json"), ledger=funded, open_source=source).replayed
    assert spent(funded) == Fraction(1, 100)


def test_exact_numbers_are_nowhere_but_in_memory(funded: Ledger, tmp_path: Path) -> None:
    """With noise of scale 400 the chance that a noisy number equals its exact one is below 1 in 300, for each of two."""
    perform(order_of(tmp_path / "release.json"), ledger=funded, open_source=source)
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    found = [number for number in EXACT[0] if str(number).encode() in stored]
    assert len(found) < 2


def test_what_waits_for_approval_is_drawn_and_not_published(funded: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "release.json"
    order = order_of(file, approval="required")
    waiting = perform(order, ledger=funded, open_source=source)
    assert (waiting.release.state, waiting.digest, file.exists()) == (DRAWN, None, False)
    numbers = funded.result("run")
    with pytest.raises(ApprovalMissing):
        publish(order.design, waiting.release, numbers, ledger=funded, dataset=DATASET, file=file, mode="errorifexists")
    assert perform(order, ledger=funded, open_source=untouchable).digest is None
    approved = funded.approve(run_key="run", approver="grace")
    _, digest = publish(
        order.design, approved, numbers, ledger=funded, dataset=DATASET, file=file, mode="errorifexists"
    )
    assert funded.result("run") == numbers
    assert perform(order, ledger=funded, open_source=untouchable).digest == digest
    assert spent(funded) == Fraction(1, 100)


def test_numbers_stay_those_of_the_keys_they_were_drawn_for(funded: Ledger, tmp_path: Path) -> None:
    """A table of keys can change between two tries."""
    file = tmp_path / "release.json"
    order = order_of(file, groups={"name": "public.wards", "path": "/data/wards"})
    perform(order, ledger=funded, open_source=source)
    content = file.read_bytes()
    file.unlink()
    perform(order, ledger=funded, open_source=untouchable, read_keys=lambda: ((("east",),),))
    assert file.read_bytes() == content
    assert [cell["group"] for cell in json.loads(content)["groupings"][0]["cells"]] == [
        {"ward": "north"},
        {"ward": "south"},
    ]


def test_groups_with_few_units_stay_hidden(funded: Ledger, tmp_path: Path) -> None:
    """The threshold is above 30 units and the noise has scale 2: a group of 1 passes with a probability below 1e-9."""
    file = tmp_path / "release.json"
    order = order_of(
        file, groups="private", epsilon="1.5", delta="1e-9", max_groups_per_unit=1, max_rows_per_unit_and_group=1
    )
    officers = funded.create(dataset="other", unit=UNIT, epsilon=Decimal(2), delta=Decimal("1e-6"), owner="officer")
    chunk = ([b'["north"]', b'["secret"]'], np.array([[1_000_000, 1_000_000], [1, 1]], dtype=np.int64))
    order = dataclasses.replace(order, budget=officers.dataset)
    perform(order, ledger=funded, open_source=lambda: lambda: [iter([chunk])], read_keys=lambda: [None])
    content = file.read_text()
    assert "secret" not in content
    cells = json.loads(content)["groupings"][0]["cells"]
    assert [cell["group"] for cell in cells] == [{"ward": "north"}]
    assert cells[0]["values"]["patients"]["value"] == pytest.approx(1_000_000, abs=100)


PROGRAM = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_release import EXACT, order_of, perform
from lepton_airflow.audit.database import connect
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.settings import Settings

step, home, file, run_key, epsilon = sys.argv[1:]

def die_at(name):
    if step == name:
        os.kill(os.getpid(), signal.SIGKILL)

class DyingLedger(Ledger):
    def reserve(self, **fields):
        reserved = super().reserve(**fields)
        die_at("reserved")
        return reserved

    def draw(self, **fields):
        die_at("noised")
        drawn = super().draw(**fields)
        die_at("drawn")
        return drawn

    def publish(self, **fields):
        die_at("written")
        published = super().publish(**fields)
        die_at("published")
        return published

def open_source():
    die_at("opened")
    def aggregate():
        die_at("aggregated")
        return [EXACT]
    return aggregate

ledger = DyingLedger(connect(Settings(home=Path(home))))
perform(order_of(Path(file), run_key=run_key, epsilon=epsilon), ledger=ledger, open_source=open_source)
"""


def start(
    database: Settings, file: Path, *, step: str = "", run_key: str = "run", epsilon: str = "0.01"
) -> subprocess.Popen[str]:
    program = PROGRAM.format(folder=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-c", program, step, str(database.home), str(file), run_key, epsilon],
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("step", ["reserved", "opened", "aggregated", "noised", "drawn", "written", "published"])
def test_after_a_kill_at_any_step_the_rerun_spends_once_and_answers_once(
    database: Settings, funded: Ledger, tmp_path: Path, step: str
) -> None:
    file = tmp_path / "release.json"
    killed = start(database, file, step=step)
    assert killed.wait() == -signal.SIGKILL
    before = funded.find("run")
    assert before is not None
    stored = None if before.state == RESERVED else funded.result("run")
    assert (stored is None) == (step in ("reserved", "opened", "aggregated", "noised"))
    content = file.read_bytes() if file.exists() else None
    assert (content is None) == (step not in ("written", "published"))

    again = perform(order_of(file), ledger=funded, open_source=source if stored is None else untouchable)

    assert again.replayed == (stored is not None)
    assert stored is None or funded.result("run") == stored
    assert content is None or file.read_bytes() == content
    assert spent(funded) == Fraction(1, 100)
    assert len(funded.mechanisms(dataset=DATASET, unit=UNIT)) == 2


def test_a_release_file_has_a_line_for_each_cell_and_reads_back(tmp_path: Path) -> None:
    cells = [{"group": {"ward": name}, "values": {"rows": {"value": 1, "interval": [-2.5, 4]}}} for name in ("ü", "\n")]
    document = {
        "run_key": "r",
        "spec_digest": "s",
        "none": {},
        "groupings": [{"name": "ward", "cells": cells, "no": []}],
    }
    write_release_file(tmp_path / "release.json", document, mode="errorifexists")
    text = (tmp_path / "release.json").read_text(encoding="utf-8")
    assert json.loads(text) == document
    lines = [line.strip().rstrip(",") for line in text.splitlines()]
    assert [json.loads(line) for line in lines if line.startswith('{"group"')] == cells
    assert '"ü"' in text
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_release_file(tmp_path / "other.json", {**document, "groupings": [math.nan]}, mode="errorifexists")
    assert [file.name for file in tmp_path.iterdir()] == ["release.json"]
