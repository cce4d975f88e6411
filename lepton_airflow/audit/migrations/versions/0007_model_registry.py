"""The registry of models, and the history of their statuses."""

import sqlalchemy as sql
from alembic import op

revision = "0007_model_registry"
down_revision = "0006_audit_archive"
branch_labels = None
depends_on = None

_row_id = sql.BigInteger().with_variant(sql.Integer(), "sqlite")
_STATUSES = "('champion', 'challenger', 'retired', 'rejected')"


def upgrade() -> None:
    op.create_table(
        "lepton_model",
        sql.Column("id", _row_id, sql.Identity(always=True), primary_key=True),
        *(
            sql.Column(name, sql.Text, nullable=False)
            for name in (
                "model",
                "sha256",
                "status",
                "run_key",
                "card_sha256",
                "dataset",
                "dataset_digest",
                "metrics",
                "registered_at",
            )
        ),
        sql.UniqueConstraint("model", "sha256", name="lepton_model_file"),
        sql.CheckConstraint(f"status IN {_STATUSES}", name="lepton_model_status"),
    )
    op.create_index(
        "lepton_model_champion",
        "lepton_model",
        ["model"],
        unique=True,
        sqlite_where=sql.text("status = 'champion'"),
        postgresql_where=sql.text("status = 'champion'"),
    )
    op.create_table(
        "lepton_model_change",
        sql.Column("id", _row_id, sql.Identity(always=True), primary_key=True),
        sql.Column("model_id", _row_id, sql.ForeignKey("lepton_model.id"), nullable=False),
        sql.Column("before", sql.Text, nullable=True),
        sql.Column("after", sql.Text, nullable=False),
        *(sql.Column(name, sql.Text, nullable=False) for name in ("reason", "run_key", "principal", "changed_at")),
        sql.CheckConstraint(f"after IN {_STATUSES}", name="lepton_model_change_after"),
    )
    op.create_index("ix_lepton_model_change_model_id", "lepton_model_change", ["model_id"])
