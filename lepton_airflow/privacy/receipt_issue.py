"""Issue receipts: find a published release's events in the audit log, prove them, and say what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sql

from lepton_airflow.audit.checkpoint import Verifier
from lepton_airflow.audit.database import reading
from lepton_airflow.audit.proofs import events_of_run, prove_events
from lepton_airflow.errors import AuditTampered, BudgetError, InvalidData, ReceiptInvalid
from lepton_airflow.privacy import records
from lepton_airflow.privacy.receipt import (
    APPROVAL,
    APPROVE,
    DRAW,
    PUBLICATION,
    RELEASE,
    SCHEMA,
    claims_of,
    mechanism_fields,
    mechanisms_digest,
    receipt_bytes,
    verify_receipt,
)
from lepton_airflow.privacy.records import DRAWN, PUBLISHED
from lepton_airflow.privacy.tables import release_table


def issue_receipt(engine: sql.Engine, run_key: str, *, verifier: Verifier) -> bytes:
    """The receipt of a published release.

    :param verifier: the sealer's public key
    :raises EventNotSealed: the log is not sealed up to the release's events yet
    :raises BudgetError: there is no such release, or it is not published
    :raises InvalidData: its events do not say all that a receipt needs
    :raises AuditTampered: the log or the ledger is not as the events say
    """
    place = f"run {run_key}"
    with reading(engine) as connection:
        release = records.find_release(connection, run_key)
        of_run = release_table.c.run_key == run_key
        mechanisms = records.mechanisms(connection, of_run, DRAWN, PUBLISHED).get(run_key, [])
    if release is None or release.state != PUBLISHED:
        raise BudgetError(
            f"The release is {'not there' if release is None else release.state}, not published.",
            place=place,
            remedy="A receipt is for a published release: `lepton release publish`, or run its job again.",
        )
    events = _events(events_of_run(engine, run_key), place)
    note, leaves = prove_events(engine, [event["event_id"] for event in events.values()], verifier=verifier)
    try:
        claims = claims_of(events)
    except ReceiptInvalid as error:
        raise InvalidData(
            f"The audit events of the release do not make a receipt: {error.rule}",
            place=place,
            remedy="Releases of older versions of this package have none.",
        ) from None
    if mechanisms_digest(mechanisms) != events[DRAW]["digests"]["mechanisms"]:
        raise AuditTampered(
            "The ledger's mechanisms are not those that the audit log names.",
            place=place,
            remedy="Keep the database as it is: somebody changed the ledger's tables.",
        )
    claims["mechanisms"] = mechanism_fields(mechanisms)
    evidence = [
        {
            "role": role,
            "index": leaves[event["event_id"]].index,
            "path": [node.hex() for node in leaves[event["event_id"]].path],
            "leaf": leaves[event["event_id"]].payload,
        }
        for role, event in events.items()
    ]
    receipt = receipt_bytes({"schema": SCHEMA, "release": claims, "evidence": {"checkpoint": note, "leaves": evidence}})
    verify_receipt(receipt, verifier=verifier)
    return receipt


def _events(events: Sequence[dict[str, Any]], place: str) -> dict[str, dict[str, Any]]:
    """Of all events of a run those that its receipt is made of, by role."""
    done = [event for event in events if event["phase"] == "success"]
    releases = [event for event in done if event["action"] == RELEASE and "step" in event["details"]]
    drawn = [event for event in releases if event["details"]["step"] == "draw"]
    published = [event for event in releases if "release" in event["digests"]]
    if not drawn or not published:
        raise InvalidData(
            f"The audit log has no event of the {'draw' if not drawn else 'publication'}.",
            place=place,
            remedy="If its process died before it could say so, run it once more; the numbers stay the same.",
        )
    # The first draw knows the source; replays of it do not read it. Of equal publications the first is sealed first.
    draw = min(drawn, key=lambda event: event["details"]["replayed"])
    latest = published[-1]["digests"]["release"]
    publication = next(event for event in [draw, *published] if event["digests"].get("release") == latest)
    approvals = [event for event in done if event["action"] == APPROVE and event["details"]["step"] == "approve"]
    if draw["details"]["approval"] == "required" and not approvals:
        raise InvalidData(
            "The audit log has no event of the approval.",
            place=place,
            remedy="If the process that recorded it died, have the same person approve once more.",
        )
    roles = {DRAW: draw}
    if draw["details"]["approval"] == "required":
        roles[APPROVAL] = approvals[0]
    if publication is not draw:
        roles[PUBLICATION] = publication
    return roles
