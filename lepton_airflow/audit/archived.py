"""Which part of the log is in archives: the signed statements that let verification do without the payloads of old leaves.

Only the beginning of the log is archived, range after range. A statement is a note that the sealer's key signed once the
archive had been read back and verified:

    lepton.audit.archive/1
    <the log's name>
    <first leaf> <leaf behind the last>
    <sha256 of the archive's files, hex>
    <id of the event that announced it>
    <place>

The leaf hashes stay in the database. So the tree, its proofs and its checkpoints stay as they were; a payload that is gone and
that no statement covers is a deletion.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sql

from lepton_airflow.audit.checkpoint import Signer, Verifier
from lepton_airflow.audit.database import archive_table, reading
from lepton_airflow.audit.findings import leaves
from lepton_airflow.errors import AuditTampered, InvalidData

SCHEMA = "lepton.audit.archive/1"
_BODY = re.compile(
    rf"{SCHEMA}\n(?P<origin>[^\n]+)\n(?P<first>[0-9]{{1,18}}) (?P<stop>[0-9]{{1,18}})\n(?P<digest>[0-9a-f]{{64}})\n"
    r"(?P<event>[^\n]+)\n(?P<place>[^\n]+)\n"
)


@dataclass(frozen=True, kw_only=True)
class Archived:
    """The statement that an archive holds the leaves from ``first`` up to, not including, ``stop``.

    :param origin: the log's name
    :param digest: SHA-256 of the names and digests of its files, hex
    :param event_id: of the audit event that announced it
    :param place: the folder or URL under which it was written
    """

    origin: str
    first: int
    stop: int
    digest: str
    event_id: str
    place: str

    @property
    def name(self) -> str:
        """The archive's folder at its place."""
        return f"leaves-{self.first:012}-{self.stop - 1:012}"

    @property
    def leaves(self) -> str:
        return leaves(self.first, self.stop - 1)

    def sign(self, signer: Signer) -> str:
        """The statement as a signed note."""
        lines = (SCHEMA, self.origin, f"{self.first} {self.stop}", self.digest, self.event_id, self.place)
        return signer.sign("".join(f"{line}\n" for line in lines))

    @classmethod
    def verify(cls, note: str, verifier: Verifier, *, place: str) -> Archived:
        """Read a signed note.

        :param place: for the error: where it was found
        :raises AuditTampered: no valid signature by this key, or no statement about its log
        """
        match = _BODY.fullmatch(verifier.signed_text(note) or "")
        if match is None or match["origin"] != verifier.name:
            raise AuditTampered(
                f"The statement about an archive has no valid signature by {verifier.name}.",
                place=place,
                remedy="Run `lepton audit verify`.",
            )
        return cls(
            origin=match["origin"],
            first=int(match["first"]),
            stop=int(match["stop"]),
            digest=match["digest"],
            event_id=match["event"],
            place=match["place"],
        )


def read_archived(
    connection: sql.Connection, verifier: Verifier, *, refuse: Callable[[AuditTampered], None] | None = None
) -> list[Archived]:
    """The archives of the log, in its order, from its first leaf on without a gap.

    :param refuse: called with what is wrong with a statement, which then does not count, nor do those behind it
    :raises AuditTampered: a statement is not signed, or not for its place in the log, and ``refuse`` is not given
    """
    columns = archive_table.c
    found: list[Archived] = []
    for row in connection.execute(sql.select(columns.first, columns.stop, columns.note).order_by(columns.first)):
        place = f"archive of {leaves(row.first, row.stop - 1)}"
        try:
            archived = Archived.verify(row.note, verifier, place=place)
            if (archived.first, archived.stop) != (row.first, row.stop) or archived.first != archived_stop(found):
                raise AuditTampered(
                    "The statement about an archive is not of these leaves.",
                    place=place,
                    remedy="Run `lepton audit verify`.",
                )
        except AuditTampered as error:
            if refuse is None:
                raise
            refuse(error)
            break
        found.append(archived)
    return found


def archived_stop(archives: list[Archived]) -> int:
    """How many leaves at the beginning of the log are in archives."""
    return archives[-1].stop if archives else 0


def described(engine: sql.Engine) -> list[str]:
    """Which leaves are archived where, for people; that the statements are signed is not checked."""
    columns = archive_table.c
    with reading(engine) as connection:
        rows = connection.execute(sql.select(columns.first, columns.stop, columns.note).order_by(columns.first)).all()
    found = ((row, _BODY.match(row.note)) for row in rows)
    return [f"{leaves(row.first, row.stop - 1)}, archived at {match['place']}" for row, match in found if match]


def refuse_archived(connection: sql.Connection, *, index: int, place: str) -> None:
    """Say where the payload of a leaf is that the database no longer has.

    :raises InvalidData: an archive has it, as the database says; that the statement is signed is not checked here
    """
    columns = archive_table.c
    note = connection.scalar(sql.select(columns.note).where(columns.first <= index, columns.stop > index))
    if note is not None:
        match = _BODY.match(note)
        where = f" at {match['place']}" if match else ""
        raise InvalidData(
            f"The event's payload was archived{where}.",
            place=place,
            remedy="Take it from there: `lepton audit verify --offline` proves it.",
        )
