"""Holds events against OpenLineage's specification.

The published JSON Schemas are in no package, and no copy of them is kept here: ``openlineage.yaml`` says in a notation of its own
what they say. Its digests, which ``test_specification.py`` holds, show that it says the same.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

import lepton_airflow.lineage

DOCUMENTS = yaml.safe_load(Path(__file__).with_name("openlineage.yaml").read_text())
CORE = next(iter(DOCUMENTS))
RUN_EVENT = f"{CORE}#/$defs/RunEvent"
OUR_SCHEMA = json.loads((Path(lepton_airflow.lineage.__path__[0]) / "lepton_privacy.schema.json").read_text())

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


def _definitions(url: str) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """The bases and the fields of each definition of a document, by name."""
    found = {}
    for heading, fields in DOCUMENTS[url]["definitions"].items():
        name, *bases = re.findall(r"\w+", heading)
        found[name] = (bases, fields or {})
    return found


#: What other definitions are made of: these know the fields that they add. A facet in an event has a schema of its own.
_BASES = {base for url in DOCUMENTS for bases, _ in _definitions(url).values() for base in bases}


class Notation:
    """Makes the JSON Schema of a document.

    :param closed: refuse fields that the specification does not know, as it does not itself
    """

    def __init__(self, url: str, *, closed: bool) -> None:
        self._url = url
        self._closed = {"unevaluatedProperties": False} if closed else {}
        self._known = _definitions(url)

    def schema(self) -> dict[str, Any]:
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": self._url,
            "$defs": {name: self._definition(name, *parts) for name, parts in self._known.items()},
            **self._type(DOCUMENTS[self._url]["document"]),
        }

    def _definition(self, name: str, bases: list[str], fields: dict[str, Any]) -> dict[str, Any]:
        schema = self._object(fields)
        if bases:
            parts = [self._type(base) for base in bases if base != "object"]
            schema = {"allOf": [*parts, schema] if fields else parts}
            schema |= {"type": "object"} if "object" in bases else {}
        return schema if name in _BASES else schema | self._closed

    def _object(self, fields: dict[str, Any]) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "object"}
        for key, value in fields.items():
            if key == "*":
                schema["additionalProperties"] = self._type(value)
            elif key == "$any":
                schema["anyOf"] = [self._type(one) for one in value]
            elif key == "$not":
                schema["not"] = {"required": value}
            else:
                name = key.removesuffix("!")
                schema.setdefault("properties", {})[name] = self._type(value)
                if name != key:
                    schema.setdefault("required", []).append(name)
        return schema

    def _type(self, notation: Any) -> dict[str, Any]:
        if isinstance(notation, list):
            return {"type": "array", "items": self._type(notation[0])}
        if isinstance(notation, dict):
            schema = self._object(notation)
            return schema | self._closed if "properties" in schema else schema
        choices = notation.split(" | ")
        if len(choices) > 1 and self._known.keys() >= set(choices):
            return {"oneOf": [self._type(one) for one in choices]}
        if len(choices) > 1:
            return {"type": "string", "enum": choices}
        kind, _, bound = notation.partition(" >= ")
        if bound:
            return {"type": kind, "minimum": int(bound)}
        if kind in _formats.checkers:
            return {"type": "string", "format": kind}
        if kind.islower():
            return {"type": kind}
        return {"$ref": f"{'' if kind in self._known else CORE}#/$defs/{kind}"}


_SCHEMAS = [OUR_SCHEMA, *(Notation(url, closed=True).schema() for url in DOCUMENTS)]
_REGISTRY: Registry[Any] = Registry().with_resources((one["$id"], Resource(one, DRAFT202012)) for one in _SCHEMAS)


def _facets(value: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every facet and its name, wherever it is."""
    if isinstance(value, dict):
        if "_schemaURL" in value:
            yield name, value
        for key, one in value.items():
            yield from _facets(one, key)
    elif isinstance(value, list):
        for one in value:
            yield from _facets(one)


def _validate(value: Any, url: str) -> None:
    """Raise unless the value is as the schema says; there must be one."""
    jsonschema.Draft202012Validator({"$ref": url}, registry=_REGISTRY, format_checker=_formats).validate(value)


def check(event: dict[str, Any]) -> None:
    """Raise unless the event and each of its facets are as the specification says."""
    _validate(event, RUN_EVENT)
    assert event["schemaURL"] == RUN_EVENT
    for name, facet in _facets(event):
        url = facet["_schemaURL"]
        _validate(facet, url)
        document = url.partition("#")[0]
        if document != CORE:  # which gives no facet a name
            _validate({name: facet}, document)


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
