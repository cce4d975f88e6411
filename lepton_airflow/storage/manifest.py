"""The manifest of a stored version: what its shards are, and under which code and key.

It is canonical JSON (RFC 8785), the same bytes on every node, as ``<dataset>/<version>/manifest.json``::

    {"format": "lepton.stored-dataset/1", "dataset": ..., "version": <32 hex digits>,
     "keyset": ..., "key_id": ..., "encrypted_key": {a keyset in Tink's JSON format for encrypted keysets},
     "code": {"data": 4, "parity": 2, "block_bytes": 1048576},
     "nodes": [the node of each shard, in the order of the code's blocks],
     "objects": [{"id": <32 hex digits>, "bytes": ..., "shards": [SHA-256 of each shard's list of digests]}],
     "index": <base64: the files' names and lengths, encrypted>}

Its SHA-256 is in the audit and in the catalogue: a copy with another one is none. So whoever repairs needs no key, and no node
can pass an older version, or another dataset's, for the one that is asked for.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from urllib.parse import quote

from pydantic import TypeAdapter

from lepton_airflow.audit.canonical import canonical_json, digest
from lepton_airflow.errors import NodeUnavailable, ShardsLost
from lepton_airflow.storage.geometry import BLOCK_BYTES, Geometry
from lepton_airflow.storage.nodes import Node

MANIFEST = "manifest.json"
MANIFEST_FORMAT = "lepton.stored-dataset/1"


@dataclass(frozen=True)
class StoredObject:
    """One file in shards.

    :param bytes: of its ciphertext
    :param shards: by shard, the SHA-256 (hex) of the digests of its blocks
    """

    id: str
    bytes: int
    shards: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """The erasure code: ``data`` shards of an object are enough to read it, ``parity`` more are stored."""

    data: int
    parity: int
    block_bytes: int = BLOCK_BYTES

    def geometry(self, length: int) -> Geometry:
        """How an object of this length is cut."""
        return Geometry(length, self.data, self.block_bytes)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """See the module."""

    dataset: str
    version: str
    keyset: str
    key_id: int
    encrypted_key: str
    code: Code
    nodes: tuple[str, ...]
    objects: tuple[StoredObject, ...]
    index: bytes

    @property
    def folder(self) -> str:
        """Where its files are on a node."""
        return folder_of(self.dataset, self.version)

    @property
    def digest(self) -> str:
        """``sha256:<hex>``."""
        return digest(self._document())

    def to_bytes(self) -> bytes:
        return canonical_json(self._document())

    def files(self, number: int) -> frozenset[str]:
        """The names of all files of this version on the node of a shard."""
        return frozenset({MANIFEST, *(shard_name(stored.id, number) for stored in self.objects)})

    def _document(self) -> dict[str, object]:
        return {
            "format": MANIFEST_FORMAT,
            **asdict(self),
            "encrypted_key": json.loads(self.encrypted_key),
            "index": base64.b64encode(self.index).decode(),
        }

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """Read what :meth:`to_bytes` wrote.

        :raises ValueError: it is something else
        """
        fields = json.loads(content)
        if not isinstance(fields, dict) or fields.pop("format", None) != MANIFEST_FORMAT:
            raise ValueError("not a manifest")
        try:
            fields["encrypted_key"] = json.dumps(fields["encrypted_key"])
            fields["index"] = base64.b64decode(fields["index"], validate=True)
            manifest = _MANIFEST.validate_python(fields)
        except (KeyError, TypeError, ValueError):
            raise ValueError("not a manifest") from None
        if manifest.to_bytes() != content:
            raise ValueError("not canonical")
        return manifest


_MANIFEST = TypeAdapter(Manifest)


def folder_of(dataset: str, version: str) -> str:
    """The folder of a version below a node's place; a name with a slash or of dots only stays below it."""
    return f"{quote(dataset, safe='').replace('.', '%2E')}/{version}"


def version_text(dataset: str, version: str) -> str:
    """A version in errors: where it happened."""
    return f"stored dataset {dataset}, version {version}"


def shard_name(object_id: str, number: int) -> str:
    """The name of a shard's file in its version's folder."""
    return f"{object_id}.{number:02d}"


def read_manifest(nodes: Sequence[Node], *, dataset: str, version: str, expected: str) -> Manifest:
    """The manifest, from the first node that has it.

    :param expected: its digest, from the catalogue or the audit
    :raises ShardsLost: every node answers, and none has it
    :raises NodeUnavailable: no node that answers has it
    """
    unreachable: list[str] = []
    for node in nodes:
        try:
            content = manifest_copy(node, dataset=dataset, version=version, expected=expected)
        except NodeUnavailable:
            unreachable.append(node.name)
            continue
        if content is not None:
            return Manifest.from_bytes(content)
    place = version_text(dataset, version)
    if unreachable:
        raise NodeUnavailable(
            f"No node that can be reached has its manifest; out of reach: {', '.join(unreachable)}.",
            place=place,
            remedy="Make these nodes reachable and run the job again.",
        )
    raise ShardsLost(
        f"No node has its manifest as it was stored ({expected}).",
        place=place,
        remedy="See that the settings name the nodes that it was stored on.",
    )


def manifest_copy(node: Node, *, dataset: str, version: str, expected: str) -> bytes | None:
    """A node's copy of the manifest; None if it has none with this digest.

    :raises NodeUnavailable: the node does not answer
    """
    node.check()
    content = node.read(f"{folder_of(dataset, version)}/{MANIFEST}")
    # Nothing of what a node made of it is parsed.
    if content is None or f"sha256:{hashlib.sha256(content).hexdigest()}" != expected:
        return None
    try:
        manifest = Manifest.from_bytes(content)
    except ValueError:
        return None
    return content if (manifest.dataset, manifest.version) == (dataset, version) else None


def by_shard(manifest: Manifest, nodes: Sequence[Node]) -> tuple[Node | None, ...]:
    """The node of each shard; None where the settings have none of that name any more, or it does not answer."""
    known = {node.name: node for node in nodes if node.answers()}
    return tuple(known.get(name) for name in manifest.nodes)
