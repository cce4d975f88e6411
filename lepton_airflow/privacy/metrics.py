"""The metrics of a release, as its author declares them."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lepton_airflow.privacy.amount import Amount, PositiveAmount

#: Metrics that look at the values of a column; the others count rows or units.
MEASURING = frozenset({"sum", "mean"})


class Metric(BaseModel):
    """One number for each group.

    ``count`` counts rows and ``count_units`` units. ``sum`` and ``mean`` aggregate ``column`` after every value was clipped to
    [``lower``, ``upper``]; null and NaN are missing values that neither adds, infinities are clipped like any other value.

    :param name: its name in the release
    :param type: count, count_units, sum or mean
    :param column: the measure; for sum and mean
    :param lower: what smaller values are clipped to. Choose bounds from what is publicly known, never by looking at the data
    :param upper: what larger values are clipped to
    :param granularity: values are rounded to multiples of it; by default a power of two derived from the bounds
    :param weight: its part of the release's epsilon, in proportion to the other metrics' weights
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    type: Literal["count", "count_units", "sum", "mean"]
    column: str | None = None
    lower: Amount | None = None
    upper: Amount | None = None
    granularity: PositiveAmount | None = None
    weight: PositiveAmount = Decimal(1)

    @model_validator(mode="after")
    def _fields_fit_the_type(self) -> Metric:
        measuring = {"column": self.column, "lower": self.lower, "upper": self.upper}
        if self.type in MEASURING:
            missing = [name for name, value in measuring.items() if value is None]
            if missing:
                raise ValueError(f"metric {self.name!r} is a {self.type} and needs {', '.join(missing)}")
            if self.lower is not None and self.upper is not None and self.lower >= self.upper:
                raise ValueError(f"metric {self.name!r} has a lower bound that is not below its upper bound")
        else:
            given = [
                name for name, value in {**measuring, "granularity": self.granularity}.items() if value is not None
            ]
            if given:
                raise ValueError(f"metric {self.name!r} is a {self.type} and takes no {', '.join(given)}")
        return self
