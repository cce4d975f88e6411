"""The ledger's rules: what it admits, and how a refusal reads."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import sqlalchemy as sql

from lepton_airflow.errors import AccessDenied, ApprovalMissing, BudgetError, BudgetExhausted, RunKeyConflict
from lepton_airflow.privacy import records
from lepton_airflow.privacy.accountant import basic_composition, charged
from lepton_airflow.privacy.amount import amount_text
from lepton_airflow.privacy.periods import period_name
from lepton_airflow.privacy.records import DRAWN, PUBLISHED, RESERVED, Budget, MechanismEvent, Release

_REQUEST = Decimal | Fraction | None


def budget_place(dataset: str, unit: str) -> str:
    return f"budget of {dataset} per {unit}"


def run_place(run_key: str) -> str:
    return f"run {run_key}"


def budget(connection: sql.Connection, dataset: str, unit: str) -> Budget:
    """The budget of a dataset and privacy unit.

    :raises BudgetError: there is none
    """
    found = records.budgets(connection, dataset=dataset, unit=unit)
    if not found:
        raise BudgetError(
            "There is no privacy budget.",
            place=budget_place(dataset, unit),
            remedy=f"Its owner makes it: `lepton budget create {dataset} --unit {unit} --epsilon ...`.",
        )
    return found[0]


def existing(connection: sql.Connection, run_key: str) -> Release:
    """The release of a run key.

    :raises BudgetError: there is none
    """
    release = records.find_release(connection, run_key)
    if release is None:
        raise BudgetError("No release has this run key.", place=run_place(run_key), remedy="See `lepton budget show`.")
    return release


def amounts_asked(
    budget: Budget, mechanisms: Sequence[MechanismEvent], epsilon: _REQUEST, delta: _REQUEST
) -> tuple[Fraction, Fraction]:
    """The epsilon and delta under which a release is listed.

    Without Gaussian noise they are the sums of its mechanisms'. With it they are what the spec says, or what the mechanisms would
    cost alone at the budget's delta.
    """
    sums = basic_composition(mechanisms)
    if sums is not None:
        return sums
    asked = charged(mechanisms, budget.delta) if epsilon is None else Fraction(epsilon)
    return asked or Fraction(0), budget.delta if delta is None else Fraction(delta)


def check_affordable(
    budget: Budget,
    start: str | None,
    before: Sequence[MechanismEvent],
    mechanisms: Sequence[MechanismEvent],
    *,
    asked: _REQUEST,
) -> None:
    """Refuse mechanisms that, with those before them in the period, would cost more than the budget.

    :raises BudgetExhausted: they would
    :raises BudgetError: a budget without delta is asked to pay for noise that has no cost without one
    """
    if budget.delta == 0 and any(event.rho or event.delta for event in mechanisms):
        raise BudgetError(
            "The budget's delta is 0: it can pay neither for Gaussian noise nor for groups that are chosen privately.",
            place=budget_place(budget.dataset, budget.unit),
            remedy="Use Laplace noise and declared groups, or talk to the budget's owner, "
            f"{budget.owner}, about a budget with a delta.",
        )
    total = charged([*before, *mechanisms], budget.delta)
    if total is not None and total <= budget.epsilon:
        return
    spent = charged(before, budget.delta)
    name = period_name(budget.period, start)
    when = f" in the period {name}" if name else ""
    failures = sum((event.delta for event in before), Fraction(0))
    deltas = sum((event.delta for event in mechanisms), Fraction(0))
    if total is None and failures + deltas > budget.delta:
        rule = (
            f"The release asks for delta {amount_text(deltas)}; of {amount_text(budget.delta)} there is "
            f"{amount_text(max(budget.delta - failures, Fraction(0)))} left{when}."
        )
    else:
        left = Fraction(0) if spent is None else max(budget.epsilon - spent, Fraction(0))
        wanted = amounts_asked(budget, mechanisms, asked, None)[0]
        rule = f"The release asks for epsilon {amount_text(wanted)}; of {amount_text(budget.epsilon)} there is "
        rule += f"{amount_text(left)} left{when}."
        if wanted <= left and total is not None:
            # Bounds on compositions do not add up, so what is asked for can look affordable.
            rule += f" Together with what is charged already it would come to {amount_text(total)}."
    raise BudgetExhausted(
        rule,
        place=budget_place(budget.dataset, budget.unit),
        remedy=f"{'Wait for the next period, lower' if name else 'Lower'} what the release asks for, or talk to the budget's "
        f"owner, {budget.owner}. `lepton budget show` lists what it was spent on.",
    )


def check_spec(release: Release, spec_digest: str) -> None:
    """:raises RunKeyConflict: the run key was used with another spec"""
    if release.spec_digest != spec_digest:
        raise RunKeyConflict(
            f"The run key holds a release ({release.state}) of another spec.",
            place=run_place(release.run_key),
            remedy="Use a new run for the changed spec"
            + (
                "."
                if release.state != RESERVED
                else ", or `lepton budget release-reservation` if the earlier job is dead."
            ),
        )


def check_approver(release: Release, approver: str) -> None:
    """Separation of duties: who asked for a release, or ran it, does not approve it.

    :raises AccessDenied: the approver is one of those
    :raises BudgetError: there is nothing to approve, or somebody else did
    """
    place = run_place(release.run_key)
    involved = {name.strip().casefold() for name in (release.principal, release.requested_by) if name}
    if not approver.strip() or approver.strip().casefold() in involved:
        raise AccessDenied(
            f"A release is not approved by who requested or ran it, {approver!r}.",
            place=place,
            remedy="Ask somebody else to approve it.",
        )
    if not release.needs_approval:
        raise BudgetError("The release needs no approval.", place=place, remedy="Nothing is to be done.")
    if release.state not in (DRAWN, PUBLISHED):
        raise BudgetError("Nothing was drawn yet.", place=place, remedy="Run the release first.")
    if release.approver not in (None, approver):
        raise BudgetError(
            f"The release was approved already, by {release.approver}.", place=place, remedy="Nothing is to be done."
        )


def check_publishable(release: Release) -> None:
    """:raises BudgetError: nothing was drawn
    :raises ApprovalMissing: the release needs an approval and has none
    """
    place = run_place(release.run_key)
    if release.state not in (DRAWN, PUBLISHED):
        raise BudgetError("Nothing was drawn yet.", place=place, remedy="Run the release again.")
    if release.needs_approval and release.approver is None:
        raise ApprovalMissing(
            "The release is drawn and waits for an approval.",
            place=place,
            remedy="Somebody other than who requested it approves it; then publish it.",
        )


def check_releasable(release: Release, *, owner: str, principal: str) -> None:
    """:raises AccessDenied: only the budget's owner gives a reservation back
    :raises BudgetError: it is not a reservation
    """
    if owner != principal:
        raise AccessDenied(
            f"Only the owner of the budget, {owner}, can release a reservation, not {principal}.",
            place=budget_place(release.dataset, release.unit),
            remedy="Ask the owner.",
        )
    if release.state != RESERVED:
        raise BudgetError(
            f"The release is {release.state}: only a reservation can be given back.",
            place=run_place(release.run_key),
            remedy="Budget that was drawn on is spent, also when nobody has seen the numbers.",
        )
