"""Who may do what with which columns, for which purpose: the policy file and its decisions.

Everything that no grant allows is denied. A request is allowed when no denial touches it and every one of its columns
is covered by some grant that fits the principal, action, dataset, purpose and conditions. Datasets, columns and
purposes of a rule are shell patterns (``clinic.*``). A request without columns concerns the dataset as a whole and is
only touched by rules that list the column pattern ``*``. Grants match exactly; denials ignore case, because Spark does:
a column spelled ``EMAIL`` must not slip past the denial of ``email``.

A grant of a column is one of its nested fields too. A denial of a column forbids its fields, and a denial of a field forbids
the whole column, since who reads that reads the field.

The file's JSON Schema is ``policy.schema.json`` beside this module; editors complete and check the file with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from lepton_airflow.access.conditions import Conditions, Name, PolicyModel
from lepton_airflow.access.patterns import Matches, covers, forbids, matches_any_case, matches_exactly
from lepton_airflow.access.request import Action, Decision, Request, moment, named
from lepton_airflow.audit.canonical import digest
from lepton_airflow.errors import ConfigurationError

__all__ = ["EVERYONE", "Action", "Decision", "Denial", "Grant", "Policy", "Request", "Role", "Rule", "policy_schema"]

Patterns = Annotated[tuple[Name, ...], Field(min_length=1)]

#: In a denial's ``role``: every principal. Grants must name a role.
EVERYONE = "*"


class Role(PolicyModel):
    """A set of principals."""

    members: tuple[Name, ...] = Field(description="Names of identities.")


class Rule(PolicyModel):
    """Actions of a role on every dataset and column that the patterns match, for matching purposes."""

    id: Name = Field(description="Names the rule in decisions and in the audit; unique in the file.")
    role: Name
    actions: tuple[Action, ...] = Field(min_length=1)
    datasets: Patterns = Field(description="Shell patterns of dataset names.")
    columns: Patterns = Field(description='Shell patterns of column names; "*" also stands for the dataset as a whole.')
    purposes: Patterns = Field(description="Shell patterns of purposes.")


class Grant(Rule):
    """Allows what it describes, under its conditions."""

    conditions: Conditions = Conditions()


class Denial(Rule):
    """Forbids what it describes, whatever the grants say; its role can be ``*``: everyone."""


class Policy(PolicyModel):
    """A validated policy file."""

    version: Literal[1]
    roles: dict[Name, Role] = Field(default={})
    grants: tuple[Grant, ...] = ()
    denials: tuple[Denial, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Policy:
        ids: set[str] = set()
        for kind, rules in (("grants", self.grants), ("denials", self.denials)):
            for position, rule in enumerate(rules):
                if rule.id in ids:
                    raise ValueError(f"{kind}.{position}.id: the id {rule.id!r} is used twice")
                ids.add(rule.id)
                if rule.role not in self.roles and not (isinstance(rule, Denial) and rule.role == EVERYONE):
                    raise ValueError(f"{kind}.{position}.role: there is no role {rule.role!r}")
        for position, grant in enumerate(self.grants):
            for name in ("max_epsilon", "approval"):
                if getattr(grant.conditions, name) is not None and set(grant.actions) != {"release"}:
                    raise ValueError(f"grants.{position}.conditions.{name}: only a grant of `release` alone has one")
        return self

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read and validate a policy file.

        :raises ConfigurationError: the file is missing, not YAML or not a valid policy; the text names the field
        """
        try:
            fields = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            mark = getattr(error, "problem_mark", None)
            at = f", line {mark.line + 1}" if mark is not None else ""
            problem = getattr(error, "problem", None) or type(error).__name__
            raise ConfigurationError(
                f"The policy cannot be read ({problem}).",
                place=f"{path}{at}",
                remedy="Without a policy everything is denied. `lepton init` writes one to start from.",
            ) from None
        return cls.parse(fields, place=str(path))

    @classmethod
    def parse(cls, fields: Any, *, place: str) -> Policy:
        """Validate the fields of a policy.

        :param place: for the errors: the file
        :raises ConfigurationError: naming the field
        """
        try:
            return cls.model_validate(_tuples(fields))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigurationError(
                f"The policy is not valid: {message}.",
                place=f"{place}: {field}" if field else place,
                remedy="Its fields are described in lepton_airflow/access/policy.schema.json.",
            ) from None

    @cached_property
    def digest(self) -> str:
        """``sha256:<hex>`` of the policy's meaning; comments and layout of the file do not change it."""
        # Without what is left at its default, so that a condition added to this package later does not change the digest of
        # a policy that does not use it.
        return digest(self.model_dump(mode="json", by_alias=True, exclude_defaults=True))

    def decide(self, request: Request, *, at: datetime | None = None) -> Decision:
        """Whether the request is allowed, by which rules, and why.

        :param at: the time that conditions are held against, with its offset; default now
        :raises InvalidData: a time without an offset
        """
        now = moment(at)

        def decision(allow: bool, rules: Sequence[Rule], reason: str) -> Decision:
            return Decision(allow, tuple(rule.id for rule in rules), self.digest, reason)

        denials = [rule for rule in self.denials if self._denies(rule, request)]
        if denials:
            return decision(False, denials, f"denied by rule {', '.join(rule.id for rule in denials)}")
        fitting = [rule for rule in self.grants if self._fits(rule, request, matches=matches_exactly)]
        unmet = {rule.id: rule.conditions.unmet(request, now) for rule in fitting}
        used: set[str] = set()
        uncovered = []
        held_back: dict[str, tuple[str, ...]] = {}
        for column in request.wanted:
            covering = [rule for rule in fitting if covers(rule.columns, column, matches_exactly)]
            useful = {rule.id for rule in covering if not unmet[rule.id]}
            used |= useful
            if not useful:
                uncovered.append(column)
                held_back |= {rule.id: unmet[rule.id] for rule in covering}
        if not uncovered:
            return decision(True, [rule for rule in fitting if rule.id in used], "granted")
        reason = f"no grant covers {named(tuple(uncovered))}"
        for rule_id, conditions in held_back.items():
            reason += f"; the conditions of {rule_id} are not met ({'; '.join(conditions)})"
        return decision(False, (), reason)

    def members(self, rule: Rule) -> frozenset[str] | None:
        """The principals that a rule is about; None for everyone."""
        if isinstance(rule, Denial) and rule.role == EVERYONE:
            return None
        return frozenset(self.roles[rule.role].members)

    def _denies(self, rule: Denial, request: Request) -> bool:
        return self._fits(rule, request, matches=matches_any_case) and any(
            forbids(rule.columns, column) for column in request.wanted
        )

    def _fits(self, rule: Rule, request: Request, *, matches: Matches) -> bool:
        """Everything but the columns and the conditions."""
        members = self.members(rule)
        return (
            (members is None or request.principal in members)
            and request.action in rule.actions
            and any(matches(request.dataset, pattern) for pattern in rule.datasets)
            and any(matches(request.purpose, pattern) for pattern in rule.purposes)
        )


def policy_schema() -> str:
    """The text of ``policy.schema.json``: the JSON Schema (draft 2020-12) of the policy file, from the model itself."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:lepton-airflow:policy:1",
        **_without_null(Policy.model_json_schema()),
    }
    return json.dumps(schema, indent=2) + "\n"


def _without_null(schema: Any) -> Any:
    """What may be left out is not written as null, see :class:`~lepton_airflow.access.conditions.PolicyModel`."""
    if isinstance(schema, list):
        return [_without_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    fields = {name: _without_null(value) for name, value in schema.items() if (name, value) != ("default", None)}
    kinds = [kind for kind in fields.pop("anyOf", ()) if kind != {"type": "null"}]
    if isinstance(fields.get("default"), dict):
        fields["default"] = {name: value for name, value in fields["default"].items() if value is not None}
    return {**(kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {}), **fields}


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _plain_scalars() -> dict[str, list[tuple[str, Any]]]:
    """YAML 1.1 reads ``18:00`` as 1080 and ``2026-05-04`` as a date; as in YAML 1.2, and in editors, both are texts here."""
    sexagesimal = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}

    def without_colons(pattern: Any) -> Any:
        return re.compile(rf"(?!.*:)(?:{pattern.pattern})", pattern.flags)

    return {
        first: [
            (tag, without_colons(pattern) if tag in sexagesimal else pattern)
            for tag, pattern in resolvers
            if tag != "tag:yaml.org,2002:timestamp"
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is given twice: YAML would keep the last one, and a list of denials would vanish unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key in _scalar_keys(node):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _scalar_keys(node: yaml.MappingNode) -> Iterator[yaml.ScalarNode]:
    return (key for key, _ in node.value if isinstance(key, yaml.ScalarNode))


_UniqueKeyLoader.yaml_implicit_resolvers = _plain_scalars()
