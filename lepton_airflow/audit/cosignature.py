"""Witnesses' signatures on checkpoints: Ed25519 cosignatures of c2sp.org/tlog-cosignature, signature type 0x04.

A witness says that at a time this was the largest state of the log that it had seen, and that it extended all earlier ones. What
it signs is two lines and the checkpoint's text:

    cosignature/v1
    time <seconds since 1970>
    <text of the checkpoint>

and its signature is the time (8 bytes, big-endian) and the 64 bytes of Ed25519.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from lepton_airflow.audit import signed_note
from lepton_airflow.audit.signed_note import COSIGNATURE, KEY_ID_BYTES
from lepton_airflow.errors import AuditTampered

_TIME_BYTES = 8


class WitnessVerifier:
    """The public half of a witness's key.

    :param name: the witness's name, such as ``witness.example/w1``
    :param public_key: 32 bytes, of no other witness: a cosignature does not cover the name
    """

    def __init__(self, name: str, public_key: bytes) -> None:
        self.name = name
        self.key_id = signed_note.key_id(name, COSIGNATURE, public_key)
        self._public_bytes = public_key
        self._public_key = Ed25519PublicKey.from_public_bytes(public_key)

    @property
    def text(self) -> str:
        """The key as ``<name>+<key id>+<base64>``."""
        return signed_note.format_public(self.name, COSIGNATURE, self._public_bytes)

    @property
    def public_bytes(self) -> bytes:
        return self._public_bytes

    @classmethod
    def parse(cls, text: str, *, place: str) -> WitnessVerifier:
        """Read the text form of a public key.

        :raises ConfigurationError: it is not a witness's
        """
        remedy = (
            "It is the line, <name>+<key id>+<base64>, that `lepton audit witness keygen` printed (signature type 4)."
        )
        return cls(*signed_note.parse_public(text, COSIGNATURE, place=place, remedy=remedy))

    def time_of(self, note: str, *, place: str) -> int | None:
        """When this witness cosigned a note, in seconds since 1970; None when it did not.

        :param place: for the error: where the note was found
        :raises AuditTampered: it holds a cosignature by this key that is not valid
        """
        text, signatures = signed_note.split_note(note) or ("", [])
        for name, data in signatures:
            if name == self.name and data[:KEY_ID_BYTES] == self.key_id:
                time = int.from_bytes(data[KEY_ID_BYTES : KEY_ID_BYTES + _TIME_BYTES], "big")
                try:
                    self._public_key.verify(data[KEY_ID_BYTES + _TIME_BYTES :], _message(text, time))
                except InvalidSignature:
                    time = 0
                if not 0 < time < 2**63:
                    raise AuditTampered(
                        f"The cosignature by {self.name} is not valid.",
                        place=place,
                        remedy="Keep it, and ask the witness for what it signed.",
                    )
                return time
        return None


class Witness:
    """The private half of a witness's key; neither the sealer nor the database's owner may have it."""

    def __init__(self, name: str, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.verifier = WitnessVerifier(name, private_key.public_key().public_bytes_raw())

    def __reduce__(self) -> str:
        raise TypeError("a witness holds a private key and is never pickled")

    @classmethod
    def load(cls, path: Path) -> Witness:
        """Read a private key file.

        :raises KeyUnavailable: there is no such file
        :raises UnsafeFile: others than its owner can read it
        :raises ConfigurationError: it holds no witness's key
        """
        return cls(*signed_note.read_private(path, COSIGNATURE))

    def cosign(self, note: str, *, time: int) -> str:
        """``note`` with this witness's cosignature behind its signatures; what it says must have been checked before.

        :param time: seconds since 1970
        """
        text, _ = signed_note.split_note(note) or ("", [])
        signature = time.to_bytes(_TIME_BYTES, "big") + self._private_key.sign(_message(text, time))
        return note + signed_note.signature_line(self.verifier.name, self.verifier.key_id, signature)


def generate_witness(path: Path, *, name: str) -> str:
    """Make a witness's key: write its private half to ``path`` (mode 0600) and return the text of its public half.

    :raises TargetExists: the file is there already
    :raises ConfigurationError: an unusable name
    """
    remedy = "Keep it: whoever trusts this witness knows its key."
    return signed_note.write_private(path, name=name, algorithm=COSIGNATURE, remedy=remedy)


def _message(text: str, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n{text}".encode()
