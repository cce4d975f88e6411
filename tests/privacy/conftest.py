"""A ledger of its own for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sql

from lepton_airflow.audit.database import connect, migrate
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.settings import Settings


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of a fresh, migrated audit database; SQLite unless the test is parametrised with ``postgresql``."""
    if getattr(request, "param", "sqlite") == "postgresql":
        settings = Settings(home=tmp_path, audit_database=request.getfixturevalue("postgresql_database"))
    else:
        settings = Settings(home=tmp_path)
    engine = connect(settings, check_schema=False)
    migrate(engine)
    engine.dispose()
    return settings


@pytest.fixture
def engine(database: Settings) -> Iterator[sql.Engine]:
    engine = connect(database)
    yield engine
    engine.dispose()


@pytest.fixture
def ledger(engine: sql.Engine) -> Ledger:
    return Ledger(engine)
