"""Quantiles from noisy numbers of values: a tree over equal bins of the bounds, one noisy count for each node.

The number of values below an edge of bins is a sum of at most 15 nodes on each level: whole nodes of the coarsest level to the
left of the edge, then of the next one within the node that the edge cuts, and so on. Each node's children are first moved, all
by the same number, towards adding up to what is known of the node itself: that is their best linear estimate and takes off half
of the noise (Hay, Rastogi, Miklau, Suciu: Boosting the Accuracy of Differentially Private Histograms Through Consistency, VLDB
2010; its second pass, with branching 16, where the first gains little). The number of all values is the sum of the coarsest
level.

The interval of a quantile inverts a test. In truth, the bin that holds the quantile q of N values has rank(left edge) <= q N
<= rank(right edge). The noise of rank(edge) - q N is a sum of independent noises with known coefficients: it exceeds t in either
direction with a probability of at most (1 - confidence) / 2 each. So the bins whose left edge has a noisy rank(edge) - q N of at
most t, and whose right edge has one of at least -t, hold the true one in at least 95 of 100 draws; the interval is their
hull. It speaks of the clipped and bounded data, and is never narrower than a bin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from lepton_airflow.privacy.intervals import CONFIDENCE, Estimate, Terms, half_width_of_sum
from lepton_airflow.privacy.metrics import BRANCHING, Metric
from lepton_airflow.privacy.plan import Query, ReleasePlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lepton_airflow.privacy.estimates import Vectors
    from lepton_airflow.privacy.mechanisms import Mechanism

    Floats = NDArray[np.float64]

#: Groups that are computed at a time, so that memory stays bounded.
_GROUPS = 2048


def quantiles(metric: Metric, *, plan: ReleasePlan, queries: Sequence[Query], vectors: Vectors) -> list[list[Estimate]]:
    """The estimates of every quantile of ``metric``, for every group.

    :param queries: one for each level of the tree, the coarsest first
    """
    import numpy as np

    index = queries[0].measure
    bins = None if index is None else plan.measures[index].bins
    assert bins is not None  # noqa: S101 - quantiles are read from bins
    edges = np.array([float(edge) for edge in bins.edges])
    mechanisms = tuple(query.mechanism for query in queries)
    groups = len(vectors[queries[0].name])
    found: list[list[Estimate]] = [[] for _ in range(groups)]
    for start in range(0, groups, _GROUPS):
        levels = [np.array(vectors[query.name][start : start + _GROUPS], dtype=np.float64) for query in queries]
        ranks = _ranks(levels, _pulls(mechanisms))
        rising = _monotone(ranks)
        for q in metric.quantiles:
            tolerance = np.array(tolerances(mechanisms, Fraction(q)))
            values = [_crossing(row, float(q), edges) for row in rising]
            low, high = _hull(ranks - float(q) * ranks[:, -1:], tolerance)
            for group, (value, first, last) in enumerate(zip(values, low, high, strict=True), start=start):
                inner, outer = float(edges[first]), float(edges[last + 1])
                # Neighbouring ranks that noise has put out of order can leave the crossing outside.
                ends = Fraction(min(inner, value)), Fraction(max(outer, value))
                found[group].append(Estimate(Fraction(value), *ends))
    return found


@lru_cache(maxsize=256)
def tolerances(mechanisms: tuple[Mechanism, ...], q: Fraction) -> tuple[int, ...]:
    """For every edge of bins a t that the noise of its rank minus that of ``q`` times the total stays within, either way."""
    depth = len(mechanisms)
    widths = []
    for edge in range(BRANCHING**depth + 1):
        coarsest, *finer = _coefficients(edge, _pulls(mechanisms))
        levels = [tuple(coefficient - float(q) for coefficient in coarsest), *finer]
        terms: Terms = [
            (mechanism, Fraction(coefficient), times)
            for mechanism, coefficients in zip(mechanisms, levels, strict=True)
            for coefficient, times in Counter(coefficients).items()
        ]
        widths.append(half_width_of_sum(terms, CONFIDENCE))
    return tuple(widths)


def _pulls(mechanisms: Sequence[Mechanism]) -> tuple[float, ...]:
    """For each level but the coarsest: the part of a node's difference from its children that each of them takes.

    It is 1 / (16 + the variance of the node's noise / that of a child's).
    """
    return tuple(1 / (BRANCHING + (a.scale / b.scale) ** 2) for a, b in pairwise(mechanisms))


@lru_cache(maxsize=2**14)
def _coefficients(edge: int, pulls: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """With what coefficients nodes enter the rank of an edge of the finest level, as :func:`_ranks` computes it.

    :returns: for each level those of the nodes among which the edge is; on the coarsest level that is all nodes
    """
    if not pulls:
        return (tuple(float(node < edge) for node in range(BRANCHING)),)
    parent, before = divmod(edge, BRANCHING)
    left = _coefficients(parent, pulls[:-1])
    if not before:
        return (*left, (0.0,) * BRANCHING)
    right = _coefficients(parent + 1, pulls[:-1])
    share = before * pulls[-1]
    mixed = (
        tuple((1 - share) * a + share * b for a, b in zip(level, other, strict=True))
        for level, other in zip(left, right, strict=True)
    )
    return (*mixed, (1 - share,) * before + (-share,) * (BRANCHING - before))


def _ranks(levels: Sequence[Floats], pulls: Sequence[float]) -> Floats:
    """For each group (rows) the noisy number of values left of every edge (columns), the last being that of all values."""
    import numpy as np

    groups = len(levels[0])
    zero = np.zeros((groups, 1))
    ranks: Floats = np.concatenate([zero, np.cumsum(levels[0], axis=1)], axis=1)
    for nodes, pull in zip(levels[1:], pulls, strict=True):
        children = nodes.reshape(groups, -1, BRANCHING)
        missing = np.diff(ranks, axis=1) - children.sum(axis=2)
        inside = np.cumsum(children + pull * missing[:, :, None], axis=2)
        starts = np.concatenate([np.zeros_like(inside[:, :, :1]), inside[:, :, :-1]], axis=2)
        ranks = np.concatenate([(ranks[:, :-1, None] + starts).reshape(groups, -1), ranks[:, -1:]], axis=1)
    return ranks


def _monotone(ranks: Floats) -> Floats:
    """The ranks within [0, total], rising: the mean of their running maximum from the left and minimum from the right."""
    import numpy as np

    total = np.maximum(ranks[:, -1:], 1)
    within = np.clip(ranks, 0, total)
    within[:, -1:] = total
    falling = np.minimum.accumulate(within[:, ::-1], axis=1)[:, ::-1]
    middle: Floats = (np.maximum.accumulate(within, axis=1) + falling) / 2
    return middle


def _crossing(ranks: Floats, q: float, edges: Floats) -> float:
    """Where the ranks, joined by straight lines, are ``q`` times the total; the middle of it where they are flat."""
    import numpy as np

    target = q * ranks[-1]
    after = int(np.searchsorted(ranks, target, side="right"))
    first = int(np.searchsorted(ranks, target, side="left"))
    if first < after:
        # One or more edges are exactly there.
        return float((edges[first] + edges[after - 1]) / 2)
    left, right = ranks[first - 1], ranks[first]
    return float(edges[first - 1] + (target - left) / (right - left) * (edges[first] - edges[first - 1]))


def _hull(differences: Floats, tolerance: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each group the first and the last bin that pass the test; all bins where none does."""
    import numpy as np

    # Rounding of doubles must not throw out what exact arithmetic keeps.
    slack = tolerance + 1e-9 * (1 + np.abs(differences))
    passed = (differences[:, :-1] <= slack[:, :-1]) & (differences[:, 1:] >= -slack[:, 1:])
    passed[~passed.any(axis=1)] = True
    last = passed.shape[1] - 1 - np.argmax(passed[:, ::-1], axis=1)
    return np.argmax(passed, axis=1), last
