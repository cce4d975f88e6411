"""Containment and overlap of patterns, against every short name over a small alphabet."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_airflow.access.patterns import contains, fold, matches_any_case, matches_exactly, outside, overlap, readings
from lepton_airflow.encryption import paths

# Names up to length 6 tell any two of these patterns apart: none has more than four parts, or three beside a star.
NAMES = ["".join(letters) for length in range(7) for letters in product("abZ", repeat=length)]
PARTS = st.sampled_from(["a", "b", "*", "?", "[ab]", "[!a]", "Z"])
PATTERNS = st.lists(PARTS, min_size=1, max_size=4).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", ".", "`", "``", "[", "]", "`a.b`", "*"]), min_size=1, max_size=6).map("".join)
)
def test_paths_are_read_as_the_jobs_read_them(name: str) -> None:
    path = paths._parsed(name) or (name,)
    expected = {name: 0} | {paths.path_text(path[:depth]): 0 for depth in range(1, len(path))}
    assert dict(readings(name)) == expected | {paths.path_text(path): len(path)}


@settings(max_examples=150, deadline=None)
@given(outer=PATTERNS, inner=PATTERNS)
def test_contains_and_overlap_say_what_all_names_say(outer: str, inner: str) -> None:
    matched = {name for name in NAMES if matches_exactly(name, inner)}
    around = {name for name in NAMES if matches_exactly(name, outer)}
    assert overlap(outer, inner) == bool(matched & around)
    # Names with other letters than these three may be in one pattern only: `?` is more than `[ab]`.
    if contains(outer, inner):
        assert matched <= around
    else:
        assert not matched <= around or "?" in inner or "[!" in inner or "*" in inner


@settings(max_examples=150, deadline=None)
@given(patterns=st.lists(PATTERNS, max_size=3).map(tuple), inner=PATTERNS)
def test_a_name_outside_is_matched_by_none_of_the_patterns(patterns: tuple[str, ...], inner: str) -> None:
    name = outside(patterns, inner)
    if name is None:
        assert all(
            any(matches_exactly(one, pattern) for pattern in patterns) for one in NAMES if matches_exactly(one, inner)
        )
    else:
        assert matches_exactly(name, inner)
        assert not any(matches_exactly(name, pattern) for pattern in patterns)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("*", "clinic.*", True),
        ("clinic.*", "clinic.visits", True),
        ("clinic.*", "clinic", False),
        ("clinic.*", "*", False),
        ("?", "[a-z]", True),
        ("[a-z]", "?", False),
        ("[a-z]*", "[c-f]x", True),
        ("[c-f]*", "[a-z]x", False),
        ("*a*", "*ba", True),
        ("a*b", "a*", False),
        ("[", "[", True),
        ("[]]", "]", True),
        ("a?*", "a*?", True),
        ("**", "*", True),
        ("x", "[b-a]", True),
    ],
)
def test_containment(outer: str, inner: str, expected: bool) -> None:
    assert contains(outer, inner) is expected


def test_what_is_too_much_to_find_out_is_not_claimed() -> None:
    much = "*a" + "?" * 24
    assert contains(much, "*b" + "?" * 24) is False
    assert outside((much,), "*b" + "?" * 24) is None


@pytest.mark.parametrize(("one", "other"), [("Email", "eMAIL"), ("\u212aey", "key"), ("\u0130D", "id")])
def test_case_folds_as_spark_folds_it(one: str, other: str) -> None:
    assert fold(one) == fold(other)
    assert matches_any_case(one, other)
    assert not matches_exactly(one, other)
