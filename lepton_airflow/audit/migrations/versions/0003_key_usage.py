"""How many values each AES-GCM key may have encrypted."""

import sqlalchemy as sql
from alembic import op

revision = "0003_key_usage"
down_revision = "0002_privacy_ledger"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lepton_key_usage",
        sql.Column("keyset", sql.Text, primary_key=True),
        sql.Column("key_id", sql.BigInteger, primary_key=True, autoincrement=False),
        sql.Column("reserved", sql.BigInteger, nullable=False),
        sql.CheckConstraint("reserved BETWEEN 0 AND 4294967296", name="lepton_key_usage_limit"),
    )
