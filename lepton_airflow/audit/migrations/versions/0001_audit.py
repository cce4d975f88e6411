"""Audit leaves, signed checkpoints and the result channel."""

import sqlalchemy as sql
from alembic import op

revision = "0001_audit"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lepton_audit_leaf",
        sql.Column(
            "id",
            sql.BigInteger().with_variant(sql.Integer(), "sqlite"),
            sql.Identity(always=True),
            primary_key=True,
        ),
        sql.Column("event_id", sql.String(36), nullable=False, unique=True),
        sql.Column("payload", sql.Text, nullable=False),
        sql.Column("leaf_hash", sql.LargeBinary, nullable=False),
        sql.Column("tree_index", sql.BigInteger, nullable=True, unique=True),
        sql.CheckConstraint("length(leaf_hash) = 32", name="lepton_audit_leaf_hash_length"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "lepton_audit_leaf_unsealed",
        "lepton_audit_leaf",
        ["id"],
        sqlite_where=sql.text("tree_index IS NULL"),
        postgresql_where=sql.text("tree_index IS NULL"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Ids are drawn before transactions commit, so a smaller id can appear after a larger one. The sealer takes only
        # rows of transactions older than every one still running: none of those can gain a row any more.
        op.execute("ALTER TABLE lepton_audit_leaf ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id()")
    op.create_table(
        "lepton_audit_checkpoint",
        sql.Column("tree_size", sql.BigInteger, primary_key=True, autoincrement=False),
        sql.Column("note", sql.Text, nullable=False),
        sql.Column("frontier", sql.LargeBinary, nullable=False),
    )
    op.create_table(
        "lepton_run",
        sql.Column("run_key", sql.Text, primary_key=True),
        sql.Column("job", sql.Text, nullable=False),
        sql.Column("spec_digest", sql.Text, nullable=False),
        sql.Column("status", sql.Text, nullable=False),
        sql.Column("payload", sql.Text, nullable=False),
        sql.Column("recorded_at", sql.Text, nullable=False),
    )
