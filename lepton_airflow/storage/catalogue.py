"""The catalogue of stored datasets, in the audit database: which versions there are, and the digest of each one's manifest.

A version is ``writing`` until it is complete on its nodes, then ``stored``. What is to go is ``removed`` first, so that nobody
begins to restore it, and ``purged`` once every node has deleted it. A try that died leaves a version that is ``writing``; the
run's next try takes it back.

This module imports neither Spark nor pyarrow: the command line reads the catalogue too.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sql

from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.audit.database import metadata, reading, row_id
from lepton_airflow.audit.transactions import serializable
from lepton_airflow.errors import StorageError

Status = Literal["writing", "stored", "removed", "purged"]

stored_table = sql.Table(
    "lepton_stored_dataset",
    metadata,
    sql.Column("id", row_id, sql.Identity(always=True), primary_key=True),
    sql.Column("dataset", sql.Text, nullable=False, index=True),
    sql.Column("version", sql.Text, nullable=False, unique=True),
    sql.Column("status", sql.Text, nullable=False),
    sql.Column("run_key", sql.Text, nullable=False, index=True),
    sql.Column("spec_digest", sql.Text, nullable=False),
    sql.Column("begun_at", sql.Text, nullable=False),
    sql.Column("nodes", sql.Text, nullable=False),
    sql.Column("position", sql.BigInteger, nullable=True, unique=True),
    sql.Column("manifest", sql.Text, nullable=True),
    sql.Column("summary", sql.Text, nullable=True),
    sql.CheckConstraint("status IN ('writing', 'stored', 'removed', 'purged')", name="lepton_stored_dataset_status"),
    sql.CheckConstraint(
        "status <> 'stored' OR (manifest IS NOT NULL AND position IS NOT NULL)", name="lepton_stored_dataset_manifest"
    ),
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One version.

    :param version: 32 hex digits
    :param nodes: the names of those that may have something of it
    :param position: in the order in which versions became complete; None of one that did not
    :param manifest: ``sha256:<hex>`` of its manifest; None while it is being written
    :param summary: what the job that stored it returned
    """

    dataset: str
    version: str
    status: Status
    run_key: str
    spec_digest: str
    begun_at: str
    nodes: tuple[str, ...]
    position: int | None
    manifest: str | None
    summary: Mapping[str, Any]


class Catalogue:
    """The catalogue in the audit database.

    :param engine: from :func:`lepton_airflow.audit.database.connect`
    """

    def __init__(self, engine: sql.Engine) -> None:
        self._engine = engine

    def begin(self, dataset: str, *, run_key: str, spec_digest: str, nodes: Sequence[str]) -> tuple[Entry, bool]:
        """A new version; or the one that an earlier try of the same run and spec stored.

        Versions that earlier tries of this run left half-written are ``removed`` with this.

        :param nodes: the names of those that it will be on
        :returns: the version, and whether it is stored already
        """
        mine = (stored_table.c.run_key == run_key, stored_table.c.dataset == dataset)

        def work(connection: sql.Connection) -> tuple[Entry, bool]:
            done = _entries(
                connection, *mine, stored_table.c.status == "stored", stored_table.c.spec_digest == spec_digest
            )
            if done:
                return done[-1], True
            connection.execute(_writing(*mine).values(status="removed"))
            row = {"dataset": dataset, "version": uuid.uuid4().hex, "status": "writing", "run_key": run_key}
            row |= {"spec_digest": spec_digest, "begun_at": _text(datetime.now(UTC)), "nodes": json.dumps(list(nodes))}
            connection.execute(stored_table.insert().values(row))
            return _entries(connection, stored_table.c.version == row["version"])[0], False

        return serializable(self._engine, work, place=f"stored dataset {dataset}")

    def commit(self, version: str, *, manifest: str, summary: Mapping[str, Any]) -> None:
        """Make a version that is complete on its nodes the newest one.

        :raises StorageError: it is not being written any more: another try of the same run has begun since
        """

        def work(connection: sql.Connection) -> None:
            writing = (stored_table.c.version == version, stored_table.c.status == "writing")
            last = connection.scalar(sql.select(sql.func.max(stored_table.c.position))) or 0
            values = {"status": "stored", "position": last + 1, "manifest": manifest}
            values["summary"] = canonical_json(dict(summary)).decode()
            if connection.execute(stored_table.update().where(*writing).values(values)).rowcount != 1:
                raise StorageError(
                    "Another try of the same run took this version back; nothing of it stays.",
                    place=f"stored version {version}",
                    remedy="Look at what that try stored.",
                )

        serializable(self._engine, work, place=f"stored version {version}")

    def remove(self, versions: Sequence[str]) -> None:
        """Let nobody begin to restore these stored versions; their shards can be deleted then."""
        self._set(versions, "removed", before="stored")

    def take_back(self, version: str) -> bool:
        """Give up a version that did not become complete.

        :returns: whether it is given up; False if it is stored after all
        """

        def work(connection: sql.Connection) -> bool:
            mine = stored_table.c.version == version
            connection.execute(_writing(mine).values(status="removed"))
            return connection.scalar(sql.select(stored_table.c.status).where(mine)) != "stored"

        return serializable(self._engine, work, place=f"stored version {version}")

    def abandon(self, dataset: str, *, begun_before: datetime) -> None:
        """Give up versions that are not complete though they were begun long ago: their runs died and were not run again."""
        old = (stored_table.c.dataset == dataset, stored_table.c.begun_at < _text(begun_before))

        def work(connection: sql.Connection) -> None:
            connection.execute(_writing(*old).values(status="removed"))

        serializable(self._engine, work, place=f"stored dataset {dataset}")

    def purged(self, version: str) -> None:
        """Say that no node has anything of a removed version any more."""
        self._set([version], "purged", before="removed")

    def find(self, dataset: str, version: str | None = None) -> Entry:
        """A stored version; by default the one that became complete last.

        :raises StorageError: there is none
        """
        found = [entry for entry in self.entries(dataset, "stored") if version in (None, entry.version)]
        if not found:
            raise StorageError(
                f"There is no stored version {version}." if version else "No version of it is stored.",
                place=f"stored dataset {dataset}",
                remedy="See `lepton storage list`.",
            )
        return found[-1]

    def entries(self, dataset: str | None = None, *statuses: Status) -> list[Entry]:
        """The versions of a dataset, or of all: those that are or were complete in the order in which they became so, before the
        others in the order in which they were begun.

        :param statuses: only those; none means all
        """
        rules: list[sql.ColumnElement[bool]] = []
        if dataset is not None:
            rules.append(stored_table.c.dataset == dataset)
        if statuses:
            rules.append(stored_table.c.status.in_(statuses))
        with reading(self._engine) as connection:
            return _entries(connection, *rules)

    def _set(self, versions: Sequence[str], status: Status, *, before: Status) -> None:
        def work(connection: sql.Connection) -> None:
            rules = (stored_table.c.version.in_(versions), stored_table.c.status == before)
            connection.execute(stored_table.update().where(*rules).values(status=status))

        serializable(self._engine, work, place=f"stored versions {', '.join(versions)}")


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def _writing(*rules: sql.ColumnElement[bool]) -> sql.Update:
    return stored_table.update().where(*rules, stored_table.c.status == "writing")


def _entries(connection: sql.Connection, *rules: sql.ColumnElement[bool]) -> list[Entry]:
    query = sql.select(*(column for column in stored_table.c if column.name != "id")).where(*rules)
    order = (stored_table.c.position.is_(None), stored_table.c.position, stored_table.c.id)
    rows = connection.execute(query.order_by(*order)).mappings()
    return [
        Entry(**{**row, "nodes": tuple(json.loads(row["nodes"])), "summary": json.loads(row["summary"] or "{}")})
        for row in rows
    ]
