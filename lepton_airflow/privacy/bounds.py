"""What one privacy unit may contribute to a release, and how far it can move the vector that noise is added to."""

from __future__ import annotations

from dataclasses import dataclass

#: Of the rows that a release reads. With it and MAX_STEPS every sum provably fits into 64 bits: |sum| <= 2**36 * 2**26 = 2**62.
MAX_ROWS = 2**36
#: Of the fixed-point steps that a clipped value can be away from zero.
MAX_STEPS = 2**26
#: Of the steps that a value can be away from the midpoint where squares are summed: its square is at most MAX_STEPS.
MAX_ROOT = 2**13
#: Of the rows per unit and group: the remainder (less than MAX_ROWS) times it stays below 2**56, see bounding.scaled.
MAX_ROWS_PER_UNIT_AND_GROUP = 2**20


@dataclass(frozen=True, kw_only=True)
class ContributionBounds:
    """Bounds on one privacy unit, declared by the author of the release and never read from the data.

    :param groups: L0, the groups in which the unit counts
    :param rows: Linf, the rows that count in each of them
    """

    groups: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How far adding or removing all rows of one unit can move an integer vector with one or more entries for each group.

    :param groups: groups whose entries change at most
    :param per_group: steps by which the entries of one group change at most, all together
    """

    groups: int
    per_group: int

    @property
    def l1(self) -> int:
        """The sum of the absolute changes: in ``groups`` groups by ``per_group`` each."""
        return self.groups * self.per_group

    @property
    def l2_squared(self) -> int:
        """The sum of the squared changes; in each group it is largest where one entry takes all of the change."""
        return self.groups * self.per_group**2

    @property
    def linf(self) -> int:
        """The largest change of one entry."""
        return self.per_group
