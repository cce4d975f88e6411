"""Datasets are named as OpenLineage's conventions say, and no secret is in a name."""

from __future__ import annotations

from typing import Any

import pytest

from lepton_airflow.lineage.naming import Place, place_of


@pytest.mark.parametrize(
    ("reference", "namespace", "name"),
    [
        ({"path": "/data/visits/"}, "file", "/data/visits"),
        ({"path": "file:///data/visits"}, "file", "/data/visits"),
        ({"path": "file:/data//visits"}, "file", "/data/visits"),
        ({"path": "file://files/data/visits"}, "file://files", "/data/visits"),
        ({"path": "s3a://clinic/landing/visits"}, "s3://clinic", "landing/visits"),
        ({"path": "s3://clinic"}, "s3://clinic", "/"),
        ({"path": "gs://clinic/visits"}, "gs://clinic", "visits"),
        ({"path": "hdfs://names:8020/data/visits"}, "hdfs://names:8020", "/data/visits"),
        ({"path": "abfss://box@account.dfs.core.windows.net/v"}, "abfss://box@account.dfs.core.windows.net", "/v"),
        ({"table": "visits"}, "spark_catalog", "default.visits"),
        ({"table": "clinic.`vi.sits`"}, "spark_catalog", "clinic.vi.sits"),
        ({"table": "lake.clinic.visits"}, "lake", "clinic.visits"),
        ({"format": "mongodb", "options": {"x": "y"}}, "mongodb", "clinic.visits"),
    ],
)
def test_names(reference: dict[str, Any], namespace: str, name: str) -> None:
    assert place_of({"name": "clinic.visits", **reference}) == Place(namespace, name)


@pytest.mark.parametrize(
    ("url", "table", "namespace", "name"),
    [
        ("jdbc:postgresql://db/clinic", "visits", "postgres://db:5432", "clinic.public.visits"),
        ("jdbc:postgresql://db:6000/clinic?user=u", "care.visits", "postgres://db:6000", "clinic.care.visits"),
        ("jdbc:mysql://db/clinic", "visits", "mysql://db:3306", "clinic.visits"),
        ("jdbc:mysql://db/clinic", "other.visits", "mysql://db:3306", "other.visits"),
        ("jdbc:sqlserver://db;databaseName=clinic", "visits", "mssql://db:1433", "clinic.dbo.visits"),
        ("jdbc:oracle:thin:@//db:1522/service", "care.visits", "oracle://db:1522", "service.care.visits"),
        ("jdbc:oracle:thin:@db:1522:sid", "care.visits", "oracle://db:1522", "sid.care.visits"),
        ("jdbc:oracle:thin:ada/pw@db/sid", "care.visits", "oracle://db:1521", "sid.care.visits"),
        ("jdbc:mysql://db/clinic?user=ada@example.org", "visits", "mysql://db:3306", "clinic.visits"),
        ("jdbc:h2:mem", "visits", "jdbc", "clinic.visits"),
        ("jdbc:odd://a b/c", "visits", "jdbc", "clinic.visits"),
        ("jdbc:unknown://db/clinic", "visits", "unknown://db", "clinic.visits"),
        # A query could quote a value.
        ("jdbc:postgresql://db/c", "(select * from v where name = 'Ada')", "postgres://db:5432", "c.clinic.visits"),
    ],
)
def test_names_of_databases(url: str, table: str, namespace: str, name: str) -> None:
    reference = {"name": "clinic.visits", "format": "jdbc", "options": {"url": url, "dbtable": table}}
    assert place_of(reference) == Place(namespace, name)


@pytest.mark.parametrize(
    "reference",
    [
        {"format": "jdbc", "options": {"url": "jdbc:postgresql://ada:hunter2@db/clinic", "dbtable": "v"}},
        {"format": "jdbc", "options": {"url": "jdbc:postgresql://db/clinic?password=hunter2", "dbtable": "v"}},
        {"format": "jdbc", "options": {"url": "jdbc:sqlserver://db;password=hunter2;database=c", "dbtable": "v"}},
        {"format": "jdbc", "options": {"url": "jdbc:mysql://ada:x/hunter2/y@db/c", "dbtable": "v"}},
        {"format": "jdbc", "options": {"url": "jdbc:mysql://ada:hunter2?y@db/c", "dbtable": "v"}},
        {"format": "jdbc", "options": {"url": "jdbc:mysql://ada:hunter2;y@db/c", "dbtable": "v"}},
        {"format": "jdbc", "options": {"url": "jdbc:oracle:thin:ada/hunter2@//db:1521/c", "dbtable": "v"}},
        {"path": "s3a://key:hunter2@clinic/visits"},
    ],
)
def test_a_password_is_in_no_name(reference: dict[str, Any]) -> None:
    place = place_of({"name": "clinic.visits", **reference})
    assert "hunter2" not in place.namespace + place.name
