"""The lineage of a differentially private release."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from lepton_airflow.lineage.model import Dataset, Flow, JobLineage
from lepton_airflow.lineage.naming import Place, place_of, place_of_path
from lepton_airflow.lineage.observation import SeenTable

_PROTECTION = "differential privacy"


def release(spec: Mapping[str, Any], seen: SeenTable, *, published: bool = True) -> JobLineage:
    """Numbers out of a table: each metric an aggregate behind noise, in groups whose keys are public or privately chosen.

    :param spec: the fields of the release's spec
    :param seen: the table that it is made of
    :param published: whether its files are written
    """
    source, unit = place_of(spec["source"]), spec["privacy_unit"]
    groupings = spec.get("groupings") or [{"by": spec.get("group_by") or (), "keys": spec.get("groups") or ()}]
    grouped = list(dict.fromkeys(column for grouping in groupings for column in grouping.get("by") or ()))
    measured = list(dict.fromkeys(metric["column"] for metric in spec["metrics"] if metric.get("column")))
    used = list(dict.fromkeys((unit, *grouped, *measured)))
    metrics = [metric["name"] for metric in spec["metrics"]]
    key_tables = _key_tables(groupings)
    flows = [
        *(flow for metric in spec["metrics"] for flow in _metric_flows(metric, source, unit)),
        *_key_flows(groupings, source),
        *(
            Flow(
                output=None,
                source=source,
                column=column,
                type="INDIRECT",
                subtype="GROUP_BY",
                masking=True,
                description="rows are grouped by it",
            )
            for column in grouped
        ),
    ]
    fields = tuple((name, None) for name in dict.fromkeys((*grouped, *metrics)))
    outputs = [
        Dataset(
            place=place_of_path(str(spec["target"])),
            fields=fields,
            protections=dict.fromkeys(metrics, _PROTECTION),
            flows=tuple(flows),
        )
    ]
    if spec.get("plot"):
        outputs.append(Dataset(place=place_of_path(str(spec["plot"])), fields=fields, flows=tuple(flows)))
    table = Dataset(
        place=source,
        label=spec["source"]["name"],
        fields=seen.fields or tuple((column, None) for column in used),
        protections=seen.ciphers,
    )
    cost = {
        "epsilon": float(Decimal(str(spec["epsilon"]))),
        "delta": float(Decimal(str(spec.get("delta") or 0))),
        "noise": spec.get("noise") or "laplace",
        "privacyUnit": unit,
        "budget": spec.get("budget") or spec["source"]["name"],
    }
    keys = [
        Dataset(place=place, label=label, fields=tuple((column, None) for column in columns))
        for place, (label, columns) in key_tables.items()
    ]
    return JobLineage(
        inputs=(table, *keys),
        outputs=tuple(outputs) if published else (),
        privacy={"columns": seen.described(used), "release": cost},
    )


def _metric_flows(metric: Mapping[str, Any], source: Place, unit: str) -> list[Flow]:
    # Rows whose unit is null are left out: a count of rows counts the unit's column.
    column = metric.get("column") or unit
    flows = [
        Flow(
            output=metric["name"],
            source=source,
            column=column,
            subtype="AGGREGATION",
            masking=True,
            description=f"differentially private {metric['type']}",
        )
    ]
    if column != unit:
        flows.append(
            Flow(
                output=metric["name"],
                source=source,
                column=unit,
                type="INDIRECT",
                subtype="FILTER",
                masking=True,
                description="bounds how many rows of one privacy unit count",
            )
        )
    return flows


def _key_flows(groupings: list[Mapping[str, Any]], source: Place) -> list[Flow]:
    """Where published keys come from. Declared ones come from the spec, so from no data at all."""
    flows: dict[tuple[str, Place], Flow] = {}
    for grouping in groupings:
        keys = grouping.get("keys")
        for column in grouping.get("by") or ():
            if isinstance(keys, Mapping):
                place = place_of(keys)
                flows[column, place] = Flow(
                    output=column,
                    source=place,
                    column=column,
                    subtype="IDENTITY",
                    masking=False,
                    description="keys of a public table",
                )
            elif keys == "private":
                flows[column, source] = Flow(
                    output=column,
                    source=source,
                    column=column,
                    type="INDIRECT",
                    subtype="FILTER",
                    masking=True,
                    description="keys that enough privacy units are in, by a noisy count",
                )
    return list(flows.values())


def _key_tables(groupings: list[Mapping[str, Any]]) -> dict[Place, tuple[str, list[str]]]:
    tables: dict[Place, tuple[str, list[str]]] = {}
    for grouping in groupings:
        keys = grouping.get("keys")
        if isinstance(keys, Mapping):
            _, columns = tables.setdefault(place_of(keys), (keys["name"], []))
            columns += [column for column in grouping.get("by") or () if column not in columns]
    return tables
