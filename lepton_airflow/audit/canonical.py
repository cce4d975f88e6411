"""Canonical JSON (RFC 8785): one value, one byte string, so that digests and leaf hashes mean something."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import rfc8785

from lepton_airflow.errors import InvalidData

#: Beyond this an integer is not exact as a JSON number (RFC 8785 section 3.2.2.3, I-JSON).
_LARGEST_EXACT_INTEGER = 2**53 - 1


def canonical_json(value: Any) -> bytes:
    """The canonical UTF-8 bytes of a JSON value.

    :raises InvalidData: the value has no canonical form (NaN, an integer beyond 2^53, a type that is not JSON)
    """
    plain = _plain(value)
    if plain is not None:
        return plain
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        # The library's text quotes the value, so only its type goes on.
        raise InvalidData(
            f"The value has no canonical JSON form ({type(error).__name__}).",
            place="canonical JSON",
            remedy="Use strings, booleans, null, finite numbers, integers below 2^53, lists and mappings.",
        ) from None


def parse_canonical(data: bytes) -> Any:
    """The value of canonical JSON bytes.

    :raises InvalidData: the bytes are not JSON, or not the canonical form of their own value
    """
    try:
        value = _decoder.decode(data.decode("utf-8"))
        if canonical_json(value) == data:
            return value
    except (ValueError, RecursionError, InvalidData):
        pass  # every way of not being canonical JSON gets the same error below
    raise InvalidData(
        "The bytes are not canonical JSON (RFC 8785).",
        place="canonical JSON",
        remedy="Write them with `canonical_json`; if they were, they have been changed since.",
    )


def digest(value: Any) -> str:
    """``sha256:<hex>`` of the canonical bytes of ``value``."""
    return f"sha256:{hashlib.sha256(canonical_json(value)).hexdigest()}"


_plain_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_decoder = json.JSONDecoder(parse_int=lambda digits: _integer(digits))
#: What may be a number that is not a short integer; inside a string it is only mistaken for one.
_OTHER_NUMBER = re.compile(r"(?:^|\":|[,\[])-?[0-9]*(?:[.eE]|[0-9]{16})")


def _plain(value: Any) -> bytes | None:
    """The canonical bytes by way of the standard library, which is several times faster; None if it may write another form.

    It writes RFC 8785's form of ASCII strings and exact integers. Others may sort in another order, and floats look different.
    """
    if not _has_text_keys(value):
        return None
    try:
        text = _plain_encoder.encode(value)
    except (TypeError, ValueError, RecursionError):
        return None
    return text.encode() if text.isascii() and not _OTHER_NUMBER.search(text) else None


def _has_text_keys(value: Any) -> bool:
    """The standard library would make text of other keys."""
    if type(value) is dict:
        if not set(map(type, value)) <= {str}:
            return False
        value = value.values()
    elif type(value) is not list:
        return value is None or type(value) in (str, bool, int)
    return all(_has_text_keys(item) for item in value if type(item) is not str)


def _integer(digits: str) -> int | float:
    """JSON has doubles only: a canonical ``1e20`` is written as an integer and must come back as the double it was."""
    number = int(digits) if len(digits) < 20 else _LARGEST_EXACT_INTEGER + 1
    return number if abs(number) <= _LARGEST_EXACT_INTEGER else float(digits)
