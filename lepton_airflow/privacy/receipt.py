"""Receipts: one file that proves, without the database, what a release cost, who let it out, and that the audit log says so.

A receipt (schema ``lepton.receipt/1``, see docs/receipts.md) has claims and evidence. The evidence is the canonical leaves of the
release's outcome events in the audit log, an RFC 6962 inclusion proof for each, and the signed checkpoint that they lead to.
Every claim is in those leaves, or its digest is: claims are for people, and what a receipt proves is what its leaves say.

It does not prove that the numbers were computed from the data that the leaves name, by the program that wrote them; nor that
everybody was shown the same log, which takes independent witnesses who compare checkpoints.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lepton_airflow.audit.canonical import digest, parse_canonical
from lepton_airflow.audit.checkpoint import Checkpoint, Verifier
from lepton_airflow.audit.proofs import ProvenLeaf
from lepton_airflow.audit.schema import SCHEMAS as EVENT_SCHEMAS
from lepton_airflow.errors import AuditTampered, BudgetError, InvalidData, ReceiptInvalid
from lepton_airflow.privacy.accountant import basic_composition, check_event, zcdp_epsilon
from lepton_airflow.privacy.amount import amount_text
from lepton_airflow.privacy.records import MechanismEvent

SCHEMA = "lepton.receipt/1"
#: Action of the event that lets a release be published, with the detail ``step: approve``; with ``step: show`` it was looked at.
APPROVE = "approve"
RELEASE = "release"

#: What the leaves of a receipt are for, in their order in it.
DRAW, APPROVAL, PUBLICATION = "draw", "approval", "publication"
_ROLES = ([DRAW], [DRAW, APPROVAL], [DRAW, PUBLICATION], [DRAW, APPROVAL, PUBLICATION])

_AMOUNT = re.compile(r"[0-9]{1,2000}(\.[0-9]{1,2000}|/[1-9][0-9]{0,1999})?")
#: Of the release file's own statements those that the leaves make too.
_STATED = ("dataset", "privacy_unit", "budget", "epsilon", "delta", "run_key", "spec_digest", "drawn_at")


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What a receipt proves.

    :param claims: of the receipt, all of them proved
    :param tree_size: of the log that its checkpoint signs
    :param signed_by: the name of the pinned key
    :param further_signatures: on the checkpoint, by keys that are not known here: they were not checked
    :param file_checked: the release file was there and is the one that was published
    """

    claims: Mapping[str, Any]
    tree_size: int
    signed_by: str
    further_signatures: int
    file_checked: bool


def mechanisms_digest(events: Iterable[MechanismEvent]) -> str:
    """What binds a release's outcome event to the mechanisms: ``sha256:<hex>`` of their canonical list."""
    return digest(mechanism_fields(events))


def receipt_bytes(receipt: Mapping[str, Any]) -> bytes:
    """The one form in which a receipt is written."""
    return json.dumps(receipt, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=True).encode() + b"\n"


def verify_receipt(receipt: bytes, *, verifier: Verifier, release_file: bytes | None = None) -> Verified:
    """Check everything that can be checked offline; what it proves is said in the module's text.

    :param receipt: the file's content
    :param verifier: the sealer's public key, from a place that the receipt's sender cannot change
    :param release_file: the content of the release file, if it is at hand
    :raises ReceiptInvalid: naming the place of the first thing that is wrong
    """
    parsed = _parse(receipt)
    evidence = parsed["evidence"]
    checkpoint, further = _checkpoint(evidence["checkpoint"], verifier)
    events = {
        proven["role"]: _leaf(proven, checkpoint, f"evidence.leaves[{position}]")
        for position, proven in enumerate(evidence["leaves"])
    }
    if list(events) not in _ROLES or len(events) < len(evidence["leaves"]):
        raise _invalid("They are not those of a draw, perhaps an approval, and a publication.", "evidence.leaves")
    claims = claims_of(events)
    said = parsed["release"]
    _check_equal({**claims, "mechanisms": said.get("mechanisms")}, said, "release")
    _check_mechanisms(said["mechanisms"], events, claims)
    if release_file is not None:
        _check_file(release_file, claims)
    return Verified(
        claims=said,
        tree_size=checkpoint.tree_size,
        signed_by=verifier.name,
        further_signatures=further,
        file_checked=release_file is not None,
    )


def mechanism_fields(events: Iterable[MechanismEvent]) -> list[dict[str, Any]]:
    return [
        {
            "query": event.query,
            "mechanism": event.mechanism,
            "groups": event.groups,
            "per_group": event.per_group,
            "width": event.width,
            "scale": repr(float(event.scale)),
            "epsilon": amount_text(event.epsilon),
            "rho": amount_text(event.rho),
            "delta": amount_text(event.delta),
        }
        for event in sorted(events, key=lambda event: event.query)
    ]


def claims_of(events: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the leaves say about the release; all that a receipt claims but for the mechanisms.

    :raises ReceiptInvalid: they are not of one release, or do not say enough
    """
    try:
        return _stated(events)
    except (KeyError, TypeError) as error:
        raise _invalid(f"The leaves do not say {error}.", "evidence.leaves") from None


def _stated(events: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    draw, publication = events[DRAW], events.get(PUBLICATION, events[DRAW])
    for role, event in events.items():
        place = f"evidence.leaves ({role})"
        action = APPROVE if role == APPROVAL else RELEASE
        known = event["schema"] in EVENT_SCHEMAS
        if not known or (event["action"], event["phase"]) != (action, "success"):
            raise _invalid(f"The leaf is not that of a successful {action}.", place)
        for name in ("run_key", "spec_digest", "dataset"):
            if event[name] != draw[name]:
                raise _invalid(f"The leaf is of another release: its {name} differs from the draw's.", place)
    details, spent = draw["details"], publication["details"]
    if details["step"] != "draw" or publication["digests"]["mechanisms"] != draw["digests"]["mechanisms"]:
        raise _invalid("The leaves of the draw and the publication are not of one release.", "evidence.leaves")
    for name in ("epsilon_spent", "delta_spent", "budget", "privacy_unit", "drawn_at", "approval"):
        if spent[name] != details[name]:
            raise _invalid(f"The draw and the publication differ in {name}.", "evidence.leaves (publication)")
    return {
        "run_key": draw["run_key"],
        "dataset": draw["dataset"],
        "columns": draw["columns"],
        "purpose": draw["purpose"],
        "privacy_unit": details["privacy_unit"],
        "source_digest": draw["digests"].get("source"),
        "spec_digest": draw["spec_digest"],
        "release_digest": publication["digests"]["release"],
        "cells": publication["counts"]["cells"],
        "drawn_at": details["drawn_at"],
        "principal": draw["actor"]["principal"],
        "requested_by": draw["actor"]["on_behalf_of"],
        "epsilon": details["epsilon_spent"],
        "delta": details["delta_spent"],
        "accounting": {name: details[f"accounting_{name}"] for name in ("basic", "zcdp", "pld", "charged")},
        "budget": {
            "dataset": details["budget"],
            **{name: details[f"budget_{name}"] for name in ("epsilon", "delta", "period", "period_start")},
        },
        "policy": {"digest": draw["policy_digest"], "rules": draw["rules"]},
        "approval": _approval(events, publication),
        "publication": {
            "published_at": publication["time"],
            "principal": publication["actor"]["principal"],
            "policy": {"digest": publication["policy_digest"], "rules": publication["rules"]},
        },
    }


def _approval(events: Mapping[str, Mapping[str, Any]], publication: Mapping[str, Any]) -> dict[str, Any] | None:
    draw, approval = events[DRAW], events.get(APPROVAL)
    required = draw["details"]["approval"] == "required"
    if required != (approval is not None):
        raise _invalid(
            "The draw needs an approval, and there is none." if required else "The draw needs no approval.",
            "evidence.leaves",
        )
    if approval is None:
        return None
    if approval["details"]["step"] != "approve":
        raise _invalid("The leaf does not say that the release was approved.", "evidence.leaves (approval)")
    approver = approval["details"]["approver"]
    if publication["details"]["approver"] != approver:
        raise _invalid("The publication names another approver.", "evidence.leaves (publication)")
    if is_same_person(approver, draw["actor"]["principal"], draw["actor"]["on_behalf_of"]):
        raise _invalid("The approver is the requester, or the identity that ran the job.", "evidence.leaves (approval)")
    return {
        "approver": approver,
        "known_by": approval["details"]["known_by"],
        "approved_at": approval["time"],
        "policy": {"digest": approval["policy_digest"], "rules": approval["rules"]},
    }


def is_same_person(name: str, *others: str | None) -> bool:
    """Whether a name is one of ``others``; case and surrounding spaces make no other person."""
    return name.strip().casefold() in {other.strip().casefold() for other in others if other is not None}


def _parse(data: bytes) -> Any:
    """The receipt, with its shape checked as far as the code below relies on it."""
    try:
        receipt = json.loads(data.decode())
        canonical = receipt_bytes(receipt) == data
    except (ValueError, TypeError, RecursionError):
        raise _invalid("It is not JSON.", "receipt") from None
    if not canonical:
        raise _invalid("It is not in the form in which receipts are written: somebody changed it.", "receipt")
    _check_shape(receipt, {"schema": str, "release": dict, "evidence": dict}, "receipt")
    if receipt["schema"] != SCHEMA:
        raise _invalid(f"This is not the schema {SCHEMA}.", "schema")
    _check_shape(receipt["evidence"], {"checkpoint": str, "leaves": list}, "evidence")
    for position, leaf in enumerate(receipt["evidence"]["leaves"]):
        place = f"evidence.leaves[{position}]"
        _check_shape(leaf, {"role": str, "index": int, "path": list, "leaf": str}, place)
        if any(not isinstance(node, str) or not re.fullmatch("[0-9a-f]{64}", node) for node in leaf["path"]):
            raise _invalid("The path is not a list of SHA-256 hashes in hex.", f"{place}.path")
    return receipt


def _check_shape(value: Any, fields: Mapping[str, type], place: str) -> None:
    if not isinstance(value, dict) or value.keys() != fields.keys():
        raise _invalid(f"It does not have the fields {', '.join(fields)} and no others.", place)
    for name, kind in fields.items():
        if type(value[name]) is not kind:
            raise _invalid("It has another type.", f"{place}.{name}")


def _checkpoint(note: str, verifier: Verifier) -> tuple[Checkpoint, int]:
    place = "evidence.checkpoint"
    try:
        checkpoint = Checkpoint.verify(note, verifier, place=place)
    except AuditTampered as error:
        raise _invalid(error.rule, place) from None
    signatures = note.rpartition("\n\n")[2].splitlines()
    for line in signatures:
        data = line.rpartition(" ")[2]
        try:
            # The unused bits of base64 are under no signature.
            canonical = base64.b64encode(base64.b64decode(data, validate=True)).decode() == data
        except ValueError:
            canonical = False
        if not canonical:
            raise _invalid("A signature is not in canonical base64.", place)
    return checkpoint, len(signatures) - 1


def _leaf(proven: Mapping[str, Any], checkpoint: Checkpoint, place: str) -> dict[str, Any]:
    leaf = ProvenLeaf(
        index=proven["index"], payload=proven["leaf"], path=tuple(bytes.fromhex(node) for node in proven["path"])
    )
    if not leaf.is_in(checkpoint):
        raise _invalid("The log that the checkpoint signs does not have this leaf at this index.", place)
    try:
        event = parse_canonical(leaf.payload.encode())
    except InvalidData:
        event = None
    if not isinstance(event, dict):
        raise _invalid("The leaf is not the canonical JSON of an event.", f"{place}.leaf")
    return event


def _check_equal(expected: Any, said: Any, place: str) -> None:
    """Hold a claim against the leaves, by value and type, and name the field that differs."""
    if isinstance(expected, dict) and isinstance(said, dict):
        for name in sorted({*expected, *said}):
            if name not in expected or name not in said:
                raise _invalid("The field is missing or does not belong here.", f"{place}.{name}")
            _check_equal(expected[name], said[name], f"{place}.{name}")
    elif type(expected) is not type(said) or expected != said or repr(expected) != repr(said):
        raise _invalid("The receipt says otherwise than the audit log.", place)


def _check_mechanisms(said: Any, events: Mapping[str, Mapping[str, Any]], claims: Mapping[str, Any]) -> None:
    """Recompute what the noise costs from its scales and sensitivities, and hold it against what was charged."""
    place = "release.mechanisms"
    try:
        bound = digest(said) == events[DRAW]["digests"]["mechanisms"]
    except InvalidData:
        bound = False
    if not bound:
        raise _invalid("The mechanisms are not those whose digest the audit log has.", place)
    try:
        mechanisms = [_mechanism(fields) for fields in said]
        for mechanism in mechanisms:
            check_event(mechanism, place=f"{place} ({mechanism.query})")
        epsilon, delta = _amount(claims["epsilon"]), _amount(claims["delta"])
        charged, total = claims["accounting"]["charged"], _amount(claims["budget"]["epsilon"])
        overspent = charged is not None and _amount(charged) > total
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _invalid("The mechanisms cannot be added up.", place) from None
    except BudgetError as error:
        raise _invalid(error.rule, error.place) from None
    own_delta = sum((mechanism.delta for mechanism in mechanisms), Fraction(0))
    basic = basic_composition(mechanisms)
    if basic is not None:
        holds = basic[0] <= epsilon and own_delta <= delta
    else:
        rho = sum((each.rho + each.epsilon**2 / 2 for each in mechanisms), Fraction(0))
        holds = own_delta < delta and zcdp_epsilon(rho, delta - own_delta) <= epsilon
    if not mechanisms or not holds:
        raise _invalid("The mechanisms cost more than the release was charged.", place)
    if overspent:
        raise _invalid("More was charged than the budget has.", "release.accounting.charged")


def _mechanism(fields: Mapping[str, Any]) -> MechanismEvent:
    counts = {name: fields[name] for name in ("groups", "per_group", "width")}
    scale = float(fields["scale"])
    if any(type(count) is not int for count in counts.values()) or not math.isfinite(scale):
        raise ValueError
    return MechanismEvent(
        query=fields["query"],
        mechanism=fields["mechanism"],
        **counts,
        scale=scale,
        epsilon=_amount(fields["epsilon"]),
        rho=_amount(fields["rho"]),
        delta=_amount(fields["delta"]),
    )


def _amount(text: str) -> Fraction:
    """A rational, as :func:`lepton_airflow.privacy.amount.amount_text` writes it; never one that takes long to read."""
    if not _AMOUNT.fullmatch(text):
        raise ValueError
    return Fraction(text)


def _check_file(content: bytes, claims: Mapping[str, Any]) -> None:
    place = "release file"
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != claims["release_digest"]:
        raise _invalid("It is not the file that was published: its SHA-256 is not the one in the audit log.", place)
    try:
        document = json.loads(content.decode())
        stated = {name: document[name] for name in _STATED}
        approver = document.get("approved_by")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _invalid("It is not a release document.", place) from None
    expected = {name: claims["budget"]["dataset"] if name == "budget" else claims[name] for name in _STATED}
    _check_equal(expected, stated, place)
    if approver != (claims["approval"] or {}).get("approver"):
        raise _invalid("It names another approver than the audit log.", f"{place}.approved_by")


def _invalid(rule: str, place: str) -> ReceiptInvalid:
    return ReceiptInvalid(
        rule,
        place=place,
        remedy="Do not rely on it; ask its sender for the original, made by `lepton release receipt`.",
    )
