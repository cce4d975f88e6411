"""Where an export's files go: a folder, a file system that fsspec knows, or a table of a second database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sql
from sqlalchemy.engine import make_url

from lepton_airflow.audit.writing import first_in_line
from lepton_airflow.errors import AuditUnavailable, ConfigurationError, LeptonError, MissingDependency
from lepton_airflow.settings import Settings


class Store(Protocol):
    """Named files. ``write`` leaves a file in full or not at all.

    :raises AuditUnavailable: from every method, when the place cannot be reached
    """

    def read(self, name: str) -> bytes | None:
        """The file's bytes; None when there is no such file."""

    def names(self, folder: str) -> list[str]:
        """The files in ``folder``, sorted, with its name."""

    def write(self, name: str, data: bytes) -> None: ...

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other sealers out, as far as the place can."""
        yield


def open_store(place: Path | str) -> Store:
    """The store of a folder's path or of a URL; nothing is read or written yet.

    :raises ConfigurationError: the URL is not usable, or holds a password
    :raises MissingDependency: fsspec, its file system or psycopg is not installed
    """
    text = str(place)
    if "://" not in text:
        return FolderStore(Path(text))
    scheme, _, rest = text.partition("://")
    if "@" in rest.partition("/")[0] and ":" in rest.partition("@")[0]:
        raise ConfigurationError(
            "The URL of a checkpoint export holds a password.",
            place="settings: checkpoint_exports",
            remedy="Take it out; give it to the file system by its own environment variables or files.",
        )
    if scheme.partition("+")[0] in ("sqlite", "postgresql"):
        return DatabaseStore(text)
    return FsspecStore(text)


class FolderStore:
    """A folder; it is made when it is first written, and every file is on the disk before the next one is begun."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes | None:
        with _reaching(self.folder):
            try:
                return (self.folder / name).read_bytes()
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[str]:
        with _reaching(self.folder):
            return sorted(f"{folder}/{file.name}" for file in (self.folder / folder).glob("[0-9]*"))

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        with _reaching(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.new")
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            for folder in (path.parent, path.parent.parent):
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    @contextmanager
    def locked(self) -> Iterator[None]:
        with _reaching(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with first_in_line(self.folder):
                yield


class FsspecStore:
    """A file system of fsspec (``s3://``, ``gs://``, ``abfs://``, ``memory://`` ...), which takes its credentials itself."""

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]
        except ModuleNotFoundError:
            raise _missing("fsspec is not installed.", url) from None
        try:
            self._files, self._folder = url_to_fs(url)
        except ImportError as error:
            raise _missing(f"The file system's package is not installed ({error}).", url) from None
        except ValueError as error:
            raise ConfigurationError(
                f"No file system is known for this URL ({type(error).__name__}).",
                place=f"settings: checkpoint_exports: {url}",
                remedy="Write a folder, sqlite:///<file>, postgresql://..., or a URL that fsspec knows.",
            ) from None

    def read(self, name: str) -> bytes | None:
        with _reaching(self._url):
            try:
                data: bytes = self._files.cat_file(f"{self._folder}/{name}")
            except FileNotFoundError:
                return None
            return data

    def names(self, folder: str) -> list[str]:
        with _reaching(self._url):
            self._files.invalidate_cache()
            try:
                files = self._files.ls(f"{self._folder}/{folder}", detail=False)
            except FileNotFoundError:
                return []
            names = (str(file).rstrip("/").rpartition("/")[2] for file in files)
            return sorted(f"{folder}/{name}" for name in names if name[:1].isdigit())

    def write(self, name: str, data: bytes) -> None:
        path = f"{self._folder}/{name}"
        with _reaching(self._url):
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            # An object store shows an object once it is whole; a file system gets the same by a rename.
            if "file" in _protocols(self._files):
                self._files.pipe_file(f"{path}.new", data)
                self._files.mv(f"{path}.new", path)
            else:
                self._files.pipe_file(path, data)

    @contextmanager
    def locked(self) -> Iterator[None]:
        # There is no lock on object stores. Two sealers write the same files, since one at a time signs in the database.
        yield


class DatabaseStore:
    """A table ``lepton_audit_export`` in another SQLite or PostgreSQL database; it is made when it is first written."""

    def __init__(self, url: str) -> None:
        from lepton_airflow.audit.database import connect

        self._url = make_url(url)
        self._table = sql.Table(
            "lepton_audit_export",
            sql.MetaData(),
            sql.Column("name", sql.String(200), primary_key=True),
            sql.Column("data", sql.LargeBinary, nullable=False),
        )
        # The same rules as for the audit database: no password in the URL, a verified server, bounded waits, typed errors.
        self._engine = connect(Settings(home=Path("/"), audit_database=url), check_schema=False)
        self._made = False

    def read(self, name: str) -> bytes | None:
        if not self._is_there():
            return None
        with self._connection() as connection:
            data = connection.scalar(sql.select(self._table.c.data).where(self._table.c.name == name))
        return None if data is None else bytes(data)

    def names(self, folder: str) -> list[str]:
        if not self._is_there():
            return []
        name = self._table.c.name
        query = sql.select(name).where(name.startswith(f"{folder}/", autoescape=True)).order_by(name)
        with self._connection() as connection:
            return [found for found in connection.scalars(query) if found[len(folder) + 1 :][:1].isdigit()]

    def write(self, name: str, data: bytes) -> None:
        with self._connection() as connection:
            self._table.create(connection, checkfirst=True)
            if (
                connection.execute(self._table.update().where(self._table.c.name == name).values(data=data)).rowcount
                == 0
            ):
                connection.execute(self._table.insert().values(name=name, data=data))

    @contextmanager
    def locked(self) -> Iterator[None]:
        # As for object stores.
        yield

    def _is_there(self) -> bool:
        if self._engine.dialect.name == "sqlite" and not Path(self._url.database or "").exists():
            return False
        if not self._made:
            with self._connection() as connection:
                self._made = sql.inspect(connection).has_table(self._table.name)
        return self._made

    @contextmanager
    def _connection(self) -> Iterator[sql.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        finally:
            # An export is used now and then: no connection waits for the next time.
            self._engine.dispose()


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)


def _missing(rule: str, url: str) -> MissingDependency:
    return MissingDependency(
        rule,
        place=f"settings: checkpoint_exports: {url}",
        remedy="Install fsspec and the package of the file system (s3fs, gcsfs, adlfs ...).",
    )


@contextmanager
def _reaching(place: Path | str) -> Iterator[None]:
    try:
        yield
    except LeptonError:
        raise
    except Exception as error:  # the errors of a cloud's client have no common base
        if isinstance(place, Path) and not isinstance(error, OSError):
            raise
        raise AuditUnavailable(
            f"The checkpoint export cannot be read or written ({type(error).__name__}).",
            place=str(place),
            remedy="Make it reachable and run `lepton audit seal`; sealed events are safe in the database meanwhile.",
        ) from None
