"""How a command stands in the audit log: between its intent and its outcome."""

from __future__ import annotations

import getpass
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lepton_airflow.errors import ConfigurationError, KeyUnavailable, LeptonError
from lepton_airflow.keys.identity import Identity
from lepton_airflow.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from lepton_airflow.audit.event import Detail
    from lepton_airflow.audit.log import AuditLog

Record = Callable[..., None]


@contextmanager
def audited(settings: Settings, action: str, *, dataset: str | None = None, **details: Detail) -> Iterator[Record]:
    """Commit the intent, let the work happen, commit the outcome; if the intent cannot be committed nothing happens.

    Yields a function that adds details (names and numbers, never keys or data values) to the outcome.

    :raises AuditUnavailable: the database cannot be reached
    """
    from lepton_airflow.audit.database import connect
    from lepton_airflow.audit.event import Event

    log = command_log(settings, connect(settings), action)
    outcome: dict[str, Detail] = dict(details)
    intent = log.append(Event(action=action, phase="intent", dataset=dataset, details=outcome))
    try:
        yield outcome.update
    except BaseException as error:
        text = str(error) if isinstance(error, LeptonError) else type(error).__name__
        failure = {**outcome, "error": type(error).__name__, "text": text}
        log.append(Event(action=action, phase="failure", dataset=dataset, intent=intent, details=failure))
        raise
    else:
        log.append(Event(action=action, phase="success", dataset=dataset, intent=intent, details=outcome))
    finally:
        log.close()


def command_log(settings: Settings, engine: Engine, action: str) -> AuditLog:
    """The audit log of one run of a command, for who runs it."""
    from lepton_airflow.audit.event import Actor
    from lepton_airflow.audit.log import AuditLog

    user = _user()
    actor = Actor(principal=_principal(settings) or user, on_behalf_of=user, host=socket.gethostname())
    return AuditLog(engine, actor=actor, run_key=f"{action.partition('.')[0]}/{uuid.uuid4()}")


def _principal(settings: Settings) -> str | None:
    """The identity that acts, proved by its private key; None when there is none yet, as in ``lepton init``."""
    try:
        return Identity.load(settings.identity_file).name
    except (KeyUnavailable, ConfigurationError):
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a user id that has no name.
        return f"uid {os.getuid()}"
