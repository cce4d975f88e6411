"""`lepton lineage show`: the graph that the audit log tells, as text and as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from lepton_airflow.access.guard import Guard
from lepton_airflow.access.policy import Policy
from lepton_airflow.audit.database import connect, leaf_table
from lepton_airflow.audit.event import Actor
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.merkle import leaf_hash
from lepton_airflow.cli import app
from lepton_airflow.errors import ConfigurationError
from lepton_airflow.lineage.audited import ciphers_text
from lepton_airflow.lineage.graph import build_graph, read_graph
from lepton_airflow.settings import Settings

Operations = list[tuple[str, str, list[str], dict[str, str]]]
RELEASED = "/data/released/by/a/very/long/path/visits.json"
CIPHERS = {"email": "AES256_GCM", "patient_id": "AES256_SIV", **{f"measure_{n}": "AES256_GCM" for n in range(9)}}


def record(
    home: Settings, run_key: str, *operations: tuple[str, str, list[str], dict[str, str]], fails: bool = False
) -> None:
    """A run whose operations are nested, as the jobs do it: real events, through the guard."""
    engine = connect(home)
    log = AuditLog(engine, actor=Actor(principal="tester", host="here"), run_key=run_key)
    guard = Guard(log=log, policy=Policy.load(home.policy), principal="tester", spec_digest="0" * 64)

    def perform(rest: Operations) -> None:
        if not rest:
            if fails:
                raise ZeroDivisionError
            return
        action, dataset, columns, details = rest[0]
        epsilon = 0.5 if action == "release" else None
        with guard.operation(
            action=action, dataset=dataset, columns=columns, purpose="test", epsilon=epsilon, details=details
        ):
            perform(rest[1:])

    try:
        perform(list(operations))
    except ZeroDivisionError:
        assert fails
    log.close()
    engine.dispose()


@pytest.fixture
def clinic(home: Settings) -> Settings:
    details = {"source": "clinic.visits_raw", "keyset": "clinic", "ciphers": ciphers_text(CIPHERS)}
    protect = ("encrypt", "clinic.visits", [*CIPHERS], details)
    for night in ("monday", "tuesday"):
        record(home, f"pipeline/protect/{night}/-1", protect)
    record(home, "pipeline/rotate/monday/-1", ("rotate", "clinic.visits", ["email"], {}))
    release = {"budget": "clinic.visits", "privacy_unit": "patient_id", "target": RELEASED}
    record(
        home,
        "pipeline/release/monday/-1",
        ("release", "clinic.visits", ["patient_id", "measure_1", "site"], release),
        ("decrypt", "clinic.visits", ["measure_1"], {}),
    )
    record(
        home,
        "pipeline/retrain/monday/-1",
        ("train", "clinic.visits", ["measure_2"], {"target": "/models/<diagnosis>"}),
        ("decrypt", "clinic.visits", ["measure_2"], {}),
    )
    record(home, "spark-submit/1", ("decrypt", "clinic.visits", ["email"], {"target": "clinic.letters"}))
    shards = {"nodes": "a b c d e", "data_shards": "3", "parity_shards": "2"}
    record(home, "pipeline/store/monday/-1", ("store", "clinic.visits", [], shards))
    record(home, "spark-submit/3", ("restore", "clinic.visits", [], {"target": "/data/recovered"}))
    record(home, "spark-submit/2", ("decrypt", "clinic.visits", ["email"], {"target": "clinic.leak"}), fails=True)
    return home


@pytest.fixture
def show(clinic: Settings) -> Callable[..., Result]:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["lineage", "show", *arguments, "--home", str(clinic.home)])

    return invoke


def test_both_directions_with_protections_and_costs(show: Callable[..., Result]) -> None:
    shown = show("clinic.visits")
    assert shown.exit_code == 0, shown.output
    lines = [line.strip(" │├└─") for line in shown.stdout.splitlines()]
    order = [
        lines.index(line)
        for line in ("clinic.visits", "from", "email: AES256_GCM", "patient_id: AES256_SIV", "clinic.visits_raw", "to")
    ]
    assert order == sorted(order)
    assert "encrypt by pipeline.protect (2 runs, last " in shown.stdout
    assert "rotate by pipeline.rotate (1 run, last " in shown.stdout
    assert "epsilon 0.5 for each patient_id" in shown.stdout
    assert "measure_1: opened in memory" in lines
    assert "patient_id: privacy unit" in lines
    assert "site: as it is" in lines
    assert "email: in clear" in lines
    assert {"clinic.letters", "/models/<diagnosis>", "clinic.visits in shards", "/data/recovered"} <= set(lines)
    assert "3 of 5 nodes are enough" in shown.stdout


def test_what_failed_moved_no_data(show: Callable[..., Result]) -> None:
    assert "clinic.leak" not in show("clinic.visits").stdout
    assert isinstance(show("clinic.leak").exception, ConfigurationError)


def test_one_direction(show: Callable[..., Result]) -> None:
    up, down = show("clinic.visits", "--direction", "up"), show("clinic.visits", "--direction", "down")
    assert "clinic.visits_raw" in up.stdout
    assert "clinic.letters" not in up.stdout
    assert "clinic.letters" in down.stdout
    assert "clinic.visits_raw" not in down.stdout


def test_the_whole_way_back_from_a_release(show: Callable[..., Result]) -> None:
    shown = show(RELEASED, "--direction", "up").stdout
    assert shown.index("release by") < shown.index("clinic.visits") < shown.index("encrypt by") < shown.index("_raw")
    assert "pipeline.retrain" not in shown


def test_the_picture_has_every_dataset_and_step(show: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "lineage.svg"
    assert show("clinic.visits", "--svg", str(file)).exit_code == 0
    root = ElementTree.parse(file).getroot()
    space = "{http://www.w3.org/2000/svg}"
    titles = [title.text or "" for title in root.iter(f"{space}title")]
    assert {"clinic.visits_raw", "clinic.visits", "clinic.letters", "/models/<diagnosis>"} <= set(titles)
    assert len([path for path in root.iter(f"{space}path") if path.get("marker-end")]) == 12
    texts = {text.text for text in root.iter(f"{space}text")}
    assert {"patient_id: AES256_SIV", "and 3 more columns", "epsilon 0.5 for each patient_id"} <= texts
    boxes = [
        tuple(float(box.get(name, "")) for name in ("x", "y", "width", "height"))
        for group in root.iter(f"{space}g")
        for box in group.iter(f"{space}rect")
    ]
    assert len(boxes) == 13
    for number, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[:number]:
            apart = (
                x >= other_x + other_width
                or other_x >= x + width
                or y >= other_y + other_height
                or other_y >= y + height
            )
            assert apart, "boxes do not overlap"


def test_a_picture_that_cannot_be_written_is_said(show: Callable[..., Result], tmp_path: Path) -> None:
    assert isinstance(show("clinic.visits", "--svg", str(tmp_path / "no" / "file.svg")).exception, ConfigurationError)


def test_data_that_goes_in_a_circle_ends(home: Settings, tmp_path: Path) -> None:
    record(home, "a/b/c/-1", ("encrypt", "two", ["x"], {"source": "one", "ciphers": ciphers_text({"x": "FF1"})}))
    record(home, "a/d/c/-1", ("decrypt", "two", ["x"], {"target": "one"}))
    shown = CliRunner().invoke(
        app, ["lineage", "show", "one", "--svg", str(tmp_path / "c.svg"), "--home", str(home.home)]
    )
    assert shown.exit_code == 0, shown.output
    assert "shown above" in shown.stdout


def test_a_log_without_jobs_says_so(home: Settings) -> None:
    shown = CliRunner().invoke(app, ["lineage", "show", "clinic.visits", "--home", str(home.home)])
    assert isinstance(shown.exception, ConfigurationError)
    assert "No job has run yet" in str(shown.exception)


def test_an_event_that_says_a_name_of_an_action_in_another_place_is_not_taken_for_it(clinic: Settings) -> None:
    engine = connect(clinic)
    log = AuditLog(engine, actor=Actor(principal="tester", host="here"), run_key="x")
    guard = Guard(log=log, policy=Policy.load(clinic.policy), principal="tester", spec_digest="0" * 64)
    before = len(read_graph(engine).steps)
    with guard.operation(
        action="verify", dataset="audit", columns=(), purpose="test", details={"action": "encrypt", "source": "a"}
    ):
        pass
    assert len(read_graph(engine).steps) == before
    log.close()
    engine.dispose()


@pytest.mark.parametrize("payload", ['{"action":"encrypt"', '{"action":"encrypt"}', '[{"action":"encrypt"}]'])
def test_a_row_that_is_no_event_is_left_to_verification(clinic: Settings, payload: str) -> None:
    engine = connect(clinic)
    before = read_graph(engine)
    with engine.begin() as connection:
        row = {"event_id": "odd", "payload": payload, "leaf_hash": leaf_hash(payload.encode())}
        connection.execute(leaf_table.insert().values(row))
    assert read_graph(engine) == before
    engine.dispose()


def test_no_events_make_an_empty_graph() -> None:
    assert build_graph([]).datasets == set()
