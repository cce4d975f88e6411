"""The identity of a dataset by OpenLineage's naming conventions (openlineage.io/docs/spec/naming).

A name says where data is, so that it meets the name that other tools give to the same data:

    /data/visits                    file                        /data/visits
    s3a://clinic/visits             s3://clinic                 visits
    hdfs://names:8020/visits        hdfs://names:8020           /visits
    table sales.visits              spark_catalog               sales.visits
    jdbc:postgresql://db/clinic     postgres://db:5432          clinic.public.visits
    stored as clinic.visits         lepton-storage              clinic.visits

Specs say no more than this: a path without a file system counts as local, though Spark looks for it in its default file system,
so on a cluster give whole URIs. A table of Spark's catalogue is named by its catalogue, for only Spark knows where that keeps it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

#: Spark's name of its session catalogue.
SESSION_CATALOGUE = "spark_catalog"

# Where the name is an object's key, which has no slash in front.
_KEYED = frozenset({"s3", "gs", "wasb", "wasbs"})
_SCHEMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "abfss"}
_JDBC = re.compile(r"jdbc:(?P<system>[a-z0-9]+):(?P<place>[^?;]*(?://|@)[^?;]*)(?P<options>.*)", re.DOTALL)
# An authority without its account; nothing else may follow the host, or it is a part of a password.
_AUTHORITY = re.compile(r"(?:/*)(?P<host>[\w.-]+)(?::(?P<port>\d+))?(?:[/:](?P<database>[\w.-]+))?/?")
_OPTIONS = re.compile(r"(?:[?;][\w.]+=.*)?;?", re.DOTALL)
#: By JDBC subprotocol: the namespace's scheme, the default port, and the schema of a table that names none.
_SYSTEMS: dict[str, tuple[str, int | None, str | None]] = {
    "postgresql": ("postgres", 5432, "public"),
    "redshift": ("redshift", 5439, "public"),
    "mysql": ("mysql", 3306, None),
    "mariadb": ("mysql", 3306, None),
    "sqlserver": ("mssql", 1433, "dbo"),
    "oracle": ("oracle", 1521, None),
    "db2": ("db2", 50000, None),
    "trino": ("trino", 8080, None),
    "hive2": ("hive", 10000, None),
}
_PLAIN_TABLE = re.compile(r'[\w."`\[\]$-]+')


@dataclass(frozen=True, order=True)
class Place:
    """A dataset's identity in OpenLineage."""

    namespace: str
    name: str


def place_of(reference: Mapping[str, Any]) -> Place:
    """The identity of the table that a spec refers to; ``reference`` has the fields of a table reference.

    Neither user names nor passwords nor query texts get into it.
    """
    path, table, kind = reference.get("path"), reference.get("table"), reference.get("format") or "parquet"
    options = {str(option).lower(): str(value) for option, value in (reference.get("options") or {}).items()}
    if path is not None:
        return place_of_path(str(path))
    if table is not None:
        return _in_catalogue(str(table))
    label = str(reference["name"])
    found = _in_database(options.get("url", ""), options.get("dbtable", ""), label) if kind.lower() == "jdbc" else None
    return found or Place(str(kind), label)


def place_of_path(path: str) -> Place:
    """The identity of what is at a path or URI."""
    scheme, separator, _ = path.partition(":")
    if not separator or "/" in scheme:
        return Place("file", posixpath.normpath(path))
    parts = urlsplit(path)
    scheme = _SCHEMES.get(scheme.lower(), scheme.lower())
    # What stands before the @ is an account's user or, with Azure, the container: a password is never part of the name.
    authority = re.sub(r":[^@]*@", "@", parts.netloc)
    inside = posixpath.normpath(unquote(parts.path)) if parts.path else "/"
    if scheme == "file":
        return Place(f"file://{authority}" if authority else "file", "/" + inside.lstrip("/"))
    name = inside.lstrip("/") if scheme in _KEYED else "/" + inside.lstrip("/")
    return Place(f"{scheme}://{authority}", name or "/")


def place_of_stored(dataset: str) -> Place:
    """The identity of a dataset that is stored in shards: it is on several nodes, and on none of them as a whole."""
    return Place("lepton-storage", dataset)


def _in_catalogue(table: str) -> Place:
    parts = [part.strip("`") for part in re.findall(r"`[^`]*`|[^.]+", table)]
    if len(parts) == 1:
        return Place(SESSION_CATALOGUE, f"default.{parts[0]}")
    if len(parts) == 2:
        return Place(SESSION_CATALOGUE, ".".join(parts))
    return Place(parts[0], ".".join(parts[1:]))


def _in_database(url: str, table: str, label: str) -> Place | None:
    """None where the URL is not understood: then no part of it is told."""
    connection = _JDBC.fullmatch(url)
    if connection is None or not _OPTIONS.fullmatch(connection["options"]):
        return None
    # The account, user:password@ or thin:user/password@, ends with the last @.
    authority = _AUTHORITY.fullmatch(connection["place"].rpartition("@")[2])
    if authority is None:
        return None
    scheme, port, schema = _SYSTEMS.get(connection["system"], (connection["system"], None, None))
    given = authority["port"] or port
    namespace = f"{scheme}://{authority['host']}" + (f":{given}" if given else "")
    named = re.search(r";database(?:name)?=([\w.-]+)", connection["options"], re.IGNORECASE)
    database = [authority["database"] or (named[1] if named else "")]
    if not database[0]:
        database = []
    # Anything but a table's name may be a query, which can quote data.
    if not _PLAIN_TABLE.fullmatch(table):
        return Place(namespace, ".".join([*database, label]))
    parts = [part.strip('"`[]') for part in table.split(".")]
    if len(parts) == 1 and schema is not None:
        parts = [schema, *parts]
    # A table may name its database itself.
    whole = 2 if schema is None else 3
    return Place(namespace, ".".join(parts if len(parts) >= whole and scheme != "oracle" else [*database, *parts]))
