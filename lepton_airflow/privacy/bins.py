"""Bins of a measure: histograms count in them, and quantiles are read from a tree over them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from lepton_airflow.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Bins:
    """Intervals that share edges: the i-th holds values from edge i to below edge i + 1, and the last its upper edge too.

    :ivar edges: in the measure's own unit, rising; one more than there are bins
    """

    edges: tuple[Fraction, ...]

    @classmethod
    def equal(cls, *, lower: Decimal, upper: Decimal, count: int) -> Bins:
        """``count`` bins of one width."""
        first, width = Fraction(lower), (Fraction(upper) - Fraction(lower)) / count
        return cls(tuple(first + i * width for i in range(count + 1)))

    def check(self, place: str) -> None:
        """See that the bins are told apart in double precision, in which values are compared with the edges.

        :param place: the metric, for errors
        :raises SpecError: two edges are the same double
        """
        floats = [float(edge) for edge in self.edges]
        if any(a >= b for a, b in pairwise(floats)):
            raise SpecError(
                "Two edges of bins are so close that doubles do not tell them apart.",
                place=place,
                remedy="Declare fewer bins or wider bounds; if the bounds are far from zero, subtract a constant first.",
            )

    @property
    def count(self) -> int:
        return len(self.edges) - 1

    def indexes(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The bin of each value; values outside of all bins are clipped into the first or the last. No NaN among them."""
        import numpy as np

        inner = np.array([float(edge) for edge in self.edges[1:-1]])
        return np.searchsorted(inner, values, side="right")


def tree_levels(bins: int, branching: int) -> Sequence[int]:
    """Nodes on each level below the root of a tree with ``bins`` leaves, a power of ``branching``: 16, 256, ..., ``bins``."""
    levels = [bins]
    while levels[0] > branching:
        levels.insert(0, levels[0] // branching)
    return levels
