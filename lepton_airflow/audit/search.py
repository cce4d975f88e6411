"""Find events: by dataset, column, principal, action, phase, run and time; newest first, with bounded memory.

Payloads are text, so the database is asked for those that hold the words of the query in canonical JSON, and what it returns is
parsed and compared field by field. The time is narrowed down by the order of the log, which is that of the clocks but for an
hour of tolerance. Nothing is verified here.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sql

from lepton_airflow.audit.canonical import canonical_json, parse_canonical
from lepton_airflow.audit.database import leaf_table, reading
from lepton_airflow.errors import InvalidData

_CHUNK = 500
_TOLERANCE = timedelta(hours=1)
#: Rows that commit late appear behind ones with larger ids; so far back a follower looks again.
_LOOK_BACK = 1000


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is looked for; None stands for anything.

    :param since: events at or after it
    :param until: events before it
    """

    dataset: str | None = None
    column: str | None = None
    principal: str | None = None
    action: str | None = None
    phase: str | None = None
    run_key: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def matches(self, event: dict[str, Any]) -> bool:
        """Whether a leaf's event is one of those."""
        wanted = {
            "dataset": self.dataset,
            "action": self.action,
            "phase": self.phase,
            "run_key": self.run_key,
        }
        return (
            all(value is None or event[name] == value for name, value in wanted.items())
            and (self.principal is None or event["actor"]["principal"] == self.principal)
            and (self.column is None or self.column in event["columns"])
            and (self.since is None or datetime.fromisoformat(event["time"]) >= self.since)
            and (self.until is None or datetime.fromisoformat(event["time"]) < self.until)
        )

    def fragments(self) -> list[str]:
        """Pieces of canonical JSON that every match holds."""
        fields = {name: getattr(self, name) for name in ("dataset", "principal", "action", "phase", "run_key")}
        pieces = [f'"{name}":{_text(value)}' for name, value in fields.items() if value is not None]
        return [*pieces, *([_text(self.column)] if self.column is not None else [])]


def search(engine: sql.Engine, query: Query, *, limit: int) -> Iterator[dict[str, Any]]:
    """The newest events that match, newest first, at most ``limit``.

    :raises AuditUnavailable: the database cannot be reached
    """
    columns = leaf_table.c
    chosen = [columns.payload.contains(fragment, autoescape=True) for fragment in query.fragments()]
    with reading(engine) as connection:
        last = connection.scalar(sql.select(sql.func.max(columns.id))) or 0
        if query.since is not None:
            chosen.append(columns.id >= _first_id(connection, query.since - _TOLERANCE, last))
        if query.until is not None:
            chosen.append(columns.id <= _first_id(connection, query.until + _TOLERANCE, last))
        below = last + 1
        found = 0
        statement = sql.select(columns.id, columns.payload).order_by(columns.id.desc()).limit(_CHUNK)
        while found < limit:
            rows = connection.execute(statement.where(columns.id < below, *chosen)).all()
            for row in rows:
                event = readable_event(row.payload)
                if event is not None and query.matches(event):
                    yield event
                    found += 1
                    if found == limit:
                        return
            if len(rows) < _CHUNK:
                return
            below = rows[-1].id


def tail(engine: sql.Engine, *, count: int, follow: bool = False, pause: float = 0.5) -> Iterator[dict[str, Any]]:
    """The last ``count`` events in the order of the log; with ``follow`` then those that are committed from now on, without end.

    :param pause: seconds between two looks
    :raises AuditUnavailable: the database cannot be reached
    """
    columns = leaf_table.c
    newest = sql.select(columns.id, columns.payload).order_by(columns.id.desc())
    with reading(engine) as connection:
        recent = connection.execute(newest.limit(max(count, _LOOK_BACK))).all()[::-1]
    seen: OrderedDict[int, None] = OrderedDict.fromkeys(row.id for row in recent)
    rows = recent[len(recent) - min(count, len(recent)) :]
    last = recent[-1].id if recent else 0
    while True:
        yield from (event for row in rows if (event := readable_event(row.payload)) is not None)
        if not follow:
            return
        time.sleep(pause)
        with reading(engine) as connection:
            later = newest.where(columns.id > last - _LOOK_BACK).order_by(None).order_by(columns.id)
            rows = [row for row in connection.execute(later) if row.id not in seen]
        seen.update((row.id, None) for row in rows)
        last = max([last, *(row.id for row in rows)])
        while len(seen) > 2 * _LOOK_BACK:
            seen.popitem(last=False)


def _first_id(connection: sql.Connection, moment: datetime, last: int) -> int:
    """The id at which the log reaches ``moment``, by halving: one row is read in each step."""
    columns = leaf_table.c
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        readable = sql.select(columns.payload).where(columns.id > middle, columns.payload != "")
        event = readable_event(connection.scalar(readable.order_by(columns.id).limit(1)) or "")
        if event is not None and datetime.fromisoformat(event["time"]) < moment:
            low = middle + 1
        else:
            high = middle
    return low


def parse_moment(text: str) -> datetime:
    """A time as ISO 8601 writes it; without a zone it is UTC.

    :raises InvalidData: it is none
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidData(
            "This is not a time.", place="time", remedy="Write it as 2026-01-31 or 2026-01-31T12:00:00+01:00."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def readable_event(payload: str) -> dict[str, Any] | None:
    """A payload's event; None for what is none: that is for verification to say."""
    try:
        event = parse_canonical(payload.encode())
        datetime.fromisoformat(event["time"])
        return event if event["actor"]["principal"] and event["columns"] is not None else None
    except (InvalidData, KeyError, TypeError, ValueError):
        return None


def _text(value: str) -> str:
    return canonical_json(value).decode()
