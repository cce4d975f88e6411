"""The conditions of a grant: what must hold besides, so that the grant allows anything.

A condition that cannot be judged is not met: a release that states no epsilon, a job whose settings name no environment, a
time zone that this machine does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lepton_airflow.access.request import Request

Name = Annotated[str, Field(min_length=1)]
Day = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
DAYS: tuple[Day, ...] = get_args(Day)


class PolicyModel(BaseModel):
    """A part of a policy file: closed and typed, so that a misspelt field is an error and not a rule that says less."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _says_what_it_names(cls, fields: Any) -> Any:
        """An empty field in YAML is null: a limit that somebody forgot to fill in must not be no limit."""
        if isinstance(fields, Mapping):
            for name, value in fields.items():
                if value is None:
                    raise ValueError(f"`{name}` is empty: fill it in or leave it out")
        return fields


def zone_of(name: str) -> ZoneInfo:
    """The IANA time zone of that name.

    :raises ValueError: there is none on this machine
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"{name!r} is no IANA time zone that this machine knows; they look like Europe/Berlin"
            " (without the system's zones, install tzdata)"
        ) from None


def _known_zone(name: str) -> str:
    zone_of(name)
    return name


def _real_date(text: str) -> str:
    date.fromisoformat(text)
    return text


def minutes(time: str) -> int:
    """Minutes since midnight of ``HH:MM``."""
    return int(time[:2]) * 60 + int(time[3:])


Zone = Annotated[str, Field(min_length=1), AfterValidator(_known_zone)]
TimeOfDay = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
EndOfDay = Annotated[str, Field(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$")]
Date = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), AfterValidator(_real_date)]


class TimeWindow(PolicyModel):
    """When the grant holds, by the clocks of one time zone. What is left out does not limit."""

    zone: Zone = Field(description="An IANA time zone, such as Europe/Berlin.")
    days: Annotated[tuple[Day, ...], Field(min_length=1)] | None = Field(
        None, description="Days of the week. A window that passes midnight belongs to the day on which it begins."
    )
    from_: TimeOfDay | None = Field(None, alias="from", description="HH:MM, from this minute on.")
    to: EndOfDay | None = Field(
        None, description="HH:MM, before this minute; earlier than `from`, the window passes midnight."
    )
    not_before: Date | None = Field(None, description="The first date, YYYY-MM-DD.")
    not_after: Date | None = Field(None, description="The last date, YYYY-MM-DD.")

    @model_validator(mode="after")
    def _limits_something(self) -> TimeWindow:
        if (self.from_ is None) != (self.to is None):
            raise ValueError("`from` and `to` go together")
        if self.from_ is not None and self.from_ == self.to:
            raise ValueError("`from` and `to` are the same minute: the window is empty")
        if self.days is None and self.from_ is None and self.not_before is None and self.not_after is None:
            raise ValueError("the window has no limit: give days, from and to, not_before or not_after")
        if self.not_before is not None and self.not_after is not None and self.not_before > self.not_after:
            raise ValueError("not_before is later than not_after: the window is empty")
        return self

    def unmet(self, at: datetime) -> str | None:
        """Why the window is not open at that time, in words; None if it is open."""
        try:
            local = at.astimezone(zone_of(self.zone))
        except (ValueError, OverflowError):
            return f"the time in {self.zone} is not known here"
        today = local.date().isoformat()
        if self.not_before is not None and today < self.not_before:
            return f"it is {today} in {self.zone}, not before {self.not_before}"
        if self.not_after is not None and today > self.not_after:
            return f"it is {today} in {self.zone}, not after {self.not_after}"
        now = local.hour * 60 + local.minute
        begun = local.date()
        if self.from_ is not None and self.to is not None:
            start, end = minutes(self.from_), minutes(self.to)
            late = start > end and now < end
            if not (late or (start <= now and (start > end or now < end))):
                return f"it is {local:%H:%M} in {self.zone}, allowed is {self.from_} to {self.to}"
            if late and local.date() > date.min:
                begun -= timedelta(days=1)
        if self.days is not None and DAYS[begun.weekday()] not in self.days:
            since = " since yesterday evening" if begun != local.date() else ""
            return f"the day in {self.zone} is {DAYS[begun.weekday()]}{since}, allowed are {', '.join(self.days)}"
        return None


class Conditions(PolicyModel):
    """What a grant asks for besides; all of it must hold."""

    max_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="The largest epsilon of one release; a release that does not state its epsilon does not meet it.",
    )
    time: TimeWindow | None = Field(None, description="When the grant holds.")
    environments: Annotated[tuple[Name, ...], Field(min_length=1)] | None = Field(
        None, description="Names of environments, as the setting `environment` has them; compared exactly."
    )
    approval: Literal["required"] | None = Field(
        None, description="The release must be one that waits for somebody's approval."
    )

    def unmet(self, request: Request, at: datetime) -> tuple[str, ...]:
        """The conditions that do not hold, each by its name and why, in words."""
        return tuple(f"{name}: {why}" for name, why in self._unmet(request, at))

    def _unmet(self, request: Request, at: datetime) -> Iterator[tuple[str, str]]:
        limit, epsilon = self.max_epsilon, request.epsilon
        if limit is not None:
            if epsilon is None:
                yield "max_epsilon", "the release does not state its epsilon"
            elif not epsilon > 0:
                yield "max_epsilon", f"{epsilon:g} is no epsilon"
            elif not epsilon <= limit:
                yield "max_epsilon", f"{epsilon!r} is more than {limit!r}"
        if self.time is not None and (why := self.time.unmet(at)) is not None:
            yield "time", why
        if self.environments is not None and request.environment not in self.environments:
            where = f"it runs in {request.environment}" if request.environment else "the settings name none"
            yield "environments", f"{where}, allowed are {', '.join(self.environments)}"
        if self.approval == "required" and request.needs_approval is not True:
            yield "approval", "the release does not ask for approval"
