"""The design of a release, as its author declares it: all that the numbers depend on besides the data, all of it public."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    field_validator,
    model_validator,
)

from lepton_airflow.privacy.amount import Amount, PositiveAmount
from lepton_airflow.privacy.bounds import ContributionBounds
from lepton_airflow.privacy.mechanisms import REFUSED_MECHANISMS, Backend
from lepton_airflow.privacy.metrics import Metric
from lepton_airflow.privacy.plan import Grouping, Noise, ReleasePlan, plan_release

#: A group has one of these for every column it is grouped by; dates are written as ISO 8601 text.
KeyValue = StrictStr | StrictBool | StrictInt | None
Key = tuple[KeyValue, ...]
#: Integers of JSON (RFC 8785), which specs are digested as.
MAX_KEY_INTEGER = 2**53 - 1
#: diffprivlib's mechanisms that releases use, and the noise they add.
_INTEGER_MECHANISMS: dict[str, Noise] = {"Geometric": "laplace", "GaussianDiscrete": "gaussian"}


class DesignModel(BaseModel):
    """Base of all parts of a design: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KeyTable(DesignModel):
    """A public table whose rows are the keys: it has the columns grouped by. Its content shows in the release, so it must say
    nothing about any unit; and whoever releases it must be allowed to read it in clear (the policy's action ``decrypt``).

    :param name: the dataset's name in policies
    :param format: the Spark data source
    :param path: where it is; exactly one of ``path`` and ``table``
    :param table: its name in Spark's catalogue
    """

    name: str = Field(min_length=1)
    format: str = "parquet"
    path: str | None = None
    table: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> KeyTable:
        if (self.path is None) == (self.table is None):
            raise ValueError("a table of keys has a path or a name in the catalogue: give path or table")
        return self


def _kind_of_keys(keys: Any) -> str:
    if isinstance(keys, dict | KeyTable):
        return "table"
    return "private" if isinstance(keys, str) else "declared"


#: Declared keys, a public table of them, or ``private``: those that enough units are in, by a noisy count.
Keys = Annotated[
    Annotated[Literal["private"], Tag("private")]
    | Annotated[KeyTable, Tag("table")]
    | Annotated[tuple[Key, ...], Tag("declared")],
    Discriminator(_kind_of_keys),
]


class GroupingSet(DesignModel):
    """One set of columns to group by.

    :param by: the columns; none for one number over the whole table
    :param keys: the groups to release numbers for: a list of keys, each a value for every column of ``by`` (or a plain value, if
        that is one column); a public table, see :class:`KeyTable`; or ``private``
    :param name: by default the columns, joined by ``-``
    :param max_groups_per_unit: the release's, if it is not given
    :param weight: its part of the release's budget, in proportion to the other grouping sets' weights
    """

    by: tuple[str, ...] = ()
    keys: Keys = ()
    name: str = ""
    max_groups_per_unit: int | None = Field(default=None, ge=1)
    weight: PositiveAmount = Decimal(1)

    @field_validator("keys", mode="before")
    @classmethod
    def _keys_are_tuples(cls, keys: Any) -> Any:
        return _as_tuples(keys)

    @model_validator(mode="before")
    @classmethod
    def _has_a_name(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and not fields.get("name") and isinstance(fields.get("by", ()), list | tuple):
            return {**fields, "name": "-".join(map(str, fields.get("by", ()))) or "all"}
        return fields

    @model_validator(mode="after")
    def _consistent(self) -> GroupingSet:
        if len(set(self.by)) < len(self.by):
            raise ValueError(f"grouping {self.name!r} names a column twice")
        if bool(self.by) != bool(self.keys):
            raise ValueError(
                f"grouping {self.name!r}: columns and keys go together: declare the keys to release numbers for"
            )
        if isinstance(self.keys, tuple):
            _check_keys(self.keys, width=len(self.by))
        return self

    @property
    def declared(self) -> tuple[Key, ...] | None:
        """The declared keys; the grouping without columns has the one empty key. None if they are not declared."""
        if not self.by:
            return ((),)
        return self.keys if isinstance(self.keys, tuple) else None


class PostProcessing(DesignModel):
    """What is done to noisy numbers before they are published; it costs no privacy.

    :param nonnegative: counts below zero become zero. They are then too high on average where true counts are small
    :param consistent: make sums and row counts of a coarser grouping equal the totals of the finer one. Only right if every row
        that counts in a coarse group counts in one of its finer groups as well
    :param decimals: round numbers and the ends of intervals outward to so many decimal places
    """

    nonnegative: bool = False
    consistent: bool = False
    decimals: int | None = Field(default=None, ge=0, le=12)


class ReleaseDesign(DesignModel):
    """Aggregates of a table, noised so that they tell next to nothing about any one privacy unit.

    Neighbouring tables differ by all rows of one unit, added or removed. Rows whose unit is null and rows of groups that are not
    declared are left out. Bounds, groups and granularity are public: choose them from what is known without the data.

    :param privacy_unit: the column that says whose row it is. It can be encrypted deterministically and is then used as it is
    :param metrics: what to release, see :class:`lepton_airflow.privacy.metrics.Metric`
    :param max_groups_per_unit: the groups in which a unit counts; if it has more, some are chosen by a salted hash
    :param max_rows_per_unit_and_group: the rows of a unit that count in a group; if it has more, they count in proportion
    :param epsilon: the privacy cost of the whole release, split by weight
    :param delta: with Gaussian noise or private groups: the probability that epsilon does not hold
    :param noise: ``laplace`` for pure differential privacy, ``gaussian`` for zero-concentrated
    :param group_by: the columns to group by, if there is one grouping; see :class:`GroupingSet`
    :param groups: its keys
    :param groupings: several sets of columns to group by, instead of ``group_by`` and ``groups``
    :param backend: what samples the noise: ``opendp``, or ``diffprivlib``'s integer mechanisms
    :param mechanism: for the record, diffprivlib's name of it: Geometric or GaussianDiscrete
    :param approval: ``required``: the numbers are drawn, and published once somebody other than the requester approved
    """

    privacy_unit: str = Field(min_length=1)
    metrics: tuple[Metric, ...] = Field(min_length=1)
    max_groups_per_unit: int = Field(ge=1)
    max_rows_per_unit_and_group: int = Field(ge=1)
    epsilon: PositiveAmount
    delta: Amount = Field(default=Decimal(0), ge=0, lt=1)
    noise: Noise = "laplace"
    group_by: tuple[str, ...] = ()
    groups: Keys = ()
    groupings: tuple[GroupingSet, ...] = ()
    backend: Backend = "opendp"
    mechanism: str | None = None
    post_processing: PostProcessing = PostProcessing()
    approval: Literal["none", "required"] = "none"

    @field_validator("groups", mode="before")
    @classmethod
    def _keys_are_tuples(cls, keys: Any) -> Any:
        return _as_tuples(keys)

    @model_validator(mode="after")
    def _consistent(self) -> ReleaseDesign:
        if self.groupings and (self.group_by or self.groups):
            raise ValueError("give group_by and groups, or groupings, not both")
        if len(set(self.group_by)) < len(self.group_by):
            raise ValueError("group_by names a column twice")
        if bool(self.group_by) != bool(self.groups):
            raise ValueError("group_by and groups go together: declare the keys to release numbers for")
        if isinstance(self.groups, tuple):
            _check_keys(self.groups, width=len(self.group_by))
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            raise ValueError("two metrics have the same name")
        sets = [grouping.name for grouping in self.groupings]
        if len(set(sets)) < len(sets):
            raise ValueError("two groupings have the same name")
        self._check_mechanism()
        if self.post_processing.consistent:
            self._check_chain()
        return self

    def _check_mechanism(self) -> None:
        if self.mechanism is None:
            return
        if self.mechanism in REFUSED_MECHANISMS:
            raise ValueError(
                f"diffprivlib's {self.mechanism} is refused: it adds noise in floating point, and the low bits of it "
                "tell neighbours apart (claimed epsilon 1, measured above 6). Use Geometric or GaussianDiscrete"
            )
        if _INTEGER_MECHANISMS.get(self.mechanism) != self.noise or self.backend != "diffprivlib":
            raise ValueError(
                "mechanism is Geometric (noise: laplace) or GaussianDiscrete (noise: gaussian), with backend: diffprivlib"
            )

    def _check_chain(self) -> None:
        sets = sorted(self.sets, key=lambda grouping: len(grouping.by))
        chained = all(set(a.by) < set(b.by) for a, b in pairwise(sets))
        if len(sets) < 2 or not chained or any(grouping.keys == "private" for grouping in sets):
            raise ValueError(
                "consistent totals need two or more groupings with public keys, each with all columns of the one before"
            )

    @property
    def sets(self) -> tuple[GroupingSet, ...]:
        """The groupings, however they were declared; at least one."""
        return self.groupings or (GroupingSet(by=self.group_by, keys=self.groups),)

    @property
    def used_columns(self) -> tuple[str, ...]:
        """The columns that are grouped by or measured, each once."""
        grouped = [column for grouping in self.sets for column in grouping.by]
        measures = [metric.column for metric in self.metrics if metric.column is not None]
        return tuple(dict.fromkeys((*grouped, *measures)))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the release reads, each once."""
        return tuple(dict.fromkeys((self.privacy_unit, *self.used_columns)))

    def plan(self, groups: Sequence[int | None]) -> ReleasePlan:
        """What is noised, and how.

        :param groups: for each of :attr:`sets` the number of its keys; None where they are chosen privately
        :raises SpecError: see :func:`lepton_airflow.privacy.plan.plan_release`
        """
        return plan_release(
            metrics=self.metrics,
            groupings=[
                Grouping(
                    name=grouping.name,
                    by=grouping.by,
                    groups=count,
                    bounds=ContributionBounds(
                        groups=grouping.max_groups_per_unit or self.max_groups_per_unit,
                        rows=self.max_rows_per_unit_and_group,
                    ),
                    weight=Fraction(grouping.weight),
                )
                for grouping, count in zip(self.sets, groups, strict=True)
            ],
            epsilon=self.epsilon,
            delta=self.delta,
            noise=self.noise,
            backend=self.backend,
        )

    def plan_for(self, keys: Sequence[Sequence[Key] | None]) -> ReleasePlan:
        """:meth:`plan`, given the keys of each of :attr:`sets`; those of private ones do not matter."""
        return self.plan(
            [
                None if grouping.keys == "private" or own is None else len(own)
                for grouping, own in zip(self.sets, keys, strict=True)
            ]
        )


def key_text(key: Sequence[Any]) -> str:
    """The canonical text of a key: a JSON list without spaces, dates as ISO 8601 text."""
    values = [value.isoformat() if isinstance(value, datetime.date) else value for value in key]
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def key_of(text: str | bytes) -> Key:
    """The key that :func:`key_text` wrote."""
    return tuple(json.loads(text))


def _as_tuples(keys: Any) -> Any:
    if not isinstance(keys, list | tuple):
        return keys
    keys = [key if isinstance(key, list | tuple) else (key,) for key in keys]
    # YAML reads 2026-01-31 as a date.
    return [[value.isoformat() if type(value) is datetime.date else value for value in key] for key in keys]


def _check_keys(keys: Sequence[Key], *, width: int) -> None:
    seen = set()
    for position, key in enumerate(keys, start=1):
        if len(key) != width:
            raise ValueError(f"group {position} has {len(key)} values for {width} columns")
        if any(type(value) is int and abs(value) > MAX_KEY_INTEGER for value in key):
            raise ValueError(f"group {position} has an integer that JSON cannot hold exactly")
        text = key_text(key)
        if text in seen:
            raise ValueError(f"group {position} is declared twice")
        seen.add(text)
