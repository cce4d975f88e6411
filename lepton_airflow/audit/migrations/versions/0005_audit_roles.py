"""Stored subtree hashes of the audit log; on PostgreSQL a role that only inserts, and the sealer's."""

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
    # The roles and their rights are set by `lepton_airflow.audit.roles` at the end of every migration, in the same transaction:
    # so tables of later migrations get their rights too.
