"""Exact decimals for epsilons, bounds and weights: no binary floating point between the spec and the ledger."""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

#: Beyond these the exact arithmetic would only get slow, and no privacy parameter or bound needs them.
MAX_DIGITS = 34
MAX_EXPONENT = 30


def exact_decimal(value: Any) -> Decimal:
    """Read a number as it is written: ``0.1`` is one tenth, whether it comes as text, as a float of YAML or as a Decimal.

    Equal numbers get one form (``0.50`` becomes ``0.5``), so that two ways to write a spec have one digest.

    :raises ValueError: not a finite number, or one with more than 34 digits or an exponent beyond 30
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError("must be a number")
    try:
        number = Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        raise ValueError("must be a decimal number") from None
    if not number.is_finite():
        raise ValueError("must be finite")
    digits = number.as_tuple().digits
    if len(digits) > MAX_DIGITS or abs(number.adjusted()) > MAX_EXPONENT:
        raise ValueError(f"must have at most {MAX_DIGITS} digits and an exponent within {MAX_EXPONENT}")
    return Decimal(amount_text(Fraction(number)))


def amount_text(amount: Fraction | Decimal) -> str:
    """The shortest exact text of a rational: a plain decimal where it has one (``0.05``), else a fraction (``1/3``).

    ``Fraction`` reads both forms back to the same number.
    """
    fraction = Fraction(amount)
    rest, places = fraction.denominator, 0
    twos = (rest & -rest).bit_length() - 1
    rest >>= twos
    fives = 0
    while rest % 5 == 0:
        rest //= 5
        fives += 1
    if rest != 1:
        return str(fraction)
    places = max(twos, fives)
    scaled = abs(fraction.numerator) * (10**places // fraction.denominator)
    sign = "-" if fraction < 0 else ""
    if places == 0:
        return f"{sign}{scaled}"
    text = str(scaled).rjust(places + 1, "0")
    return f"{sign}{text[:-places]}.{text[-places:]}"


def round_up(amount: Fraction | Decimal | float, places: int = 6) -> Fraction:
    """The smallest multiple of 10**-places that is not below ``amount``: how a cost is charged and shown, never too small."""
    return Fraction(math.ceil(Fraction(amount) * 10**places), 10**places)


def _positive(number: Decimal) -> Decimal:
    if number <= 0:
        raise ValueError("must be greater than 0")
    return number


#: A field of a pydantic model that holds an exact decimal; in JSON it is text.
Amount = Annotated[
    Decimal, BeforeValidator(exact_decimal), PlainSerializer(amount_text, return_type=str, when_used="json")
]
PositiveAmount = Annotated[Amount, AfterValidator(_positive)]
