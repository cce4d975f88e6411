"""Holds events against OpenLineage's specification.

The structure comes from the classes of openlineage-python, which are generated from the specification's JSON schemas (the schemas
themselves are not in the package). Where the variable ``OPENLINEAGE_SPEC`` names the folder ``spec`` of a checkout of the
OpenLineage project, events are held against those schemas too.
"""

from __future__ import annotations

import enum
import importlib
import json
import os
import pkgutil
import types
import typing
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attr
import jsonschema
from openlineage.client import generated
from openlineage.client.generated import base
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

import lepton_airflow.lineage

OUR_SCHEMA = json.loads((Path(lepton_airflow.lineage.__path__[0]) / "lepton_privacy.schema.json").read_text())
OFFICIAL = os.environ.get("OPENLINEAGE_SPEC")

_formats = jsonschema.FormatChecker(formats=())


@_formats.checks("date-time")
def _is_time(value: object) -> bool:
    try:
        return not isinstance(value, str) or ("T" in value and datetime.fromisoformat(value).tzinfo is not None)
    except ValueError:
        return False


@_formats.checks("uri")
def _is_uri(value: object) -> bool:
    return not isinstance(value, str) or bool(urlsplit(value).scheme)


@_formats.checks("uuid")
def _is_uuid(value: object) -> bool:
    try:
        return not isinstance(value, str) or bool(uuid.UUID(value))
    except ValueError:
        return False


_FORMATS = {
    "eventTime": "date-time",
    "producer": "uri",
    "schemaURL": "uri",
    "runId": "uuid",
    "_producer": "uri",
    "_schemaURL": "uri",
}
_ALWAYS = {"producer", "schemaURL", "_producer", "_schemaURL"}
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema_of(kind: Any, within: tuple[Any, ...] = ()) -> dict[str, Any]:
    """The JSON schema of a type of openlineage-python; a type within itself is not looked into again."""
    if kind is Any:
        return {}
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [schema_of(one, within) for one in arguments if one is not types.NoneType]}
    if origin is list:
        return {"type": "array", "items": schema_of(arguments[0], within)}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(arguments[1], within)}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if kind in within:
        return {"type": "object"}
    if issubclass(kind, enum.Enum):
        return {"enum": [one.value for one in kind]}
    hints = typing.get_type_hints(kind)
    fields = attr.fields(kind)
    properties = {field.name: schema_of(hints[field.name], (*within, kind)) for field in fields}
    for name in properties.keys() & _FORMATS.keys():
        properties[name] |= {"format": _FORMATS[name]}
    # A facet where any facet may be: its own schema is looked up by its URL.
    is_open = kind.__module__ == base.__name__ and issubclass(kind, base.BaseFacet)
    return {
        "type": "object",
        "properties": properties,
        "required": [field.name for field in fields if field.default is attr.NOTHING or field.name in _ALWAYS],
        "additionalProperties": is_open,
    }


def _facets_by_schema() -> dict[str, dict[str, Any]]:
    found = {}
    for module in pkgutil.iter_modules(generated.__path__):
        for value in vars(importlib.import_module(f"{generated.__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, base.BaseFacet) and value.__module__ != base.__name__:
                found[value._get_schema()] = schema_of(value)
    return found


FACETS = _facets_by_schema()
EVENT = schema_of(base.RunEvent)


def _official_registry() -> Registry[Any]:
    assert OFFICIAL
    documents = [json.loads(file.read_text()) for file in Path(OFFICIAL).glob("*.json")]
    documents += [json.loads(file.read_text()) for file in Path(OFFICIAL).glob("facets/*.json")]
    resources = [(document["$id"], Resource(document, DRAFT202012)) for document in documents if "$id" in document]
    return Registry().with_resources(resources)


REGISTRY = _official_registry() if OFFICIAL else None


def facets_of(event: dict[str, Any]) -> list[dict[str, Any]]:
    holders = [event["run"], event["job"], *event["inputs"], *event["outputs"]]
    return [
        facet
        for holder in holders
        for group in ("facets", "inputFacets", "outputFacets")
        for facet in (holder.get(group) or {}).values()
    ]


def check(event: dict[str, Any]) -> None:
    """Raise unless the event and each of its facets are as the specification says."""
    jsonschema.validate(event, EVENT, format_checker=_formats)
    for facet in facets_of(event):
        url = facet["_schemaURL"]
        if url.startswith(OUR_SCHEMA["$id"]):
            jsonschema.validate({"lepton_privacy": facet}, OUR_SCHEMA, format_checker=_formats)
        elif url in FACETS:
            jsonschema.validate(facet, FACETS[url], format_checker=_formats)
        else:
            assert "lepton" not in url, url
    if REGISTRY is not None:
        _check_officially(event)


def _check_officially(event: dict[str, Any]) -> None:
    references = [(event, event["schemaURL"])]
    references += [(facet, facet["_schemaURL"]) for facet in facets_of(event)]
    known = set(REGISTRY)  # type: ignore[call-overload]
    for value, url in references:
        if url.partition("#")[0] in known:
            validator = jsonschema.Draft202012Validator({"$ref": url}, registry=REGISTRY, format_checker=_formats)
            validator.validate(value)
        else:
            assert "openlineage.io" not in url, url


def read_events(file: Path) -> list[dict[str, Any]]:
    """The events of a file transport in append mode; each is checked."""
    events = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for event in events:
        check(event)
    return events


def essence(value: Any) -> Any:
    """An event, a dataset or a facet without what differs from run to run and from sender to sender."""
    if isinstance(value, dict):
        volatile = {"_producer", "runKey", "keyId"}
        return {name: essence(one) for name, one in value.items() if name not in volatile}
    return [essence(one) for one in value] if isinstance(value, list) else value
