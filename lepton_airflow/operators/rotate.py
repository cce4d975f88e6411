"""Bring a protected table under its keysets' primary keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lepton_airflow.operators.base import LeptonSparkOperator


class RotateKeysOperator(LeptonSparkOperator):
    """Encrypt again what a protected table holds under older keys; what is under the primary keys stays byte for byte.

    Rotate the keyset first (``lepton keys rotate``); once every table that uses it was brought under its new key, the old one can
    be destroyed.

    .. code-block:: python

        VISITS = {"name": "clinic.visits", "path": "/data/protected/visits"}

        RotateKeysOperator(
            task_id="rotate_visits",
            source=VISITS,
            target={**VISITS, "mode": "overwrite"},
            purpose="key rotation",
        )

    :param source: the protected table: ``name``, under which it was encrypted, and ``path`` (or ``table``), ``format``,
        ``options`` (templated)
    :param target: where it goes: the same ``name``; the same ``path`` with ``mode`` ``overwrite`` replaces the table once the new
        one is durable (templated)
    :param columns: names, paths, patterns and tags of protected columns; by default all (templated)
    :param road: ``auto`` (default), ``direct`` (Parquet to Parquet inside Spark tasks) or ``dataframe``
    :param purpose: why; the policy grants the action ``rotate`` for purposes (templated)
    :returns: ``rows``, ``columns``, ``target``, ``road``, ``rotated`` (by column), ``replayed``
    """

    job: ClassVar[str] = "rotate_keys"
    spec_fields: ClassVar[tuple[str, ...]] = ("source", "target", "columns", "road", "purpose")
    template_fields = ("source", "target", "columns", "purpose")

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        target: Mapping[str, Any],
        purpose: str,
        columns: Sequence[str] | None = None,
        road: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.target = target
        self.columns = columns
        self.road = road
        self.purpose = purpose
