"""The catalogue of stored datasets."""

import sqlalchemy as sql
from alembic import op

revision = "0009_stored_datasets"
down_revision = "0008_seal_horizon"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lepton_stored_dataset",
        sql.Column(
            "id", sql.BigInteger().with_variant(sql.Integer(), "sqlite"), sql.Identity(always=True), primary_key=True
        ),
        sql.Column("dataset", sql.Text, nullable=False),
        sql.Column("version", sql.Text, nullable=False, unique=True),
        sql.Column("status", sql.Text, nullable=False),
        sql.Column("run_key", sql.Text, nullable=False),
        sql.Column("spec_digest", sql.Text, nullable=False),
        sql.Column("begun_at", sql.Text, nullable=False),
        sql.Column("nodes", sql.Text, nullable=False),
        sql.Column("position", sql.BigInteger, nullable=True, unique=True),
        sql.Column("manifest", sql.Text, nullable=True),
        sql.Column("summary", sql.Text, nullable=True),
        sql.CheckConstraint(
            "status IN ('writing', 'stored', 'removed', 'purged')", name="lepton_stored_dataset_status"
        ),
        sql.CheckConstraint(
            "status <> 'stored' OR (manifest IS NOT NULL AND position IS NOT NULL)",
            name="lepton_stored_dataset_manifest",
        ),
    )
    op.create_index("ix_lepton_stored_dataset_dataset", "lepton_stored_dataset", ["dataset"])
    op.create_index("ix_lepton_stored_dataset_run_key", "lepton_stored_dataset", ["run_key"])
