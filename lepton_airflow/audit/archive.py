"""Retention: old sealed events move into archives that prove themselves; nothing is purged that no archive has.

In this order, each step durable before the next one:

1. an intent event;
2. the range with its checkpoint and proofs (:mod:`lepton_airflow.audit.ranges`) is written to the place, read back from there
   and verified offline;
3. an event names the archive's digest and place, and is sealed;
4. the sealer's key signs the statement that these leaves are archived (:mod:`lepton_airflow.audit.archived`);
5. the payloads of these leaves are emptied; their hashes and places in the tree stay;
6. an outcome event.

Whatever dies at any moment, every payload is in the database or in a verified archive; archiving again goes on from there.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from lepton_airflow.audit.archived import Archived, archived_stop, read_archived
from lepton_airflow.audit.canonical import canonical_json, parse_canonical
from lepton_airflow.audit.checkpoint import Checkpoint, Signer, Verifier
from lepton_airflow.audit.database import archive_table, checkpoint_table, leaf_table, reading
from lepton_airflow.audit.event import Detail, Event
from lepton_airflow.audit.findings import Finding
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.audit.quorum import Quorum
from lepton_airflow.audit.ranges import export_range, read_events, verify_range
from lepton_airflow.audit.sealer import seal
from lepton_airflow.audit.stores import Store, open_store
from lepton_airflow.audit.writing import first_in_line
from lepton_airflow.errors import (
    AuditTampered,
    AuditUnavailable,
    InvalidData,
    LeptonError,
    TargetExists,
    UnreadableSource,
)

ACTION = "audit.archive"
#: Leaves of one archive: as many as a stored subtree, so that proofs stay short, and few enough to verify in memory.
LARGEST = 1 << 16
#: The checkpoint is written last: where it is, the archive is whole.
_FILES = ("events.parquet", "proof.json", "checkpoint")
_CHUNK = 2000
_ARCHIVER_LOCK = 0x6C6570746F6E02  # as sealer._SEALER_LOCK, for archivers


def archive(
    engine: sql.Engine,
    place: Path | str,
    *,
    log: AuditLog,
    signer: Signer,
    exports: Sequence[Path | str],
    quorum: Quorum | None = None,
    before: datetime | None = None,
    stop: int | None = None,
) -> list[Archived]:
    """Archive the oldest sealed events and empty their payloads; first finish what an earlier call did not.

    :param place: a folder, or a URL (see :mod:`lepton_airflow.audit.stores`); it gets a folder for each 65,536 leaves
    :param log: where the archiving itself is recorded
    :param quorum: witnesses, whose cosignatures go into the archive with its checkpoint
    :param before: archive up to, not including, the first event that is not older
    :param stop: archive up to, not including, this leaf; the smaller of the two counts
    :returns: the archives that were made now
    :raises InvalidData: there are no such leaves
    :raises TargetExists: the place holds an archive of these leaves that is another one
    :raises AuditTampered: the log or an archive does not verify; nothing is emptied then
    :raises AuditUnavailable: the database or the place cannot be reached
    """
    if not str(place).isprintable():
        raise InvalidData("The place of an archive is one line of text.", place="archive", remedy="Choose another.")
    with _alone(engine):
        return _archive(
            engine, str(place), log=log, signer=signer, exports=exports, quorum=quorum, before=before, stop=stop
        )


def _archive(
    engine: sql.Engine,
    place: str,
    *,
    log: AuditLog,
    signer: Signer,
    exports: Sequence[Path | str],
    quorum: Quorum | None,
    before: datetime | None,
    stop: int | None,
) -> list[Archived]:
    verifier = signer.verifier
    with reading(engine) as connection:
        known = read_archived(connection, verifier)
        sealed = _sealed(connection, verifier)
        if stop is not None and not 0 < stop <= sealed:
            raise InvalidData(
                f"There are no such leaves: the log has {sealed} sealed ones.",
                place=f"leaf {stop - 1}",
                remedy="Choose one of those.",
            )
        first = archived_stop(known)
        last = sealed if stop is None else stop
        if before is not None:
            last = _first_not_before(connection, before, first, last)
    for archived in known:
        _empty(engine, archived, verifier)
    made = []
    while first < last:
        end = min(last, (first // LARGEST + 1) * LARGEST)
        made.append(_archive_range(engine, place, first, end, log=log, signer=signer, exports=exports, quorum=quorum))
        first = end
    return made


def check_archive(
    connection: sql.Connection, archived: Archived, *, verifier: Verifier, places: Sequence[Path | str]
) -> tuple[str | None, list[Finding]]:
    """Hold an archive against its statement, its proofs and the hashes in the database.

    :param places: where it is looked for, besides the place that it was written to
    :returns: where it was found, None if nowhere; and what is wrong with it
    :raises AuditUnavailable: a place of ``places`` cannot be reached
    """
    where = f"archive of {archived.leaves}"
    for place in (*places, archived.place):
        try:
            with _fetched(open_store(place), archived.name) as folder:
                if folder is None:
                    continue
                position = f"{place}/{archived.name}"
                if _digest(folder) != archived.digest:
                    text = f"{position}: its files are not those whose digest was signed."
                    return str(place), [Finding("archive", where, text)]
                report = verify_range(folder, verifier=verifier)
                found = [
                    Finding("archive", where, f"{position}: {one.kind}, {one.position}") for one in report.findings
                ]
                if not found and not _same_leaves(connection, folder, archived.first, archived.stop):
                    found = [
                        Finding("archive", where, f"{position}: the database has other hashes or event ids there.")
                    ]
                return str(place), found
        except UnreadableSource as error:
            return str(place), [Finding("archive", where, f"{error.place}: {error.rule}")]
        except LeptonError:
            if place in places:
                raise
    return None, []


def _archive_range(
    engine: sql.Engine,
    place: str,
    first: int,
    stop: int,
    *,
    log: AuditLog,
    signer: Signer,
    exports: Sequence[Path | str],
    quorum: Quorum | None,
) -> Archived:
    details: dict[str, Detail] = {"first_leaf": first, "last_leaf": stop - 1, "place": place}
    counts = {"events": stop - first}
    intent = log.append(Event(action=ACTION, phase="intent", counts=counts, details=details))
    try:
        cosigned = quorum.cosigned() if quorum else []
        digest = _write(engine, place, first, stop, verifier=signer.verifier, cosigned=cosigned)
        digests = {"archive": f"sha256:{digest}"}
        announced = Event(action=ACTION, phase="note", intent=intent, counts=counts, digests=digests, details=details)
        archived = Archived(
            origin=signer.name, first=first, stop=stop, digest=digest, event_id=log.append(announced), place=place
        )
        seal(engine, signer=signer, exports=exports, quorum=quorum)
        _state(engine, archived, signer)
        _empty(engine, archived, signer.verifier)
    except BaseException as error:
        failure = {**details, "error": type(error).__name__}
        log.append(Event(action=ACTION, phase="failure", intent=intent, counts=counts, details=failure))
        raise
    outcome = Event(action=ACTION, phase="success", intent=intent, counts=counts, digests=digests, details=details)
    log.append(outcome)
    return archived


def _write(
    engine: sql.Engine,
    place: str,
    first: int,
    stop: int,
    *,
    verifier: Verifier,
    cosigned: Sequence[tuple[str, str]],
) -> str:
    """Write the archive unless it is there already, read it back and verify it; its digest.

    :raises TargetExists: another archive is there
    """
    store = open_store(place)
    name = Archived(origin="", first=first, stop=stop, digest="", event_id="", place="").name
    there = store.read(f"{name}/checkpoint") is not None
    written = None
    if not there:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            export_range(engine, folder, verifier=verifier, first=first, stop=stop, cosigned=cosigned)
            written = _digest(folder)
            for file in _FILES:
                store.write(f"{name}/{file}", (folder / file).read_bytes())
    with _fetched(store, name) as folder_there, reading(engine) as connection:
        if folder_there is None:
            raise AuditUnavailable(
                "What was written there cannot be read back.", place=f"{place}/{name}", remedy="Nothing was removed."
            )
        digest = _digest(folder_there)
        good = written in (None, digest)
        try:
            good = good and verify_range(folder_there, verifier=verifier).ok
            good = good and _same_leaves(connection, folder_there, first, stop)
        except UnreadableSource:
            good = False
    if good:
        return digest
    if there:
        raise TargetExists(
            "There is another archive of these leaves, or a damaged one.",
            place=f"{place}/{name}",
            remedy="Choose another place; nothing was removed.",
        )
    raise AuditTampered(
        "What was written there does not verify.", place=f"{place}/{name}", remedy="Nothing was removed."
    )


def _state(engine: sql.Engine, archived: Archived, signer: Signer) -> None:
    row = {"first": archived.first, "stop": archived.stop, "note": archived.sign(signer)}
    try:
        with engine.begin() as connection:
            connection.execute(archive_table.insert().values(row))
    except IntegrityError:
        raise TargetExists(
            "Another process has archived these leaves.",
            place=f"archive of {archived.leaves}",
            remedy="Nothing was removed; archive again.",
        ) from None


def _empty(engine: sql.Engine, archived: Archived, verifier: Verifier) -> None:
    """Empty the payloads of archived leaves that still have theirs, if the archive is there and good."""
    columns = leaf_table.c
    inside = sql.and_(columns.tree_index >= archived.first, columns.tree_index < archived.stop, columns.payload != "")
    with reading(engine) as connection:
        if connection.scalar(sql.select(columns.id).where(inside).limit(1)) is None:
            return
        place, findings = check_archive(connection, archived, verifier=verifier, places=[archived.place])
    if place is None:
        raise AuditUnavailable(
            f"The archive of {archived.leaves} is not there, so their payloads stay.",
            place=archived.place,
            remedy="Make it reachable again and repeat.",
        )
    if findings:
        raise AuditTampered(
            findings[0].text, place=findings[0].position, remedy="Nothing was removed. Restore the archive."
        )
    for first in range(archived.first, archived.stop, _CHUNK):
        stop = min(first + _CHUNK, archived.stop)
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(sql.select(sql.func.lepton_audit_clear(first, stop)))
            else:
                chunk = sql.and_(inside, columns.tree_index >= first, columns.tree_index < stop)
                connection.execute(leaf_table.update().where(chunk).values(payload=""))


@contextmanager
def _alone(engine: sql.Engine) -> Iterator[None]:
    """Keep other archiving of this log out, for as long as it takes.

    :raises AuditUnavailable: after 10 seconds of waiting
    """
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sql.select(sql.func.pg_advisory_lock(_ARCHIVER_LOCK)))
            try:
                yield
            finally:
                connection.execute(sql.select(sql.func.pg_advisory_unlock(_ARCHIVER_LOCK)))
        return
    with first_in_line(Path(f"{engine.url.database}-archive")):
        yield


@contextmanager
def _fetched(store: Store, name: str) -> Iterator[Path | None]:
    """A local copy of an archive's files; None when it is not there in full."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for file in _FILES:
            data = store.read(f"{name}/{file}")
            if data is None:
                yield None
                return
            (folder / file).write_bytes(data)
        yield folder


def _digest(folder: Path) -> str:
    files = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in _FILES}
    return hashlib.sha256(canonical_json(files)).hexdigest()


def _same_leaves(connection: sql.Connection, folder: Path, first: int, stop: int) -> bool:
    """Whether the archive has the leaves that the database has at this place, all of them and no other."""
    columns = leaf_table.c
    query = (
        sql.select(columns.tree_index, columns.event_id, columns.leaf_hash)
        .where(columns.tree_index >= first, columns.tree_index < stop)
        .order_by(columns.tree_index)
    )
    stored = [(row.tree_index, row.event_id, bytes(row.leaf_hash)) for row in connection.execute(query)]
    there = [(leaf.tree_index, leaf.event_id, leaf.actual_hash) for leaf in read_events(folder / "events.parquet")]
    return stored == there and len(stored) == stop - first


def _sealed(connection: sql.Connection, verifier: Verifier) -> int:
    columns = checkpoint_table.c
    note = connection.scalar(sql.select(columns.note).order_by(columns.tree_size.desc()).limit(1))
    return 0 if note is None else Checkpoint.verify(note, verifier, place="latest checkpoint").tree_size


def _first_not_before(connection: sql.Connection, moment: datetime, first: int, stop: int) -> int:
    """The first leaf from ``first`` on whose event is not older than ``moment``, or that is no event; at most ``stop``."""
    columns = leaf_table.c
    query = (
        sql.select(columns.tree_index, columns.payload)
        .where(columns.tree_index >= first, columns.tree_index < stop)
        .order_by(columns.tree_index)
    )
    for row in connection.execution_options(yield_per=_CHUNK).execute(query):
        try:
            older = datetime.fromisoformat(parse_canonical(row.payload.encode())["time"]) < moment
        except (InvalidData, KeyError, TypeError, ValueError):
            older = False
        if not older:
            return int(row.tree_index)
    return stop
