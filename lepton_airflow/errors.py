"""Typed errors: each names the place, the rule that was broken and what to do next.

The text of an error may reach logs, audit events and Airflow's UI, so no error is ever given a data value or key material.
`final` says that trying again cannot help (Airflow then fails the task without a retry).
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

_WIRE_START = "<lepton-error>"
_WIRE_END = "</lepton-error>"


class LeptonError(Exception):
    """Base of every error that this package raises on purpose.

    :param rule: the rule that was broken, as a sentence
    :param place: where: a dataset, a column, a file, a field of a spec
    :param remedy: what to do next, as a sentence
    """

    final: ClassVar[bool] = True

    def __init__(self, rule: str, *, place: str, remedy: str) -> None:
        super().__init__(rule)
        self.rule = rule
        self.place = place
        self.remedy = remedy
        #: Set once the error is stored under the run key, where whoever submitted the job reads it.
        self.stored = False

    def __str__(self) -> str:
        return f"{self.place}: {self.rule} {self.remedy}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self).__name__, self.rule, self.place, self.remedy))

    @property
    def code(self) -> str:
        """The stable name under which audit events and job results report this error."""
        return type(self).__name__

    def to_dict(self) -> dict[str, str]:
        return {"code": self.code, "rule": self.rule, "place": self.place, "remedy": self.remedy}

    def to_wire(self) -> str:
        """One line that survives being quoted inside another program's stack trace (Spark's Python workers)."""
        return f"{_WIRE_START}{json.dumps(self.to_dict())}{_WIRE_END}"


class SpecError(LeptonError):
    """A job specification is not valid."""


class ConfigurationError(LeptonError):
    """Settings, a connection or a policy file are missing or contradict each other."""


class MissingDependency(LeptonError):
    """An optional part of the package is used without its libraries."""


class WrongJava(LeptonError):
    """No Java runtime, or one that this Spark version does not support."""


class MissingColumn(LeptonError):
    """A column that the spec names is not in the table."""


class UnsupportedType(LeptonError):
    """A column has a type that the operation does not support."""


class UnreadableSource(LeptonError):
    """The source does not exist, is not readable or is not in the stated format."""


class EmptyTable(LeptonError):
    """The source holds no rows, or too few for the operation."""


class InvalidData(LeptonError):
    """The data breaks a rule that the operation needs (nulls, NaN, labels out of range)."""


class TargetExists(LeptonError):
    """The target is there already and the spec does not ask to overwrite it."""


class AccessDenied(LeptonError):
    """The policy does not allow the operation."""


class KeyUnavailable(LeptonError):
    """No such keyset or key, a disabled key, or a keyset that is not sealed to this identity."""


class KeyExhausted(LeptonError):
    """The key has encrypted as many values as one key safely can."""


class KeyServiceUnavailable(LeptonError):
    """The token or key service that holds a private key cannot be reached, or fails; a retry may help."""

    final = False


class UnsafeFile(LeptonError):
    """A file with secrets is readable by others."""


class KeyExposure(LeptonError):
    """Key material would leave the process that unsealed it."""


class DecryptionFailed(LeptonError):
    """A ciphertext is not authentic under this key and associated data."""


class BudgetExhausted(LeptonError):
    """The release would cost more than the privacy budget has left."""


class BudgetError(LeptonError):
    """A privacy budget is missing or its bookkeeping forbids the step."""


class ApprovalMissing(LeptonError):
    """A release waits for an approval that it has not got."""


class RunKeyConflict(LeptonError):
    """The run key was used before with another spec."""


class AuditTampered(LeptonError):
    """The audit log does not verify."""


class AuditUnavailable(LeptonError):
    """The audit database cannot be reached or refuses to commit; nothing is done without it."""

    final = False


class EventNotSealed(LeptonError):
    """No signed checkpoint covers the event yet, so there is no proof of it; once the log is sealed there is."""

    final = False


class ReceiptInvalid(LeptonError):
    """A receipt does not prove what it says."""


class GateRefused(LeptonError):
    """The trained model does not pass the gate; the champion stays."""


class ModelTampered(LeptonError):
    """A model file is not the one that its card describes."""


class RegistryError(LeptonError):
    """The registry does not know the model, or its rules forbid the step."""


class NodeUnavailable(LeptonError):
    """A storage node cannot be reached, is full or is not prepared; a retry may help."""

    final = False


class ShardsLost(LeptonError):
    """Too few intact shards are left to read a stored dataset."""


class StorageError(LeptonError):
    """There is no such stored dataset or version, or its bookkeeping forbids the step."""


class JobFailed(LeptonError):
    """The job failed for a reason that this package does not know; a retry may help."""

    final = False


def _types() -> dict[str, type[LeptonError]]:
    return {cls.__name__: cls for cls in LeptonError.__subclasses__()}


def _rebuild(code: str, rule: str, place: str, remedy: str) -> LeptonError:
    return _types().get(code, JobFailed)(rule, place=place, remedy=remedy)


def from_dict(fields: dict[str, str]) -> LeptonError:
    """Rebuild an error from :meth:`LeptonError.to_dict`; an unknown code becomes :class:`JobFailed`."""
    return _rebuild(fields["code"], fields["rule"], fields["place"], fields["remedy"])


def from_wire(text: str) -> LeptonError | None:
    """Find an error written by :meth:`LeptonError.to_wire` in ``text``; None when there is none."""
    start = text.find(_WIRE_START)
    end = text.find(_WIRE_END, start)
    if start < 0 or end < 0:
        return None
    try:
        return from_dict(json.loads(text[start + len(_WIRE_START) : end]))
    except (ValueError, KeyError, TypeError):
        return None
