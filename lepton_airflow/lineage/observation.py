"""What only a running job knows of its lineage: the schemas of the tables it opened, their protection, the keys.

It is stored beside the job's result, where the operator that submitted the job finds it. Names and types, never a value or a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class Observation:
    """Filled while a job runs."""

    def __init__(self) -> None:
        self.policy_digest: str | None = None
        self._tables: dict[str, dict[str, Any]] = {}
        self._keys: dict[str, dict[str, int]] = {}

    def table(
        self, name: str, fields: Sequence[tuple[str, str]], protected: Mapping[str, Mapping[str, str | None]]
    ) -> None:
        """A table was opened.

        :param fields: its columns and their Spark types
        :param protected: by column or path of a nested field: ``cipher``, ``keyset``, ``domain``, and ``type`` without protection
        """
        self._tables[name] = {
            "fields": [list(one) for one in fields],
            "protected": {
                column: {part: value for part, value in parts.items() if value is not None}
                for column, parts in protected.items()
            },
        }

    def primary_key(self, keyset: str, cipher: str, key_id: int) -> None:
        """The key under which new values of a keyset are encrypted."""
        self._keys.setdefault(keyset, {})[cipher] = key_id

    def to_dict(self) -> dict[str, Any]:
        """As JSON; small."""
        return {"policy_digest": self.policy_digest, "tables": self._tables, "keys": self._keys}


@dataclass(frozen=True)
class SeenTable:
    """A table as a job saw it; empty before the job ran.

    :ivar fields: columns and types
    :ivar protected: see :meth:`Observation.table`
    """

    fields: tuple[tuple[str, str | None], ...] = ()
    protected: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def ciphers(self) -> dict[str, str]:
        """The cipher of each protected column."""
        return {column: parts["cipher"] for column, parts in self.protected.items()}

    def described(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        """The facet's entries for some columns, with what is known of their protection."""
        described = []
        for column in columns:
            parts = self.protected.get(column, {})
            entry: dict[str, Any] = {"name": column}
            entry |= {name: parts[name] for name in ("cipher", "keyset", "domain") if name in parts}
            described.append(entry)
        return described


def seen_table(observed: Mapping[str, Any], name: str) -> SeenTable:
    """The table of this name in what :meth:`Observation.to_dict` returned."""
    table = observed.get("tables", {}).get(name)
    if table is None:
        return SeenTable()
    return SeenTable(tuple((column, kind) for column, kind in table["fields"]), table["protected"])


def seen_keys(observed: Mapping[str, Any], keyset: str) -> Mapping[str, int]:
    """The primary key of each part of a keyset, as far as the job noted it."""
    keys: Mapping[str, int] = observed.get("keys", {}).get(keyset, {})
    return keys
