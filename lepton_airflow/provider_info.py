"""What Airflow's providers manager asks a provider."""

from __future__ import annotations

from typing import Any

from lepton_airflow import __version__


def get_provider_info() -> dict[str, Any]:
    """Describe the provider: its operators, its sensors, its hook and the form of its connection type."""
    optional_text = {"type": ["string", "null"]}
    return {
        "package-name": "lepton-airflow",
        "name": "Lepton",
        "description": "The privacy boundary for Airflow and Spark pipelines.",
        "versions": [__version__],
        "integrations": [{"integration-name": "Lepton", "tags": ["software"]}],
        "operators": [
            {
                "integration-name": "Lepton",
                "python-modules": [
                    "lepton_airflow.operators.encrypt",
                    "lepton_airflow.operators.decrypt",
                    "lepton_airflow.operators.rotate",
                    "lepton_airflow.operators.release",
                    "lepton_airflow.operators.publish",
                    "lepton_airflow.operators.retrain",
                    "lepton_airflow.operators.gate",
                    "lepton_airflow.operators.storage",
                    "lepton_airflow.operators.audit",
                ],
            }
        ],
        "sensors": [
            {
                "integration-name": "Lepton",
                "python-modules": ["lepton_airflow.sensors.budget", "lepton_airflow.sensors.score"],
            }
        ],
        "hooks": [{"integration-name": "Lepton", "python-modules": ["lepton_airflow.hooks.lepton"]}],
        "connection-types": [
            {
                "connection-type": "lepton",
                "hook-class-name": "lepton_airflow.hooks.lepton.LeptonHook",
                "hook-name": "Lepton",
                "ui-field-behaviour": {
                    "hidden-fields": ["host", "port", "schema", "login", "extra"],
                    "relabeling": {"password": "Audit database password"},
                },
                "conn-fields": {
                    "home": {
                        "label": "Home",
                        "description": "The folder that `lepton init` made, as the Spark driver sees it",
                        "schema": {"type": "string"},
                    },
                    "identity": {
                        "label": "Identity",
                        "description": "The identity under which jobs are authorised and unseal keys; never the key itself",
                        "schema": optional_text,
                    },
                    "audit_database": {
                        "label": "Audit database",
                        "description": "SQLAlchemy URL without a password; default: that of the home",
                        "schema": optional_text,
                    },
                    "keyring": {
                        "label": "Keyring",
                        "description": "Folder of sealed keysets; default: that of the home",
                        "schema": optional_text,
                    },
                    "policy": {
                        "label": "Policy",
                        "description": "The access policy; default: that of the home",
                        "schema": optional_text,
                    },
                },
            }
        ],
    }
