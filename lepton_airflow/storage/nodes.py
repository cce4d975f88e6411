"""Storage nodes: places under names, each of which may be lost.

A node is a folder (a disk, a mount) or a place in an object store, such as ``s3://bucket/shards``, that pyarrow opens. It is
prepared once: a file that names it is put there. Where that file is not, there is no node: an empty mount point, the wrong disk
or somebody else's bucket is not written to.
"""

from __future__ import annotations

import json
import os
import posixpath
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from lepton_airflow.errors import ConfigurationError, NodeUnavailable, TargetExists

MARKER = "lepton-node.json"
NODE_FORMAT = "lepton.storage-node/1"
_OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})


@dataclass(frozen=True)
class Node:
    """Strings only, so it travels to workers.

    Every method raises :class:`NodeUnavailable` where the node cannot be reached, is full or refuses.

    :param uri: of the place
    """

    name: str
    uri: str

    def prepare(self) -> None:
        """Make the place this node's.

        :raises TargetExists: it is another node's
        """
        files, root = self._open()
        with self._reaching():
            files.create_dir(root, recursive=True)
        there = self.read(MARKER)
        if there is not None and there != self._marker:
            raise TargetExists(
                "The place is prepared for another node.",
                place=f"storage node {self.name}: {self.uri}",
                remedy="Give each node a place of its own.",
            )
        self.write(MARKER, self._marker)

    def check(self) -> None:
        """See that the node is there.

        :raises NodeUnavailable: it cannot be reached, or the place is not prepared for it
        """
        if self.read(MARKER) != self._marker:
            raise NodeUnavailable(
                "The place is not prepared for this node: it is empty, not mounted, or another node's.",
                place=f"storage node {self.name}: {self.uri}",
                remedy=f"Mount it; if its content is lost, run `lepton storage prepare {self.name}` and repair what was there.",
            )

    def answers(self) -> bool:
        """Whether the node is there, see :meth:`check`."""
        try:
            self.check()
        except NodeUnavailable:
            return False
        return True

    def read(self, path: str) -> bytes | None:
        """A file's bytes; None when there is no such file."""
        files, root = self._open()
        with self._reaching():
            try:
                with files.open_input_stream(_below(root, path)) as stream:
                    content: bytes = stream.read()
            except FileNotFoundError:
                return None
        return content

    def open(self, path: str) -> Any:
        """A pyarrow file for reading anywhere in it; None when there is no such file."""
        files, root = self._open()
        with self._reaching():
            try:
                return files.open_input_file(_below(root, path))
            except FileNotFoundError:
                return None

    def make_folder(self, path: str) -> None:
        """Make a folder, for the files of one version; writers make none, so that a node that is lost stays lost."""
        files, root = self._open()
        with self._reaching():
            files.create_dir(_below(root, path), recursive=True)
            made = root
            for part in path.split("/"):
                _sync(files, made)
                made = posixpath.join(made, part)

    def write(self, path: str, data: bytes) -> None:
        """Write a file in full or not at all, and durably."""
        writer = self.writer(path)
        try:
            writer.write(data)
            writer.commit()
        finally:
            writer.discard()

    def writer(self, path: str) -> NodeWriter:
        """Begin a file; it appears under its name when it is committed, and replaces what is there."""
        files, root = self._open()
        return NodeWriter(self, files, _below(root, path))

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, sorted; none if there is no such folder."""
        files, root = self._open()
        with self._reaching():
            found = files.get_file_info(fs.FileSelector(_below(root, folder), allow_not_found=True))
        return sorted(info.base_name for info in found if info.is_file)

    def delete(self, path: str) -> None:
        """Delete a file."""
        files, root = self._open()
        with self._reaching():
            files.delete_file(_below(root, path))

    def delete_folder(self, path: str) -> None:
        """Delete a folder and all that is in it; nothing happens if there is none."""
        files, root = self._open()
        with self._reaching():
            if files.get_file_info(_below(root, path)).type is not fs.FileType.NotFound:
                files.delete_dir(_below(root, path))

    @property
    def _marker(self) -> bytes:
        return json.dumps({"format": NODE_FORMAT, "name": self.name}, sort_keys=True).encode()

    def _open(self) -> tuple[fs.FileSystem, str]:
        with suppress(pa.ArrowInvalid, ImportError), self._reaching():
            files, root = _opened(self.uri)
            if files.type_name in ("local", *_OBJECT_STORES):
                return files, root
        raise ConfigurationError(
            "There are no storage nodes on such a place.",
            place=f"settings: storage_nodes: {self.name}",
            remedy="Name a folder, or a URL of an object store that pyarrow opens (s3, gs, abfs).",
        )

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # The text of an object store's error can quote its credentials' name; the class is enough.
            raise NodeUnavailable(
                f"The node cannot be read or written ({type(error).__name__}).",
                place=f"storage node {self.name}: {self.uri}",
                remedy="Make it reachable and run the job again.",
            ) from None


class NodeWriter:
    """One file that is being written; see :meth:`Node.writer`. What is not committed is discarded."""

    def __init__(self, node: Node, files: fs.FileSystem, path: str) -> None:
        self._node = node
        self._files = files
        self._path = path
        folder, name = posixpath.split(path)
        with node._reaching():
            # What was sent of a file that is not committed can be seen on an object store, and must not replace what is there.
            new = files.type_name in _OBJECT_STORES and files.get_file_info(path).type is fs.FileType.NotFound
            self._beside = path if new else posixpath.join(folder, f".{name}.{uuid.uuid4().hex}.new")
            self._stream = files.open_output_stream(self._beside)
        self._open = True

    def write(self, data: bytes | memoryview) -> None:
        with self._node._reaching():
            self._stream.write(data)

    def commit(self) -> None:
        """Make the file durable and give it its name."""
        with self._node._reaching():
            self._stream.close()
            _sync(self._files, self._beside)
            if self._beside != self._path:
                self._files.move(self._beside, self._path)
                _sync(self._files, posixpath.dirname(self._path))
            self._open = False

    def discard(self) -> None:
        """Leave nothing behind if the file was not committed."""
        if not self._open:
            return
        self._open = False
        try:
            self._stream.close()
            self._delete(self._beside)
        except OSError:
            # The node is lost, and with it what was written there.
            return

    def _delete(self, path: str) -> None:
        if self._files.get_file_info(path).type is not fs.FileType.NotFound:
            self._files.delete_file(path)


def _below(root: str, path: str) -> str:
    return posixpath.join(root, path.lstrip("/"))


def _sync(files: fs.FileSystem, path: str) -> None:
    """Make a file, or the names in a folder, durable; object stores do so by themselves."""
    if files.type_name == "local":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@lru_cache
def _opened(uri: str) -> tuple[fs.FileSystem, str]:
    files, root = fs.FileSystem.from_uri(uri)
    return files, root


def nodes_of(places: Mapping[str, Path | str], names: tuple[str, ...] = ()) -> tuple[Node, ...]:
    """The nodes of the settings.

    :param names: those that are wanted; none means all
    :raises ConfigurationError: there is no node of a name, or none at all; or a URL holds a password
    """
    missing = [name for name in names if name not in places]
    if missing or not places:
        raise ConfigurationError(
            f"There is no storage node {', '.join(missing)}." if missing else "There are no storage nodes.",
            place="settings: storage_nodes",
            remedy=f"Known: {', '.join(places)}." if places else "Name the nodes and their places there.",
        )
    return tuple(Node(name, _uri(name, places[name])) for name in names or places)


def _uri(name: str, place: Path | str) -> str:
    if isinstance(place, Path):
        return place.absolute().as_uri()
    if urlsplit(place).password:
        raise ConfigurationError(
            "The URL holds a password.",
            place=f"settings: storage_nodes: {name}",
            remedy="Take it out; the file system finds it in its own environment variables or files.",
        )
    return place
