"""Shell patterns of names (``clinic.*``, ``mean_?``, ``[ab]*``): what they match, and how they lie to one another.

Matching is :func:`fnmatch.fnmatchcase`. Whether one pattern's names are all among another's, or whether two share a name, is
decided exactly, by walking both patterns as automata over the few characters that tell them apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase, translate
from functools import lru_cache

from lepton_airflow.access.request import WHOLE_DATASET

Matches = Callable[[str, str], bool]
#: Beyond so many states the answer is "not known", which is no.
_MOST_STATES = 20_000

matches_exactly: Matches = fnmatchcase


def matches_any_case(name: str, pattern: str) -> bool:
    """Whether the name matches if case is ignored as Spark ignores it."""
    return fnmatchcase(fold(name), fold(pattern))


def covers(patterns: Iterable[str], column: str, matches: Matches) -> bool:
    """Whether a rule with these column patterns is about the column; only ``*`` itself is about the dataset as a whole."""
    if column == WHOLE_DATASET:
        return WHOLE_DATASET in patterns
    return any(matches(column, pattern) for pattern in patterns)


@lru_cache(maxsize=4096)
def fold(name: str) -> str:
    """Fold case one character at a time, to upper and then to lower, as Java's equalsIgnoreCase and so Spark does."""

    def fold_one(character: str) -> str:
        upper = character.upper()
        return (upper if len(upper) == 1 else character).lower()[0]

    return "".join(map(fold_one, name))


def is_plain(pattern: str) -> bool:
    """Whether the pattern is a name and matches that only."""
    return not any(character in pattern for character in "*?[")


@lru_cache(maxsize=4096)
def contains(outer: str, inner: str) -> bool:
    """Whether every name that ``inner`` matches is matched by ``outer`` too. False also where that is too much to find out."""
    if outer in ("*", inner):
        return True
    wide, narrow = _tokens(outer), _tokens(inner)
    alphabet = _alphabet((*wide, *narrow))
    first = (_closure(narrow, {0}), _closure(wide, {0}))
    seen, waiting = {first}, [first]
    while waiting:
        if len(seen) > _MOST_STATES:
            return False
        left, right = waiting.pop()
        if len(narrow) in left and len(wide) not in right:
            return False
        for character in alphabet:
            step = (_step(narrow, left, character), _step(wide, right, character))
            if step[0] and step not in seen:
                seen.add(step)
                waiting.append(step)
    return True


@lru_cache(maxsize=4096)
def overlap(one: str, other: str) -> bool:
    """Whether some name matches both patterns. True also where that is too much to find out."""
    left, right = _tokens(one), _tokens(other)
    alphabet = _alphabet((*left, *right))
    first = (_closure(left, {0}), _closure(right, {0}))
    seen, waiting = {first}, [first]
    while waiting:
        if len(seen) > _MOST_STATES:
            return True
        states = waiting.pop()
        if len(left) in states[0] and len(right) in states[1]:
            return True
        for character in alphabet:
            step = (_step(left, states[0], character), _step(right, states[1], character))
            if step[0] and step[1] and step not in seen:
                seen.add(step)
                waiting.append(step)
    return False


def _tokens(pattern: str) -> tuple[str, ...]:
    """Literal characters, ``*``, ``?`` and whole classes, split as fnmatch splits them."""
    found = []
    position = 0
    while position < len(pattern):
        end = position + 1
        if pattern[position] == "[":
            # A class ends at the first bracket after its first character; without one the bracket is literal.
            close = pattern.find("]", position + (3 if pattern[position + 1 : position + 2] == "!" else 2))
            end = close + 1 if close > 0 else end
        found.append(pattern[position:end])
        position = end
    return tuple(found)


@lru_cache(maxsize=4096)
def _class(token: str) -> re.Pattern[str]:
    return re.compile(translate(token))


def _alphabet(tokens: Iterable[str]) -> tuple[str, ...]:
    """One character of every range of characters that all the tokens treat alike."""
    starts = {0}
    for token in tokens:
        for character in token:
            starts |= {ord(character), min(ord(character) + 1, 0x10FFFF)}
    return tuple(map(chr, sorted(starts)))


def _closure(tokens: tuple[str, ...], states: Iterable[int]) -> frozenset[int]:
    """The states that are reached without reading a character: behind a star."""
    found = set()
    for state in states:
        found.add(state)
        while state < len(tokens) and tokens[state] == "*":
            state += 1
            found.add(state)
    return frozenset(found)


def _step(tokens: tuple[str, ...], states: frozenset[int], character: str) -> frozenset[int]:
    after = set()
    for state in states:
        if state == len(tokens):
            continue
        part = tokens[state]
        if part == "*":
            after.add(state)
        elif part in ("?", character) or (len(part) > 1 and _class(part).match(character)):
            after.add(state + 1)
    return _closure(tokens, after)
