"""Decrypt columns of a protected table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lepton_airflow.operators.base import LeptonSparkOperator


class DecryptColumnsOperator(LeptonSparkOperator):
    """Decrypt columns of a protected table into another table, atomically.

    .. code-block:: python

        DecryptColumnsOperator(
            task_id="open_addresses",
            source={"name": "clinic.visits", "path": "/data/protected/visits"},
            target={"name": "clinic.letters", "path": "/data/letters/{{ ds_nodash }}"},
            columns=["name", "address.street"],
            purpose="letters to patients",
        )

    :param source: the protected table: ``name``, under which it was encrypted, and ``path`` (or ``table``), ``format``,
        ``options`` (templated)
    :param target: the table with these columns in clear, with ``mode`` ``errorifexists`` or ``overwrite`` (templated)
    :param columns: names, paths (``address.street``), patterns (``*_id``, ``*`` for all) and tags (``tag:pii``) of protected
        columns (templated)
    :param on_error: ``fail`` (default): one value that cannot be decrypted fails the task and nothing is published. ``null``: it
        becomes null and is counted
    :param road: ``auto`` (default), ``direct`` (Parquet to Parquet inside Spark tasks) or ``dataframe``
    :param purpose: why; the policy grants the action ``decrypt`` for purposes (templated)
    :returns: ``rows``, ``columns``, ``target``, ``road``, ``failed`` (by column), ``replayed``
    """

    job: ClassVar[str] = "decrypt_columns"
    spec_fields: ClassVar[tuple[str, ...]] = ("source", "target", "columns", "on_error", "road", "purpose")
    template_fields = ("source", "target", "columns", "purpose")

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        target: Mapping[str, Any],
        columns: Sequence[str],
        purpose: str,
        on_error: str | None = None,
        road: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.target = target
        self.columns = columns
        self.on_error = on_error
        self.road = road
        self.purpose = purpose
