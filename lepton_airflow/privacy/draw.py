"""The draw: noise is added once, on the driver, and only what is stored here ever leaves it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lepton_airflow.privacy.design import Key, key_of
from lepton_airflow.privacy.plan import PlannedGrouping, Query, ReleasePlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lepton_airflow.privacy.totals import Chunk, GroupTotals

#: Version of the stored noisy numbers.
DRAW_SCHEMA = "lepton.draw/2"
#: Groups that are noised at a time: it bounds what Python's integers take.
_GROUPS = 10_000


def draw(
    plan: ReleasePlan, totals: Sequence[GroupTotals], *, keys: Sequence[Sequence[Key] | None], declared: Sequence[bool]
) -> dict[str, Any]:
    """Add noise to the totals of every grouping.

    :param totals: for each grouping: of a public one all groups', of a private one those of every group that occurs, in chunks;
        not private
    :param keys: for each grouping its keys, in the order of the totals; None where groups are chosen here
    :param declared: for each grouping: its keys are in the design, and need not be stored again
    :returns: JSON of schema ``lepton.draw/2``: for each grouping ``keys`` (null if they are declared) and ``vectors``, query ->
        for each group its noisy integers. It is private: noise has been added
    """
    groupings: dict[str, Any] = {}
    for grouping, own, known, in_design in zip(plan.groupings, totals, keys, declared, strict=True):
        if known is None:
            groupings[grouping.name] = _chosen(plan, grouping, own)
        else:
            groupings[grouping.name] = {
                "keys": None if in_design else [list(key) for key in known],
                "vectors": _vectors(plan, grouping, own),
            }
    return {"schema": DRAW_SCHEMA, "groupings": groupings}


def _vectors(plan: ReleasePlan, grouping: PlannedGrouping, totals: Any) -> dict[str, list[list[int]]]:
    return {query.name: _noised(plan, query, totals) for query in grouping.queries}


def _chosen(plan: ReleasePlan, grouping: PlannedGrouping, chunks: Any) -> dict[str, Any]:
    """Choose groups by their noisy number of units, and add noise to the rest of those alone."""
    import numpy as np

    selection = grouping.selection
    assert selection is not None  # noqa: S101 - groups are chosen where keys are not known
    keys: list[Key] = []
    vectors: dict[str, list[list[int]]] = {selection.query.name: [], **{query.name: [] for query in grouping.queries}}
    for names, totals in _small(chunks):
        noisy = _noised(plan, selection.query, totals)
        shown = [index for index, (count,) in enumerate(noisy) if count >= selection.threshold]
        keys += [key_of(names[index]) for index in shown]
        vectors[selection.query.name] += [noisy[index] for index in shown]
        for name, numbers in _vectors(plan, grouping, totals[np.array(shown, dtype=np.int64)]).items():
            vectors[name] += numbers
    # In the order in which they came they would tell how Spark had spread them.
    order = sorted(range(len(keys)), key=lambda index: [(value is None, str(value)) for value in keys[index]])
    return {
        "keys": [list(keys[index]) for index in order],
        "vectors": {name: [numbers[index] for index in order] for name, numbers in vectors.items()},
    }


def _small(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    for names, totals in chunks:
        for start in range(0, len(names), _GROUPS):
            yield names[start : start + _GROUPS], totals[start : start + _GROUPS]


def _noised(plan: ReleasePlan, query: Query, totals: NDArray[np.int64]) -> list[list[int]]:
    entries = plan.vector(query, totals)
    noisy = query.mechanism.add_noise(entries.ravel().tolist(), backend=plan.backend)
    return [noisy[start : start + query.width] for start in range(0, len(noisy), query.width)]
