"""``lepton budget``: privacy budgets, what was spent of them, and on what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from lepton_airflow.cli.audited import audited
from lepton_airflow.cli.console import HomeOption, console
from lepton_airflow.errors import BudgetError
from lepton_airflow.settings import Settings, load_settings

if TYPE_CHECKING:
    from lepton_airflow.privacy.ledger import Ledger

app = typer.Typer(no_args_is_help=True)


@app.command()
def create(
    dataset: Annotated[str, typer.Argument(help="The dataset's name, as in the specs that will spend the budget.")],
    unit: Annotated[str, typer.Option(help="The privacy unit: the column that says whose row it is.")],
    epsilon: Annotated[str, typer.Option(help="What all releases together may cost.")],
    delta: Annotated[str, typer.Option(help="Likewise; releases of counts, sums and means need none.")] = "0",
    home: HomeOption = None,
) -> None:
    """Open a budget. Who opens it owns it."""
    total, total_delta = _amount(epsilon, "--epsilon"), _amount(delta, "--delta")
    settings = load_settings(home)
    with (
        audited(settings, "budget.create", dataset=dataset, unit=unit, epsilon=epsilon, delta=delta),
        _ledger(settings) as (ledger, me),
    ):
        ledger.create(dataset=dataset, unit=unit, epsilon=total, delta=total_delta, owner=me)
    console.print(f"budget of {dataset} per {unit}: epsilon {epsilon}, owned by {me}", markup=False, highlight=False)


@app.command()
def show(
    dataset: Annotated[str | None, typer.Argument(help="Only this dataset's budgets, with their releases.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Add up what was spent a second time, with diffprivlib's accountant.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Show what is spent, reserved and left."""
    from lepton_airflow.audit.database import connect
    from lepton_airflow.privacy.accountant import cross_check
    from lepton_airflow.privacy.amount import amount_text
    from lepton_airflow.privacy.ledger import Ledger
    from lepton_airflow.privacy.records import DRAWN, PUBLISHED

    ledger = Ledger(connect(load_settings(home)))
    balances = ledger.balances(dataset)
    if dataset is not None and not balances:
        raise BudgetError("There is no privacy budget.", place=dataset, remedy="Make one with `lepton budget create`.")
    table = Table("dataset", "privacy unit", "epsilon", "spent", "reserved", "left", "releases", "owner")
    for balance in balances:
        amounts = (balance.epsilon, balance.spent, balance.reserved, balance.left)
        done = sum(release.state in (DRAWN, PUBLISHED) for release in balance.releases)
        texts = (balance.dataset, balance.unit, *map(amount_text, amounts), str(done), balance.owner)
        table.add_row(*map(escape, texts))
    console.print(table)
    if dataset is not None:
        history = Table(
            "privacy unit", Column("run key", overflow="fold"), "state", "epsilon", "reserved at", "principal"
        )
        for balance in balances:
            for release in balance.releases:
                when = release.reserved_at.partition(".")[0]
                texts = (
                    balance.unit,
                    release.run_key,
                    release.state,
                    amount_text(release.epsilon),
                    when,
                    release.principal,
                )
                history.add_row(*map(escape, texts))
        console.print(history)
    if check:
        for balance in balances:
            events = ledger.mechanisms(dataset=balance.dataset, unit=balance.unit)
            place = f"budget of {balance.dataset} per {balance.unit}"
            cross_check(events, spent=balance.spent, place=place)
        console.print("[green]checked[/]: the ledger, its mechanism events and diffprivlib's accountant agree")


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
