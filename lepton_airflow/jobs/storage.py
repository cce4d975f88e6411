"""What the jobs of the storage share: the nodes of the settings, and the catalogue."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from lepton_airflow.errors import ConfigurationError, LeptonError
from lepton_airflow.jobs.roads import Source

if TYPE_CHECKING:
    from lepton_airflow.jobs.runner import Job
    from lepton_airflow.jobs.spec import TableReference
    from lepton_airflow.settings import Settings
    from lepton_airflow.storage.catalogue import Catalogue, Entry
    from lepton_airflow.storage.manifest import Manifest
    from lepton_airflow.storage.nodes import Node


def storage_nodes(settings: Settings, names: tuple[str, ...] = ()) -> tuple[Node, ...]:
    """The nodes of the settings, each in a place of its own and apart from the keys.

    :param names: those that are wanted; none means all
    :raises ConfigurationError: there is no such node; or a place is another one's too, or where keys are
    """
    from lepton_airflow.storage.nodes import nodes_of

    _check_places(settings.storage_nodes, {"keyring": settings.keyring, "identities": settings.identities})
    return nodes_of(settings.storage_nodes, names)


def tell_columns(job: Job, reference: TableReference) -> None:
    """Let the run's lineage name the columns, if the folder is a table that this identity opens; it need not be one."""
    with suppress(LeptonError):
        Source(job, reference)


def stored_manifest(job: Job, dataset: str, version: str, expected: str | None) -> Manifest:
    """The manifest of a version, from a node that has it.

    :param expected: its digest; the catalogue has that of every stored version
    :raises LeptonError: as :func:`lepton_airflow.storage.manifest.read_manifest`
    """
    from lepton_airflow.storage.manifest import read_manifest

    nodes = storage_nodes(job.settings)
    return read_manifest(nodes, dataset=dataset, version=version, expected=expected or "")


@contextmanager
def taken_back_if_it_fails(job: Job, catalogue: Catalogue, entry: Entry) -> Iterator[None]:
    """Remove a version if it does not become complete, and what nodes have of it."""
    try:
        yield
    except BaseException:
        # It is the reason that is to be told. If the database is gone, the run's next try takes the version back.
        with suppress(LeptonError):
            if catalogue.take_back(entry.version):
                _purge(job, catalogue, entry)
        raise


def purge(job: Job, catalogue: Catalogue, dataset: str) -> int:
    """Delete what removed versions of a dataset still have on nodes; what a silent node keeps, a later job deletes.

    :returns: how many versions are gone
    """
    return sum(_purge(job, catalogue, entry) for entry in catalogue.entries(dataset, "removed"))


def _purge(job: Job, catalogue: Catalogue, entry: Entry) -> bool:
    from lepton_airflow.storage.storing import remove

    nodes = storage_nodes(job.settings)
    silent = remove(nodes, entry.dataset, entry.version)
    if silent or not {*entry.nodes} <= {node.name for node in nodes}:
        return False
    catalogue.purged(entry.version)
    return True


def _check_places(places: Mapping[str, Path | str], keys: Mapping[str, Path]) -> None:
    """What is lost together, or read together, is not two places."""
    known = [(f"the {name}", _resolved(place)) for name, place in keys.items()]
    for name, place in places.items():
        where = _resolved(place)
        for other, there in known:
            if _within(where, there) or _within(there, where):
                raise ConfigurationError(
                    f"The place overlaps with that of {other}.",
                    place=f"settings: storage_nodes: {name}",
                    remedy="Give each node a place of its own, and keep keys apart from data.",
                )
        known.append((f"the node {name}", where))


def _resolved(place: Path | str) -> str:
    """A folder as it is after all links; a URL without its options."""
    if isinstance(place, str) and not place.startswith("file:"):
        parts = urlsplit(place)
        return f"{parts.scheme}://{parts.netloc}{posixpath.normpath(parts.path or '/')}"
    return str((place if isinstance(place, Path) else Path(unquote(urlsplit(place).path))).resolve())


def _within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")
