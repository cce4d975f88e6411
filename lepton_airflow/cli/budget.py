"""``lepton budget``: privacy budgets, what was spent of them, and on what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Column, Table

from lepton_airflow.cli.audited import audited
from lepton_airflow.cli.console import HomeOption, console
from lepton_airflow.errors import BudgetError
from lepton_airflow.settings import Settings, load_settings

if TYPE_CHECKING:
    from lepton_airflow.privacy.ledger import Ledger
    from lepton_airflow.privacy.records import Balance, Release

app = typer.Typer(no_args_is_help=True)

#: Columns of a terminal that take a budget's figures in one line.
_WIDE = 120


@app.command()
def create(
    dataset: Annotated[str, typer.Argument(help="The dataset's name, as in the specs that will spend the budget.")],
    unit: Annotated[str, typer.Option(help="The privacy unit: the column that says whose row it is.")],
    epsilon: Annotated[str, typer.Option(help="What all releases together may cost.")],
    delta: Annotated[
        str, typer.Option(help="Likewise; Gaussian noise and groups that are chosen privately need one.")
    ] = "0",
    period: Annotated[
        Literal["day", "week", "month", "quarter", "year"] | None,
        typer.Option(help="A budget for each of these (UTC). The guarantee is then for each of them."),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Open a budget. Who opens it owns it."""
    total, total_delta = _amount(epsilon, "--epsilon"), _amount(delta, "--delta")
    settings = load_settings(home)
    with (
        audited(settings, "budget.create", dataset=dataset, unit=unit, epsilon=epsilon, delta=delta, period=period),
        _ledger(settings) as (ledger, me),
    ):
        ledger.create(dataset=dataset, unit=unit, epsilon=total, delta=total_delta, owner=me, period=period)
    each = f" for each {period}" if period else ""
    console.print(
        f"budget of {dataset} per {unit}: epsilon {epsilon}{each}, owned by {me}", markup=False, highlight=False
    )


@app.command()
def show(
    dataset: Annotated[str | None, typer.Argument(help="Only this dataset's budgets, with their releases.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Add up what was spent a second time, with diffprivlib's accountant.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Show what the releases of each budget cost together by every accountant, what is charged, and what is left."""
    from lepton_airflow.audit.database import connect
    from lepton_airflow.privacy.ledger import Ledger

    ledger = Ledger(connect(load_settings(home)))
    balances = ledger.balances(dataset)
    if dataset is not None and not balances:
        raise BudgetError("There is no privacy budget.", place=dataset, remedy="Make one with `lepton budget create`.")
    console.print(*_overview(balances))
    if dataset is not None:
        console.print(_history(balances, ledger))
    if check:
        left_out = sum(_check(balance, ledger) for balance in balances)
        console.print("[green]checked[/]: the ledger, its mechanism events and diffprivlib's accountant agree")
        if left_out:
            console.print(f"not checked: {left_out} releases with Gaussian noise, which diffprivlib does not add up")


@app.command("release-reservation")
def release_reservation(
    run_key: Annotated[
        str, typer.Argument(help="The run key of the dead job, as `lepton budget show DATASET` has it.")
    ],
    home: HomeOption = None,
) -> None:
    """Give back what a job reserved that died before it drew. Only the budget's owner can; drawn budget is spent."""
    from lepton_airflow.privacy.amount import amount_text

    settings = load_settings(home)
    with audited(settings, "budget.release-reservation", released_run=run_key), _ledger(settings) as (ledger, me):
        release = ledger.release_reservation(run_key=run_key, principal=me)
    console.print(
        f"given back: epsilon {amount_text(release.epsilon)} of {release.dataset} per {release.unit}",
        markup=False,
        highlight=False,
    )


def _overview(balances: list[Balance]) -> list[Table]:
    """One table with a row for each budget; where the terminal is too narrow for that, a table for each budget."""
    from lepton_airflow.privacy.amount import amount_text
    from lepton_airflow.privacy.periods import period_name
    from lepton_airflow.privacy.records import DRAWN, PUBLISHED

    costs = ("epsilon", "delta", "basic", "zCDP", "PLD", "charged", "left")
    columns = ("dataset", "privacy unit", "period", *costs, "releases", "owner")
    rows = []
    for balance in balances:
        spending = balance.spending
        texts = (
            balance.dataset,
            balance.unit,
            period_name(balance.period, balance.period_start) or "-",
            amount_text(balance.epsilon),
            amount_text(balance.delta),
            *map(_cost, (spending.basic, spending.zcdp, spending.pld, spending.charged)),
            amount_text(spending.left),
            str(sum(release.state in (DRAWN, PUBLISHED) for release in balance.releases)),
            balance.owner,
        )
        rows.append(list(map(escape, texts)))
    if console.width < _WIDE:
        narrow = []
        for row in rows:
            table = Table(show_header=False)
            for name, text in zip(columns, row, strict=True):
                table.add_row(name, text)
            narrow.append(table)
        return narrow
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    return [table]


def _history(balances: list[Balance], ledger: Ledger) -> Table:
    from lepton_airflow.privacy.amount import amount_text
    from lepton_airflow.privacy.periods import period_name

    columns = ("state", "period", "epsilon", "delta", "reserved at", "principal", "requested by", "approver")
    table = Table("privacy unit", Column("run key", overflow="fold"), *columns)
    for balance in balances:
        for release in ledger.history(dataset=balance.dataset, unit=balance.unit):
            texts = (
                balance.unit,
                release.run_key,
                release.state,
                period_name(balance.period, release.period_start) or "-",
                amount_text(release.epsilon),
                amount_text(release.delta),
                release.reserved_at.partition(".")[0],
                release.principal,
                release.requested_by or "-",
                _approver(release),
            )
            table.add_row(*map(escape, texts))
    return table


def _check(balance: Balance, ledger: Ledger) -> int:
    """Hold every drawn release against its mechanisms; returns how many could not be, for their Gaussian noise."""
    from lepton_airflow.privacy.accountant import cross_check
    from lepton_airflow.privacy.records import DRAWN, PUBLISHED

    by_release = ledger.mechanisms_by_release(dataset=balance.dataset, unit=balance.unit)
    drawn = [r for r in ledger.history(dataset=balance.dataset, unit=balance.unit) if r.state in (DRAWN, PUBLISHED)]
    pure = [r for r in drawn if not any(event.rho for event in by_release.get(r.run_key, ()))]
    cross_check(
        [event for release in pure for event in by_release.get(release.run_key, ())],
        spent=sum((release.epsilon for release in pure), Fraction(0)),
        delta=sum((release.delta for release in pure), Fraction(0)),
        place=f"budget of {balance.dataset} per {balance.unit}",
    )
    return len(drawn) - len(pure)


def _cost(amount: Fraction | float | None) -> str:
    """What something cost, never rounded down; "-" where an accountant has no answer."""
    from lepton_airflow.privacy.amount import amount_text, round_up

    if amount is None:
        return "-"
    return amount_text(amount if isinstance(amount, Fraction) else round_up(amount))


def _approver(release: Release) -> str:
    if not release.needs_approval:
        return "-"
    return release.approver or "none yet"


@contextmanager
def _ledger(settings: Settings) -> Iterator[tuple[Ledger, str]]:
    """The ledger, and the name of this identity: budgets have owners, so here an identity is needed."""
    from lepton_airflow.audit.database import connect
    from lepton_airflow.keys.identity import Identity
    from lepton_airflow.privacy.ledger import Ledger

    owner = Identity.load(settings.identity_file).name
    engine = connect(settings)
    try:
        yield Ledger(engine), owner
    finally:
        engine.dispose()


def _amount(text: str, option: str) -> Decimal:
    from lepton_airflow.privacy.amount import exact_decimal

    try:
        return exact_decimal(text)
    except ValueError as error:
        raise BudgetError(f"The amount {error}.", place=option, remedy="Write a decimal number, such as 0.5.") from None
