"""How audit events name the ciphers of columns: details are plain texts."""

from __future__ import annotations

import json
from collections.abc import Mapping


def ciphers_text(ciphers: Mapping[str, str]) -> str:
    """The cipher of each column, as JSON."""
    return json.dumps(dict(sorted(ciphers.items())), ensure_ascii=False, separators=(",", ":"))


def ciphers_of(text: str) -> dict[str, str]:
    """What :func:`ciphers_text` wrote; nothing where it did not."""
    try:
        ciphers = json.loads(text)
    except ValueError:
        return {}
    return {str(column): str(cipher) for column, cipher in ciphers.items()} if isinstance(ciphers, dict) else {}
