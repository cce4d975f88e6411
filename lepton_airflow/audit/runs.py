"""The result channel: a job leaves its outcome under its run key, whoever submitted it reads it there.

It works in every deploy mode of Spark, since it needs neither the driver's output nor its exit code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sql

from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.audit.database import insert_into, reading, run_table

Status = Literal["success", "failure"]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The last outcome of a run key. ``payload`` is the job's summary, or an error's fields after a failure."""

    run_key: str
    job: str
    spec_digest: str
    status: str
    payload: dict[str, Any]
    recorded_at: str


def put(
    engine: sql.Engine, run_key: str, *, job: str, spec_digest: str, status: Status, payload: Mapping[str, Any]
) -> None:
    """Store the outcome of ``run_key`` durably; a later attempt replaces it.

    This is a channel, not a rule: whether another spec may run under the same key is each job's to say (a release says
    no, in the ledger; a table that is protected anew after its spec was mended says yes).

    :raises InvalidData: the payload is not JSON
    :raises AuditUnavailable: the database cannot be reached
    """
    row = {
        "job": job,
        "spec_digest": spec_digest,
        "status": status,
        "payload": canonical_json(dict(payload)).decode(),
        "recorded_at": datetime.now(UTC).isoformat(timespec="microseconds"),
    }
    with engine.begin() as connection:
        insert = insert_into(run_table, engine).values(run_key=run_key, **row)
        connection.execute(insert.on_conflict_do_update(index_elements=[run_table.c.run_key], set_=row))


def get(engine: sql.Engine, run_key: str) -> RunRecord | None:
    """The last outcome of ``run_key``; None when it has none.

    :raises AuditUnavailable: the database cannot be reached
    """
    with reading(engine) as connection:
        row = connection.execute(sql.select(run_table).where(run_table.c.run_key == run_key)).mappings().one_or_none()
    return None if row is None else RunRecord(**{**row, "payload": json.loads(row["payload"])})
