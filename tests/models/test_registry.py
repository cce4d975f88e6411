"""The registry: one champion for each name, whatever happens at once; every change in the history and in the audit."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from lepton_airflow.audit.database import VERSION_TABLE, connect, leaf_table, metadata, migrate
from lepton_airflow.audit.event import Actor
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.errors import AuditUnavailable, InvalidData, RegistryError
from lepton_airflow.models.registry import ModelRegistry, change_table, model_table
from lepton_airflow.settings import Settings

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path)
    if request.param == "postgresql":
        settings = Settings(home=tmp_path, audit_database=request.getfixturevalue("postgresql_database"))
    engine = connect(settings, check_schema=False)
    migrate(engine)
    engine.dispose()
    return settings


@pytest.fixture
def engine(settings: Settings) -> Iterator[sql.Engine]:
    engine = connect(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def registry(engine: sql.Engine) -> ModelRegistry:
    return ModelRegistry(engine)


def log_of(engine: sql.Engine, run_key: str = "run 1") -> AuditLog:
    return AuditLog(engine, actor=Actor(principal="trainer", host="here"), run_key=run_key)


@pytest.fixture
def enter(registry: ModelRegistry, engine: sql.Engine) -> Callable[..., Any]:
    """Registers a file under the name ``diagnosis``."""

    def register(sha256: str, status: str = "challenger", *, run_key: str = "run 1", **changes: Any) -> Any:
        fields: dict[str, Any] = {
            "card_sha256": "sha256:card",
            "dataset": "clinic.visits",
            "dataset_digest": "sha256:data",
            "metrics": {"clean": 0.97, "robust": 0.81},
            "reason": "passed the gate",
            **changes,
        }
        return registry.register("diagnosis", sha256=sha256, status=status, log=log_of(engine, run_key), **fields)  # type: ignore[arg-type]

    return register


def promote(registry: ModelRegistry, engine: sql.Engine, sha256: str, run_key: str = "run 1") -> Any:
    return registry.promote("diagnosis", sha256=sha256, reason="passed the gate", log=log_of(engine, run_key))


def events(engine: sql.Engine) -> list[tuple[str, str, str, str]]:
    with engine.connect() as connection:
        payloads = connection.execute(sql.select(leaf_table.c.payload).order_by(leaf_table.c.id)).scalars().all()
    found = [json.loads(payload) for payload in payloads]
    return [
        (event["action"], event["phase"], event["details"].get("status"), event["digests"].get("model"))
        for event in found
        if event["action"] != "producer"
    ]


def test_the_migration_makes_the_tables_that_the_code_uses(engine: sql.Engine) -> None:
    mine = {model_table.name, change_table.name}
    with warnings.catch_warnings(), engine.connect() as connection:
        warnings.filterwarnings("ignore", "Did not recognize type 'xid8'")
        only_mine = {"include_object": lambda _object, name, kind, *_: kind != "table" or name in mine}
        options = {"version_table": VERSION_TABLE, "compare_type": True, **only_mine}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_a_promoted_challenger_retires_the_champion_and_the_history_keeps_both(
    registry: ModelRegistry, engine: sql.Engine, enter: Callable[..., Any]
) -> None:
    assert registry.champion("diagnosis") is None
    enter(A)
    assert registry.champion("diagnosis") is None, "a challenger is no champion yet"
    promote(registry, engine, A)
    enter(B, run_key="run 2")
    entry = promote(registry, engine, B, "run 2")
    assert (entry.status, entry.metrics, entry.dataset_digest) == (
        "champion",
        {"clean": 0.97, "robust": 0.81},
        "sha256:data",
    )
    assert registry.champion("diagnosis") == entry
    assert {known.sha256: known.status for known in registry.entries("diagnosis")} == {A: "retired", B: "champion"}
    assert [(c.sha256, c.before, c.after, c.run_key, c.principal) for c in registry.history("diagnosis")] == [
        (A, None, "challenger", "run 1", "trainer"),
        (A, "challenger", "champion", "run 1", "trainer"),
        (B, None, "challenger", "run 2", "trainer"),
        (A, "champion", "retired", "run 2", "trainer"),
        (B, "challenger", "champion", "run 2", "trainer"),
    ]
    assert promote(registry, engine, A, "run 3").status == "champion", "a retired model can come back"


def test_every_change_stands_between_two_events_of_the_audit(
    registry: ModelRegistry, engine: sql.Engine, enter: Callable[..., Any]
) -> None:
    enter(A)
    promote(registry, engine, A)
    enter(B, "rejected", reason="masked gradients")
    with pytest.raises(RegistryError):
        promote(registry, engine, B)
    assert events(engine) == [
        ("model.register", "intent", "challenger", A),
        ("model.register", "success", "challenger", A),
        ("model.promote", "intent", "champion", A),
        ("model.promote", "success", "champion", A),
        ("model.register", "intent", "rejected", B),
        ("model.register", "success", "rejected", B),
        ("model.promote", "intent", "champion", B),
        ("model.promote", "failure", "champion", B),
    ]


def test_without_the_audit_nothing_changes(
    registry: ModelRegistry, engine: sql.Engine, enter: Callable[..., Any]
) -> None:
    enter(A)
    closed = log_of(engine)
    closed.close()
    with pytest.raises(AuditUnavailable):
        registry.promote("diagnosis", sha256=A, reason="", log=closed)
    assert registry.champion("diagnosis") is None


def test_the_same_run_again_changes_nothing(
    registry: ModelRegistry, engine: sql.Engine, enter: Callable[..., Any]
) -> None:
    for _ in range(2):
        enter(A)
        promote(registry, engine, A)
    assert len(registry.history("diagnosis")) == 2
    assert registry.entries() == registry.find(A) == [registry.champion("diagnosis")]


def test_a_rejected_model_is_never_promoted_unless_a_gate_lets_it_pass(
    registry: ModelRegistry, engine: sql.Engine, enter: Callable[..., Any]
) -> None:
    enter(A, "rejected", reason="robust accuracy 0.4 is below 0.7")
    with pytest.raises(RegistryError, match="never the champion"):
        promote(registry, engine, A)
    enter(A, "challenger", run_key="run 2", card_sha256="sha256:other card")
    assert promote(registry, engine, A, "run 2").card_sha256 == "sha256:other card"
    assert [change.after for change in registry.history("diagnosis")] == ["rejected", "challenger", "champion"]


def test_a_champion_past_or_present_is_not_rejected(
    registry: ModelRegistry, engine: sql.Engine, enter: Callable[..., Any]
) -> None:
    for sha256 in (A, B):
        enter(sha256)
        promote(registry, engine, sha256)
    enter(C)
    registry.reject("diagnosis", sha256=C, reason="withdrawn", log=log_of(engine))
    for sha256 in (A, B):
        with pytest.raises(RegistryError, match="reject"):
            enter(sha256, "rejected")
        with pytest.raises(RegistryError, match="only a challenger"):
            registry.reject("diagnosis", sha256=sha256, reason="", log=log_of(engine))
    assert [known.status for known in registry.entries()] == ["retired", "champion", "rejected"]


def test_what_nobody_registered_is_not_promoted(registry: ModelRegistry, engine: sql.Engine) -> None:
    with pytest.raises(RegistryError, match="no such model"):
        promote(registry, engine, A)


def test_metrics_that_are_no_numbers_are_refused(enter: Callable[..., Any], registry: ModelRegistry) -> None:
    with pytest.raises(InvalidData):
        enter(A, metrics={"clean": float("nan")})
    assert registry.entries() == []


def test_the_database_itself_refuses_a_second_champion(
    registry: ModelRegistry, engine: sql.Engine, enter: Callable[..., Any]
) -> None:
    enter(A)
    enter(B)
    promote(registry, engine, A)
    with engine.begin() as connection, pytest.raises(sql.exc.IntegrityError):
        connection.execute(model_table.update().values(status="champion"))


def test_promotions_at_once_leave_one_champion_and_a_history_that_follows(
    registry: ModelRegistry, settings: Settings, enter: Callable[..., Any]
) -> None:
    contenders = [f"sha256:{number:064x}" for number in range(6)]
    for sha256 in contenders:
        enter(sha256)
    failures: list[BaseException] = []

    def work(sha256: str) -> None:
        engine = connect(settings)
        try:
            promote(ModelRegistry(engine), engine, sha256)
        except BaseException as error:
            failures.append(error)
        finally:
            engine.dispose()

    threads = [threading.Thread(target=work, args=(sha256,)) for sha256 in contenders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    statuses = [known.status for known in registry.entries("diagnosis")]
    assert (statuses.count("champion"), statuses.count("retired")) == (1, 5)
    champion = None
    for change in registry.history("diagnosis"):
        if change.after == "retired":
            assert change.sha256 == champion
            champion = None
        if change.after == "champion":
            assert champion is None
            champion = change.sha256
    found = registry.champion("diagnosis")
    assert found is not None
    assert found.sha256 == champion


def test_a_writer_on_postgresql_registers_and_promotes_and_changes_no_history(
    postgresql_database: str, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, audit_database=postgresql_database)
    engine = connect(settings, check_schema=False)
    migrate(engine)
    with engine.begin() as connection:
        there = connection.scalar(sql.text("SELECT count(*) FROM pg_roles WHERE rolname = 'lepton_trainer'"))
        if not there:
            connection.exec_driver_sql("CREATE ROLE lepton_trainer LOGIN IN ROLE lepton_writer")
    engine.dispose()
    url = postgresql_database.replace("postgres@", "lepton_trainer@")
    writer = connect(Settings(home=tmp_path, audit_database=url))
    registry = ModelRegistry(writer)
    fields: dict[str, Any] = {"card_sha256": "c", "dataset": "d", "dataset_digest": "e", "metrics": {}, "reason": "r"}
    registry.register("diagnosis", sha256=A, status="challenger", log=log_of(writer), **fields)
    assert promote(registry, writer, A).status == "champion"
    for statement in ("UPDATE lepton_model_change SET reason = ''", "DELETE FROM lepton_model_change"):
        with pytest.raises(AuditUnavailable, match="42501"), writer.begin() as connection:
            connection.exec_driver_sql(statement)
    with pytest.raises(AuditUnavailable, match="42501"), writer.begin() as connection:
        connection.exec_driver_sql("DELETE FROM lepton_model")
    writer.dispose()
