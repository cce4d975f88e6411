"""Values are counted before they are encrypted, and no key passes 2^32, however many processes count at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from lepton_airflow.audit.database import connect, migrate
from lepton_airflow.errors import InvalidData, KeyExhausted
from lepton_airflow.keys.usage import ROTATE_AT, VALUES_PER_KEY, reserve_usage, usage, usage_table
from lepton_airflow.settings import Settings


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "sqlite":
        settings = Settings(home=tmp_path)
    else:
        settings = Settings(home=tmp_path, audit_database=request.getfixturevalue("postgresql_database"))
    engine = connect(settings, check_schema=False)
    migrate(engine)
    engine.dispose()
    return settings


@pytest.fixture
def engine(database: Settings) -> Iterator[sql.Engine]:
    engine = connect(database)
    yield engine
    engine.dispose()


def test_reservations_add_up_for_each_key(engine):
    assert usage(engine, "clinic") == {}
    assert reserve_usage(engine, "clinic", 17, 1000) is None
    assert reserve_usage(engine, "clinic", 17, 0) is None
    assert reserve_usage(engine, "clinic", 17, 500) is None
    reserve_usage(engine, "clinic", 2**31 - 1, 7)
    reserve_usage(engine, "lab", 17, 9)
    assert usage(engine, "clinic") == {17: 1500, 2**31 - 1: 7}
    assert usage(engine, "lab") == {17: 9}


def test_rotation_is_proposed_from_half_of_the_limit_on(engine):
    assert reserve_usage(engine, "clinic", 17, ROTATE_AT - 1) is None
    warning = reserve_usage(engine, "clinic", 17, 1)
    assert warning is not None
    assert "lepton keys rotate clinic" in warning
    assert "2,147,483,648 of at most 4,294,967,296" in warning


def test_the_limit_can_be_reached_and_not_passed(engine):
    reserve_usage(engine, "clinic", 17, VALUES_PER_KEY - 1)
    with pytest.raises(KeyExhausted, match="lepton keys rotate clinic") as caught:
        reserve_usage(engine, "clinic", 17, 2)
    assert caught.value.place == "keyset 'clinic', key 17"
    assert usage(engine, "clinic") == {17: VALUES_PER_KEY - 1}, "a refusal reserves nothing"
    reserve_usage(engine, "clinic", 17, 1)
    with pytest.raises(KeyExhausted):
        reserve_usage(engine, "clinic", 17, 1)
    # A fresh key starts anew.
    assert reserve_usage(engine, "clinic", 18, 1) is None


def test_more_than_any_key_can_encrypt_is_refused_at_once(engine):
    with pytest.raises(KeyExhausted):
        reserve_usage(engine, "clinic", 17, VALUES_PER_KEY + 1)
    with pytest.raises(KeyExhausted):
        reserve_usage(engine, "clinic", 17, 2**80)
    assert usage(engine, "clinic") == {}


def test_nothing_is_given_back(engine):
    reserve_usage(engine, "clinic", 17, 10)
    with pytest.raises(InvalidData):
        reserve_usage(engine, "clinic", 17, -5)
    assert usage(engine, "clinic") == {17: 10}
    # The database itself refuses a count beyond the limit, whoever writes it.
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(usage_table.update().values(reserved=VALUES_PER_KEY + 1))


RESERVE = """
import os, signal, sys
from pathlib import Path
from lepton_airflow.audit.database import connect
from lepton_airflow.errors import KeyExhausted
from lepton_airflow.keys.usage import reserve_usage
from lepton_airflow.settings import Settings

home, url, times, values = sys.argv[1:5]
engine = connect(Settings(home=Path(home), audit_database=url))
for _ in range(int(times)):
    try:
        reserve_usage(engine, "clinic", 17, int(values))
    except KeyExhausted:
        sys.exit(3)
if sys.argv[5:] == ["die"]:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(database: Settings, times: int, values: int, *ending: str) -> subprocess.Popen[bytes]:
    arguments = [str(database.home), database.audit_database, str(times), str(values), *ending]
    return subprocess.Popen([sys.executable, "-c", RESERVE, *arguments])


def test_processes_that_reserve_at_once_lose_no_count_and_cannot_pass_the_limit_together(database, engine):
    workers = [start(database, 20, 100) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert usage(engine, "clinic") == {17: 6000}
    share = VALUES_PER_KEY // 4
    workers = [start(database, 3, share) for _ in range(2)]
    assert 3 in [worker.wait() for worker in workers], "six quarters are more than one key has"
    assert usage(engine, "clinic") == {17: 6000 + 3 * share}


def test_a_process_that_is_killed_has_counted_what_it_reserved(database, engine):
    assert start(database, 1, 1000, "die").wait() == -signal.SIGKILL
    assert usage(engine, "clinic") == {17: 1000}


def test_the_migration_makes_the_table_that_the_code_uses(engine):
    def ours(_object: object, name: str | None, kind: str, _reflected: bool, _compared: object) -> bool:
        return kind != "table" or name == usage_table.name

    with warnings.catch_warnings(), engine.connect() as connection:
        warnings.filterwarnings("ignore", "Did not recognize type 'xid8'")
        context = MigrationContext.configure(connection, opts={"include_object": ours, "compare_type": True})
        assert compare_metadata(context, usage_table.metadata) == []
