"""What a list of mechanism events costs together: three bounds, and the smallest of them.

- *Basic composition* adds epsilons and deltas, in exact arithmetic (Dwork, Roth: The Algorithmic Foundations of Differential
  Privacy, theorem 3.16).
- *zCDP* adds rho, which for a pure mechanism is epsilon**2 / 2 (Bun, Steinke: Concentrated Differential Privacy, 2016,
  proposition 1.4). Canonne, Kamath, Steinke: The Discrete Gaussian for Differential Privacy (2020), corollary 13, turns it into
  epsilon at delta.
- *PLD* composes privacy loss distributions (:mod:`lepton_airflow.privacy.loss`).

Each is a valid upper bound, so their minimum is. Basic composition and zCDP also hold when an analyst chooses the parameters of
a release after seeing earlier ones (Rogers et al.: Privacy Odometers and Filters, 2016; Feldman, Zrnic: Individual Privacy
Accounting, 2021). PLD takes it that parameters do not depend on earlier results, as with specs that live in a repository and run
on a schedule.

diffprivlib's accountant (Kairouz, Oh, Viswanath: The Composition Theorem for Differential Privacy, 2017) computes basic
composition by other code, in floating point: it is here to disagree if either is wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

from lepton_airflow.errors import BudgetError, MissingDependency
from lepton_airflow.privacy.amount import round_up
from lepton_airflow.privacy.records import GAUSSIAN, LAPLACE, MechanismEvent, Spending

#: Distinct events, each with how often it happened: all that a cost depends on, so what costs are cached by.
Composition = tuple[tuple[MechanismEvent, int], ...]

#: zCDP is computed in doubles, whose errors this covers many times over.
_FLOATING_POINT = 1e-9


def charged(events: Iterable[MechanismEvent], delta: Fraction) -> Fraction | None:
    """The epsilon that ``events`` cost together at ``delta``, rounded up; None when no bound applies.

    At delta 0 it is the exact sum of epsilons. Results are cached, and so are the distributions of each kind of event.

    :raises MissingDependency: delta is above 0 and dp-accounting is not installed
    """
    return spending(events, epsilon=Fraction(0), delta=delta).charged


def spending(events: Iterable[MechanismEvent], *, epsilon: Fraction, delta: Fraction) -> Spending:
    """Every bound on what ``events`` cost together at ``delta``, and what is left of ``epsilon``.

    :raises MissingDependency: delta is above 0 and dp-accounting is not installed
    """
    basic, zcdp, pld, cost = _bounds(_composition(events), delta)
    left = Fraction(0) if cost is None else max(epsilon - cost, Fraction(0))
    return Spending(basic=basic, zcdp=zcdp, pld=pld, charged=cost, left=left)


def basic_composition(events: Iterable[MechanismEvent]) -> tuple[Fraction, Fraction] | None:
    """The sums of the events' epsilons and deltas; None when there is Gaussian noise, which has no epsilon of its own."""
    total, total_delta = Fraction(0), Fraction(0)
    for event in events:
        if event.rho:
            return None
        total, total_delta = total + event.epsilon, total_delta + event.delta
    return total, total_delta


def zcdp_epsilon(rho: Fraction | float, delta: Fraction | float) -> float:
    """An epsilon for which every rho-zCDP mechanism is (epsilon, delta)-DP, rounded up.

    Every order of Renyi divergence gives a valid one; a search finds the smallest.

    :param delta: above 0
    """
    rho, delta = float(rho), float(delta)
    if rho == 0:
        return 0.0

    def bound(log_order: float) -> float:
        above_one = math.exp(log_order)
        order = 1 + above_one
        return order * rho + math.log(above_one / order) - (math.log(delta) + math.log(order)) / above_one

    # About the best order is 1 + sqrt(log(1 / delta) / rho); the bound has one minimum, some way around it.
    middle = 0.5 * math.log(max(-math.log(delta), 1e-3) / rho)
    best = bound(_minimiser(bound, middle - 8, middle + 8))
    return max(best, 0.0) * (1 + _FLOATING_POINT) + _FLOATING_POINT


def check_event(event: MechanismEvent, *, place: str) -> None:
    """Hold what an event says it costs against its noise, in exact arithmetic.

    :raises BudgetError: its noise is too small for what is charged
    """
    noise = Fraction(event.scale) if math.isfinite(event.scale) else Fraction(0)
    ok = min(event.groups, event.per_group, event.width - 1) >= 0 and min(event.epsilon, event.rho, event.delta) >= 0
    if event.mechanism == GAUSSIAN:
        ok &= event.epsilon == 0 and event.groups * event.per_group**2 <= 2 * noise**2 * event.rho
    else:
        ok &= event.rho == 0 and event.l1 <= noise * event.epsilon
    if not ok or event.delta >= 1:
        raise BudgetError(
            f"The {event.mechanism} of {event.query!r} has too little noise for what it is to be charged.",
            place=place,
            remedy="This is a defect of the release's plan; report it.",
        )


def cross_check(
    events: Sequence[MechanismEvent], *, spent: Fraction, place: str, delta: Fraction = Fraction(0)
) -> None:
    """Hold what the ledger says was asked for against the stored events, added up here and by diffprivlib.

    :param events: without Gaussian noise, which diffprivlib does not add up
    :param spent: epsilon of the releases that ran them
    :param delta: likewise
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
        accountant.spend(float(event.epsilon), float(event.delta))
    theirs, their_delta = map(float, accountant.total())
    ours = basic_composition(events)
    # They multiply the probabilities that nothing fails, which is never more than the sum of failures.
    together = 1 - math.prod(1 - float(event.delta) for event in events)
    if (
        ours != (spent, delta)
        or not math.isclose(theirs, float(spent), rel_tol=1e-9, abs_tol=1e-12)
        or not math.isclose(their_delta, together, rel_tol=1e-6, abs_tol=1e-12)
    ):
        said = "no sum" if ours is None else f"{float(ours[0]):g} at delta {float(ours[1]):g}"
        raise BudgetError(
            f"The ledger says that epsilon {float(spent):g} at delta {float(delta):g} is spent; its mechanism events add up to "
            f"{said}, by diffprivlib to {theirs:g} at delta {their_delta:g}.",
            place=place,
            remedy="Somebody changed the ledger's tables: compare them with the release events in the audit log.",
        )


def _composition(events: Iterable[MechanismEvent]) -> Composition:
    counts = Counter(replace(event, query="") for event in events)
    return tuple(sorted(counts.items(), key=repr))


@lru_cache(maxsize=256)
def _bounds(
    composition: Composition, delta: Fraction
) -> tuple[Fraction | None, float | None, float | None, Fraction | None]:
    """By basic composition, zCDP and PLD, and what is charged."""
    every = [replace(event, epsilon=event.epsilon * n, delta=event.delta * n) for event, n in composition]
    sums = basic_composition(every)
    basic = sums[0] if sums is not None and sums[1] <= delta else None
    if delta == 0 or not composition:
        return basic, None, None, basic
    zcdp = _zcdp(composition, delta)
    pld = _pld(composition, delta)
    # Beyond 10**15 a double has no millionths, and nobody needs them: basic composition is exact there.
    floating = [round_up(bound) for bound in (zcdp, pld) if bound is not None and bound < 1e15]
    exact = [] if basic is None else [basic]
    return basic, zcdp, pld, min([*exact, *floating], default=None)


def _zcdp(composition: Composition, delta: Fraction) -> float | None:
    """Selections of groups fail with their delta; what they leave of ``delta`` is for the rest (Bun, Steinke, section 8)."""
    rest = delta - sum((event.delta * n for event, n in composition), Fraction(0))
    rho = sum((n * (event.rho + event.epsilon**2 / 2) for event, n in composition), Fraction(0))
    return zcdp_epsilon(rho, rest) if rest > 0 and rho < 10**30 else None


def _pld(composition: Composition, delta: Fraction) -> float | None:
    """By PLD; what has no distribution in product form is added by zCDP, each side with half of ``delta``."""
    from lepton_airflow.privacy.loss import composed_epsilon

    product = tuple((event, n) for event, n in composition if _has_product_form(event))
    others = tuple((event, n) for event, n in composition if not _has_product_form(event))
    if not others:
        return composed_epsilon(product, float(delta))
    if not product:
        return None
    ours, theirs = composed_epsilon(product, float(delta / 2)), _zcdp(others, delta / 2)
    return None if ours is None or theirs is None else ours + theirs


def _has_product_form(event: MechanismEvent) -> bool:
    """Whether the worst case of the event is known to be one-dimensional noise, a number of times.

    Laplace noise: moving one entry by the whole L1 is worst (Zhu, Dong, Wang: Optimal Accounting of Differential Privacy via
    Characteristic Function, 2022). Gaussian noise: known when each group has one entry, or one step to give.
    """
    return event.mechanism == LAPLACE or not event.rho or event.width == 1 or event.per_group <= 1


def _minimiser(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum has it, by ternary search."""
    for _ in range(120):
        first, second = low + (high - low) / 3, high - (high - low) / 3
        if function(first) < function(second):
            high = second
        else:
            low = first
    return (low + high) / 2
