"""Release differentially private aggregates of a table, paid from its privacy budget."""

from __future__ import annotations

import datetime
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator

from lepton_airflow.errors import InvalidData, SpecError
from lepton_airflow.jobs.spec import JobSpec, TableReference
from lepton_airflow.keys.identity import Identity
from lepton_airflow.privacy.amount import PositiveAmount, amount_text
from lepton_airflow.privacy.bounds import ContributionBounds
from lepton_airflow.privacy.groups import MAX_KEY_INTEGER
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.metrics import Metric
from lepton_airflow.privacy.plan import ReleasePlan, plan_release
from lepton_airflow.privacy.release import Aggregation, ReleaseOrder, perform

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from lepton_airflow.jobs.runner import Job


class ReleaseAggregatesSpec(JobSpec):
    """Publish counts, sums and means of a table, noised so that they tell next to nothing about any one privacy unit.

    Neighbouring tables differ by all rows of one unit, added or removed. Rows whose unit is null and rows of groups that are not
    declared are left out. Bounds, groups and granularity are public: choose them from what is known without the data.

    :param source: the table; columns in it can be encrypted
    :param privacy_unit: the column that says whose row it is. It can be encrypted deterministically and is then used as it is
    :param budget: the dataset whose budget pays; by default the source's name
    :param group_by: the columns to group by; none for one number over the whole table
    :param groups: the keys to release numbers for, each a value for every column of ``group_by`` (or a plain value, if that is
        one column). Groups with no rows get noise like every other
    :param metrics: what to release, see :class:`lepton_airflow.privacy.metrics.Metric`
    :param max_groups_per_unit: the groups in which a unit counts; if it has more, some are chosen by a salted hash
    :param max_rows_per_unit_and_group: the rows of a unit that count in a group; if it has more, they count in proportion
    :param epsilon: the privacy cost of the whole release, split over the metrics by weight
    :param target: the path of the release file, JSON
    :param mode: ``errorifexists`` keeps a file that is there; ``overwrite`` replaces it
    """

    source: TableReference
    privacy_unit: str = Field(min_length=1)
    budget: str | None = Field(default=None, min_length=1)
    group_by: tuple[str, ...] = ()
    groups: tuple[tuple[StrictStr | StrictBool | StrictInt | None, ...], ...] = ()
    metrics: tuple[Metric, ...] = Field(min_length=1)
    max_groups_per_unit: int = Field(ge=1)
    max_rows_per_unit_and_group: int = Field(ge=1)
    epsilon: PositiveAmount
    target: str = Field(min_length=1)
    mode: Literal["errorifexists", "overwrite"] = "errorifexists"

    @field_validator("groups", mode="before")
    @classmethod
    def _keys_are_tuples(cls, groups: Any) -> Any:
        if not isinstance(groups, list | tuple):
            return groups
        keys = [key if isinstance(key, list | tuple) else (key,) for key in groups]
        # YAML reads 2026-01-31 as a date.
        return [[value.isoformat() if type(value) is datetime.date else value for value in key] for key in keys]

    @model_validator(mode="after")
    def _consistent(self) -> ReleaseAggregatesSpec:
        if len(set(self.group_by)) < len(self.group_by):
            raise ValueError("group_by names a column twice")
        if bool(self.group_by) != bool(self.groups):
            raise ValueError("group_by and groups go together: declare the keys to release numbers for")
        seen = set()
        for position, key in enumerate(self.groups, start=1):
            if len(key) != len(self.group_by):
                raise ValueError(f"group {position} has {len(key)} values for {len(self.group_by)} columns")
            if any(type(value) is int and abs(value) > MAX_KEY_INTEGER for value in key):
                raise ValueError(f"group {position} has an integer that JSON cannot hold exactly")
            typed = tuple((type(value), value) for value in key)
            if typed in seen:
                raise ValueError(f"group {position} is declared twice")
            seen.add(typed)
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            raise ValueError("two metrics have the same name")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the release reads, each once."""
        measures = [metric.column for metric in self.metrics if metric.column is not None]
        return tuple(dict.fromkeys((self.privacy_unit, *self.group_by, *measures)))


def run(spec: ReleaseAggregatesSpec, job: Job) -> dict[str, Any]:
    """Aggregate, add noise and publish, once per run key.

    :returns: ``cells`` (released numbers), ``epsilon_spent`` (what this release cost, charged once however often it is run),
        ``epsilon_left`` in the budget, ``release`` (the file), and ``replayed``: the numbers are those of an earlier try
    :raises BudgetExhausted: before any data is read
    """
    plan = plan_release(
        metrics=spec.metrics,
        bounds=ContributionBounds(groups=spec.max_groups_per_unit, rows=spec.max_rows_per_unit_and_group),
        groups=max(len(spec.groups), 1),
        epsilon=spec.epsilon,
    )
    budget = spec.budget or spec.source.name
    file = Path(spec.target).absolute()
    ledger = Ledger(job.engine)
    with ExitStack() as operations:
        operation = operations.enter_context(
            job.guard.operation(
                action="release",
                dataset=spec.source.name,
                columns=sorted(spec.columns),
                purpose=spec.purpose,
                epsilon=float(spec.epsilon),
                details={"budget": budget, "privacy_unit": spec.privacy_unit},
            )
        )
        if budget != spec.source.name:
            # Whoever spends the budget of a dataset must be allowed to release from it.
            operations.enter_context(
                job.guard.operation(
                    action="release",
                    dataset=budget,
                    columns=(spec.privacy_unit,),
                    purpose=spec.purpose,
                    epsilon=float(spec.epsilon),
                    details={"source": spec.source.name},
                )
            )
        released = perform(
            ReleaseOrder(
                run_key=job.run_key,
                spec_digest=job.spec_digest,
                dataset=spec.source.name,
                budget=budget,
                unit=spec.privacy_unit,
                group_by=spec.group_by,
                groups=spec.groups or ((),),
                plan=plan,
                principal=Identity.load(job.settings.identity_file).name,
                file=file,
                mode=spec.mode,
            ),
            ledger=ledger,
            open_source=lambda: _open_source(spec, job, plan, operations),
        )
        cells = plan.groups * len(plan.metrics)
        operation.record(
            counts={"cells": cells},
            digests={"release": released.digest},
            details={"epsilon_spent": amount_text(released.release.epsilon), "replayed": released.replayed},
        )
    return {
        "cells": cells,
        "epsilon_spent": amount_text(released.release.epsilon),
        "epsilon_left": amount_text(ledger.balance(dataset=budget, unit=spec.privacy_unit).left),
        "release": str(file),
        "replayed": released.replayed,
    }


def _open_source(spec: ReleaseAggregatesSpec, job: Job, plan: ReleasePlan, operations: ExitStack) -> Aggregation:
    """Open the table and check what can be checked without reading rows; decryption is authorised here too."""
    from lepton_airflow.encryption.dataframe import protections_of, reveal
    from lepton_airflow.privacy.aggregation import aggregate, check_columns, new_salt

    frame: DataFrame = job.read(spec.source, columns=spec.columns)
    protected = protections_of(frame.schema)
    unit = protected.get(spec.privacy_unit)
    place = f"{spec.source.name}.{spec.privacy_unit}"
    if unit is not None and unit.cipher != "AES256_SIV":
        raise SpecError(
            f"The privacy unit is encrypted with {unit.cipher}, so that one unit could pass for several and nobody could tell.",
            place=place,
            remedy="Encrypt it with AES256_SIV: equal values get equal ciphertexts, and each names its key.",
        )
    if unit is not None and unit.dataset != spec.source.name:
        raise InvalidData(
            f"The column was encrypted for the dataset {unit.dataset!r}.",
            place=place,
            remedy="Give the source that name: permissions and budgets go by it.",
        )
    measures = {measure.column for measure in plan.measures}
    hidden = sorted(({*spec.group_by} | measures) & protected.keys())
    if spec.privacy_unit in hidden:
        raise SpecError(
            "The encrypted privacy unit is also a group or a measure.", place=place, remedy="Use it as the unit only."
        )
    if hidden:
        operations.enter_context(
            job.guard.operation(action="decrypt", dataset=spec.source.name, columns=hidden, purpose=spec.purpose)
        )
        frame = reveal(
            frame.select(*(_quoted(name) for name in spec.columns)),
            columns=hidden,
            keyring=job.settings.keyring,
            identity_file=job.settings.identity_file,
            dataset=spec.source.name,
        )
    check_columns(frame, unit=spec.privacy_unit, group_by=spec.group_by, plan=plan, dataset=spec.source.name)
    salt = new_salt()
    return lambda: aggregate(
        frame,
        unit=spec.privacy_unit,
        group_by=spec.group_by,
        groups=spec.groups or ((),),
        plan=plan,
        salt=salt,
        dataset=spec.source.name,
        unit_is_encrypted=unit is not None,
    )


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
