"""Which leaves have their payloads in archives; on PostgreSQL the only way to clear payloads without owning the table."""

import sqlalchemy as sql
from alembic import op

revision = "0006_audit_archive"
down_revision = "0005_audit_roles"
branch_labels = None
depends_on = None

# It runs with its owner's rights, so its search path is fixed: nobody can put another table or operator before ours.
CLEAR = """
CREATE FUNCTION lepton_audit_clear(lowest bigint, highest bigint) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
  WITH cleared AS (
    UPDATE lepton_audit_leaf AS leaf SET payload = ''
    WHERE leaf.tree_index >= lowest AND leaf.tree_index < highest AND leaf.payload <> '' AND EXISTS (
      SELECT FROM lepton_audit_archive AS archive
      WHERE archive.first <= leaf.tree_index AND leaf.tree_index < archive.stop
    )
    RETURNING 1
  )
  SELECT count(*) FROM cleared
$$
"""


def upgrade() -> None:
    op.create_table(
        "lepton_audit_archive",
        sql.Column("first", sql.BigInteger, primary_key=True, autoincrement=False),
        sql.Column("stop", sql.BigInteger, nullable=False, unique=True),
        sql.Column("note", sql.Text, nullable=False),
        sql.CheckConstraint("first >= 0 AND first < stop", name="lepton_audit_archive_range"),
    )
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        quote = connection.dialect.identifier_preparer.quote
        schema = quote(str(connection.scalar(sql.text("SELECT current_schema()"))))
        op.execute(CLEAR.format(schema=schema))
        op.execute("REVOKE ALL ON FUNCTION lepton_audit_clear(bigint, bigint) FROM PUBLIC")
