"""Where a seal ended, so that the next one begins there; on PostgreSQL the index that it reads."""

import sqlalchemy as sql
from alembic import op

revision = "0008_seal_horizon"
down_revision = "0007_model_registry"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("lepton_audit_checkpoint", sql.Column("horizon", sql.Text, nullable=True))
    if op.get_bind().dialect.name == "postgresql":
        # Rows that are there stay without a number.
        op.execute("ALTER TABLE lepton_audit_checkpoint ADD COLUMN xid xid8")
        op.execute("ALTER TABLE lepton_audit_checkpoint ALTER COLUMN xid SET DEFAULT pg_current_xact_id()")
        op.drop_index("lepton_audit_leaf_unsealed", "lepton_audit_leaf")
        op.create_index(
            "lepton_audit_leaf_unsealed",
            "lepton_audit_leaf",
            ["xid", "id"],
            postgresql_where=sql.text("tree_index IS NULL"),
        )
