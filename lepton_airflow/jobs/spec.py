"""Job specifications: one frozen model is the operator's arguments, the YAML behind ``--spec`` and what the audit digests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lepton_airflow.errors import SpecError

SpecType = TypeVar("SpecType", bound="JobSpec")

_SECRET_OPTION = re.compile(r"password|secret|token|credential|accesskey", re.IGNORECASE)


class SpecModel(BaseModel):
    """Base of all parts of a spec: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TableReference(SpecModel):
    """A table that Spark can read.

    :param name: the dataset's name in policies, budgets and the audit, such as ``clinic.visits``
    :param format: the Spark data source
    :param path: where it is, for file formats; exactly one of ``path`` and ``table``
    :param table: its name in Spark's catalogue
    :param options: options of the data source. They are logged, so none may hold a secret
    :param secret_options: options whose values are secrets: option name -> name of the environment variable of the Spark driver
        that holds the value
    """

    name: str = Field(min_length=1)
    format: str = "parquet"
    path: str | None = None
    table: str | None = None
    options: dict[str, str] = {}
    secret_options: dict[str, str] = {}

    @model_validator(mode="after")
    def _one_place_and_no_secret(self) -> TableReference:
        if self.path is not None and self.table is not None:
            raise ValueError("give path or table, not both")
        if self.path is None and self.table is None and not self.options:
            raise ValueError("give path, table, or the options of a data source that needs neither")
        for option in self.options:
            if _SECRET_OPTION.search(option):
                raise ValueError(
                    f"option {option!r} looks like a secret; name its environment variable in secret_options"
                )
        return self


class TargetReference(TableReference):
    """A table to write. ``errorifexists`` keeps what is there; ``overwrite`` replaces it once the new one is durable."""

    mode: Literal["errorifexists", "overwrite"] = "errorifexists"


class JobSpec(SpecModel):
    """What every job's spec has.

    :param purpose: why this is done; the policy grants actions for purposes, and the audit records it
    """

    purpose: str = Field(min_length=1)


def parse_spec(model: type[SpecType], fields: Mapping[str, Any]) -> SpecType:
    """Validate ``fields`` against a job's spec model.

    :raises SpecError: naming the first field that is wrong and how many more are
    """
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        # Inputs and contexts stay out: a spec may be rendered from values that do not belong in a log.
        details = error.errors(include_input=False, include_context=False, include_url=False)
        first = details[0]
        place = ".".join(str(part) for part in first["loc"]) or "spec"
        rule = first["msg"].removeprefix("Value error, ")
        more = f" ({len(details) - 1} more fields are wrong.)" if len(details) > 1 else ""
        remedy = f"Fields of {model.__name__}: {', '.join(model.model_fields)}."
        if first["type"] == "extra_forbidden":
            rule = "There is no such field"
        raise SpecError(f"{rule}.{more}", place=f"{model.__name__}.{place}", remedy=remedy) from None


def read_spec_file(file: Path) -> dict[str, Any]:
    """Read a YAML (or JSON) spec.

    :raises SpecError: the file is not readable or holds no mapping
    """
    try:
        fields = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"The spec cannot be read ({type(error).__name__}).",
            place=str(file),
            remedy="Give the path of a YAML file to --spec.",
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise SpecError(f"The spec is not valid YAML{line}.", place=str(file), remedy="Mend the file.") from None
    if not isinstance(fields, dict):
        raise SpecError("A spec is a mapping of fields.", place=str(file), remedy="See docs/ for each job's fields.")
    return fields
