"""Canonical JSON (RFC 8785): one value, one byte string, so that digests and leaf hashes mean something."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NoReturn

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
        text = data.decode("utf-8")
        value = _plain_decoder.decode(text) if _sorts_alike(text) else None
        if _plain_encoder.encode(value) == text:
            return value
    except (ValueError, RecursionError):
        pass  # not plain; it may be canonical nevertheless
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


def _exact_integer(digits: str) -> int:
    number = int(digits)
    if abs(number) > _LARGEST_EXACT_INTEGER:
        raise ValueError("not plain")
    return number


def _not_plain(_: str) -> NoReturn:
    raise ValueError("not plain")


def _plain_float(digits: str) -> float:
    number = float(digits)
    return number if _is_plain(number) else _not_plain(digits)


#: Of text with exact integers and floats of usual size: what :func:`_is_plain` says of values.
_plain_decoder = json.JSONDecoder(parse_int=_exact_integer, parse_float=_plain_float, parse_constant=_not_plain)


def _plain(value: Any) -> bytes | None:
    """The canonical bytes by way of the standard library, which is several times faster; None if it may write another form.

    It writes RFC 8785's form of strings, exact integers, and floats of usual size. Some keys sort in another order, and floats
    that are whole, or that Python writes with an exponent, look different.
    """
    try:
        text = _plain_encoder.encode(value) if _is_plain(value) else ""
    except (TypeError, ValueError, RecursionError):
        return None
    return text.encode() if text and _sorts_alike(text) else None


def _sorts_alike(text: str) -> bool:
    """Whether its characters sort in the order of UTF-16, as RFC 8785 sorts keys: below the surrogates they do."""
    return text.isascii() or max(text) < "\ud800"


def _is_plain(value: Any) -> bool:
    """Whether it holds exact integers, usual floats, and no keys but strings: the standard library would make text of others."""
    kind = type(value)
    if kind is dict:
        if not set(map(type, value)) <= {str}:
            return False
        value = value.values()
    elif kind is int:
        return bool(-_LARGEST_EXACT_INTEGER <= value <= _LARGEST_EXACT_INTEGER)
    elif kind is float:
        # Both write the shortest digits that come back as this number (RFC 8785 section 3.2.2.3), here without an exponent.
        return bool(1e-4 <= abs(value) < 1e16) and not value.is_integer()
    elif kind is not list:
        return value is None or kind is str or kind is bool
    return all(type(item) is str or _is_plain(item) for item in value)


def _integer(digits: str) -> int | float:
    """JSON has doubles only: a canonical ``1e20`` is written as an integer and must come back as the double it was."""
    number = int(digits) if len(digits) < 20 else _LARGEST_EXACT_INTEGER + 1
    return number if abs(number) <= _LARGEST_EXACT_INTEGER else float(digits)
