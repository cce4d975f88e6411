"""Privacy budgets, releases and the mechanisms that they ran."""

import sqlalchemy as sql
from alembic import op

revision = "0002_privacy_ledger"
down_revision = "0001_audit"
branch_labels = None
depends_on = None


def upgrade() -> None:
    row_id = sql.BigInteger().with_variant(sql.Integer(), "sqlite")
    op.create_table(
        "lepton_budget",
        sql.Column("id", row_id, sql.Identity(always=True), primary_key=True),
        sql.Column("dataset", sql.Text, nullable=False),
        sql.Column("unit", sql.Text, nullable=False),
        sql.Column("epsilon", sql.Text, nullable=False),
        sql.Column("delta", sql.Text, nullable=False),
        sql.Column("owner", sql.Text, nullable=False),
        sql.Column("created_at", sql.Text, nullable=False),
        sql.UniqueConstraint("dataset", "unit", name="lepton_budget_dataset_unit"),
    )
    op.create_table(
        "lepton_release",
        sql.Column("run_key", sql.Text, primary_key=True),
        sql.Column("budget_id", row_id, sql.ForeignKey("lepton_budget.id"), nullable=False),
        sql.Column("spec_digest", sql.Text, nullable=False),
        sql.Column("state", sql.Text, nullable=False),
        sql.Column("epsilon", sql.Text, nullable=False),
        sql.Column("delta", sql.Text, nullable=False),
        sql.Column("principal", sql.Text, nullable=False),
        sql.Column("reserved_at", sql.Text, nullable=False),
        sql.Column("drawn_at", sql.Text, nullable=True),
        sql.Column("published_at", sql.Text, nullable=True),
        sql.Column("result", sql.Text, nullable=True),
        sql.CheckConstraint("state IN ('reserved', 'drawn', 'published', 'released')", name="lepton_release_state"),
        sql.CheckConstraint(
            "(state IN ('drawn', 'published')) = (result IS NOT NULL)", name="lepton_release_result_is_drawn"
        ),
    )
    op.create_index("ix_lepton_release_budget_id", "lepton_release", ["budget_id"])
    op.create_table(
        "lepton_mechanism",
        sql.Column("run_key", sql.Text, sql.ForeignKey("lepton_release.run_key"), primary_key=True),
        sql.Column("query", sql.Text, primary_key=True),
        sql.Column("mechanism", sql.Text, nullable=False),
        sql.Column("sensitivity", sql.Text, nullable=False),
        sql.Column("scale", sql.Text, nullable=False),
        sql.Column("epsilon", sql.Text, nullable=False),
    )
