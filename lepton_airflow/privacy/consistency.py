"""Consistent totals: every cell of a coarser grouping is made equal to the sum of its finer cells, exactly.

The noisy numbers of a chain of groupings are measurements of one tree: a cell's children are the next grouping's cells that
agree with it on its columns. The tree of consistent numbers that is nearest to them by least squares, each weighted by the
variance of its noise, comes from two passes, from the leaves up and from the roots down (Hay, Rastogi, Miklau, Suciu: Boosting
the Accuracy of Differentially Private Histograms Through Consistency, VLDB 2010, section 4.1; here with unequal variances and
any number of children). It uses what several groupings say of the same rows, so its numbers are on average nearer to the truth.

If counts are not to be negative either, each cell's children are then replaced, from the roots down, by the numbers >= 0 that add
up to it and are nearest to them (the order of Abowd et al.: The 2020 Census Disclosure Avoidance System TopDown Algorithm,
2022). Last, everything is rounded to whole units so that sums stay exact: a cell's children are rounded down, and what
is missing goes to the largest remainders, so that no number moves by a whole unit. All in rational arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

from lepton_airflow.privacy.design import Key, key_text
from lepton_airflow.privacy.intervals import Rational


@dataclass(frozen=True, kw_only=True)
class Level:
    """The noisy numbers of one grouping.

    :param by: its columns
    :param keys: of its cells
    :param numbers: one for each key
    :param variance: of the noise of each number; only how it compares with the other levels' matters
    """

    by: tuple[str, ...]
    keys: Sequence[Key]
    numbers: Sequence[Rational]
    variance: Fraction


@dataclass(eq=False, slots=True)
class _Cell:
    """A node of the tree. ``estimate`` is first what the cell and all below it say, with its variance, then the result."""

    estimate: Rational
    variance: Fraction
    children: list[_Cell] = field(default_factory=list)
    whole: int = 0


def consistent_totals(levels: Sequence[Level], *, unit: Rational, nonnegative: bool) -> list[list[Rational]]:
    """Numbers for every level that add up.

    A cell of which the next level has no cell keeps what the levels above it leave it; a cell whose coarser one is not among the
    keys of the level before starts a tree of its own.

    :param levels: coarsest first; each has all columns of the one before
    :param unit: results are multiples of it
    :param nonnegative: results are not below zero
    :returns: for each level its numbers, in the order of its keys
    """
    cells = [[_Cell(number, level.variance) for number in level.numbers] for level in levels]
    roots = list(cells[0])
    for (coarse, parents), (fine, own) in pairwise(zip(levels, cells, strict=True)):
        places = {key_text(key): cell for key, cell in zip(coarse.keys, parents, strict=True)}
        columns = [fine.by.index(column) for column in coarse.by]
        for key, cell in zip(fine.keys, own, strict=True):
            parent = places.get(key_text([key[column] for column in columns]))
            (roots if parent is None else parent.children).append(cell)
    for level in reversed(cells):
        for cell in level:
            _gather(cell)
    for root in roots:
        if nonnegative:
            root.estimate = max(root.estimate, 0)
        root.whole = round(Fraction(root.estimate) / unit)
    for level in cells:
        for cell in level:
            _spread(cell, nonnegative=nonnegative)
            _round(cell.whole, cell.children, unit)
    return [[cell.whole * unit for cell in level] for level in cells]


def _gather(cell: _Cell) -> None:
    """Join the cell's own number with the sum of its children's, each weighted by the other's variance."""
    if not cell.children:
        return
    total = sum((child.estimate for child in cell.children), Fraction(0))
    variance = sum((child.variance for child in cell.children), Fraction(0))
    together = cell.variance + variance
    cell.estimate = (cell.estimate * variance + total * cell.variance) / together
    cell.variance = cell.variance * variance / together


def _spread(cell: _Cell, *, nonnegative: bool) -> None:
    """Let the children add up to the cell: each takes of the difference in proportion to its variance.

    With ``nonnegative`` those that would fall below zero become zero and the others share the difference, until none does: that
    is the nearest point of the simplex (Michelot: A finite algorithm for finding the projection of a point onto the canonical
    simplex of R^n, 1986, weighted).
    """
    positive = cell.children
    while positive:
        variance = sum((child.variance for child in positive), Fraction(0))
        share = (cell.estimate - sum(child.estimate for child in positive)) / variance
        below = {id(child) for child in positive if nonnegative and child.estimate + share * child.variance < 0}
        if not below:
            for child in positive:
                child.estimate += share * child.variance
            return
        for child in positive:
            if id(child) in below:
                child.estimate = 0
        positive = [child for child in positive if id(child) not in below]


def _round(total: int, children: Sequence[_Cell], unit: Rational) -> None:
    """Round the children's numbers to whole units that add up to ``total``, the largest remainders up."""
    exact = [Fraction(child.estimate) / unit for child in children]
    for child, number in zip(children, exact, strict=True):
        child.whole = math.floor(number)
    missing = total - sum(child.whole for child in children)
    largest = sorted(range(len(children)), key=lambda i: (children[i].whole - exact[i], i))
    for i in largest[:missing]:
        children[i].whole += 1
