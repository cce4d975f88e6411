"""A second place for checkpoints and leaf hashes, outside the database: what a cut or rewritten log is held against.

A folder in the layout of C2SP tlog-tiles, as far as leaves go:

    checkpoint                         the latest signed checkpoint
    checkpoints/<size>                 every signed checkpoint, by tree size (20 digits)
    tile/0/<N>, tile/0/<N>.p/<W>       the hashes of 256 leaves, or of the W leaves that there were

Tiles hold 32 bytes for each event and nothing of its content. They are written before the checkpoint that covers them. An
attacker who can also write here can take the folder back to an older state, but cannot sign another one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lepton_airflow.audit.merkle import HASH_BYTES
from lepton_airflow.errors import AuditTampered, AuditUnavailable

TILE_WIDTH = 256


class Export:
    """One export folder; it is made when it is first written.

    :raises AuditUnavailable: from every method, when the folder cannot be read or written
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def latest(self) -> str | None:
        """The note of the latest checkpoint; None when there is none."""
        with self._reachable():
            data = _read(self.folder / "checkpoint")
        return None if data is None else data.decode("utf-8", errors="replace")

    def notes(self) -> Iterator[tuple[Path, str]]:
        """Every checkpoint file with its note."""
        with self._reachable():
            files = [self.folder / "checkpoint", *sorted(self.folder.glob("checkpoints/[0-9]*"))]
            for file in files:
                data = _read(file)
                if data is not None:
                    yield file, data.decode("utf-8", errors="replace")

    def leaf_hashes(self, size: int) -> bytes | None:
        """The hashes of the first ``size`` leaves, one after the other; None when some are not there.

        Nothing vouches for them but the root of a signed checkpoint: compare it.
        """
        hashes = bytearray()
        with self._reachable():
            for number in range(-(-size // TILE_WIDTH)):
                wanted = min(TILE_WIDTH, size - number * TILE_WIDTH)
                tile = _read(self._tile(number, wanted)) or _read(self._tile(number, TILE_WIDTH)) or b""
                hashes += tile[: wanted * HASH_BYTES]
        return bytes(hashes) if len(hashes) == size * HASH_BYTES else None

    def write(self, *, since: int, notes: Sequence[tuple[int, str]], leaf_hashes: Callable[[int, int], bytes]) -> None:
        """Add checkpoints that are newer than ``since``, and the tiles that they cover, durably.

        :param since: the size of the latest checkpoint here; 0 when there is none
        :param notes: tree sizes and notes, in ascending order
        :param leaf_hashes: returns the hashes of the leaves from the first position up to, not including, the second
        :raises AuditTampered: a file is there with other contents
        """
        if not notes:
            return
        size = notes[-1][0]
        with self._reachable(), self._locked():
            for number in range(since // TILE_WIDTH, -(-size // TILE_WIDTH)):
                stop = min((number + 1) * TILE_WIDTH, size)
                hashes = leaf_hashes(number * TILE_WIDTH, stop)
                _write(self._tile(number, stop - number * TILE_WIDTH), hashes)
            for tree_size, note in notes:
                _write(self.folder / "checkpoints" / f"{tree_size:020}", note.encode())
            # Another sealer may have gone further since; the latest checkpoint never goes back.
            latest = self.latest()
            if latest is None or int(latest.split("\n")[1]) < size:
                _write(self.folder / "checkpoint", notes[-1][1].encode(), replace=True)

    def _tile(self, number: int, width: int) -> Path:
        digits = f"{number:03}"
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[start : start + 3] for start in range(0, len(digits), 3)]
        path = self.folder.joinpath("tile", "0", *(f"x{group}" for group in groups[:-1]), groups[-1])
        return path if width == TILE_WIDTH else path.with_name(f"{path.name}.p") / str(width)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise AuditUnavailable(
                f"The checkpoint export cannot be read or written ({type(error).__name__}).",
                place=str(self.folder),
                remedy="Make it reachable and run `lepton audit seal`; sealed events are safe in the database meanwhile.",
            ) from None


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write a file that is either there in full or not at all, also after a power cut."""
    existing = _read(path)
    if existing == data:
        return
    if existing is not None and not replace:
        raise AuditTampered(
            "The export holds other contents for the same part of the log.",
            place=str(path),
            remedy="Keep both and run `lepton audit verify`.",
        )
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
