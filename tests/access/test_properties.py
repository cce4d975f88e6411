"""Random policies and requests: the engine against a brute-force evaluator, monotonicity, and Cedar against the engine."""

from __future__ import annotations

import fnmatch
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_airflow.access.cedar import CedarPolicy
from lepton_airflow.access.policy import Policy, Request
from lepton_airflow.access.translation import to_cedar

# Few and short, so that rules and requests often meet. The last ones are awkward in other languages' string literals.
# Most are `a`, so that allowed requests are not rare.
NAMES = st.sampled_from([*["a"] * 12, "b", "ab", "A", "aB", 'a"', "b\\", "a\n*", "\u212a", "k"])
STARS = [*["*"] * 6, *["a*"] * 3, "a", "b", "*b", "A", "**", 'a"*', "b\\", "k"]
COLUMNS = st.one_of(
    NAMES, st.sampled_from(["a.b", "A.b.k", "b.a", "ab.b", "`a`.b", "`a.b`", "`a.b`.k", "a..b", "*.b", "a.*"])
)
PATHS = ["a.b", "a.*", "*.b", "a.b.k", "A.*.k", "*.*.k", "a*.k", "`a.b`", "`a.b`.k", "`a`.b", "a."]
ACTIONS = ["encrypt", "decrypt", "release"]
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
CLOCKS = st.sampled_from(["00:00", "06:30", "08:00", "12:00", "18:00", "23:59"])
DATES = st.sampled_from(["2026-03-28", "2026-03-29", "2026-10-25"])
MOMENTS = st.builds(
    lambda day, minute: datetime(2026, day[0], day[1], tzinfo=UTC) + timedelta(minutes=minute),
    st.sampled_from([(3, 28), (3, 29), (10, 24), (10, 25)]),
    st.one_of(st.integers(0, 1439), st.sampled_from([0, 29, 30, 389, 390, 480, 720, 1080, 1439])),
)


def window_of(zone: str, span: dict[str, str], rest: dict[str, Any]) -> dict[str, Any]:
    """A window that a policy accepts: not empty, and with some limit."""
    fields = {"zone": zone, **span, **rest}
    if "from" in fields and fields["from"] == fields["to"]:
        fields["to"] = "24:00"
    if fields.get("not_before", "0") > fields.get("not_after", "9"):
        del fields["not_after"]
    return fields if len(fields) > 1 else {**fields, "days": DAYS[:6]}


WINDOWS = st.builds(
    window_of,
    st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York"]),
    st.one_of(st.just({}), st.fixed_dictionaries({"from": CLOCKS, "to": st.one_of(CLOCKS, st.just("24:00"))})),
    st.fixed_dictionaries(
        {},
        optional={
            "days": st.lists(st.sampled_from(DAYS), min_size=1, max_size=4),
            "not_before": DATES,
            "not_after": DATES,
        },
    ),
)
OF_ALL = {"time": WINDOWS, "environments": st.sampled_from([["production"], ["production", "staging"]])}
OF_RELEASES = {"max_epsilon": st.sampled_from([1.0, 0.1, 1e-9]), "approval": st.just("required")}


def rules(kind: str, patterns: list[str], *, least: int = 0) -> st.SearchStrategy[list[dict[str, Any]]]:
    some = st.lists(st.sampled_from(patterns), min_size=1, max_size=2)
    fields = {
        "role": st.sampled_from(["r1", "r2", "*"] if kind == "denial" else ["r1", "r2"]),
        "actions": st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=2),
        **dict.fromkeys(("datasets", "purposes"), some),
        "columns": st.lists(st.sampled_from([*patterns, *PATHS]), min_size=1, max_size=2),
    }
    plain = st.fixed_dictionaries(fields)
    if kind == "grant":
        conditions = st.fixed_dictionaries({}, optional=OF_ALL)
        releases = st.fixed_dictionaries({}, optional={**OF_ALL, **OF_RELEASES})
        plain = st.one_of(
            plain,
            st.fixed_dictionaries({**fields, "conditions": conditions}),
            st.fixed_dictionaries({**fields, "actions": st.just(["release"]), "conditions": releases}),
        )
    return st.lists(plain, min_size=least, max_size=5 if kind == "grant" else 2).map(
        lambda drawn: [{"id": f"{kind} {number}", **rule} for number, rule in enumerate(drawn)]
    )


def policies(patterns: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "version": st.just(1),
            "roles": st.just({"r1": {"members": ["p", "q"]}, "r2": {"members": ["q"]}}),
            "grants": rules("grant", patterns, least=2),
            "denials": rules("denial", patterns),
        }
    )


REQUESTS = st.builds(
    Request,
    principal=st.sampled_from(["p", "q", "q", "q", "x"]),
    action=st.sampled_from([*ACTIONS, *["release"] * 4, "delete"]),
    dataset=NAMES,
    columns=st.lists(COLUMNS, max_size=2).map(tuple),
    purpose=NAMES,
    epsilon=st.sampled_from(
        [*[1e-9] * 5, None, 0.0, -1.0, float("nan"), float("inf"), 1.1e-9, 0.1, 0.1 + 2**-56, 1.0, 1e300]
    ),
    needs_approval=st.booleans(),
    environment=st.sampled_from([None, "", "production", "production", "staging"]),
)


def java_fold(name: str) -> str:
    return name.replace("\u212a", "k").lower()


def open_minutes(window: dict[str, Any]) -> set[tuple[int, int]]:
    """Every (weekday, minute) of a week at which the window is open, one by one."""
    start, end = (
        int(text[:2]) * 60 + int(text[3:]) for text in (window.get("from", "00:00"), window.get("to", "24:00"))
    )
    length = end - start if end > start else end - start + 1440
    first = [DAYS.index(day) for day in window.get("days", DAYS)]
    return {((day + minute // 1440) % 7, minute % 1440) for day in first for minute in range(start, start + length)}


def conditions_hold(conditions: dict[str, Any], request: Request, at: datetime) -> bool:
    if "max_epsilon" in conditions and not (
        isinstance(request.epsilon, float) and 0 < request.epsilon <= conditions["max_epsilon"]
    ):
        return False
    if "approval" in conditions and not request.needs_approval:
        return False
    if "environments" in conditions and not any(name == request.environment for name in conditions["environments"]):
        return False
    if "time" in conditions:
        window = conditions["time"]
        local = at.astimezone(ZoneInfo(window["zone"]))
        if (local.weekday(), local.hour * 60 + local.minute) not in open_minutes(window):
            return False
        date = local.strftime("%Y-%m-%d")
        if not window.get("not_before", "0000-00-00") <= date <= window.get("not_after", "9999-99-99"):
            return False
    return True


def parts_of(text: str) -> list[str]:
    """The parts of a path or pattern, letter by letter; backticks that do not pair or empty parts make it one part."""
    parts, quoted = [""], False
    for letter in text:
        if letter == "`":
            quoted = not quoted
        elif letter == "." and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return [text] if quoted or "" in parts else parts


def written(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ".".join(f"`{part}`" if "." in part else part for part in parts)


def column_fits(column: str, pattern: str, *, denial: bool) -> bool:
    """Up: the pattern matches the column or an outer one. Down, for denials: the outer part of the pattern matches it."""
    parts = parts_of(column)
    outer = {column, *(written(parts[:count]) for count in range(1, len(parts) + 1))}
    if not denial:
        return any(fnmatch.fnmatchcase(text, pattern) for text in outer)
    segments = parts_of(pattern)
    around = {pattern, written(segments)}
    if any(fnmatch.fnmatchcase(java_fold(text), java_fold(one)) for text in outer for one in around):
        return True
    counts = {len(parts)} | ({1} if "." in segments[0] else set())
    return any(
        count < len(segments)
        and ("." not in segments[0] or count == 1 or count == len(parts))
        and fnmatch.fnmatchcase(java_fold(written(parts)), java_fold(written(segments[:count])))
        for count in counts
    )


def brute_force(policy: dict[str, Any], request: Request, at: datetime) -> bool:
    """Enumerates every (rule, pattern) pair instead of filtering: written apart from the engine, on the raw fields."""

    def touches(rule: dict[str, Any], column: str | None, *, ignore_case: bool) -> bool:
        fold = java_fold if ignore_case else str
        members = {
            name for role, body in policy["roles"].items() if rule["role"] in (role, "*") for name in body["members"]
        }
        if rule["role"] != "*" and request.principal not in members:
            return False
        if request.action not in rule["actions"]:
            return False
        for dataset, pattern, purpose in product(rule["datasets"], rule["columns"], rule["purposes"]):
            fits = column is not None and column_fits(column, pattern, denial=ignore_case)
            if (
                (fits or (column is None and pattern == "*"))
                and fnmatch.fnmatchcase(fold(request.dataset), fold(dataset))
                and fnmatch.fnmatchcase(fold(request.purpose), fold(purpose))
            ):
                return True
        return False

    for column in request.columns or (None,):
        if any(touches(rule, column, ignore_case=True) for rule in policy["denials"]):
            return False
        for rule in policy["grants"]:
            if conditions_hold(rule.get("conditions", {}), request, at) and touches(rule, column, ignore_case=False):
                break
        else:
            return False
    return True


ASKED = st.lists(st.tuples(REQUESTS, MOMENTS), min_size=4, max_size=8)


def test_decisions_equal_a_brute_force_evaluation() -> None:
    seen: Counter[bool] = Counter()

    @settings(max_examples=200, deadline=None)
    @given(fields=policies([*STARS, "?", "?b", "[ab]", "[!a]*"]), asked=ASKED)
    def check(fields: dict[str, Any], asked: list[tuple[Request, datetime]]) -> None:
        policy = Policy.parse(fields, place="random")
        for request, at in asked:
            decision = policy.decide(request, at=at)
            seen[decision.allow] += 1
            assert decision.allow == brute_force(fields, request, at)

    check()
    # Else the random policies would deny all and prove little.
    assert min(seen[True], seen[False]) > 20


def test_another_denial_or_one_grant_less_never_allows_more() -> None:
    taken: Counter[str] = Counter()

    @settings(max_examples=200, deadline=None)
    @given(fields=policies(STARS), more=rules("denial", STARS, least=1), asked=ASKED)
    def check(fields: dict[str, Any], more: list[dict[str, Any]], asked: list[tuple[Request, datetime]]) -> None:
        def changed(**changes: Any) -> Policy:
            return Policy.parse({**fields, **changes}, place="random")

        added = [{**rule, "id": f"more {rule['id']}"} for rule in more]
        stricter = [("denial", changed(denials=[*fields["denials"], *added]))]
        for rule in fields["grants"]:
            stricter.append(("grant", changed(grants=[other for other in fields["grants"] if other is not rule])))
        policy = changed()
        for request, at in asked:
            before = policy.decide(request, at=at).allow
            for name, other in stricter:
                after = other.decide(request, at=at).allow
                taken[name] += before and not after
                assert before >= after

    check()
    assert min(taken["denial"], taken["grant"]) > 1


def test_cedar_decides_as_the_built_in_engine_and_names_the_same_rules() -> None:
    seen: Counter[tuple[bool, bool]] = Counter()

    @settings(max_examples=150, deadline=None)
    @given(fields=policies(STARS), asked=ASKED)
    def check(fields: dict[str, Any], asked: list[tuple[Request, datetime]]) -> None:
        policy = Policy.parse(fields, place="random")
        translated = to_cedar(policy)
        cedar = CedarPolicy(translated.policies, translated.entities, place="random")
        for request, at in asked:
            ours, theirs = policy.decide(request, at=at), cedar.decide(request, at=at)
            seen[ours.allow, bool(ours.rules)] += 1
            assert (theirs.allow, theirs.rules) == (ours.allow, ours.rules)

    check()
    assert min(seen[True, True], seen[False, True], seen[False, False]) > 10
