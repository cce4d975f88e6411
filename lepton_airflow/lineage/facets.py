"""Lineage in OpenLineage's form. Needs openlineage-python: Airflow's OpenLineage provider and the extra ``lineage`` bring it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attr
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import (
    DatasetFacet,
    OutputDatasetFacet,
    RunFacet,
    column_lineage_dataset,
    output_statistics_output_dataset,
    schema_dataset,
    symlinks_dataset,
    tags_dataset,
)

from lepton_airflow import __version__
from lepton_airflow.lineage.model import Dataset, Flow, JobLineage

#: Who makes our facets and events.
PRODUCER = f"urn:lepton-airflow:{__version__}"
#: The facet's schema, ``lepton_privacy.schema.json`` beside this module; its version is that of the facet.
SCHEMA = "urn:lepton-airflow:openlineage:1-0-0:LeptonPrivacyRunFacet#/$defs/LeptonPrivacyRunFacet"
#: The tag that says how a column is protected.
PROTECTION_TAG = "lepton.protection"


@attr.define(kw_only=True)
class LeptonPrivacyRunFacet(RunFacet):
    """What a run did to protected data, and on what grounds; what is not known is left out."""

    job: str
    operation: str
    purpose: str | None = None
    runKey: str | None = None
    policyDigest: str | None = None
    columns: list[dict[str, Any]] | None = None
    release: dict[str, Any] | None = None
    training: dict[str, Any] | None = None

    @staticmethod
    def _get_schema() -> str:
        return SCHEMA


def run_facets(lineage: JobLineage) -> dict[str, RunFacet]:
    """The facet ``lepton_privacy``."""
    return {"lepton_privacy": LeptonPrivacyRunFacet(producer=PRODUCER, **lineage.privacy)}


def inputs(lineage: JobLineage) -> list[InputDataset]:
    """What is read."""
    return [
        InputDataset(namespace=dataset.place.namespace, name=dataset.place.name, facets=_facets(dataset))
        for dataset in lineage.inputs
    ]


def outputs(lineage: JobLineage) -> list[OutputDataset]:
    """What is written, with the lineage of its columns."""
    return [
        OutputDataset(
            namespace=dataset.place.namespace,
            name=dataset.place.name,
            facets=_facets(dataset),
            outputFacets=_output_facets(dataset),
        )
        for dataset in lineage.outputs
    ]


def _facets(dataset: Dataset) -> dict[str, DatasetFacet]:
    facets: dict[str, DatasetFacet] = {}
    if dataset.fields:
        fields = [schema_dataset.SchemaDatasetFacetFields(name=name, type=kind) for name, kind in dataset.fields]
        facets["schema"] = schema_dataset.SchemaDatasetFacet(fields=fields, producer=PRODUCER)
    if dataset.label is not None:
        # The name that policies, budgets and the audit know it by.
        label = symlinks_dataset.Identifier(namespace="lepton", name=dataset.label, type="TABLE")
        facets["symlinks"] = symlinks_dataset.SymlinksDatasetFacet(identifiers=[label], producer=PRODUCER)
    if dataset.protections:
        tags = [
            tags_dataset.TagsDatasetFacetFields(key=PROTECTION_TAG, value=value, source="LEPTON", field=column)
            for column, value in dataset.protections.items()
        ]
        facets["tags"] = tags_dataset.TagsDatasetFacet(tags=tags, producer=PRODUCER)
    if dataset.flows:
        facets["columnLineage"] = _column_lineage(dataset.flows)
    return facets


def _output_facets(dataset: Dataset) -> dict[str, OutputDatasetFacet]:
    if dataset.rows is None:
        return {}
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=dataset.rows, producer=PRODUCER
    )
    return {"outputStatistics": statistics}


def _column_lineage(flows: Sequence[Flow]) -> column_lineage_dataset.ColumnLineageDatasetFacet:
    fields: dict[str, list[column_lineage_dataset.InputField]] = {}
    whole: list[column_lineage_dataset.InputField] = []
    for flow in flows:
        transformation = column_lineage_dataset.Transformation(
            type=flow.type, subtype=flow.subtype, description=flow.description, masking=flow.masking
        )
        field = column_lineage_dataset.InputField(
            namespace=flow.source.namespace, name=flow.source.name, field=flow.column, transformations=[transformation]
        )
        (whole if flow.output is None else fields.setdefault(flow.output, [])).append(field)
    return column_lineage_dataset.ColumnLineageDatasetFacet(
        fields={name: column_lineage_dataset.Fields(inputFields=sources) for name, sources in fields.items()},
        dataset=whole,
        producer=PRODUCER,
    )
