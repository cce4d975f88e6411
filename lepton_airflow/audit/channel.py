"""Messages between two processes over one socket, each a length and a pickle.

``multiprocessing.connection`` does the same and imports a fifth of what the second process of a verification needs to start.
"""

from __future__ import annotations

import os
import pickle
import select
import struct
from typing import Any

_LENGTH = struct.Struct("!I")


class Channel:
    """One end of a connected pair of sockets. Both ends are processes of one user that trust each other.

    Reading and writing raise EOFError if the other end has gone, OSError if the socket's own limits on waiting are over.

    :param descriptor: of the socket, closed with the channel
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def fileno(self) -> int:
        """The socket's descriptor.

        :raises OSError: the channel is closed
        """
        if self._descriptor is None:
            raise OSError("the channel is closed")
        return self._descriptor

    def send(self, message: object) -> None:
        content = pickle.dumps(message)
        rest = memoryview(_LENGTH.pack(len(content)) + content)
        while rest:
            rest = rest[os.write(self.fileno(), rest) :]

    def recv(self) -> Any:
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return pickle.loads(self._read(length))  # noqa: S301 - what this very package wrote

    def poll(self, seconds: float = 0) -> bool:
        """Whether something can be read, or the other end has gone."""
        return bool(select.select([self.fileno()], [], [], seconds)[0])

    def close(self) -> None:
        """Close the socket; a second time changes nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _read(self, size: int) -> bytes:
        read = bytearray()
        while len(read) < size:
            piece = os.read(self.fileno(), size - len(read))
            if not piece:
                raise EOFError
            read += piece
        return bytes(read)
