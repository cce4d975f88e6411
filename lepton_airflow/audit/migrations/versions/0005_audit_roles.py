"""Archived ranges and stored subtree hashes of the audit log; on PostgreSQL a role that only inserts, and the sealer's."""

import sqlalchemy as sql
from alembic import op

revision = "0005_audit_roles"
down_revision = "0004_releases"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lepton_audit_node",
        sql.Column("level", sql.Integer, primary_key=True, autoincrement=False),
        sql.Column("position", sql.BigInteger, primary_key=True, autoincrement=False),
        sql.Column("hash", sql.LargeBinary, nullable=False),
    )
    op.create_table(
        "lepton_audit_archive",
        sql.Column("first", sql.BigInteger, primary_key=True, autoincrement=False),
        sql.Column("stop", sql.BigInteger, nullable=False),
        sql.Column("location", sql.Text, nullable=False),
        sql.Column("digest", sql.Text, nullable=False),
        sql.Column("event_id", sql.String(36), nullable=False),
        sql.Column("archived_at", sql.Text, nullable=False),
        sql.CheckConstraint("first < stop", name="lepton_audit_archive_range"),
    )
    # The roles and their rights are set by `lepton_airflow.audit.roles` at the end of every migration, in the same transaction:
    # so tables of later migrations get their rights too.
