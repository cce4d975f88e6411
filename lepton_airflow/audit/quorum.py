"""What the witnesses of a log have cosigned, and whether they are enough."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lepton_airflow.audit import signed_note
from lepton_airflow.audit.checkpoint import Checkpoint
from lepton_airflow.audit.cosignature import WitnessVerifier
from lepton_airflow.audit.export import Export
from lepton_airflow.audit.findings import Finding
from lepton_airflow.audit.tolerance import LOG_TOLERANCE
from lepton_airflow.errors import AuditTampered, ConfigurationError
from lepton_airflow.settings import SETTINGS_FILE, Settings


@dataclass(frozen=True, kw_only=True)
class Quorum:
    """Whose cosignatures count, how many are needed, and where they are.

    :param witnesses: their public keys
    :param needed: so many of them must have cosigned the latest checkpoint; 0 when it is only told
    :param places: where cosigned checkpoints are looked for
    """

    witnesses: Sequence[WitnessVerifier] = ()
    needed: int = 0
    places: Sequence[Path | str] = ()

    @classmethod
    def of(cls, settings: Settings) -> Quorum:
        """The witnesses of a deployment.

        :raises ConfigurationError: a key cannot be read or is named twice, or more are needed than there are
        """
        place = f"{settings.home / SETTINGS_FILE}: witnesses"
        witnesses = [WitnessVerifier.parse(text, place=place) for text in settings.witnesses]
        if len({witness.public_bytes for witness in witnesses}) != len(witnesses):
            raise ConfigurationError(
                "Two witnesses have one key.",
                place=place,
                remedy="A cosignature does not cover its name: use two keys.",
            )
        if settings.witness_quorum > len(witnesses):
            raise ConfigurationError(
                f"{settings.witness_quorum} witnesses are needed, {len(witnesses)} are known.",
                place=f"{settings.home / SETTINGS_FILE}: witness_quorum",
                remedy="Lower it, or name more witnesses.",
            )
        places = settings.witness_places or settings.checkpoint_exports
        return cls(witnesses=witnesses, needed=settings.witness_quorum, places=places if witnesses else ())

    def cosigned(self) -> list[tuple[str, str]]:
        """Every cosigned checkpoint: where it is, and the note.

        :raises AuditUnavailable: a place cannot be reached
        """
        return [found for place in self.places for found in Export(place).cosigned()]

    def judge(self, latest: Checkpoint, cosigned: Iterable[tuple[str, str]]) -> Judgement:
        """Count who has cosigned a checkpoint.

        :param latest: the log's latest checkpoint
        :param cosigned: signed notes, with the place of each
        """
        judgement = Judgement(latest=latest, quorum=self)
        for position, note in cosigned:
            text, _ = signed_note.split_note(note) or ("", [])
            for witness in self.witnesses:
                try:
                    moment = witness.time_of(note, place=position)
                except AuditTampered as error:
                    judgement.findings.append(Finding("witness", position, error.rule))
                    continue
                if moment is not None and moment > time.time() + LOG_TOLERANCE.total_seconds():
                    wrong = f"The time of {witness.name}'s cosignature is in the future."
                    judgement.findings.append(Finding("witness", position, wrong))
                elif moment is not None and text == latest.text:
                    judgement.names.add(witness.name)
        return judgement


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Who has cosigned the latest checkpoint.

    :param findings: cosignatures that are not valid
    """

    latest: Checkpoint
    quorum: Quorum
    names: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    @property
    def enough(self) -> bool:
        return len(self.names) >= self.quorum.needed

    @property
    def text(self) -> str:
        """Who has cosigned, and who has not, as a sentence."""
        missing = [witness.name for witness in self.quorum.witnesses if witness.name not in self.names]
        by = f" by {', '.join(sorted(self.names))}" if self.names else ""
        lacking = f"; not by {', '.join(missing)}" if missing else ""
        needed = f", of which {self.quorum.needed} are needed" if self.quorum.needed else ""
        total = f"{len(self.names)} of {len(self.quorum.witnesses)} witnesses{needed}"
        return f"The checkpoint of {self.latest.tree_size} events is cosigned{by} ({total}{lacking})."


def with_cosignatures(note: str, cosigned: Iterable[tuple[str, str]]) -> str:
    """``note`` with the cosignatures that others of the same text have behind theirs."""
    own = signed_note.split_note(note)
    if own is None:
        return note
    text, known = own
    lines = []
    for _, other in cosigned:
        other_text, signatures = signed_note.split_note(other) or ("", [])
        for name, data in signatures if other_text == text else ():
            if (name, data) not in known:
                known.append((name, data))
                key_id, rest = data[: signed_note.KEY_ID_BYTES], data[signed_note.KEY_ID_BYTES :]
                lines.append(signed_note.signature_line(name, key_id, rest))
    return note + "".join(lines)
