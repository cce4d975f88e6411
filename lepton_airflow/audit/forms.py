"""Forms: what leaves have in common whose JSON differs in nothing but plain texts and numbers.

That bytes are canonical JSON of the schema takes reading them and writing them again to find out. Bytes that are those of another
leaf of which it is known, but for texts and short integers, each in its place, are so too. What was found out of one leaf becomes
a regular expression, which takes a sixth of the time of finding it out of the next.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from lepton_airflow.audit.canonical import canonical_json, parse_canonical
from lepton_airflow.audit.schema import PRODUCER, SCHEMA, SCHEMAS
from lepton_airflow.errors import InvalidData

#: What reading a leaf raises that is not canonical JSON of the schema.
NOT_OF_THE_SCHEMA = (InvalidData, KeyError, TypeError, ValueError, AttributeError)

# What JSON does not escape but DEL, which nobody writes; and what it does, as RFC 8785 section 3.2.2.2 has it. Whether the bytes
# beyond ASCII are UTF-8 is asked of the whole. What was taken is never given back, so that no payload makes a form slow.
_TEXT = r"[ !#-\[\]-~\x80-\xff]*+"
_WITH_ESCAPES = rf'{_TEXT}(?:\\(?:["\\bfnrt]|u00(?:0[0-7bef]|1[0-9a-f])){_TEXT})*+'
_INTEGER = r"(?:0|-?[1-9][0-9]{0,14}+)"
_COUNT = r"((?:0|[1-9][0-9]{0,14}+))"
_UUID = "([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
_HASH = "([0-9a-f]{64})"
_TIME = "([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{6}Z)"
_NONE: list[re.Pattern[bytes]] = []
#: What is captured, by the path to it; a text with its quotes.
_CAPTURED: dict[tuple[str | int, ...], str] = {
    ("event_id",): f'"{_UUID}"',
    ("producer", "id"): f'"{_UUID}"',
    ("producer", "sequence"): _COUNT,
    ("time",): f'"{_TIME}"',
}
_CONSTANT = {("action",), ("phase",), ("schema",)}

#: A form of a larger leaf, or of one with more in it or deeper, would take longer to make than it saves.
_LONGEST, _MOST_FIELDS, _DEEPEST = 4096, 100, 8
#: Shapes that were seen once, before all are forgotten.
_SHAPES = 1024
#: Forms of leaves with equally many quotes, and of all, before the one of longest ago is forgotten.
_FORMS_ALIKE, _FORMS = 8, 128
#: So many leaves without a known form are looked at for one, and then one of so many: making a form takes as long as reading
#: some fifty leaves, so that no log takes much longer to verify than without forms.
_TRIES, _LEAVES_A_TRY = 64, 128


class Fields(NamedTuple):
    """What following a producer takes of an event. Only of ``schema``, ``producer`` and ``sequence`` was the type checked.

    :param schema: the leaf's
    :param producer: its id, as a UUID is written in full
    :param previous: the hash of the producer's preceding event in hex; None before its first
    :param opens: whether it is an opening event
    :param closes: whether its phase is that of a closing event
    :param counted: how many events the closing one counts; None of others
    """

    schema: str
    event_id: Any
    time: Any
    opens: bool
    closes: bool
    producer: str
    sequence: int
    previous: Any
    counted: Any


class Forms:
    """The forms of the leaves that were seen, as many as are of use."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        # By how many quotes the leaves have; of each the ones first that were matched last.
        self._forms: dict[int, list[re.Pattern[bytes]]] = {}
        self._known = self._tries = self._asked = 0

    def match(self, payload: bytes) -> re.Match[bytes] | None:
        """The leaf in a known form: it is canonical JSON of the schema, and its time looks like one.

        The groups are the count of a closing event, the event's id, its producer, the hash of the producer's preceding event, the
        event's number and its time; empty where there is none.
        """
        self._asked += 1
        forms = self._forms.get(payload.count(b'"'), _NONE)
        for place, form in enumerate(forms):
            if match := form.fullmatch(payload):
                if place:
                    forms.insert(0, forms.pop(place))
                return match if payload.isascii() or _is_utf8(payload) else None
        return None

    def learn(self, payload: bytes) -> None:
        """Look at a leaf that has no known form, so that the next of its form has."""
        if self._is_worth_a_try(payload):
            try:
                event = parse_canonical(payload)
                _fields(event)
            except NOT_OF_THE_SCHEMA:
                self._tries += 1
            else:
                self._remember(event, payload)

    def fields(self, payload: bytes) -> Fields:
        """What the event of a leaf says.

        :raises InvalidData: it is no canonical JSON
        :raises KeyError, TypeError, ValueError, AttributeError: it is not of the schema
        """
        if match := self.match(payload):
            return fields_of(match)
        event = parse_canonical(payload)
        fields = _fields(event)
        if self._is_worth_a_try(payload):
            self._remember(event, payload)
        return fields

    def _is_worth_a_try(self, payload: bytes) -> bool:
        return (
            self._tries < _TRIES + self._asked // _LEAVES_A_TRY
            and len(payload) <= _LONGEST
            and payload.count(b",") <= _MOST_FIELDS
        )

    def _remember(self, event: Any, payload: bytes) -> None:
        self._tries += 1
        shape = _shape_of(event)
        if shape is None:
            return
        if hash(shape) not in self._seen:
            if len(self._seen) == _SHAPES:
                self._seen.clear()
            self._seen.add(hash(shape))
            return
        form = re.compile(shape.encode())
        if form.fullmatch(payload):
            if self._known == _FORMS:
                self._known -= len(self._forms.pop(next(iter(self._forms))))
            alike = self._forms.setdefault(payload.count(b'"'), [])
            if len(alike) == _FORMS_ALIKE:
                alike.pop()
                self._known -= 1
            alike.insert(0, form)
            self._known += 1


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def fields_of(match: re.Match[bytes]) -> Fields:
    """What the event of a leaf in a known form says."""
    counted, event_id, producer, previous, sequence, time = match.groups()
    return Fields(
        schema=SCHEMA,
        event_id=event_id.decode(),
        time=time.decode(),
        opens=not previous,
        closes=counted != b"",
        producer=producer.decode(),
        sequence=int(sequence),
        previous=previous.decode() or None,
        counted=int(counted) if counted else None,
    )


def _fields(event: Any) -> Fields:
    producer = event["producer"]
    sequence, previous = producer["sequence"], producer["previous"]
    closes = event["phase"] == "close"
    counted = event["counts"]["events"] if closes and event["action"] == PRODUCER else None
    schema = event["schema"]
    if schema not in SCHEMAS or type(sequence) is not int or sequence < 0:
        raise ValueError("not an event of this schema")
    producer_id = str(uuid.UUID(producer["id"]))
    event_id, time = event["event_id"], event["time"]
    return Fields(schema, event_id, time, _opens(event), closes, producer_id, sequence, previous, counted)


def _opens(event: Any) -> bool:
    return bool(event["phase"] == "open" and event["action"] == PRODUCER)


def _shape_of(event: Any) -> str | None:
    """The regular expression of leaves like the one of this event; None if it is not a usual one."""
    closes = event["phase"] == "close"
    if event["schema"] != SCHEMA or (closes and event["action"] != PRODUCER):
        return None
    captured = _CAPTURED | ({("counts", "events"): _COUNT} if closes else {})
    # An event that is not so is not in the form that is made of it.
    captured[("producer", "previous")] = "null()" if _opens(event) else f'"{_HASH}"'
    try:
        return ("" if closes else "()") + _pattern(event, (), captured)
    except ValueError:
        return None


def _pattern(value: Any, path: tuple[str | int, ...], captured: Mapping[tuple[str | int, ...], str]) -> str:
    """:raises ValueError: it has something that no form has"""
    if path in captured:
        return captured[path]
    if len(path) > _DEEPEST:
        raise ValueError("too deep")
    if path in _CONSTANT or value is None:
        return re.escape(canonical_json(value).decode())
    if type(value) is bool:
        return "(?:true|false)"
    if type(value) is dict:
        # In ASCII the order of canonical JSON is that of Python.
        if not all(name.isascii() for name in value):
            raise ValueError("a name of other characters")
        inner = [
            f"{re.escape(canonical_json(name).decode())}:{_pattern(value[name], (*path, name), captured)}"
            for name in sorted(value)
        ]
        return f"\\{{{','.join(inner)}\\}}"
    if type(value) is list:
        return f"\\[{','.join(_pattern(item, (*path, place), captured) for place, item in enumerate(value))}\\]"
    if type(value) is str:
        escapes = b"\\" in canonical_json(value)
        return f'"{_WITH_ESCAPES if escapes else _TEXT}"'
    if type(value) is int:
        return _INTEGER
    raise ValueError("a number that is no integer")
