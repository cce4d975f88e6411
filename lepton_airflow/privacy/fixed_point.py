"""Measures as whole numbers: values clipped to declared bounds and rounded to a grid, so that sums are exact integers.

Floating-point sums depend on the order of addition, and by more than the textbook sensitivity (Casacuberta, Shoemate, Vadhan,
Wagaman: Widespread Underestimation of Sensitivity in Differentially Private Libraries, CCS 2022). Integer sums do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from lepton_airflow.errors import SpecError
from lepton_airflow.privacy.bounds import MAX_ROOT, MAX_STEPS


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """A grid, and the interval of it into which values are clipped.

    :param granularity: the distance of two neighbours on the grid, in the measure's own unit
    :param lower: the lower bound, in steps
    :param upper: the upper bound, in steps
    """

    granularity: Fraction
    lower: int
    upper: int

    @classmethod
    def from_bounds(
        cls,
        *,
        lower: Decimal,
        upper: Decimal,
        granularity: Decimal | None,
        place: str,
        steps: int = MAX_STEPS,
        squares: bool = False,
    ) -> FixedPoint:
        """Derive the grid from the declared bounds and from nothing else, as data must have no say in it.

        The default granularity is the smallest power of two with which both bounds are at most ``steps`` steps from zero, and
        of which, for ``squares``, at most 2**13 fit into half their range; dividing a float by a power of two is exact. The
        bounds themselves are rounded to the grid.

        :param place: the metric, for errors
        :param squares: sums of squared distances from the midpoint are wanted too; each must be at most 2**26
        :raises SpecError: the bounds are reversed, or the granularity is so coarse that they fall together, or so fine that
            64-bit sums could overflow
        """
        if lower >= upper:
            raise SpecError(
                "The lower bound is not below the upper one.", place=place, remedy="Exchange or widen them."
            )
        if granularity is not None:
            step = Fraction(granularity)
        else:
            step = _power_of_two(Fraction(max(abs(lower), abs(upper))) / steps)
            if squares:
                step = max(step, _power_of_two((Fraction(upper) - Fraction(lower)) / 2 / (MAX_ROOT - 2)))
        grid = cls(granularity=step, lower=round(Fraction(lower) / step), upper=round(Fraction(upper) / step))
        if grid.lower >= grid.upper:
            raise SpecError(
                "The granularity is so coarse that the lower and the upper bound fall together.",
                place=place,
                remedy="Widen the bounds or choose a smaller granularity; if they are far from zero, subtract a constant first.",
            )
        if grid.magnitude > MAX_STEPS:
            raise SpecError(
                f"The bounds are {grid.magnitude} steps of the granularity from zero; sums of more than {MAX_STEPS} steps a "
                "row could overflow 64 bits.",
                place=place,
                remedy="Choose a larger granularity, or leave it out.",
            )
        if squares and grid.half_range > MAX_ROOT:
            raise SpecError(
                f"Half the range of the bounds is {grid.half_range} steps; sums of squares of more than {MAX_ROOT} steps could "
                "overflow 64 bits.",
                place=place,
                remedy="Choose a larger granularity, or leave it out.",
            )
        return grid

    @property
    def magnitude(self) -> int:
        """The largest distance of a clipped value from zero, in steps."""
        return max(abs(self.lower), abs(self.upper))

    @property
    def midpoint(self) -> int:
        """The middle of the bounds, rounded down to a step."""
        return (self.lower + self.upper) // 2

    @property
    def half_range(self) -> int:
        """The largest distance of a clipped value from the midpoint, in steps."""
        return max(self.upper - self.midpoint, self.midpoint - self.lower)

    def steps(self, value: float | None) -> int | None:
        """Clip and round one value; null and NaN are missing values, infinities are clipped to the bounds.

        This is the meaning of :func:`lepton_airflow.privacy.bounding.steps`, for one value.
        """
        if value is None or math.isnan(value):
            return None
        return round(min(max(value / float(self.granularity), self.lower), self.upper))

    def value(self, steps: Fraction | int) -> float:
        """The measure's own unit for a number of steps."""
        return float(steps * self.granularity)


def _power_of_two(size: Fraction) -> Fraction:
    """The smallest power of two that is at least ``size``."""
    # The first guess is within one of the exponent; the loops settle it in exact arithmetic.
    exponent = math.frexp(float(size))[1]
    while size <= Fraction(2) ** (exponent - 1):
        exponent -= 1
    while size > Fraction(2) ** exponent:
        exponent += 1
    return Fraction(2) ** exponent
