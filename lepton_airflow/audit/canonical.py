"""Canonical JSON (RFC 8785): one value, one byte string, so that digests and leaf hashes mean something."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import rfc8785

from lepton_airflow.errors import InvalidData

#: Beyond this an integer is not exact as a JSON number (RFC 8785 section 3.2.2.3, I-JSON).
_LARGEST_EXACT_INTEGER = 2**53 - 1
_DEEPEST = 20


def canonical_json(value: Any) -> bytes:
    """The canonical UTF-8 bytes of a JSON value.

    :raises InvalidData: the value has no canonical form (NaN, an integer beyond 2^53, a type that is not JSON)
    """
    if _is_plain(value):
        # The same bytes, several times faster: every event that is written or verified comes through here.
        return _plain_encoder.encode(value).encode()
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
        value = json.loads(data.decode("utf-8"), parse_int=_integer)
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


_plain_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False)


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether the standard library writes ``value`` as RFC 8785 does: ASCII strings, exact integers, no floats.

    Other strings may sort in another order, and floats are written in another form.
    """
    kind = type(value)
    if kind is str:
        return bool(value.isascii())
    if value is None or kind is bool:
        return True
    if kind is int:
        return bool(-_LARGEST_EXACT_INTEGER <= value <= _LARGEST_EXACT_INTEGER)
    if depth > _DEEPEST:
        return False
    if kind is dict:
        return all(type(key) is str and key.isascii() and _is_plain(item, depth + 1) for key, item in value.items())
    return kind is list and all(_is_plain(item, depth + 1) for item in value)


def _integer(digits: str) -> int | float:
    """JSON has doubles only: a canonical ``1e20`` is written as an integer and must come back as the double it was."""
    number = int(digits) if len(digits) < 20 else _LARGEST_EXACT_INTEGER + 1
    return number if abs(number) <= _LARGEST_EXACT_INTEGER else float(digits)
