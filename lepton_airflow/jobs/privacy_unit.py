"""The privacy unit of a table: one unit must not pass for several."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from lepton_airflow.errors import InvalidData, SpecError

if TYPE_CHECKING:
    from lepton_airflow.encryption.protection import ProtectedColumn


def check_unit(
    unit: str, protected: Mapping[str, ProtectedColumn], *, dataset: str, others: Collection[str | None]
) -> None:
    """See that the column of the privacy unit, if it is encrypted, tells units apart as its values would.

    :param protected: the table's protected columns, by name
    :param others: the columns that are grouped by, measured or learned from
    :raises SpecError: it is encrypted in another way than deterministically, or used for something else as well
    :raises InvalidData: it was encrypted for another dataset
    """
    found = protected.get(unit)
    if found is None:
        return
    place = f"{dataset}.{unit}"
    if found.cipher != "AES256_SIV":
        raise SpecError(
            f"The privacy unit is encrypted with {found.cipher}, so that one unit could pass for several and nobody could tell.",
            place=place,
            remedy="Encrypt it with AES256_SIV: equal values get equal ciphertexts, and each names its key.",
        )
    if found.dataset != dataset:
        raise InvalidData(
            f"The column was encrypted for the dataset {found.dataset!r}.",
            place=place,
            remedy="Give the source that name: permissions and budgets go by it.",
        )
    if unit in others:
        raise SpecError(
            "The encrypted privacy unit is used for something else as well.",
            place=place,
            remedy="Use it as the unit only.",
        )
