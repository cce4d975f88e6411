"""What a list of mechanism events costs together.

The ledger charges by basic composition, in exact arithmetic. diffprivlib's accountant (Kairouz, Oh, Viswanath: The Composition
Theorem for Differential Privacy, 2017) computes the same by other code, in floating point: it is here to disagree if either
is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from lepton_airflow.errors import BudgetError, MissingDependency
from lepton_airflow.privacy.records import MechanismEvent


def basic_composition(events: Sequence[MechanismEvent]) -> Fraction:
    """The sum of the events' epsilons (Dwork, Roth: The Algorithmic Foundations of Differential Privacy, theorem 3.16)."""
    return sum((event.epsilon for event in events), Fraction(0))


def cross_check(events: Sequence[MechanismEvent], *, spent: Fraction, place: str) -> None:
    """Hold what the ledger says was spent against the stored events, added up here and by diffprivlib.

    :param spent: epsilon of all drawn releases
    :param place: the budget, for errors
    :raises BudgetError: they differ
    :raises MissingDependency: diffprivlib is not installed
    """
    try:
        from diffprivlib import BudgetAccountant
    except ImportError:
        raise MissingDependency(
            "The check needs diffprivlib, which is not installed.",
            place="lepton_airflow.privacy",
            remedy='Install it: pip install "lepton-airflow[privacy]".',
        ) from None
    accountant = BudgetAccountant()
    for event in events:
        accountant.spend(float(event.epsilon), 0)
    theirs = float(accountant.total()[0])
    ours = basic_composition(events)
    if ours != spent or not math.isclose(theirs, float(spent), rel_tol=1e-9, abs_tol=1e-12):
        raise BudgetError(
            f"The ledger says that epsilon {float(spent):g} is spent; its mechanism events add up to {float(ours):g}, "
            f"by diffprivlib to {theirs:g}.",
            place=place,
            remedy="Somebody changed the ledger's tables: compare them with the release events in the audit log.",
        )
