"""Serializable transactions: ``BEGIN IMMEDIATE`` on SQLite, ``SERIALIZABLE`` with bounded retries on PostgreSQL."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from lepton_airflow.errors import AuditUnavailable

T = TypeVar("T")

#: PostgreSQL: serialization_failure, deadlock_detected, and unique_violation, which a lost race for one key can show as.
_RETRYABLE = ("40001", "40P01", "23505")
_ATTEMPTS = 16


def serializable(engine: sql.Engine, work: Callable[[sql.Connection], T], *, place: str) -> T:
    """Do ``work`` in one transaction, as if no other ran beside it; again from the start where another came in between.

    :param work: what it raises undoes the transaction; it may be called several times
    :param place: what it works on, for the error
    :raises AuditUnavailable: others came in between 16 times; or the database cannot be reached
    """
    if engine.dialect.name == "postgresql":
        engine = engine.execution_options(isolation_level="SERIALIZABLE")
    for attempt in range(_ATTEMPTS):
        try:
            with engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _RETRYABLE:
                raise
        # Jitter keeps those who lost together from meeting again.
        time.sleep(secrets.randbelow(10_000) * 1e-6 * 2 ** min(attempt, 6))
    raise AuditUnavailable(
        f"The database is so busy that a transaction failed {_ATTEMPTS} times.",
        place=place,
        remedy="Try again; nothing was changed.",
    )
