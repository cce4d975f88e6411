"""Confidence intervals from the known distributions of the noise, in exact arithmetic where numbers are combined.

An interval speaks of the noise only: it holds the exact number of the clipped and bounded data, in at least 95 of 100 draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from lepton_airflow.privacy.mechanisms import Mechanism

CONFIDENCE = 0.95

Rational = int | Fraction
#: Independent noises and what they are multiplied by in a sum: mechanism, coefficient, how many such noises.
Terms = Sequence[tuple[Mechanism, Rational, int]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A released number and its confidence interval, in the metric's own unit."""

    value: Rational
    low: Rational
    high: Rational


def clipped(number: Rational, low: Rational, high: Rational) -> Rational:
    """The number nearest to ``number`` within [``low``, ``high``]."""
    return min(max(number, low), high)


def half_width_of_sum(terms: Terms, confidence: float) -> int:
    """A t with P(abs(S) <= t) >= ``confidence``, where S is the sum of independent noises times their coefficients.

    The smaller of two bounds, both valid: each noise within its own interval (the union bound), and Chernoff's.
    """
    noises = sum(times for _, coefficient, times in terms if coefficient)
    if not noises:
        return 0
    if noises == 1:
        ((mechanism, coefficient),) = [(m, c) for m, c, times in terms if c and times]
        return math.ceil(abs(Fraction(coefficient)) * mechanism.half_width(confidence))
    each = 1 - (1 - confidence) / noises
    union = sum(
        (abs(Fraction(coefficient)) * times * mechanism.half_width(each) for mechanism, coefficient, times in terms),
        Fraction(0),
    )
    together = chernoff(terms, (1 - confidence) / 2)
    return math.ceil(union) if together >= union else math.ceil(together)


def chernoff(terms: Terms, probability: float) -> float:
    """A t with P(S >= t) <= ``probability``, for the sum S of independent noises times their coefficients.

    From P(S >= t) <= E exp(theta S) / exp(theta t), for every theta > 0: t = (log E exp(theta S) + log(1 / probability)) / theta.
    The search for the best theta is numeric; whatever it finds is a valid bound, which is rounded up.
    """
    used = [
        (mechanism, abs(float(coefficient)), times) for mechanism, coefficient, times in terms if coefficient and times
    ]
    if not used:
        return 0.0
    need = math.log(1 / probability)
    largest = min(mechanism.largest_moment / coefficient for mechanism, coefficient, _ in used)

    def bound(theta: float) -> float:
        try:
            moments = (times * mechanism.log_moment(theta * coefficient) for mechanism, coefficient, times in used)
            return (math.fsum(moments) + need) / theta
        except (OverflowError, ValueError):
            # Out of range for doubles, with next to no noise or with very much: no bound, the union's holds.
            return math.inf

    if math.isinf(largest):
        # Sub-Gaussian: the bound is convex in log(theta), and least where its two parts are equal.
        largest = 2 * math.sqrt(need / math.fsum(t * m.log_moment(c) for m, c, t in used))
    # Near the end of its range the moment of a Laplace noise has no digits left.
    return bound(_least(bound, largest * 1e-6, largest * (1 - 1e-6))) * (1 + 1e-9)


def _least(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is lowest, by golden-section search: always the same steps, so always the same result."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = function(a), function(b)
    for _ in range(30):
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = function(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = function(b)
    return a if at_a <= at_b else b


def down(number: Rational) -> float | int:
    """The largest double that is not above ``number``, or whose text in JSON is ``number``; integers stay as they are."""
    if isinstance(number, int):
        return number
    nearest = float(number)
    a, b = nearest.as_integer_ratio()
    if a * number.denominator <= number.numerator * b or _reads_as(nearest, number):
        return nearest
    return math.nextafter(nearest, -math.inf)


def up(number: Rational) -> float | int:
    """The smallest double that is not below ``number``, or whose text is; integers stay as they are."""
    return -down(-number)


def _reads_as(nearest: float, number: Fraction) -> bool:
    """0.1 as a double is above one tenth, but its text is not."""
    return 10**18 % number.denominator == 0 and Fraction(repr(nearest)) == number
