"""Release differentially private aggregates of a table, paid from its privacy budget."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lepton_airflow.errors import SpecError, UnreadableSource
from lepton_airflow.jobs.privacy_unit import check_unit
from lepton_airflow.jobs.roads import Road, Source, table_to_read
from lepton_airflow.jobs.spec import JobSpec, TableReference
from lepton_airflow.privacy.amount import amount_text
from lepton_airflow.privacy.design import Key, KeyTable, ReleaseDesign, key_of, key_text
from lepton_airflow.privacy.ledger import Ledger
from lepton_airflow.privacy.plan import ReleasePlan
from lepton_airflow.privacy.receipt import mechanisms_digest
from lepton_airflow.privacy.release import Aggregation, GroupKeys, Released, ReleaseOrder, perform

if TYPE_CHECKING:
    from lepton_airflow.access.guard import Operation
    from lepton_airflow.audit.event import Detail
    from lepton_airflow.jobs.runner import Job
    from lepton_airflow.privacy.records import Balance

#: Keys that a public table may have.
MAX_KEYS = 1_000_000


class ReleaseAggregatesSpec(ReleaseDesign, JobSpec):
    """Publish aggregates of a table, see :class:`lepton_airflow.privacy.design.ReleaseDesign` for what can be released.

    :param source: the table; columns in it can be encrypted
    :param budget: the dataset whose budget pays; by default the source's name
    :param target: the path of the release file, JSON
    :param plot: the path of a picture of the release, ``.svg`` or ``.png``; none by default
    :param mode: ``errorifexists`` keeps a file that is there; ``overwrite`` replaces it
    :param road: how the table is read; see :data:`lepton_airflow.jobs.roads.Road`
    """

    source: TableReference
    budget: str | None = Field(default=None, min_length=1)
    target: str = Field(min_length=1)
    plot: str | None = Field(default=None, pattern=r"\.(svg|png)$")
    mode: Literal["errorifexists", "overwrite"] = "errorifexists"
    road: Road = "auto"

    @property
    def payer(self) -> str:
        """The dataset whose budget pays."""
        return self.budget or self.source.name


def run(spec: ReleaseAggregatesSpec, job: Job) -> dict[str, Any]:
    """Aggregate, add noise and publish, once per run key.

    :returns: ``cells`` (released numbers), ``epsilon_spent`` (what this release cost, charged once however often it is run),
        ``epsilon_left`` in the budget, ``release`` (the file), ``published`` (false if it waits for approval), ``road`` (unless
        the numbers were drawn before), and ``replayed``: the numbers are those of an earlier try
    :raises BudgetExhausted: before any data is read
    """
    ledger = Ledger(job.engine)
    file = Path(spec.target).absolute()
    with ExitStack() as operations:
        operation = operations.enter_context(_authorised(spec, job))
        if spec.payer != spec.source.name:
            # Whoever spends the budget of a dataset must be allowed to release from it.
            operations.enter_context(
                job.guard.operation(
                    action="release",
                    dataset=spec.payer,
                    columns=(spec.privacy_unit,),
                    purpose=spec.purpose,
                    epsilon=float(spec.epsilon),
                    needs_approval=spec.approval == "required",
                    details={"source": spec.source.name},
                )
            )
        source = ReleaseSource(spec, job, operation, operations)
        released = perform(
            ReleaseOrder(
                run_key=job.run_key,
                spec_digest=job.spec_digest,
                spec=spec.model_dump(mode="json"),
                design=spec,
                dataset=spec.source.name,
                budget=spec.payer,
                principal=job.principal,
                requested_by=job.requested_by,
                file=file,
                mode=spec.mode,
            ),
            ledger=ledger,
            read_keys=source.keys,
            open_source=source.open,
        )
        release = released.release
        drawn_in = datetime.fromisoformat(release.reserved_at)
        record(operation, released, balance=ledger.balance(dataset=release.dataset, unit=release.unit, at=drawn_in))
    if spec.plot is not None and released.digest is not None:
        _plot(file, Path(spec.plot).absolute())
    return {
        "cells": _cells(released),
        "epsilon_spent": amount_text(released.release.epsilon),
        "epsilon_left": amount_text(ledger.balance(dataset=spec.payer, unit=spec.privacy_unit).left),
        "release": str(file),
        "published": released.digest is not None,
        **source.outcome,
        "replayed": released.replayed,
    }


def record(
    operation: Operation,
    released: Released,
    *,
    balance: Balance | None = None,
    step: Literal["draw", "publish"] = "draw",
) -> None:
    """Put what was released into the outcome event: a receipt is made from it, see :mod:`lepton_airflow.privacy.receipt`.

    :param balance: the budget, in the period of the release, as it is now that it is drawn
    """
    release = released.release
    details: dict[str, Detail] = {
        "step": step,
        "budget": release.dataset,
        "privacy_unit": release.unit,
        "epsilon_spent": amount_text(release.epsilon),
        "delta_spent": amount_text(release.delta),
        "drawn_at": release.drawn_at,
        "approval": "required" if release.needs_approval else "none",
        "approver": release.approver,
        "state": release.state,
        "replayed": released.replayed,
    }
    if balance is not None:
        spending = balance.spending
        details |= {
            "budget_epsilon": amount_text(balance.epsilon),
            "budget_delta": amount_text(balance.delta),
            "budget_period": balance.period,
            "budget_period_start": balance.period_start,
            "accounting_basic": None if spending.basic is None else amount_text(spending.basic),
            "accounting_zcdp": spending.zcdp,
            "accounting_pld": spending.pld,
            "accounting_charged": None if spending.charged is None else amount_text(spending.charged),
        }
    operation.record(
        counts={"cells": _cells(released)},
        digests={
            "mechanisms": mechanisms_digest(released.plan.events()),
            **({"release": released.digest} if released.digest else {}),
        },
        details=details,
    )


def _authorised(spec: ReleaseAggregatesSpec, job: Job) -> Any:
    return job.guard.operation(
        action="release",
        dataset=spec.source.name,
        columns=sorted(spec.columns),
        purpose=spec.purpose,
        epsilon=float(spec.epsilon),
        needs_approval=spec.approval == "required",
        details={"budget": spec.payer, "privacy_unit": spec.privacy_unit, "target": spec.target},
    )


def _cells(released: Released) -> int:
    return sum(groups * len(released.plan.metrics) for groups in released.groups)


def _plot(file: Path, picture: Path) -> None:
    import json

    from lepton_airflow.privacy.plot import draw

    draw(json.loads(file.read_text(encoding="utf-8")), picture)


class ReleaseSource:
    """The table that a release is made of, and the public tables of its keys.

    :ivar outcome: for the job's summary: the road, once the table is opened
    """

    def __init__(self, spec: ReleaseAggregatesSpec, job: Job, operation: Operation, operations: ExitStack) -> None:
        self._spec = spec
        self._job = job
        self._operation = operation
        self._operations = operations
        self.outcome: dict[str, Any] = {}

    def keys(self) -> GroupKeys:
        """The keys of every grouping; None where they are chosen privately. Reads the public tables that hold keys."""
        return [
            grouping.declared
            if grouping.declared is not None
            else None
            if not isinstance(grouping.keys, KeyTable)
            else self._public_keys(grouping.keys, grouping.by)
            for grouping in self._spec.sets
        ]

    def _public_keys(self, table: KeyTable, columns: Sequence[str]) -> list[Key]:
        from lepton_airflow.encryption.planning import protections_of

        job = self._job
        self._operations.enter_context(
            job.guard.operation(
                action="decrypt",
                dataset=table.name,
                columns=sorted(columns),
                purpose=self._spec.purpose,
                details={"published_as": "group keys"},
            )
        )
        reference = TableReference(name=table.name, format=table.format, path=table.path, table=table.table)
        frame = job.read(reference, columns=columns)
        hidden = sorted(set(columns) & protections_of(frame.schema).keys())
        if hidden:
            raise SpecError(
                f"The table of keys has encrypted columns: {', '.join(hidden)}.",
                place=table.name,
                remedy="Keys are published; take them from a public table.",
            )
        rows = frame.select(*(_quoted(column) for column in columns)).distinct().limit(MAX_KEYS + 1).collect()
        if not rows or len(rows) > MAX_KEYS:
            raise UnreadableSource(
                f"The table of keys has {'no rows' if not rows else f'more than {MAX_KEYS} keys'}.",
                place=table.name,
                remedy="Check which table it is.",
            )
        # In one order whatever Spark's is, so that a plan of the same keys is the same.
        return sorted((key_of(key_text(row)) for row in rows), key=key_text)

    def open(self, plan: ReleasePlan, keys: GroupKeys) -> Aggregation:
        """Open the table and check what can be checked without reading rows; decryption is authorised here too."""
        from lepton_airflow.encryption.planning import protections_of, protectors_of
        from lepton_airflow.encryption.roads import Reveal
        from lepton_airflow.jobs.source_digest import source_digest
        from lepton_airflow.privacy.aggregation import aggregate, check_columns, new_salt

        spec, job = self._spec, self._job
        name = spec.source.name
        source = Source(job, spec.source, columns=spec.columns)
        protected = protections_of(source.schema)
        others = {*spec.columns} - {spec.privacy_unit}
        check_unit(spec.privacy_unit, protected, dataset=name, others=spec.used_columns)
        hidden = sorted(others & protected.keys())
        reveal = None
        schema = source.schema
        if hidden:
            self._operations.enter_context(
                job.guard.operation(action="decrypt", dataset=name, columns=hidden, purpose=spec.purpose)
            )
            protectors = protectors_of(
                schema,
                keyring=job.settings.keyring,
                identity_file=job.settings.identity_file,
                columns=hidden,
                dataset=name,
            )
            reveal = Reveal(protectors)
            schema = reveal.schema(schema)
        check_columns(schema, design=spec, plan=plan, dataset=name)
        table, reason = table_to_read(source, spec.road)
        self.outcome = {"road": "direct" if table is not None else "dataframe"}
        if reason:
            self.outcome["road_reason"] = reason
        self._operation.record(digests={"source": source_digest(job, source)}, details={"road": self.outcome["road"]})
        salt = new_salt()
        data = table if table is not None else source.frame
        assert data is not None  # noqa: S101 - what Spark does not open, the direct road does
        return lambda: aggregate(
            job.spark,
            data,
            plan=plan,
            keys=keys,
            unit=spec.privacy_unit,
            salt=salt,
            dataset=name,
            unit_is_encrypted=spec.privacy_unit in protected,
            reveal=reveal,
        )


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
