"""Releases with their spec, approval and period; mechanisms with all that zCDP and PLD accounting needs."""

from typing import Any

import sqlalchemy as sql
from alembic import op

revision = "0004_releases"
down_revision = "0003_key_usage"
branch_labels = None
depends_on = None

APPROVED = "state <> 'published' OR NOT needs_approval OR approver IS NOT NULL"
APPROVER_IS_ANOTHER = (
    "approver IS NULL OR (approver <> principal AND (requested_by IS NULL OR approver <> requested_by))"
)


def upgrade() -> None:
    # The mechanisms of a reservation were not stored so far, so nobody could add it up any more. Nothing was drawn on it: its
    # run reserves again, and a job that is still at work cannot draw.
    op.execute("UPDATE lepton_release SET state = 'released' WHERE state = 'reserved'")
    op.add_column("lepton_budget", sql.Column("period", sql.Text, nullable=True))
    if op.get_bind().dialect.name == "sqlite":
        _rebuild()
    else:
        _alter()


def _alter() -> None:
    columns: list[sql.Column[Any]] = [
        *(sql.Column(name, sql.Text, nullable=True) for name in ("spec", "requested_by", "period_start")),
        sql.Column("needs_approval", sql.Boolean, nullable=False, server_default=sql.false()),
        *(sql.Column(name, sql.Text, nullable=True) for name in ("approver", "approved_at")),
    ]
    for column in columns:
        op.add_column("lepton_release", column)
    op.create_check_constraint("lepton_release_approved", "lepton_release", APPROVED)
    op.create_check_constraint("lepton_release_approver_is_another", "lepton_release", APPROVER_IS_ANOTHER)
    op.alter_column("lepton_mechanism", "sensitivity", new_column_name="per_group")
    for name, value in (("groups", "1"), ("width", "1"), ("rho", "0"), ("delta", "0")):
        op.add_column("lepton_mechanism", sql.Column(name, sql.Text, nullable=False, server_default=value))
        op.alter_column("lepton_mechanism", name, server_default=None)


def _rebuild() -> None:
    """SQLite cannot add a constraint to a table, so both tables are made anew and filled from the old ones."""
    # Renaming keeps the reference between the two, so neither is ever without the rows that it refers to.
    op.drop_index("ix_lepton_release_budget_id", "lepton_release")
    op.rename_table("lepton_mechanism", "lepton_mechanism_0003")
    op.rename_table("lepton_release", "lepton_release_0003")
    op.create_table(
        "lepton_release",
        sql.Column("run_key", sql.Text, primary_key=True),
        sql.Column("budget_id", sql.Integer, sql.ForeignKey("lepton_budget.id"), nullable=False),
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
        sql.CheckConstraint(APPROVED, name="lepton_release_approved"),
        sql.CheckConstraint(APPROVER_IS_ANOTHER, name="lepton_release_approver_is_another"),
    )
    op.create_index("ix_lepton_release_budget_id", "lepton_release", ["budget_id"])
    op.create_table(
        "lepton_mechanism",
        sql.Column("run_key", sql.Text, sql.ForeignKey("lepton_release.run_key"), primary_key=True),
        sql.Column("query", sql.Text, primary_key=True),
        *(
            sql.Column(name, sql.Text, nullable=False)
            for name in ("mechanism", "groups", "per_group", "width", "scale", "epsilon", "rho", "delta")
        ),
    )
    kept = (
        "run_key, budget_id, spec_digest, state, epsilon, delta, principal, reserved_at, drawn_at, published_at, result"
    )
    op.execute(f"INSERT INTO lepton_release ({kept}) SELECT {kept} FROM lepton_release_0003")  # noqa: S608 - constants
    op.execute(
        "INSERT INTO lepton_mechanism (run_key, query, mechanism, groups, per_group, width, scale, epsilon, rho, delta) "
        "SELECT run_key, query, mechanism, '1', sensitivity, '1', scale, epsilon, '0', '0' FROM lepton_mechanism_0003"
    )
    op.drop_table("lepton_mechanism_0003")
    op.drop_table("lepton_release_0003")
