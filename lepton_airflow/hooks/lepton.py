"""The hook behind connections of type ``lepton``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from lepton_airflow.errors import LeptonError
from lepton_airflow.settings import DATABASE_PASSWORD_VARIABLE, Settings, load_settings

if TYPE_CHECKING:
    from lepton_airflow.audit.runs import RunRecord

#: Fields of the connection's form that override the settings file. All are references; none is a secret.
SETTING_FIELDS = ("identity", "audit_database", "keyring", "policy")


class LeptonHook(BaseHook):
    """Where a Lepton deployment keeps its audit database, keyring, identity and policy.

    The connection's ``home`` is the folder that ``lepton init`` made, as the Spark driver sees it; ``identity``, ``keyring``,
    ``policy`` and ``audit_database`` override single settings, so that several connections can share one home under
    different identities. Its password is the audit database's.

    :param lepton_conn_id: a connection of type ``lepton``
    """

    conn_name_attr = "lepton_conn_id"
    default_conn_name = "lepton_default"
    conn_type = "lepton"
    hook_name = "Lepton"

    def __init__(self, lepton_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.lepton_conn_id = lepton_conn_id

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        return {
            "hidden_fields": ["host", "port", "schema", "login", "extra"],
            "relabeling": {"password": "Audit database password"},
        }

    @cached_property
    def _connection(self) -> Any:
        return self.get_connection(self.lepton_conn_id)

    @cached_property
    def settings(self) -> Settings:
        """The settings file of the connection's home, with the connection's overrides.

        :raises ConfigurationError: the settings are missing or not valid
        """
        if self._connection.password:
            os.environ[DATABASE_PASSWORD_VARIABLE] = self._connection.password
        extra = self._connection.extra_dejson
        return load_settings(extra.get("home"), {name: extra[name] for name in SETTING_FIELDS if extra.get(name)})

    @property
    def password(self) -> str | None:
        """The audit database's password; it may only travel in the environment of a local process."""
        password: str | None = self._connection.password
        return password

    def environment(self) -> dict[str, str]:
        """The environment variables by which a Spark driver finds the same settings. None is a secret."""
        extra: Mapping[str, str] = self._connection.extra_dejson
        variables = {f"LEPTON_{name.upper()}": extra[name] for name in SETTING_FIELDS if extra.get(name)}
        return {"LEPTON_HOME": str(self.settings.home), **variables}

    def result(self, run_key: str) -> RunRecord | None:
        """What a job stored under its run key; None when it stored nothing.

        :raises AuditUnavailable: the audit database cannot be reached
        """
        from lepton_airflow.audit import runs
        from lepton_airflow.audit.database import connect

        engine = connect(self.settings)
        try:
            return runs.get(engine, run_key)
        finally:
            engine.dispose()

    def test_connection(self) -> tuple[bool, str]:
        """Check the settings, the policy and the audit database (Airflow's *Test* button)."""
        from lepton_airflow.access.engine import load_policy
        from lepton_airflow.audit.database import connect

        try:
            load_policy(self.settings)
            connect(self.settings).dispose()
        except LeptonError as error:
            return False, str(error)
        return True, f"The settings in {self.settings.home}, the policy and the audit database are readable."
