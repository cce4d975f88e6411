"""The calendar periods of budgets, in UTC.

A budget with a period is one budget for each day, ISO week, month, quarter or year. Its guarantee is for what is released in one
period: a unit that is in the data of several periods loses up to the budget in each of them.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Literal, get_args

Period = Literal["day", "week", "month", "quarter", "year"]
PERIODS: tuple[str, ...] = get_args(Period)


def period_start(period: str | None, at: datetime) -> str | None:
    """The first day of the period that holds ``at``, as ``2026-11-01``; None without a period.

    :param at: an aware time
    :raises ValueError: a time without a time zone, or no such period
    """
    if at.tzinfo is None:
        raise ValueError("the time has no time zone")
    if period is None:
        return None
    day = at.astimezone(UTC).date()
    match period:
        case "day":
            start = day
        case "week":
            start = day - timedelta(days=day.weekday())
        case "month":
            start = day.replace(day=1)
        case "quarter":
            start = day.replace(month=day.month - (day.month - 1) % 3, day=1)
        case "year":
            start = day.replace(month=1, day=1)
        case _:
            raise ValueError(f"there is no period {period!r}")
    return start.isoformat()


def period_name(period: str | None, start: str | None) -> str:
    """How people write the period: ``2026-11-24``, ``2026-W48``, ``2026-11``, ``2026-Q4`` or ``2026``; "" without a period."""
    if period is None or start is None:
        return ""
    day = date.fromisoformat(start)
    match period:
        case "week":
            year, week, _ = day.isocalendar()
            return f"{year}-W{week:02}"
        case "month":
            return f"{day:%Y-%m}"
        case "quarter":
            return f"{day.year}-Q{(day.month + 2) // 3}"
        case "year":
            return str(day.year)
        case _:
            return start
