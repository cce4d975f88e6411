"""The catalogue on both databases: a version is there once it is complete, and only for one try of a run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from lepton_airflow.audit.database import VERSION_TABLE, connect, metadata, migrate
from lepton_airflow.errors import StorageError
from lepton_airflow.settings import Settings
from lepton_airflow.storage.catalogue import Catalogue, stored_table

SUMMARY = {"files": 2, "bytes": 7, "missing": {}}
DIGEST = f"sha256:{'0' * 64}"


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, home: Settings) -> Iterator[sql.Engine]:
    if request.param == "postgresql":
        home = Settings(**home.model_dump() | {"audit_database": request.getfixturevalue("postgresql_database")})
        made = connect(home, check_schema=False)
        migrate(made)
        made.dispose()
    engine = connect(home)
    yield engine
    engine.dispose()


@pytest.fixture
def catalogue(engine: sql.Engine) -> Catalogue:
    return Catalogue(engine)


def begun(catalogue: Catalogue, run_key: str = "run", spec_digest: str = "spec", dataset: str = "clinic.visits") -> str:
    entry, replayed = catalogue.begin(dataset, run_key=run_key, spec_digest=spec_digest, nodes=["a", "b"])
    assert (entry.status, replayed) == ("writing", False)
    return entry.version


def test_the_migration_makes_the_table_that_the_code_uses(engine: sql.Engine) -> None:
    def ours(_object: object, name: str | None, kind: str, _reflected: bool, _compared: object) -> bool:
        return kind != "table" or name == stored_table.name

    with warnings.catch_warnings(), engine.connect() as connection:
        warnings.filterwarnings("ignore", "Did not recognize type 'xid8'")
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "include_object": ours, "compare_type": True}
        )
        found = [one for one in compare_metadata(context, metadata) if stored_table.name in repr(one)]
    assert found == []


def test_a_version_is_found_once_it_is_complete(catalogue: Catalogue) -> None:
    version = begun(catalogue)
    with pytest.raises(StorageError, match="No version"):
        catalogue.find("clinic.visits")
    catalogue.commit(version, manifest=DIGEST, summary=SUMMARY)
    entry = catalogue.find("clinic.visits")
    assert (entry.version, entry.manifest, entry.summary, entry.run_key) == (version, DIGEST, SUMMARY, "run")
    assert entry.nodes == ("a", "b")
    later = begun(catalogue, "later")
    assert catalogue.find("clinic.visits").version == version
    catalogue.commit(later, manifest=DIGEST, summary=SUMMARY)
    assert catalogue.find("clinic.visits").version == later
    assert catalogue.find("clinic.visits", version).version == version
    for dataset, asked in (("clinic.other", None), ("clinic.visits", "0" * 32), ("clinic.other", version)):
        with pytest.raises(StorageError):
            catalogue.find(dataset, asked)


def test_the_same_run_and_spec_find_their_version_again(catalogue: Catalogue) -> None:
    version = begun(catalogue)
    catalogue.commit(version, manifest=DIGEST, summary=SUMMARY)
    entry, replayed = catalogue.begin("clinic.visits", run_key="run", spec_digest="spec", nodes=["a"])
    assert (entry.version, replayed) == (version, True)
    assert begun(catalogue, spec_digest="another spec") != version
    assert begun(catalogue, dataset="clinic.other") != version


def test_a_try_that_was_overtaken_commits_nothing(catalogue: Catalogue) -> None:
    first, others = begun(catalogue), begun(catalogue, "another run")
    second = begun(catalogue)
    with pytest.raises(StorageError, match="took this version back"):
        catalogue.commit(first, manifest=DIGEST, summary=SUMMARY)
    catalogue.commit(second, manifest=DIGEST, summary=SUMMARY)
    catalogue.commit(others, manifest=DIGEST, summary=SUMMARY)
    told = {entry.version: entry.status for entry in catalogue.entries("clinic.visits")}
    assert told == {first: "removed", second: "stored", others: "stored"}


def test_the_newest_version_is_the_one_that_became_complete_last(catalogue: Catalogue) -> None:
    slow, quick = begun(catalogue, "slow"), begun(catalogue, "quick")
    for version in (quick, slow):
        catalogue.commit(version, manifest=DIGEST, summary=SUMMARY)
    assert catalogue.find("clinic.visits").version == slow
    assert [entry.version for entry in catalogue.entries("clinic.visits", "stored")] == [quick, slow]


def test_what_is_stored_after_all_is_not_taken_back(catalogue: Catalogue) -> None:
    version, other = begun(catalogue), begun(catalogue, "other")
    assert catalogue.take_back(other) is True
    assert catalogue.take_back(other) is True
    catalogue.commit(version, manifest=DIGEST, summary=SUMMARY)
    assert catalogue.take_back(version) is False
    assert catalogue.find("clinic.visits").version == version


def test_what_is_removed_cannot_be_restored_and_is_purged_after(catalogue: Catalogue) -> None:
    version = begun(catalogue)
    catalogue.commit(version, manifest=DIGEST, summary=SUMMARY)
    catalogue.purged(version)
    assert catalogue.find("clinic.visits").status == "stored", "only what is removed is purged"
    catalogue.remove([version])
    with pytest.raises(StorageError):
        catalogue.find("clinic.visits")
    assert [entry.version for entry in catalogue.entries(None, "removed")] == [version]
    catalogue.purged(version)
    catalogue.remove([version])
    assert catalogue.entries("clinic.visits")[0].status == "purged"
    catalogue.remove([])


def test_what_was_begun_long_ago_and_is_not_complete_can_be_given_up(catalogue: Catalogue) -> None:
    complete, unfinished = begun(catalogue, "complete"), begun(catalogue, "unfinished")
    catalogue.commit(complete, manifest=DIGEST, summary=SUMMARY)
    now = datetime.now(UTC)
    catalogue.abandon("clinic.visits", begun_before=now - timedelta(hours=1))
    assert catalogue.entries("clinic.visits", "removed") == []
    catalogue.abandon("clinic.other", begun_before=now + timedelta(seconds=1))
    assert catalogue.entries("clinic.visits", "removed") == []
    catalogue.abandon("clinic.visits", begun_before=now + timedelta(seconds=1))
    assert [entry.version for entry in catalogue.entries("clinic.visits", "removed")] == [unfinished]


def test_the_table_refuses_a_stored_version_without_a_manifest(catalogue: Catalogue, engine: sql.Engine) -> None:
    begun(catalogue)
    for values in ({"status": "stored"}, {"status": "lost"}):
        with pytest.raises(IntegrityError), engine.begin() as connection:
            connection.execute(stored_table.update().values(values))
