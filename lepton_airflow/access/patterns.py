"""Shell patterns of names (``clinic.*``, ``mean_?``, ``[ab]*``): what they match, and how they lie to one another.

Matching is :func:`fnmatch.fnmatchcase`. Whether one pattern's names are all among another's, or whether two share a name, is
decided exactly, by walking both patterns as automata over the few characters that tell them apart.

Columns are paths (``address.street``), written as :mod:`lepton_airflow.encryption.paths` reads them. Before a table is read
nobody knows whether ``a.b`` is a field of ``a`` or a column with a dot in its name: a rule about either is about it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase, translate
from functools import lru_cache

from lepton_airflow.access.request import WHOLE_DATASET

Matches = Callable[[str, str], bool]
#: Beyond so many states the answer is "not known", which is no.
_MOST_STATES = 20_000
_PART = re.compile(r"`((?:[^`]|``)+)`|([^`.]+)")

matches_exactly: Matches = fnmatchcase


def matches_any_case(name: str, pattern: str) -> bool:
    """Whether the name matches if case is ignored as Spark ignores it."""
    return fnmatchcase(fold(name), fold(pattern))


def covers(patterns: Iterable[str], column: str, matches: Matches) -> bool:
    """Whether one of the patterns matches the column or one that it is a part of; only ``*`` is about the dataset as a whole."""
    if column == WHOLE_DATASET:
        return WHOLE_DATASET in patterns
    return any(matches(text, pattern) for text, _ in readings(column) for pattern in patterns)


def forbids(patterns: Iterable[str], column: str) -> bool:
    """Whether a denial of these patterns forbids the column: what it is, what it is a part of, or what is a part of it.

    A pattern is about a part of the column if so many of its own parts as the column has match it, case ignored.
    """
    if covers([one for pattern in patterns for one in spellings(pattern)], column, matches_any_case):
        return True
    return column != WHOLE_DATASET and any(
        depth and level in (None, depth) and matches_any_case(text, outer)
        for text, depth in readings(column)
        for pattern in patterns
        for level, outer in above(pattern)
    )


@lru_cache(maxsize=4096)
def readings(column: str) -> tuple[tuple[str, int], ...]:
    """What a rule can match to be about a column: its name, and the names of the columns and fields that it is a part of.

    With each, the number of parts of its path if it is the column itself in its usual spelling, else 0.
    """
    path = _path(column)
    texts = [_joined(path[:depth], tuple) for depth in range(1, len(path) + 1)]
    return ((texts[-1], len(path)), *((text, 0) for text in dict.fromkeys((column, *texts[:-1])) if text != texts[-1]))


def spellings(pattern: str) -> tuple[str, ...]:
    """The pattern, and the same without the backticks that it does not need."""
    return tuple(dict.fromkeys((pattern, _joined(_segments(pattern), _tokens))))


@lru_cache(maxsize=4096)
def above(pattern: str) -> tuple[tuple[int | None, str], ...]:
    """Patterns of what the pattern's names are parts of, each with the number of its parts.

    None for the number where the first part has a dot: such a column, named without backticks, looks like a longer path.
    """
    parts = _segments(pattern)
    return tuple(
        (None if depth == 1 and "." in parts[0] else depth, _joined(parts[:depth], _tokens))
        for depth in range(1, len(parts))
    )


def _path(name: str) -> tuple[str, ...]:
    """The parts of a name; the name itself if it is no path."""
    parts: list[str] = []
    position = 0
    while found := _PART.match(name, position):
        parts.append(found[1].replace("``", "`") if found[1] else found[2])
        position = found.end()
        if position == len(name):
            return tuple(parts)
        if name[position] != ".":
            break
        position += 1
    return (name,)


def _segments(pattern: str) -> tuple[str, ...]:
    """The parts of a pattern of paths. A dot in a class of characters does not part it."""
    parts, quoted = [""], False
    tokens = _tokens(pattern)
    skip = False
    for piece, following in zip(tokens, (*tokens[1:], ""), strict=True):
        if skip:
            skip = False
        elif piece == "`" and quoted and following == "`":
            parts[-1] += piece
            skip = True
        elif piece == "`":
            quoted = not quoted
        elif piece == "." and not quoted:
            parts.append("")
        else:
            parts[-1] += piece
    # Backticks that do not pair, or parts of nothing: no path.
    return (pattern,) if quoted or not all(parts) else tuple(parts)


def _joined(parts: tuple[str, ...], characters: Callable[[str], Iterable[str]]) -> str:
    if len(parts) == 1:
        return parts[0]
    quoting = [any(one in (".", "`") for one in characters(part)) for part in parts]
    return ".".join(
        "`" + part.replace("`", "``") + "`" if quote else part for part, quote in zip(parts, quoting, strict=True)
    )


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


class _TooMuch(Exception):
    """More states than are walked through."""


@lru_cache(maxsize=4096)
def contains(outer: str, inner: str) -> bool:
    """Whether every name that ``inner`` matches is matched by ``outer`` too. False also where that is too much to find out."""
    if outer in ("*", inner):
        return True
    try:
        return _outside((outer,), inner) is None
    except _TooMuch:
        return False


@lru_cache(maxsize=4096)
def outside(patterns: tuple[str, ...], inner: str) -> str | None:
    """A name that ``inner`` matches and none of the patterns does. None also where that is too much to find out."""
    try:
        return _outside(patterns, inner)
    except _TooMuch:
        return None


def _outside(patterns: tuple[str, ...], inner: str) -> str | None:
    """:raises _TooMuch: it cannot be found out"""
    narrow, wide = _tokens(inner), [_tokens(pattern) for pattern in patterns]
    alphabet = _alphabet((*narrow, *(token for tokens in wide for token in tokens)))
    first = (_closure(narrow, {0}), *(_closure(tokens, {0}) for tokens in wide))
    seen, waiting = {first}, deque([(first, "")])
    while waiting:
        if len(seen) > _MOST_STATES:
            raise _TooMuch
        (left, *right), name = waiting.popleft()
        if len(narrow) in left and not any(len(tokens) in states for tokens, states in zip(wide, right, strict=True)):
            return name
        for character in alphabet:
            stepped = (_step(tokens, states, character) for tokens, states in zip(wide, right, strict=True))
            step = (_step(narrow, left, character), *stepped)
            if step[0] and step not in seen:
                seen.add(step)
                waiting.append((step, name + character))
    return None


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
