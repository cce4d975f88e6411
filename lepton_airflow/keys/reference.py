"""Where a keyset is, in place of the keyset: what travels to Spark's workers instead of keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lepton_airflow.keys.cipher import Cipher
from lepton_airflow.keys.identity import Identity
from lepton_airflow.keys.keyring import FileKeyring
from lepton_airflow.keys.keyset import Keyset

_Version = tuple[int, int, int]
_opened: dict[KeysetReference, tuple[tuple[_Version, _Version], Keyset]] = {}


@dataclass(frozen=True)
class KeysetReference:
    """Strings only, so it can be pickled, shown and logged. Each process opens it with an identity of its own.

    :param keyring: the folder of the file keyring
    :param identity_file: the private identity's file, on the machine where the reference is opened
    """

    keyring: str
    name: str
    cipher: Cipher
    identity_file: str

    def open(self) -> Keyset:
        """Open the keyset, once in a process for each version of its file and of the identity's.

        :raises KeyUnavailable: no such keyset or identity, or the keyset is not sealed to it
        :raises UnsafeFile: others have rights on one of the files
        :raises ConfigurationError: one of the files was changed
        """
        keyring, identity_file = FileKeyring(Path(self.keyring)), Path(self.identity_file)
        version = (_version(keyring.path(self.name, self.cipher)), _version(identity_file))
        known = _opened.get(self)
        if known and known[0] == version:
            return known[1]
        _opened.pop(self, None)
        keyset = keyring.open(self.name, cipher=self.cipher, identity=Identity.load(identity_file))
        _opened[self] = (version, keyset)
        return keyset


def _version(path: Path) -> _Version:
    """What differs between two versions of a file: each is another inode, as files are replaced and not rewritten."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_mtime_ns, status.st_mode)
