"""Who may do what with which columns, for which purpose: the policy file and its decisions.

Everything that no grant allows is denied. A request is allowed when no denial touches it and every one of its columns
is covered by some grant that fits the principal, action, dataset, purpose and conditions. Datasets, columns and
purposes of a rule are shell patterns (``clinic.*``). A request without columns concerns the dataset as a whole and is
only touched by rules that list the column pattern ``*``. Grants match exactly; denials ignore case, because Spark does:
a column spelled ``EMAIL`` must not slip past the denial of ``email``.

The file's JSON Schema is ``policy.schema.json`` beside this module; editors complete and check the file with it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lepton_airflow.audit.canonical import digest
from lepton_airflow.errors import ConfigurationError

Action = Literal["encrypt", "decrypt", "release", "train", "rotate", "verify"]
Name = Annotated[str, Field(min_length=1)]
Patterns = Annotated[tuple[Name, ...], Field(min_length=1)]

#: In a denial's ``role``: every principal. Grants must name a role.
EVERYONE = "*"
WHOLE_DATASET = "*"


@dataclass(frozen=True)
class Request:
    """What a principal wants to do.

    :param columns: the columns that the operation reads or writes; none means the dataset as a whole
    :param epsilon: the privacy cost of a release
    """

    principal: str
    action: str
    dataset: str
    columns: tuple[str, ...]
    purpose: str
    epsilon: float | None = None


@dataclass(frozen=True)
class Decision:
    """The answer.

    :param rules: ids of the grants that allowed it, or of the denials that forbade it, in the order of the file
    :param policy_digest: of the policy that decided
    """

    allow: bool
    rules: tuple[str, ...]
    policy_digest: str
    reason: str


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Role(_Model):
    """A set of principals."""

    members: tuple[Name, ...] = Field(description="Names of identities.")


class Conditions(_Model):
    """What a grant asks for besides."""

    max_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="The largest epsilon of one release; a release that does not state its epsilon does not meet it.",
    )


class Rule(_Model):
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


class Policy(_Model):
    """A validated policy file."""

    version: Literal[1]
    roles: dict[Name, Role] = {}
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
            if grant.conditions.max_epsilon is not None and grant.actions != ("release",):
                raise ValueError(f"grants.{position}.conditions.max_epsilon: only a grant of `release` alone has one")
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
        return digest(self.model_dump(mode="json"))

    def decide(self, request: Request) -> Decision:
        """Whether the request is allowed, by which rules, and why."""

        def decision(allow: bool, rules: Sequence[Rule], reason: str) -> Decision:
            return Decision(allow, tuple(rule.id for rule in rules), self.digest, reason)

        wanted = request.columns or (WHOLE_DATASET,)
        denials = [rule for rule in self.denials if self._denies(rule, request)]
        if denials:
            return decision(False, denials, f"denied by rule {', '.join(rule.id for rule in denials)}")
        fitting = [rule for rule in self.grants if self._fits(rule, request, matches=fnmatchcase)]
        useful = [rule for rule in fitting if _meets(rule.conditions, request)]
        covering = {column: [rule for rule in useful if _covers(rule, column, fnmatchcase)] for column in wanted}
        uncovered = [column for column, rules in covering.items() if not rules]
        if not uncovered:
            used = {rule.id for rules in covering.values() for rule in rules}
            return decision(True, [rule for rule in useful if rule.id in used], "granted")
        what = "the dataset as a whole" if not request.columns else f"column {', '.join(uncovered)}"
        if len(useful) < len(fitting):
            unmet = ", ".join(rule.id for rule in fitting if rule not in useful)
            return decision(False, (), f"no grant covers {what}; the conditions of {unmet} are not met")
        return decision(False, (), f"no grant covers {what}")

    def _denies(self, rule: Denial, request: Request) -> bool:
        return self._fits(rule, request, matches=_matches_any_case) and any(
            _covers(rule, column, _matches_any_case) for column in request.columns or (WHOLE_DATASET,)
        )

    def _fits(self, rule: Rule, request: Request, *, matches: Callable[[str, str], bool]) -> bool:
        """Everything but the columns and the conditions."""
        everyone = isinstance(rule, Denial) and rule.role == EVERYONE
        return (
            (everyone or request.principal in self.roles[rule.role].members)
            and request.action in rule.actions
            and any(matches(request.dataset, pattern) for pattern in rule.datasets)
            and any(matches(request.purpose, pattern) for pattern in rule.purposes)
        )


def _covers(rule: Rule, column: str, matches: Callable[[str, str], bool]) -> bool:
    if column == WHOLE_DATASET:
        return WHOLE_DATASET in rule.columns
    return any(matches(column, pattern) for pattern in rule.columns)


def _meets(conditions: Conditions, request: Request) -> bool:
    limit = conditions.max_epsilon
    return limit is None or (request.epsilon is not None and 0 < request.epsilon <= limit)


def _matches_any_case(name: str, pattern: str) -> bool:
    return fnmatchcase(_fold(name), _fold(pattern))


def _fold(name: str) -> str:
    """Fold case one character at a time, to upper and then to lower, as Java's equalsIgnoreCase and so Spark does."""

    def fold(character: str) -> str:
        upper = character.upper()
        return (upper if len(upper) == 1 else character).lower()[0]

    return "".join(map(fold, name))


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


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
