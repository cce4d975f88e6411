"""The registry of models, in the audit database: which file is the champion, which ones could be, which ones may not.

A model goes by a name and the hash of its file. It is registered as a *challenger*, which passed the gate, or as *rejected*,
which did not. Promoting a challenger makes it the *champion*, of which each name has at most one, and *retires* the one
before; a retired model can be promoted again. What was rejected is never promoted.

Every change of a status is one serializable transaction between two durable events of the audit log, and a row of the
model's history that nothing ever changes.

This module imports neither TensorFlow nor NumPy: the command line and the Airflow side read the registry too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sql

from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.audit.database import metadata, reading, row_id
from lepton_airflow.audit.event import Detail, Event
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.transactions import serializable
from lepton_airflow.errors import LeptonError, RegistryError

Status = Literal["champion", "challenger", "retired", "rejected"]

_STATUSES = "('champion', 'challenger', 'retired', 'rejected')"

#: One row for each file that was ever judged under a name. ``metrics`` is canonical JSON.
model_table = sql.Table(
    "lepton_model",
    metadata,
    sql.Column("id", row_id, sql.Identity(always=True), primary_key=True),
    sql.Column("model", sql.Text, nullable=False),
    sql.Column("sha256", sql.Text, nullable=False),
    sql.Column("status", sql.Text, nullable=False),
    sql.Column("run_key", sql.Text, nullable=False),
    sql.Column("card_sha256", sql.Text, nullable=False),
    sql.Column("dataset", sql.Text, nullable=False),
    sql.Column("dataset_digest", sql.Text, nullable=False),
    sql.Column("metrics", sql.Text, nullable=False),
    sql.Column("registered_at", sql.Text, nullable=False),
    sql.UniqueConstraint("model", "sha256", name="lepton_model_file"),
    sql.CheckConstraint(f"status IN {_STATUSES}", name="lepton_model_status"),
)
sql.Index(
    "lepton_model_champion",
    model_table.c.model,
    unique=True,
    sqlite_where=model_table.c.status == "champion",
    postgresql_where=model_table.c.status == "champion",
)

#: One row for each change of a status; writers can add rows and change none.
change_table = sql.Table(
    "lepton_model_change",
    metadata,
    sql.Column("id", row_id, sql.Identity(always=True), primary_key=True),
    sql.Column("model_id", row_id, sql.ForeignKey("lepton_model.id"), nullable=False, index=True),
    sql.Column("before", sql.Text, nullable=True),
    sql.Column("after", sql.Text, nullable=False),
    sql.Column("reason", sql.Text, nullable=False),
    sql.Column("run_key", sql.Text, nullable=False),
    sql.Column("principal", sql.Text, nullable=False),
    sql.Column("changed_at", sql.Text, nullable=False),
    sql.CheckConstraint(f"after IN {_STATUSES}", name="lepton_model_change_after"),
)

_MOST_REASON = 2000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file under one name.

    :param model: the name
    :param sha256: ``sha256:<hex>`` of the model file
    :param run_key: of the run that registered it last
    :param card_sha256: ``sha256:<hex>`` of the model card's file, as it was registered last
    :param dataset_digest: of the examples that it was trained and tested on
    :param metrics: what the gate measured, by name
    """

    model: str
    sha256: str
    status: Status
    run_key: str
    card_sha256: str
    dataset: str
    dataset_digest: str
    metrics: Mapping[str, Any]
    registered_at: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of a status; ``before`` is None when the model was new."""

    model: str
    sha256: str
    before: Status | None
    after: Status
    reason: str
    run_key: str
    principal: str
    changed_at: str


class ModelRegistry:
    """The registry in the audit database.

    :param engine: from :func:`lepton_airflow.audit.database.connect`
    """

    def __init__(self, engine: sql.Engine) -> None:
        self._engine = engine

    def register(
        self,
        model: str,
        *,
        sha256: str,
        status: Literal["challenger", "rejected"],
        card_sha256: str,
        dataset: str,
        dataset_digest: str,
        metrics: Mapping[str, Any],
        reason: str,
        log: AuditLog,
    ) -> Entry:
        """Enter a file that was judged. The same file again, by the same run and with the same card, changes nothing.

        :param metrics: numbers, texts and truth values by name: never a data value
        :param reason: why it has this status: that it passed the gate, or why not
        :param log: of the run; its run key and principal go into the history
        :raises RegistryError: the file is or was the champion, and is to be rejected
        :raises InvalidData: the metrics are not JSON
        """
        fields = {
            "run_key": log.run_key,
            "card_sha256": card_sha256,
            "dataset": dataset,
            "dataset_digest": dataset_digest,
            "metrics": canonical_json(dict(metrics)).decode(),
        }

        def work(connection: sql.Connection) -> Entry:
            known = _find(connection, model, sha256)
            if known is None:
                row = {"model": model, "sha256": sha256, "status": status, "registered_at": _now(), **fields}
                connection.execute(model_table.insert().values(row))
                _note(connection, model, sha256, before=None, after=status, reason=reason, log=log)
                return _existing(connection, model, sha256)
            if known.status in ("champion", "retired"):
                if status == "rejected":
                    raise RegistryError(
                        f"The file is {known.status} already and cannot be rejected.",
                        place=_place(model, sha256),
                        remedy="Promote another model; what was once shipped stays in the history.",
                    )
                return known
            connection.execute(_update(model, sha256).values(status=status, **fields))
            if (known.status, known.run_key, known.card_sha256) != (status, log.run_key, card_sha256):
                _note(connection, model, sha256, before=known.status, after=status, reason=reason, log=log)
            return _existing(connection, model, sha256)

        return self._change("model.register", work, model=model, sha256=sha256, reason=reason, log=log, status=status)

    def promote(self, model: str, *, sha256: str, reason: str, log: AuditLog) -> Entry:
        """Make a challenger or a retired model the champion, and retire the champion so far.

        Promoting the champion changes nothing, so a job that died after it can be run again.

        :raises RegistryError: no such model, or a rejected one
        """

        def work(connection: sql.Connection) -> Entry:
            chosen = _existing(connection, model, sha256)
            if chosen.status == "rejected":
                raise RegistryError(
                    "The gate refused it; a rejected model is never the champion.",
                    place=_place(model, sha256),
                    remedy="Train another one, or have this one pass a gate.",
                )
            if chosen.status == "champion":
                return chosen
            before = _champion(connection, model)
            if before is not None:
                # First, so that there are never two.
                connection.execute(_update(model, before.sha256).values(status="retired"))
                _note(connection, model, before.sha256, before="champion", after="retired", reason=reason, log=log)
            connection.execute(_update(model, sha256).values(status="champion"))
            _note(connection, model, sha256, before=chosen.status, after="champion", reason=reason, log=log)
            return _existing(connection, model, sha256)

        return self._change(
            "model.promote", work, model=model, sha256=sha256, reason=reason, log=log, status="champion"
        )

    def reject(self, model: str, *, sha256: str, reason: str, log: AuditLog) -> Entry:
        """Take a challenger out of the race.

        :raises RegistryError: no such model, or it is or was the champion
        """

        def work(connection: sql.Connection) -> Entry:
            chosen = _existing(connection, model, sha256)
            if chosen.status in ("champion", "retired"):
                raise RegistryError(
                    f"It is {chosen.status}, and only a challenger can be rejected.",
                    place=_place(model, sha256),
                    remedy="Promote another model.",
                )
            if chosen.status != "rejected":
                connection.execute(_update(model, sha256).values(status="rejected"))
                _note(connection, model, sha256, before=chosen.status, after="rejected", reason=reason, log=log)
            return _existing(connection, model, sha256)

        return self._change("model.reject", work, model=model, sha256=sha256, reason=reason, log=log, status="rejected")

    def champion(self, model: str) -> Entry | None:
        """The champion of this name; None when there is none."""
        with reading(self._engine) as connection:
            return _champion(connection, model)

    def find(self, sha256: str, *, model: str | None = None) -> list[Entry]:
        """The entries of one file: under this name, or under every name it was registered with."""
        rules = [model_table.c.sha256 == sha256, *([model_table.c.model == model] if model is not None else [])]
        with reading(self._engine) as connection:
            return _entries(connection, *rules)

    def entries(self, model: str | None = None) -> list[Entry]:
        """Every file of a name, or of all names, oldest first."""
        with reading(self._engine) as connection:
            return _entries(connection, *([model_table.c.model == model] if model is not None else []))

    def history(self, model: str) -> list[Change]:
        """Every change of a status under this name, oldest first."""
        joined = change_table.join(model_table, change_table.c.model_id == model_table.c.id)
        columns = [column for column in change_table.c if column.name not in ("id", "model_id")]
        query = (
            sql.select(model_table.c.model, model_table.c.sha256, *columns)
            .select_from(joined)
            .where(model_table.c.model == model)
            .order_by(change_table.c.id)
        )
        with reading(self._engine) as connection:
            return [Change(**row) for row in connection.execute(query).mappings()]

    def _change(
        self,
        action: str,
        work: Callable[[sql.Connection], Entry],
        *,
        model: str,
        sha256: str,
        reason: str,
        status: Status,
        log: AuditLog,
    ) -> Entry:
        """Commit the intent, then the change, then the outcome: no status changes without a trace."""
        details: dict[str, Detail] = {"model": model, "status": status, "reason": reason[:_MOST_REASON]}
        digests = {"model": sha256}
        intent = log.append(Event(action=action, phase="intent", digests=digests, details=details))
        try:
            entry = serializable(self._engine, work, place=_place(model, sha256))
        except BaseException as error:
            text = str(error) if isinstance(error, LeptonError) else type(error).__name__
            failure = {**details, "error": type(error).__name__, "text": text[:_MOST_REASON]}
            log.append(Event(action=action, phase="failure", intent=intent, digests=digests, details=failure))
            raise
        done = {**details, "status": entry.status}
        log.append(Event(action=action, phase="success", intent=intent, digests=digests, details=done))
        return entry


def _entries(connection: sql.Connection, *rules: sql.ColumnElement[bool]) -> list[Entry]:
    query = sql.select(*(column for column in model_table.c if column.name != "id")).where(*rules)
    rows = connection.execute(query.order_by(model_table.c.id)).mappings()
    return [Entry(**{**row, "metrics": json.loads(row["metrics"])}) for row in rows]


def _find(connection: sql.Connection, model: str, sha256: str) -> Entry | None:
    found = _entries(connection, model_table.c.model == model, model_table.c.sha256 == sha256)
    return found[0] if found else None


def _champion(connection: sql.Connection, model: str) -> Entry | None:
    found = _entries(connection, model_table.c.model == model, model_table.c.status == "champion")
    return found[0] if found else None


def _existing(connection: sql.Connection, model: str, sha256: str) -> Entry:
    found = _find(connection, model, sha256)
    if found is None:
        raise RegistryError(
            "The registry has no such model.",
            place=_place(model, sha256),
            remedy="See `lepton model list`; only what a gate has judged is registered.",
        )
    return found


def _update(model: str, sha256: str) -> sql.Update:
    return model_table.update().where(model_table.c.model == model, model_table.c.sha256 == sha256)


def _note(
    connection: sql.Connection,
    model: str,
    sha256: str,
    *,
    before: Status | None,
    after: Status,
    reason: str,
    log: AuditLog,
) -> None:
    one = sql.select(model_table.c.id).where(model_table.c.model == model, model_table.c.sha256 == sha256)
    connection.execute(
        change_table.insert().values(
            model_id=one.scalar_subquery(),
            before=before,
            after=after,
            reason=reason[:_MOST_REASON],
            run_key=log.run_key,
            principal=log.actor.principal,
            changed_at=_now(),
        )
    )


def _place(model: str, sha256: str) -> str:
    return f"model {model!r}, {sha256[:19]}..."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
