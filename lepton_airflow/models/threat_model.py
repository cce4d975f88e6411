"""How far an attacker may move an example, as a spec states it.

Nothing here imports TensorFlow: operators validate these models while a DAG is parsed.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Norm = Literal["linf", "l2"]


class PlanModel(BaseModel):
    """Base of the parts of a plan: frozen, an unknown field is an error, infinity and NaN are no numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Constraints(PlanModel):
    """What holds of every example of a table, attacked or not; attacks keep to it, and what they find is checked for it.

    :param immutable: features that the attacker cannot change
    :param integer: features that hold whole numbers
    :param increasing: features that the attacker can only raise
    :param decreasing: features that the attacker can only lower
    :param one_hot: groups of features of which exactly one is 1 and the others are 0
    :param bounds: the least and the greatest value of a feature, in raw units
    """

    immutable: tuple[str, ...] = ()
    integer: tuple[str, ...] = ()
    increasing: tuple[str, ...] = ()
    decreasing: tuple[str, ...] = ()
    one_hot: tuple[Annotated[tuple[str, ...], Field(min_length=2)], ...] = ()
    bounds: dict[str, tuple[float, float]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Constraints:
        if both := set(self.increasing) & set(self.decreasing):
            raise ValueError(f"{min(both)} cannot be both increasing and decreasing; make it immutable")
        grouped = Counter(name for group in self.one_hot for name in group)
        if repeated := [name for name, count in grouped.items() if count > 1]:
            raise ValueError(f"{repeated[0]} is in more than one one_hot group")
        if reversed_ := [name for name, (low, high) in self.bounds.items() if low >= high]:
            raise ValueError(f"the bounds of {reversed_[0]} must rise")
        return self

    @property
    def names(self) -> frozenset[str]:
        """Every feature that is constrained."""
        groups = (name for group in self.one_hot for name in group)
        return frozenset((*self.immutable, *self.integer, *self.increasing, *self.decreasing, *groups, *self.bounds))


class ThreatModel(PlanModel):
    """The attacker may move an example within a ball around it, in stated units, as far as the constraints allow.

    :param norm: ``linf``: every feature at once, each by at most ``epsilon``; ``l2``: all together, by Euclidean length
    :param epsilon: the ball's radius
    :param units: what ``epsilon`` is measured in. For tables: ``standard deviations``, each feature's own over the training
        split, or ``feature scales``, the amounts in ``scales``. For images: ``pixel range``, the difference between the
        brightest and the darkest value a pixel can have
    :param scales: raw amount that is one unit, by feature: of every feature that can be moved with ``feature scales``, of
        some with ``standard deviations``
    :param constraints: for tables
    """

    norm: Norm
    epsilon: float = Field(gt=0)
    units: Literal["standard deviations", "feature scales", "pixel range"]
    scales: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    constraints: Constraints = Constraints()

    @model_validator(mode="after")
    def _units_fit(self) -> ThreatModel:
        if self.units == "pixel range" and (self.scales or self.constraints.names):
            raise ValueError("scales and constraints are for tables; pixels have their range")
        return self
