"""The space in which examples lie and attacks move: units, bounds and constraints of every feature.

An image is a row of its pixels here, as a table's row is one of its features; only its model and the Square attack look at
``shape``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lepton_airflow.errors import InvalidData, SpecError
from lepton_airflow.models.examples import Examples, Features
from lepton_airflow.models.plan import ImageColumn
from lepton_airflow.models.threat_model import Norm, ThreatModel

Mask = npt.NDArray[np.bool_]

#: Single precision keeps about 7 digits: a feature that varies by less than this share of its mean has too few left.
_LEAST_RELATIVE_SCALE = 1e-5


@dataclass(frozen=True, kw_only=True)
class InputSpace:
    """Everything a model and an attack must know of the features; d is their number.

    :param norm: of the threat model's ball
    :param names: [d]
    :param shape: (d,) for tables; (height, width, channels) for images
    :param mean: [d], what standardisation takes away
    :param scale: [d], what standardisation divides by, above 0
    :param unit: [d], raw amount in one unit of epsilon; 0 where the attacker can change nothing
    :param low: [d], the least raw value, or minus infinity
    :param high: [d], the greatest raw value, or infinity
    :param integer: [d], whole numbers only
    :param increasing: [d], can only be raised
    :param decreasing: [d], can only be lowered
    :param one_hot: groups of positions of which exactly one is 1 and the others are 0
    """

    norm: Norm
    names: tuple[str, ...]
    shape: tuple[int, ...]
    mean: Features
    scale: Features
    unit: Features
    low: Features
    high: Features
    integer: Mask
    increasing: Mask
    decreasing: Mask
    one_hot: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def free(cls, *, norm: Norm, names: Sequence[str], mean: Features, scale: Features) -> InputSpace:
        """A table's space without constraints, in which one unit of epsilon is ``scale``."""
        anything = np.zeros(len(names), np.bool_)
        return cls(
            norm=norm,
            names=tuple(names),
            shape=(len(names),),
            mean=mean.astype(np.float32),
            scale=scale.astype(np.float32),
            unit=scale.astype(np.float32),
            low=np.full(len(names), -np.inf, np.float32),
            high=np.full(len(names), np.inf, np.float32),
            integer=anything,
            increasing=anything,
            decreasing=anything,
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3


def table_space(train: Examples, *, names: Sequence[str], threat_model: ThreatModel, place: str) -> InputSpace:
    """The space of a table: means and standard deviations of the training split, units and constraints of the spec.

    :param train: the training split
    :param names: of the features, in their order
    :param place: the table's name, for errors
    :raises InvalidData: a feature does not vary over the training split, or an example breaks a constraint
    :raises SpecError: units that are not for tables, names that are no features, or a feature without a scale
    """
    _require_table(threat_model, names)
    values = train.features.astype(np.float64)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    for name, centre, spread in zip(names, mean, deviation, strict=True):
        if spread <= _LEAST_RELATIVE_SCALE * abs(centre):
            raise InvalidData(
                "The feature does not vary over the training split, so an attack has no unit.",
                place=f"{place}.{name}",
                remedy="Leave it out.",
            )
    space = constrained(mean, deviation, names=names, threat_model=threat_model)
    require_inside(train, space, place=place)
    return space


def declared_space(*, names: Sequence[str], threat_model: ThreatModel) -> InputSpace:
    """The space of a table for private training: nothing of it comes from data.

    Features are centred between their declared bounds and scaled so that bounds lie two units from the centre.

    :param names: of the features, in their order
    :raises SpecError: a feature without bounds or scale, names that are no features, or units that data would have to give
    """
    _require_table(threat_model, names)
    if threat_model.units != "feature scales":
        raise SpecError(
            "Standard deviations are read from the data, which private training must not be told.",
            place="threat_model.units",
            remedy="Use feature scales.",
        )
    bounds = threat_model.constraints.bounds
    for name in names:
        if name not in bounds:
            raise SpecError(
                "Private training clips every feature to declared bounds, and it has none.",
                place=f"threat_model.constraints.bounds, {name}",
                remedy="Declare bounds from what is known without the data.",
            )
    low, high = (np.array([bounds[name][side] for name in names]) for side in (0, 1))
    return constrained((low + high) / 2, (high - low) / 4, names=names, threat_model=threat_model)


def clipped(examples: Examples, space: InputSpace) -> Examples:
    """The examples with every feature moved to the nearest value within its bounds."""
    return replace(examples, features=np.clip(examples.features, space.low, space.high))


def constrained(
    mean: npt.NDArray[np.float64], scale: npt.NDArray[np.float64], *, names: Sequence[str], threat_model: ThreatModel
) -> InputSpace:
    """The space of a table whose means and standard deviations are known.

    :param mean: [d]
    :param scale: [d], standard deviations
    :param names: [d], of the features
    :raises SpecError: a feature has no scale
    """
    constraints = threat_model.constraints
    unit = np.array([threat_model.scales.get(name, spread) for name, spread in zip(names, scale, strict=True)])
    if threat_model.units == "feature scales":
        for name in names:
            if name not in threat_model.scales and name not in constraints.immutable:
                raise SpecError(
                    "The feature has no scale.",
                    place=f"threat_model.scales, {name}",
                    remedy="Give it one, or make it immutable.",
                )
    unit[_mask(names, constraints.immutable)] = 0
    low, high = np.full(len(names), -np.inf), np.full(len(names), np.inf)
    for name, (least, greatest) in constraints.bounds.items():
        low[list(names).index(name)], high[list(names).index(name)] = least, greatest
    return replace(
        InputSpace.free(
            norm=threat_model.norm, names=names, mean=mean.astype(np.float32), scale=scale.astype(np.float32)
        ),
        unit=unit.astype(np.float32),
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        integer=_mask(names, constraints.integer),
        increasing=_mask(names, constraints.increasing),
        decreasing=_mask(names, constraints.decreasing),
        one_hot=tuple(tuple(list(names).index(name) for name in group) for group in constraints.one_hot),
    )


def image_space(image: ImageColumn, *, threat_model: ThreatModel) -> InputSpace:
    """The space of images: pixels between the darkest and the brightest value; standardised to [0, 1].

    :raises SpecError: units that are not for images
    """
    if threat_model.units != "pixel range":
        raise SpecError("An image's unit is the pixel range.", place="threat_model.units", remedy="Use pixel range.")
    height, width, channels = image.shape
    count = image.pixels
    reach = np.full(count, image.high - image.low, np.float32)
    dark = np.full(count, image.low, np.float32)
    names = [
        f"{image.column}[{row},{column},{channel}]"
        for row in range(height)
        for column in range(width)
        for channel in range(channels)
    ]
    return replace(
        InputSpace.free(norm=threat_model.norm, names=names, mean=dark, scale=reach),
        shape=image.shape,
        low=dark,
        high=np.full(count, image.high, np.float32),
    )


def require_inside(examples: Examples, space: InputSpace, *, place: str) -> None:
    """Refuse examples that break the constraints before anybody attacked them.

    :param place: the table's name, for errors
    :raises InvalidData: naming the feature and how many values break which constraint
    """
    values = examples.features
    broken = {
        "outside its bounds": (values < space.low) | (values > space.high),
        "not a whole number": space.integer & (values != np.rint(values)),
    }
    for rule, wrong in broken.items():
        counts = np.count_nonzero(wrong, axis=0)
        if counts.any():
            worst = int(np.argmax(counts))
            raise InvalidData(
                f"{counts[worst]} values are {rule}, against the threat model's constraints.",
                place=f"{place}.{space.names[worst]}",
                remedy="Clean the column, or correct the constraint.",
            )
    for group in space.one_hot:
        members = values[:, group]
        wrong_rows = int(np.count_nonzero((np.count_nonzero(members == 1, axis=1) != 1) | (members.sum(axis=1) != 1)))
        if wrong_rows:
            raise InvalidData(
                f"{wrong_rows} examples do not have exactly one 1 in a one_hot group.",
                place=f"{place}.{space.names[group[0]]}",
                remedy="Clean the columns, or correct the constraint.",
            )


def _require_table(threat_model: ThreatModel, names: Sequence[str]) -> None:
    if threat_model.units == "pixel range":
        raise SpecError("A table has no pixels.", place="threat_model.units", remedy="Use standard deviations.")
    for name in sorted({*threat_model.scales, *threat_model.constraints.names} - set(names)):
        raise SpecError("It is no feature of the model.", place=f"threat_model, {name}", remedy="Check its name.")


def _mask(names: Sequence[str], chosen: Sequence[str]) -> Mask:
    return np.array([name in chosen for name in names], np.bool_)
