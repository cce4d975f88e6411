"""Encrypt columns of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lepton_airflow.operators.base import LeptonSparkOperator


class EncryptColumnsOperator(LeptonSparkOperator):
    """Encrypt columns of a table into a protected table, atomically.

    .. code-block:: python

        EncryptColumnsOperator(
            task_id="protect_visits",
            source={"name": "clinic.visits_raw", "path": "/data/landing/visits"},
            target={"name": "clinic.visits", "path": "/data/protected/visits"},
            keyset="clinic",
            columns={
                "email": {"cipher": "AES256_GCM"},
                "patient_id": {"cipher": "AES256_SIV", "domain": "patient"},
            },
            purpose="ingestion",
            outlets=[Asset("clinic.visits")],
        )

    :param source: the table in the clear: ``name`` and ``path`` (or ``table``), ``format``, ``options`` (templated)
    :param target: the protected table, with ``mode`` ``errorifexists`` or ``overwrite`` (templated)
    :param keyset: the name of the keyset in the keyring (templated)
    :param columns: column -> protection: ``cipher`` ``AES256_GCM`` (randomised), ``AES256_SIV`` (deterministic) or ``FF1``
        (keeps the format), and for the last two the ``domain`` that columns share which are to be joined. A column is a name, a
        path (``address.street``), a pattern (``*_id``) or a tag (``tag:pii``)
    :param sensitive: names, patterns and tags of columns that must not stay in clear: one that ``columns`` leaves out fails the
        task
    :param road: ``auto`` (default), ``direct`` (Parquet to Parquet inside Spark tasks) or ``dataframe``
    :param parquet_encryption: encrypt the Parquet files as a whole too; the direct road reads them, Spark does not
    :param purpose: why; the policy grants actions for purposes (templated)
    :returns: ``rows``, ``columns``, ``target``, ``road``, ``replayed``
    """

    job: ClassVar[str] = "encrypt_columns"
    spec_fields: ClassVar[tuple[str, ...]] = (
        "source",
        "target",
        "keyset",
        "columns",
        "sensitive",
        "road",
        "parquet_encryption",
        "purpose",
    )
    template_fields = ("source", "target", "keyset", "purpose")

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        target: Mapping[str, Any],
        keyset: str,
        columns: Mapping[str, Mapping[str, Any]],
        purpose: str,
        sensitive: Sequence[str] | None = None,
        road: str | None = None,
        parquet_encryption: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.target = target
        self.keyset = keyset
        self.columns = columns
        self.sensitive = sensitive
        self.road = road
        self.parquet_encryption = parquet_encryption
        self.purpose = purpose
