"""The metrics of a release, as its author declares them."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lepton_airflow.privacy.amount import Amount, PositiveAmount

MetricType = Literal["count", "count_units", "sum", "mean", "variance", "standard_deviation", "quantiles", "histogram"]

#: Metrics that look at the values of a column; the others count rows or units.
MEASURING = frozenset({"sum", "mean", "variance", "standard_deviation", "quantiles", "histogram"})
#: Metrics that count values in bins; the others round values to a grid.
BINNING = frozenset({"quantiles", "histogram"})
#: Bins of a histogram, at most: every one is noised in every group.
MAX_BINS = 4096
#: Children of a node of the tree that quantiles are read from.
BRANCHING = 16


def _probability(number: Decimal) -> Decimal:
    if not 0 < number < 1:
        raise ValueError("must be between 0 and 1")
    return number


class Metric(BaseModel):
    """One or more numbers for each group.

    ``count`` counts rows and ``count_units`` units. The others look at ``column``, after every value was clipped to
    [``lower``, ``upper``]; null and NaN are missing values that add nothing, infinities are clipped like any other value.
    ``variance`` is the population's, and ``standard_deviation`` its root.

    :param name: its name in the release
    :param column: the measure
    :param lower: what smaller values are clipped to. Choose bounds from what is publicly known, never by looking at the data
    :param upper: what larger values are clipped to
    :param granularity: values are rounded to multiples of it; by default a power of two derived from the bounds
    :param quantiles: the wanted quantiles, between 0 and 1, such as ``[0.25, 0.5, 0.75]``
    :param bins: of a histogram: into how many equal bins [``lower``, ``upper``] is cut. Of quantiles: how finely values are told
        apart, a power of 16 (by default 256): a quantile is never more exact than the range divided by it
    :param edges: of a histogram, instead of bounds and ``bins``: the edges of its bins, rising. The last bin holds its upper edge
    :param weight: its part of the release's budget, in proportion to the other metrics' weights
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    type: MetricType
    column: str | None = None
    lower: Amount | None = None
    upper: Amount | None = None
    granularity: PositiveAmount | None = None
    quantiles: tuple[Annotated[Amount, AfterValidator(_probability)], ...] = ()
    bins: int | None = Field(default=None, ge=1, le=MAX_BINS)
    edges: tuple[Amount, ...] = ()
    weight: PositiveAmount = Decimal(1)

    @model_validator(mode="after")
    def _fields_fit_the_type(self) -> Metric:
        given = {
            name
            for name in ("column", "lower", "upper", "granularity", "quantiles", "bins", "edges")
            if getattr(self, name) not in (None, ())
        }
        needed, allowed = self._fields(given)
        missing = sorted(needed - given)
        if missing:
            raise ValueError(f"metric {self.name!r} is a {self.type} and needs {', '.join(missing)}")
        extra = sorted(given - needed - allowed)
        if extra:
            raise ValueError(f"metric {self.name!r} is a {self.type} and takes no {', '.join(extra)}")
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            raise ValueError(f"metric {self.name!r} has a lower bound that is not below its upper bound")
        if self.type == "quantiles":
            if self.bins is not None and self.bins not in (BRANCHING, BRANCHING**2, BRANCHING**3):
                raise ValueError(f"metric {self.name!r} tells 16, 256 or 4096 bins apart, not {self.bins}")
            if len(set(self.quantiles)) < len(self.quantiles):
                raise ValueError(f"metric {self.name!r} names a quantile twice")
        if self.edges and (
            len(self.edges) < 2 or len(self.edges) > MAX_BINS + 1 or any(a >= b for a, b in pairwise(self.edges))
        ):
            raise ValueError(f"metric {self.name!r} needs 2 to {MAX_BINS + 1} edges, each above the one before")
        return self

    def _fields(self, given: set[str]) -> tuple[set[str], set[str]]:
        """The fields that this type needs, and those that it may have."""
        bounded: set[str] = {"column", "lower", "upper"}
        fields: dict[str, tuple[set[str], set[str]]] = {
            "count": (set(), set()),
            "count_units": (set(), set()),
            "quantiles": (bounded | {"quantiles"}, {"bins"}),
            "histogram": ({"column", "edges"}, set()) if "edges" in given else (bounded | {"bins"}, set()),
        }
        return fields.get(self.type, (bounded, {"granularity"}))

    def bounds(self) -> tuple[Decimal, Decimal]:
        """The bounds that values are clipped to.

        :raises ValueError: the metric measures nothing
        """
        if self.edges:
            return self.edges[0], self.edges[-1]
        if self.lower is None or self.upper is None:
            raise ValueError(f"metric {self.name!r} has no bounds")
        return self.lower, self.upper
