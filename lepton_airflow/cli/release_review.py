"""``lepton release approve | publish | receipt | verify``: what happens to a release after its numbers are drawn."""

from __future__ import annotations

from lepton_airflow.cli.release import app

__all__ = ["app"]
