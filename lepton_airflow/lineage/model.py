"""The lineage of one run of a job, before it takes OpenLineage's form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lepton_airflow.lineage.naming import Place

Directness = Literal["DIRECT", "INDIRECT"]


@dataclass(frozen=True, kw_only=True)
class Flow:
    """One column's influence on another, as OpenLineage's column lineage puts it.

    :param output: the column that is written; None: the whole dataset
    :param source: the dataset that is read
    :param column: its column
    :param subtype: IDENTITY, TRANSFORMATION or AGGREGATION; or GROUP_BY, FILTER, ... where the influence is indirect
    :param masking: whether the value can no longer be seen in what is written
    :param description: what was done, in words
    """

    output: str | None
    source: Place
    column: str
    type: Directness = "DIRECT"
    subtype: str
    masking: bool
    description: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a run reads or writes.

    :param label: the dataset's name in policies, budgets and the audit, if it has one
    :param fields: its columns, each with its type if that is known
    :param protections: what protects which column: a cipher, ``differential privacy``, ``none`` for one that was decrypted
    :param flows: where its columns come from; for what is written
    :param rows: how many rows were written, if that is public anyway
    """

    place: Place
    label: str | None = None
    fields: tuple[tuple[str, str | None], ...] = ()
    protections: Mapping[str, str] = field(default_factory=dict)
    flows: tuple[Flow, ...] = ()
    rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class JobLineage:
    """What a run reads and writes, and the contents of its ``lepton_privacy`` facet."""

    inputs: tuple[Dataset, ...] = ()
    outputs: tuple[Dataset, ...] = ()
    privacy: Mapping[str, Any] = field(default_factory=dict)
