"""Other places for checkpoints and leaf hashes, outside the database: what a cut or rewritten log is held against.

Files in the layout of C2SP tlog-tiles, as far as leaves go:

    checkpoint                         the latest signed checkpoint
    checkpoints/<size>                 every signed checkpoint, by tree size (20 digits)
    tile/0/<N>, tile/0/<N>.p/<W>       the hashes of 256 leaves, or of the W leaves that there were
    cosigned/<size>-<key id>           a checkpoint with the cosignature of a witness

Tiles hold 32 bytes for each event and nothing of its content. They are written before the checkpoint that covers them. An
attacker who can also write here can take the folder back to an older state, but cannot sign another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lepton_airflow.audit.merkle import HASH_BYTES
from lepton_airflow.audit.stores import open_store
from lepton_airflow.errors import AuditTampered

TILE_WIDTH = 256


class Export:
    """One export; it is made when it is first written.

    :param place: a folder, or a URL (see :mod:`lepton_airflow.audit.stores`)
    :raises AuditUnavailable: from every method, when the place cannot be read or written
    """

    def __init__(self, place: Path | str) -> None:
        self.place = place
        self._store = open_store(place)

    def latest(self) -> str | None:
        """The note of the latest checkpoint; None when there is none."""
        data = self._store.read("checkpoint")
        return None if data is None else data.decode("utf-8", errors="replace")

    def notes(self) -> Iterator[tuple[str, str]]:
        """Every checkpoint's place with its note."""
        for name in ("checkpoint", *self._store.names("checkpoints")):
            data = self._store.read(name)
            if data is not None:
                yield f"{self.place}/{name}", data.decode("utf-8", errors="replace")

    def leaf_hashes(self, size: int, *, start: int = 0) -> bytes | None:
        """The hashes of the leaves from ``start`` up to, not including, ``size``, in one string; None when some are missing.

        Nothing vouches for them but the root of a signed checkpoint: compare it.
        """
        hashes = bytearray()
        for number in range(start // TILE_WIDTH, -(-size // TILE_WIDTH)):
            wanted = min(TILE_WIDTH, size - number * TILE_WIDTH)
            tile = self._store.read(_tile(number, wanted)) or self._store.read(_tile(number, TILE_WIDTH)) or b""
            if len(tile) < wanted * HASH_BYTES:
                return None
            hashes += tile[: wanted * HASH_BYTES]
        return bytes(hashes[start % TILE_WIDTH * HASH_BYTES :]) if size > start else b""

    def cosigned(self) -> Iterator[tuple[str, str]]:
        """Every cosigned checkpoint's place with its note."""
        for name in self._store.names("cosigned"):
            data = self._store.read(name)
            if data is not None:
                yield f"{self.place}/{name}", data.decode("utf-8", errors="replace")

    def write_cosigned(self, note: str, *, size: int, key_id: bytes) -> None:
        """Add a checkpoint with a witness's cosignature; a later one of the same checkpoint replaces it."""
        self._store.write(f"cosigned/{size:020}-{key_id.hex()}", note.encode())

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
        with self._store.locked():
            for number in range(since // TILE_WIDTH, -(-size // TILE_WIDTH)):
                stop = min((number + 1) * TILE_WIDTH, size)
                hashes = leaf_hashes(number * TILE_WIDTH, stop)
                self._add(_tile(number, stop - number * TILE_WIDTH), hashes)
            for tree_size, note in notes:
                self._add(f"checkpoints/{tree_size:020}", note.encode())
            # Another sealer may have gone further since; the latest checkpoint never goes back.
            latest = self.latest()
            if latest is None or int(latest.split("\n")[1]) < size:
                self._store.write("checkpoint", notes[-1][1].encode())

    def _add(self, name: str, data: bytes) -> None:
        """Write a file that is either not there yet or the same."""
        existing = self._store.read(name)
        if existing is None:
            self._store.write(name, data)
        elif existing != data:
            raise AuditTampered(
                "The export holds other contents for the same part of the log.",
                place=f"{self.place}/{name}",
                remedy="Keep both and run `lepton audit verify`.",
            )


def _tile(number: int, width: int) -> str:
    digits = f"{number:03}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[start : start + 3] for start in range(0, len(digits), 3)]
    path = "/".join(("tile/0", *(f"x{group}" for group in groups[:-1]), groups[-1]))
    return path if width == TILE_WIDTH else f"{path}.p/{width}"
