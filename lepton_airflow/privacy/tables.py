"""The ledger's tables, in the audit database. Amounts are exact text (see :mod:`lepton_airflow.privacy.amount`), never floats."""

from __future__ import annotations

import sqlalchemy as sql

from lepton_airflow.audit.database import metadata, row_id

#: One privacy budget for each dataset and privacy unit; with a ``period`` it is one for each calendar period.
budget_table = sql.Table(
    "lepton_budget",
    metadata,
    sql.Column("id", row_id, sql.Identity(always=True), primary_key=True),
    sql.Column("dataset", sql.Text, nullable=False),
    sql.Column("unit", sql.Text, nullable=False),
    sql.Column("epsilon", sql.Text, nullable=False),
    sql.Column("delta", sql.Text, nullable=False),
    sql.Column("owner", sql.Text, nullable=False),
    sql.Column("created_at", sql.Text, nullable=False),
    sql.Column("period", sql.Text, nullable=True),
    sql.UniqueConstraint("dataset", "unit", name="lepton_budget_dataset_unit"),
)

#: One row for each run key that ever asked for budget. ``result`` holds noisy numbers only; ``spec`` is canonical JSON.
release_table = sql.Table(
    "lepton_release",
    metadata,
    sql.Column("run_key", sql.Text, primary_key=True),
    sql.Column("budget_id", row_id, sql.ForeignKey("lepton_budget.id"), nullable=False, index=True),
    sql.Column("spec_digest", sql.Text, nullable=False),
    sql.Column("spec", sql.Text, nullable=True),
    sql.Column("state", sql.Text, nullable=False),
    sql.Column("epsilon", sql.Text, nullable=False),
    sql.Column("delta", sql.Text, nullable=False),
    sql.Column("principal", sql.Text, nullable=False),
    sql.Column("requested_by", sql.Text, nullable=True),
    sql.Column("period_start", sql.Text, nullable=True),
    sql.Column("needs_approval", sql.Boolean, nullable=False, server_default=sql.false()),
    sql.Column("approver", sql.Text, nullable=True),
    sql.Column("approved_at", sql.Text, nullable=True),
    sql.Column("reserved_at", sql.Text, nullable=False),
    sql.Column("drawn_at", sql.Text, nullable=True),
    sql.Column("published_at", sql.Text, nullable=True),
    sql.Column("result", sql.Text, nullable=True),
    sql.CheckConstraint("state IN ('reserved', 'drawn', 'published', 'released')", name="lepton_release_state"),
    sql.CheckConstraint(
        "(state IN ('drawn', 'published')) = (result IS NOT NULL)", name="lepton_release_result_is_drawn"
    ),
    sql.CheckConstraint(
        "state <> 'published' OR NOT needs_approval OR approver IS NOT NULL", name="lepton_release_approved"
    ),
    sql.CheckConstraint(
        "approver IS NULL OR (approver <> principal AND (requested_by IS NULL OR approver <> requested_by))",
        name="lepton_release_approver_is_another",
    ),
)

#: Every mechanism of every release, written when it is reserved; accountants add up those of reserved and drawn releases.
mechanism_table = sql.Table(
    "lepton_mechanism",
    metadata,
    sql.Column("run_key", sql.Text, sql.ForeignKey("lepton_release.run_key"), primary_key=True),
    sql.Column("query", sql.Text, primary_key=True),
    sql.Column("mechanism", sql.Text, nullable=False),
    sql.Column("groups", sql.Text, nullable=False),
    sql.Column("per_group", sql.Text, nullable=False),
    sql.Column("width", sql.Text, nullable=False),
    sql.Column("scale", sql.Text, nullable=False),
    sql.Column("epsilon", sql.Text, nullable=False),
    sql.Column("rho", sql.Text, nullable=False),
    sql.Column("delta", sql.Text, nullable=False),
)
