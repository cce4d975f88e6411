"""Cedar as the second engine for access decisions (cedarpolicy.com), through ``cedarpy``, the extra ``cedar``.

A Cedar policy is two files: ``<name>.cedar``, the policies, each with an ``@id``; and ``<name>.entities.json`` beside it, which
principal is in which role, in Cedar's JSON. Both are validated against :data:`SCHEMA` when they are loaded. Each column of a
request, and for a nested field each field and column that it is a part of, is one Cedar request: none may be forbidden, and for
each column one of its requests must be permitted. An error while a policy is evaluated denies, since Cedar itself skips the
policy, and a ``forbid`` that is skipped forbids nothing.

What Cedar has no operation for is computed before it is asked:

- Case. ``dataset_folded``, ``column_folded`` and ``purpose_folded`` are folded as Spark ignores case; every ``forbid`` should
  compare those. Grants compare the names themselves.
- Parts. ``context.depth`` is the number of parts of the column's path where the resource is the column that is asked for, 0
  where it is only what that is a part of: a ``forbid`` of ``address.street`` should forbid ``address`` with the depth 1 too.
- Epsilon, exactly: ``context.epsilon_billionths`` is the release's epsilon in billionths, rounded up; it is not there if the
  release states none.
- Time zones. ``Zone::"Europe/Berlin"`` has ``minute`` (of the day), ``day``, ``day_before`` (``"monday"``) and ``date``
  (20260504) by the clocks of that zone; any IANA zone that a policy names can be used. ``context.time`` is the moment itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lepton_airflow.access.conditions import DAYS, zone_of
from lepton_airflow.access.patterns import fold, readings
from lepton_airflow.access.request import WHOLE_DATASET, Action, Decision, Request, moment, named
from lepton_airflow.audit.canonical import digest
from lepton_airflow.errors import ConfigurationError, MissingDependency

if TYPE_CHECKING:
    import cedarpy

SUFFIX = ".cedar"
ACTIONS: tuple[str, ...] = get_args(Action)
BILLION = 10**9
LARGEST_LONG = 2**63 - 1

SCHEMA = f"""// Cedar schema of lepton-airflow's access policies.
entity Role in [Role];
entity Principal in [Role];
entity Zone {{ minute: Long, day: String, day_before: String, date: Long }};
entity Dataset {{ dataset: String, dataset_folded: String }};
entity Column in [Dataset] {{
  dataset: String, dataset_folded: String, column: String, column_folded: String
}};
action {", ".join(ACTIONS)} appliesTo {{
  principal: [Principal],
  resource: [Dataset, Column],
  context: {{
    purpose: String,
    purpose_folded: String,
    time: datetime,
    environment?: String,
    epsilon_billionths?: Long,
    needs_approval: Bool,
    depth: Long
  }}
}};
"""


def entities_file(policy: Path) -> Path:
    """Where the roles of a Cedar policy are."""
    return policy.with_suffix(".entities.json")


def epsilon_in_billionths(epsilon: float | None) -> int | None:
    """What ``context.epsilon_billionths`` is: the epsilon as it is written, rounded up; None if that is no epsilon."""
    if epsilon is None or not math.isfinite(epsilon) or epsilon <= 0:
        return None
    return min(math.ceil(Decimal(repr(float(epsilon))) * BILLION), LARGEST_LONG)


class CedarPolicy:
    """A validated Cedar policy; a :class:`~lepton_airflow.access.request.PolicyEngine`."""

    def __init__(self, policies: str, entities: Sequence[Mapping[str, Any]], *, place: str) -> None:
        """Read and validate.

        :param policies: in Cedar's syntax, each with an ``@id`` of its own
        :param entities: of the types ``Principal`` and ``Role``, in Cedar's JSON
        :param place: for the errors: the file
        :raises MissingDependency: cedarpy is not installed
        :raises ConfigurationError: naming the policy
        """
        cedar = self._cedar = _cedarpy()
        strangers = sorted({_type_of(entity) for entity in entities} - {"Principal", "Role"})
        if strangers:
            raise _invalid(f"its entities are principals and roles, not {', '.join(strangers)}", place)
        try:
            parsed = json.loads(cedar.policies_to_json_str(policies))
            self._policies = cedar.PolicySet.from_str(policies)
            self._schema = cedar.Schema.from_str(SCHEMA)
            self._entities = cedar.Entities.from_json_str(json.dumps(entities), self._schema)
            found = cedar.validate_policies(policies, self._schema).errors
        except ValueError as error:
            raise _invalid(f"Cedar says: {' '.join(str(error).split())[:500]}", place) from None
        if found:
            raise _invalid(f"Cedar says: {found[0].error}", place)
        self._ids = _ids(parsed, place)
        self._zones = sorted(set(_zones(parsed)))
        for name in self._zones:
            try:
                zone_of(name)
            except ValueError as error:
                raise _invalid(str(error), place) from None
        # As texts: Cedar's numbers can be larger than canonical JSON allows.
        texts = {"policies": json.dumps(parsed, sort_keys=True), "entities": json.dumps(entities, sort_keys=True)}
        self.digest = digest({"engine": "cedar", "schema": SCHEMA, **texts})

    @classmethod
    def load(cls, path: Path) -> CedarPolicy:
        """Read a policy and its entities.

        :raises ConfigurationError: a file is missing or not valid
        :raises MissingDependency: cedarpy is not installed
        """
        entities = entities_file(path)
        file = path
        try:
            text = path.read_text(encoding="utf-8")
            file = entities
            listed = json.loads(entities.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"The Cedar policy cannot be read ({type(error).__name__}).",
                place=str(file),
                remedy="Without a policy everything is denied. `lepton access to-cedar` writes both files from a policy.yaml.",
            ) from None
        if not isinstance(listed, list):
            raise _invalid("the entities are not a list", str(entities))
        return cls(text, listed, place=str(path))

    @property
    def rules(self) -> tuple[str, ...]:
        """The ids of the policies, in the order of the file."""
        return tuple(self._ids.values())

    def decide(self, request: Request, *, at: datetime | None = None) -> Decision:
        """Whether the request is allowed, by which policies, and why.

        :param at: the time that policies are held against, with its offset; default now
        :raises InvalidData: a time without an offset
        """
        now = moment(at)
        if request.action not in ACTIONS:
            return Decision(False, (), self.digest, f"there is no action {request.action}")
        resources = [(column, *reading) for column in request.wanted for reading in _resources(request.dataset, column)]
        asked = [self._asked(request, resource, depth, now) for _, resource, depth in resources]
        try:
            entities = self._entities.with_added_json_str(json.dumps(self._delta(request, now)), self._schema)
            answers = self._cedar.is_authorized_batch(asked, self._policies, entities, self._schema)
        except (ValueError, OverflowError) as error:
            return Decision(False, (), self.digest, f"Cedar could not be asked ({type(error).__name__})")
        allowed = [answer.decision == self._cedar.Decision.Allow for answer in answers]
        broken = [str(problem) for answer in answers for problem in answer.diagnostics.errors]
        if broken or len(answers) != len(asked):
            return Decision(
                False, (), self.digest, f"Cedar could not decide: {' '.join(' '.join(broken).split())[:300]}"
            )
        # An answer that denies names the policies that forbid; without any, nothing permits.
        denied = [answer for answer, yes in zip(answers, allowed, strict=True) if not yes]
        if rules := self._reasons(denied):
            return Decision(False, rules, self.digest, f"denied by rule {', '.join(rules)}")
        covered = {column for (column, _, _), yes in zip(resources, allowed, strict=True) if yes}
        uncovered = tuple(column for column in request.wanted if column not in covered)
        if not uncovered:
            return Decision(True, self._reasons(answers), self.digest, "granted")
        return Decision(False, (), self.digest, f"no grant covers {named(uncovered)}")

    def _reasons(self, answers: Sequence[cedarpy.AuthzResult]) -> tuple[str, ...]:
        decided = {policy for answer in answers for policy in answer.diagnostics.reasons}
        return tuple(name for policy, name in self._ids.items() if policy in decided)

    def _asked(self, request: Request, resource: dict[str, str], depth: int, now: datetime) -> dict[str, Any]:
        context: dict[str, Any] = {
            "purpose": request.purpose,
            "purpose_folded": fold(request.purpose),
            "time": {
                "__extn": {"fn": "datetime", "arg": now.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
            },
            "needs_approval": request.needs_approval is True,
            "depth": depth,
        }
        if request.environment is not None:
            context["environment"] = request.environment
        if (epsilon := epsilon_in_billionths(request.epsilon)) is not None:
            context["epsilon_billionths"] = epsilon
        return {
            "principal": {"type": "Principal", "id": request.principal},
            "action": {"type": "Action", "id": request.action},
            "resource": resource,
            "context": context,
        }

    def _delta(self, request: Request, now: datetime) -> list[dict[str, Any]]:
        """The entities of this request: the dataset, its columns, and the clocks of the zones that the policies look at."""
        dataset = {"dataset": request.dataset, "dataset_folded": fold(request.dataset)}
        parent = {"type": "Dataset", "id": request.dataset}
        found: list[dict[str, Any]] = [{"uid": parent, "attrs": dataset, "parents": []}]
        for column in sorted({text for name in request.columns if name != WHOLE_DATASET for text, _ in readings(name)}):
            attributes = {**dataset, "column": column, "column_folded": fold(column)}
            found.append({"uid": _column(request.dataset, column), "attrs": attributes, "parents": [parent]})
        for name in self._zones:
            local = now.astimezone(zone_of(name))
            clock = {
                "minute": local.hour * 60 + local.minute,
                "day": DAYS[local.weekday()],
                "day_before": DAYS[local.weekday() - 1],
                "date": local.year * 10_000 + local.month * 100 + local.day,
            }
            found.append({"uid": {"type": "Zone", "id": name}, "attrs": clock, "parents": []})
        return found


def _resources(dataset: str, column: str) -> tuple[tuple[dict[str, str], int], ...]:
    """What must be asked about a column, or about the dataset as a whole: entities, and the depth of each."""
    if column == WHOLE_DATASET:
        return (({"type": "Dataset", "id": dataset}, 0),)
    return tuple((_column(dataset, text), depth) for text, depth in readings(column))


def _column(dataset: str, column: str) -> dict[str, str]:
    """The entity of a column. A pair in JSON, since names have dots themselves."""
    return {"type": "Column", "id": json.dumps([dataset, column])}


def _ids(parsed: Mapping[str, Any], place: str) -> dict[str, str]:
    """Cedar's name of every policy, ``policy<position>``, and its ``@id``."""
    if parsed.get("templates"):
        raise _invalid("it has a template, and a template that nobody links decides nothing", place)
    static = parsed["staticPolicies"]
    found: dict[str, str] = {}
    for policy in sorted(static, key=lambda name: int(name.removeprefix("policy"))):
        name = static[policy].get("annotations", {}).get("id")
        if not name:
            raise _invalid(f"policy {int(policy.removeprefix('policy')) + 1} of the file has no @id", place)
        if name in found.values():
            raise _invalid(f"the id {name!r} is used twice", place)
        found[policy] = name
    return found


def _zones(node: Any) -> Iterator[str]:
    """The zones that policies name, wherever in Cedar's JSON."""
    if isinstance(node, Mapping):
        if node.get("type") == "Zone" and isinstance(node.get("id"), str):
            yield node["id"]
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _zones(item)


def _type_of(entity: Any) -> str:
    uid = entity.get("uid") if isinstance(entity, Mapping) else None
    return str(uid.get("type")) if isinstance(uid, Mapping) else "something else"


def _invalid(what: str, place: str) -> ConfigurationError:
    return ConfigurationError(
        f"The Cedar policy is not valid: {what}.",
        place=place,
        remedy="Its schema is lepton_airflow.access.cedar.SCHEMA; `lepton access to-cedar` writes it beside the policy.",
    )


def _cedarpy() -> Any:
    try:
        import cedarpy
    except ImportError:
        raise MissingDependency(
            "Cedar policies need cedarpy.", place="policy_engine: cedar", remedy="Install lepton-airflow[cedar]."
        ) from None
    return cedarpy
